"""Validation of events: decoding, the rules of the contract, and error messages for developers of SDKs.

The cost of an event is proportional to its length. Code that looks at each byte runs in C.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from datetime import datetime, timezone
from functools import lru_cache
from typing import cast
from uuid import UUID

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from tkserver.wire.api_errors import EVENT_TOO_LARGE, INVALID_SCHEMA, UNSUPPORTED_SCHEMA
from tkserver.wire.event import (
    MAX_EVENT_BYTES,
    NIL_UUID,
    USER_ID_PREFIXES,
    Event,
    Metadata,
    Text20,
    Time,
    is_user_id,
)


class Violation(Struct, frozen=True, gc=False):
    """A rule of the contract that an event violates, so that it is rejected permanently.

    :ivar code: ``unsupported_schema``, ``invalid_schema`` or ``event_too_large``.
    :ivar message: begins with the path of the invalid field, if there is one.
    :ivar event_id: the nil UUID if the event has no valid id.
    """

    code: str
    message: str
    event_id: UUID = NIL_UUID


_decoder = msgspec.json.Decoder(Event)


def read_event(raw: bytes | Raw, variant: bytes | Raw | None = None) -> Event | Violation:
    """Decode and validate one event.

    Violations are returned: to raise an exception for each event of a batch would cost more than everything else.

    :param raw: well-formed JSON without lone surrogates.
    :param variant: if the event contained lone surrogates, the same text with other characters in their places (see
        :mod:`tkserver.wire.surrogates`). Lone surrogates are allowed only in keys and values that are ignored.
    :raise RecursionError: if it is nested too deeply.
    """
    event = _read(raw, variant)
    return event if isinstance(event, Violation) else _storable(event, jsonb_objection(bytes(event.event.data)))


def read_event_in_steps(
    raw: bytes | Raw, variant: bytes | Raw | None = None
) -> Generator[None, None, Event | Violation]:
    """Do the same as :func:`read_event` for a long event."""
    event = _read(raw, variant)
    yield
    if isinstance(event, Violation):
        return event
    return _storable(event, (yield from _jsonb_objection_in_steps(bytes(event.event.data))))


def _read(raw: bytes | Raw, variant: bytes | Raw | None) -> Event | Violation:
    """Decode an event, and check everything except that its data can be stored."""
    if len(raw) > MAX_EVENT_BYTES:
        problem = f"the event has {len(raw)} bytes, the limit is {MAX_EVENT_BYTES}"
        return Violation(EVENT_TOO_LARGE, problem, _valid_id(_head_of(raw)))
    text = bytes(raw)
    if not_an_object := OTHER_TYPES.get(text[:1]):
        return not_an_object
    event = _decode_short(text) if len(text) <= _SHORT else _decode(text)
    if isinstance(event, Violation):
        return event
    violation = None if variant is None else _lone_surrogate(event, bytes(variant))
    violation = violation or _violation(event, text)
    return event if violation is None else replace(violation, event_id=event.event_id)


def _storable(event: Event, objection: str | None) -> Event | Violation:
    return event if objection is None else replace(_invalid("event.data", objection), event_id=event.event_id)


OTHER_TYPES = {
    bytes([start]): violation
    for starts, violation in (
        (starts, Violation(INVALID_SCHEMA, f"$: must be an object, not {name}"))
        for starts, name in (
            (b'"', "a string"),
            (b"-0123456789", "a number"),
            (b"tf", "a boolean"),
            (b"n", "null"),
            (b"[", "an array"),
        )
    )
    for start in starts
}
"""The violations of events that are not objects, by the first character."""


_SHORT = 40
"""Bytes. Shorter events are invalid, and too short for a time with a long fraction."""

_FIELDS = Event.__struct_encode_fields__
_may_have_field = re.compile(rb'"(?:%s)"|\\u00' % "|".join(_FIELDS).encode()).search
EMPTY = Violation(INVALID_SCHEMA, f"{_FIELDS[0]}: missing")
"""The violation of an object without any field of an event."""


def _decode_short(text: bytes) -> Event | Violation:
    """Decode a short event. Exceptions of the decoder would take most of the time, so avoid them if possible."""
    if not _may_have_field(text):
        return EMPTY
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        return _explain(text, str(error))


def _decode(text: bytes) -> Event | Violation:
    try:
        return _decode_truncated(text) if _may_have_long_fraction(text) else _decoder.decode(text)
    except msgspec.ValidationError as error:
        return _explain(text, str(error))


def _lone_surrogate(event: Event, variant: bytes) -> Violation | None:
    other = _decode(variant)
    # Either both variants are valid or none, because no other rule depends on characters that are not ASCII.
    path = _first_difference(event, other) if isinstance(other, Event) else "$"
    return None if path is None else _invalid(path, "contains a lone surrogate")


def _violation(event: Event, text: bytes) -> Violation | None:
    """Check the rules that types cannot express."""
    if not event.schema_version.startswith("1."):
        return _unsupported_schema(event.schema_version)
    if not _is_in_range(event.timestamp):
        return _invalid("timestamp", "out of range in UTC")
    if not _is_in_range(event.metadata.transmission_timestamp):
        return _invalid("metadata.transmission_timestamp", "out of range in UTC")
    # \u0000 is the only way to write U+0000 in JSON. Without it, the strings need not be checked.
    if b"\\" in text and rb"\u0000" in text:  # the search for one byte is much faster
        for path, value in _texts(event):
            if "\0" in value:
                return _invalid(path, "contains U+0000")
    if not is_user_id(event.user_id):
        return _invalid("user_id", _user_id_problem(event.user_id))
    return None


def _user_id_problem(user_id: str) -> str:
    if user_id.startswith(USER_ID_PREFIXES):
        return "must contain only visible ASCII characters"
    return "must begin with client_ or anon_: only anonymous ids are accepted"


def _is_in_range(time: datetime) -> bool:
    """Return true if the time in UTC is in the years 1 to 9999."""
    if time.tzinfo is not timezone.utc:
        try:
            time.astimezone(timezone.utc)
        except OverflowError:
            return False
    return True


def _texts(struct: Struct, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the value of every string in a struct and in the structs that it contains."""
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, str):
            yield prefix + name, value
        elif isinstance(value, Struct):
            yield from _texts(value, f"{prefix}{name}.")


