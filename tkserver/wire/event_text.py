"""The JSON text of an invalid event, as it is kept in quarantine.

The server stores only anonymous user ids. A user id that is not anonymous is removed from the text, so that everything
that is kept can also be found and erased by its user id.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from tkserver.wire.event import MAX_EVENT_BYTES, Event, is_user_id
from tkserver.wire.surrogates import restore

MAX_USER_ID_LENGTH = 255


class KeptText(Struct, frozen=True, gc=False):
    """The text of an event without a user id that is not anonymous.

    :ivar text: UTF-8.
    :ivar user_id: the anonymous user id in the text, if there is one.
    """

    text: bytes
    user_id: str | None = None


def kept_text(text: bytes) -> KeptText | None:
    """Return the text of an event for the quarantine. Only the last of several user ids is kept.

    :param text: well-formed JSON, possibly with lone surrogates.
    :return: ``None`` if it is nested too deeply, or contains lone surrogates and is longer than any valid event.
    """
    if not text.startswith(b"{") or not may_have_user_id(text):
        return KeptText(text)
    try:
        return _anonymized(text)
    except msgspec.DecodeError:
        return _with_lone_surrogates(text) if len(text) <= MAX_EVENT_BYTES else None
    except RecursionError:
        return None


def may_have_user_id(text: bytes) -> bool:
    """Return false if a JSON text contains no user id."""
    return b"user_id" in text or rb"\u00" in text  # an escape may be a part of the key


_decoder = msgspec.json.Decoder(dict[str, Raw])

# A long event can have hundreds of thousands of keys. Only those of an event are kept, because others are ignored.
_LongEvent = msgspec.defstruct(
    "_LongEvent", [(name, Raw | UnsetType, UNSET) for name in Event.__struct_fields__], module=__name__
)
_long_event_decoder = msgspec.json.Decoder(_LongEvent)
_user_id_decoder = msgspec.json.Decoder(str)
_SHORTEST_USER_ID = len('"anon_"')


def _anonymized(text: bytes) -> KeptText:
    """
    :raise msgspec.DecodeError: if the text contains a lone surrogate.
    """
    fields = _decoder.decode(text) if len(text) <= MAX_EVENT_BYTES else _fields_of_long_event(text)
    user_id = _anonymous_id(fields.get("user_id"))
    if user_id is None:
        fields.pop("user_id", None)
    return KeptText(msgspec.json.encode(fields), user_id)


def _fields_of_long_event(text: bytes) -> dict[str, Raw]:
    fields = msgspec.structs.asdict(_long_event_decoder.decode(text))
    return {name: value for name, value in fields.items() if value is not UNSET}


def _anonymous_id(raw: Raw | None) -> str | None:
    """Return a user id if it is anonymous, otherwise ``None``."""
    # An exception would take longer than everything else.
    if raw is None or len(raw) < _SHORTEST_USER_ID or not bytes(raw).startswith(b'"'):
        return None
    try:
        user_id = _user_id_decoder.decode(raw)
    except msgspec.DecodeError:  # with a lone surrogate
        return None
    return user_id if len(user_id) <= MAX_USER_ID_LENGTH and is_user_id(user_id) else None


def _with_lone_surrogates(text: bytes) -> KeptText | None:
    """Return the text of an event that contains lone surrogates, which the decoder does not accept.

    Two variants are decoded, in which other characters replace them. The original is restored from the results.
    """
    try:
        first, second = (_anonymized(_without_surrogates(text, digit)) for digit in (b"e", b"f"))
    except (msgspec.DecodeError, RecursionError):
        return None
    # The lengths differ if a key contains a lone surrogate, and another key contains its replacement.
    is_restorable = len(first.text) == len(second.text)
    return KeptText(restore(first.text, second.text) if is_restorable else first.text, first.user_id)


def _without_surrogates(text: bytes, digit: bytes) -> bytes:
    """Replace the first digit of all escapes from ``\\ud000`` to ``\\udfff``."""
    return text.replace(rb"\ud", rb"\u" + digit).replace(rb"\uD", rb"\u" + digit.upper())