def _first_difference(first: Struct, second: Struct, prefix: str = "") -> str | None:
    """Return the path of the first field in which two structs of the same type differ."""
    for name in first.__struct_fields__:
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, Struct):
            path = _first_difference(one, other, f"{prefix}{name}.")
            if path is not None:
                return path
        elif bytes(one) != bytes(other) if isinstance(one, Raw) else one != other:
            return prefix + name
    return None


# Searches for digits with regular expressions take ten times as long as this translation, and a search for a constant.
_WITHOUT_DIGITS = bytes.maketrans(b"0123456789E", b"0000000000e")
"""Replaces all digits by zeros."""


# --- fractions of a second beyond microseconds, which the decoder would round

_FRACTION = re.compile(rb"\.[0-9]{7}")
_FRACTION_OF_TIME = b"0:00.0000000"
_EXCESS_DIGITS = re.compile(r"(\.[0-9]{6})[0-9]+")


def _may_have_long_fraction(text: bytes) -> bool:
    """Return false if the event has no time with a fraction of more than six digits."""
    # The searches are ordered by their cost. A time can be written with escapes.
    return bool(_FRACTION.search(text) and _FRACTION_OF_TIME in text.translate(_WITHOUT_DIGITS)) or (
        b"\\" in text and rb"\u00" in text and bool(_ESCAPED_CHARACTER_OF_TIME.search(text))
    )


_ESCAPED_CHARACTER_OF_TIME = re.compile(rb"\\u00(?:2[eE]|3[0-9aA])")


def _with_raw_times(struct: type[Struct], **types: object) -> type[Struct]:
    """Return a type with the same fields, some of which have other types."""
    fields = [
        (field.name, types.get(field.name, field.type), *([] if field.required else [field.default]))
        for field in msgspec.structs.fields(struct)
    ]
    return msgspec.defstruct(f"{struct.__name__}WithRawTimes", fields)


_RawMetadata = _with_raw_times(Metadata, transmission_timestamp=Raw)
_raw_times_decoder = msgspec.json.Decoder(_with_raw_times(Event, timestamp=Raw, metadata=_RawMetadata))
_time_decoder = msgspec.json.Decoder(Time)
_string_decoder = msgspec.json.Decoder(str)


def _decode_truncated(text: bytes) -> Event:
    """Decode an event, and truncate the fractions of its times.

    :raise msgspec.ValidationError: as the decoder of events does.
    """
    fields = msgspec.structs.asdict(_raw_times_decoder.decode(text))
    metadata = msgspec.structs.asdict(fields["metadata"])
    fields["timestamp"] = _truncated_time("timestamp", fields["timestamp"])
    metadata["transmission_timestamp"] = _truncated_time(
        "metadata.transmission_timestamp", metadata["transmission_timestamp"]
    )
    return Event(**{**fields, "metadata": Metadata(**metadata)})


def _truncated_time(path: str, raw: Raw) -> datetime:
    """Decode the value of a field.

    :raise msgspec.ValidationError: as the decoder of events does.
    """
    try:
        if not bytes(raw).startswith(b'"'):
            return _time_decoder.decode(raw)
        return msgspec.convert(_EXCESS_DIGITS.sub(r"\1", _string_decoder.decode(raw), count=1), Time)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{path}`") from None


# --- the parts of an invalid event that its error depends on


class _Head(Struct, gc=False):
    event_id: Raw = Raw()
    schema_version: Raw = Raw()


_head_decoder = msgspec.json.Decoder(_Head)
_uuid_decoder = msgspec.json.Decoder(UUID)
_version_decoder = msgspec.json.Decoder(Text20)


def _head_of(raw: bytes | Raw) -> _Head:
    try:
        return _head_decoder.decode(raw)
    except msgspec.ValidationError:  # not an object
        return _Head()


# An exception takes longer than everything else, so values that cannot be valid are not decoded.
_SHORTEST_UUID = len('"00000000000000000000000000000000"')
_SHORTEST_VERSION = len('"1"')


def _valid_id(head: _Head) -> UUID:
    """Return the id of the event, or the nil UUID if it has no valid id."""
    if len(head.event_id) < _SHORTEST_UUID:
        return NIL_UUID
    try:
        return _uuid_decoder.decode(head.event_id)
    except msgspec.ValidationError:
        return NIL_UUID


def _valid_version(head: _Head) -> str | None:
    """Return the schema version of the event, or ``None`` if it has no valid version."""
    if len(head.schema_version) < _SHORTEST_VERSION or not bytes(head.schema_version).startswith(b'"'):
        return None
    try:
        return _version_decoder.decode(head.schema_version)
    except msgspec.ValidationError:
        return None


# --- error messages


def _invalid(path: str, problem: str) -> Violation:
    return Violation(INVALID_SCHEMA, f"{path}: {problem}")


def _unsupported_schema(version: str, event_id: UUID = NIL_UUID) -> Violation:
    return Violation(UNSUPPORTED_SCHEMA, f"schema_version: {version!r} is not supported, use 1.x", event_id)


def _explain(text: bytes, problem: str) -> Violation:
    """Return the violation of an event that the decoder rejects.

    :param problem: the message of the decoder.
    """
    head = _head_of(text)
    version = _valid_version(head)
    if version is not None and not version.startswith("1."):
        # Another schema can have other fields, so their errors are not reported.
        return _unsupported_schema(version, _valid_id(head))
    return Violation(INVALID_SCHEMA, _readable(problem), _valid_id(head))


_TYPE_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number with a fraction",
    "bool": "a boolean",
    "null": "null",
    "object": "an object",
    "array": "an array",
    "datetime": "an RFC 3339 date-time",
    "uuid": "a UUID",
}


def _type_name(name: str) -> str:
    """Return the readable name of a type of msgspec. Other texts are returned unchanged."""
    return _TYPE_NAMES.get(name.removesuffix(" | null"), name)


# msgspec does not document its messages. A message that does not match is used unchanged.
_MESSAGES = tuple(
    (re.compile(pattern), message)
    for pattern, message in (
        (r"Expected `.+` of length <= (\d+)", "longer than {0} characters"),
        (r"Expected `.+` of length >= 1", "empty"),
        (r"Expected `int` >= (.+)", "less than {0}"),
        (r"Expected `int` <= (.+)", "greater than {0}"),
        (r"Expected `(.+)`, got `(.+)`", "must be {0}, not {1}"),
        (r"Expected `datetime` with a timezone component", "has no UTC offset: end it with Z or +hh:mm"),
        (r"Invalid RFC3339 encoded datetime", "not an RFC 3339 date-time"),
        (r"Invalid UUID", "not a UUID"),
    )
)


_MISSING = "Object missing required field `"


@lru_cache(maxsize=1000)  # there are fewer: the messages contain nothing of the event except types
def _readable(problem: str) -> str:
    """Return a readable form of a message of the decoder, with the path first."""
    problem, _, path = problem.partition(" - at `$.")
    path = path.rstrip("`")
    if problem.startswith(_MISSING):
        name = problem[len(_MISSING) : -1]
        return f"{path}.{name}: missing" if path else f"{name}: missing"
    for pattern, message in _MESSAGES:
        if match := pattern.fullmatch(problem):
            problem = message.format(*map(_type_name, match.groups()))
            break
    return f"{path or '$'}: {problem}"


# --- values that the type jsonb does not accept, or would write much longer than they were sent

MAX_DIGITS = 400
"""Maximum number of digits before, and after, the decimal point of a number that is written without an exponent."""

_MAX_EXPONENT = 2_147_483_647 // 2
"""The limit of ``numeric_in()`` in PostgreSQL; some versions accept one more. It matters only for zero."""

_EXPONENT_LENGTH = 11
"""Characters of the largest exponent, and its sign."""

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

# A number with too many digits has an exponent of at least three digits, or at least this many digits in a row: with an
# exponent of two digits, 301 digits can become 400.
_MANY_DIGITS = 300
_LONG_DIGITS = b"0" * _MANY_DIGITS
_EXPONENT_OF_THREE_DIGITS = b"0e000"

# A number with an exponent below 350 and less than 50 digits is short.
_LARGE_EXPONENT = re.compile(rb"[eE][+-]?0*(?:3[5-9][0-9]|[4-9][0-9]{2}|[1-9][0-9]{3})")
_SOME_DIGITS = b"0" * 50
_SIGNS = b"+-"

# Numbers of less than five characters are skipped.
_STRING_OR_NUMBER = re.compile(
    rb'"[^"\\]*(?:\\.[^"\\]*)*"|(?=[0-9.eE+-]{5})([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?', re.DOTALL
)
_STEP_MATCHES = 1000


def jsonb_objection(text: bytes) -> str | None:
    """Return the reason why a value is not stored as ``jsonb``, or ``None`` if it is.

    A few fast searches are sufficient for most values. Nesting needs no check: what the decoder accepts is not nested
    too deeply for ``jsonb``.

    :param text: well-formed JSON without lone surrogates.
    """
    if rb"\u0000" not in text and not _may_have_many_digits(text):
        return None
    steps = _jsonb_objection_in_steps(text)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return cast("str | None", stop.value)


def _jsonb_objection_in_steps(text: bytes) -> Generator[None, None, str | None]:
    if rb"\u0000" in text and _NUL.search(text):
        return "contains U+0000"
    if _may_have_many_digits(text) and not (yield from _are_numbers_short(text)):
        return f"contains a number with more than {MAX_DIGITS} digits before or after the decimal point"
    return None


def _may_have_many_digits(text: bytes) -> bool:
    # The searches are ordered by their cost.
    zeros = text.translate(_WITHOUT_DIGITS, _SIGNS)
    if _EXPONENT_OF_THREE_DIGITS in zeros and (_LARGE_EXPONENT.search(text) or _SOME_DIGITS in zeros):
        return True
    return len(zeros) >= _MANY_DIGITS and _LONG_DIGITS in zeros


def _are_numbers_short(text: bytes) -> Generator[None, None, bool]:
    """Return true if ``jsonb`` writes each number with at most ``MAX_DIGITS`` on each side of the decimal point."""
    for number, match in enumerate(_STRING_OR_NUMBER.finditer(text)):
        if not number % _STEP_MATCHES:
            yield
        integral, fraction, exponent_text = match.groups(b"")
        if not integral:  # a string
            continue
        exponent = _to_exponent(exponent_text)
        # jsonb keeps zeros at the end of a fraction.
        if len(fraction) - exponent > MAX_DIGITS:
            return False
        if len(integral) + exponent > MAX_DIGITS and not _has_leading_zeros(integral, fraction, exponent):
            return False
    return True


def _to_exponent(text: bytes) -> int:
    """Return the exponent. If it is too long to be one of a short number, return any that is too large."""
    if len(text) > _EXPONENT_LENGTH:  # it can have any number of leading zeros, and Python does not convert all of them
        sign = text[:1] if text[:1] == b"-" else b""
        text = sign + (text.lstrip(b"+-0")[:_EXPONENT_LENGTH] or b"0")
    return int(text) if text else 0


def _has_leading_zeros(integral: bytes, fraction: bytes, exponent: int) -> bool:
    """Return true if a number has at most ``MAX_DIGITS`` before the decimal point because of its leading zeros."""
    if exponent >= _MAX_EXPONENT:
        return False
    significant = len((integral + fraction).lstrip(b"0"))
    return significant == 0 or significant - len(fraction) + exponent <= MAX_DIGITS
