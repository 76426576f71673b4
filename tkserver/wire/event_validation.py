"""Validation of events: decoding, the rules of the contract, and error messages for developers of SDKs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from tkserver.wire.api_errors import EVENT_TOO_LARGE, INVALID_SCHEMA, UNSUPPORTED_SCHEMA
from tkserver.wire.event import MAX_EVENT_BYTES, NIL_UUID, USER_ID_PREFIXES, Event, Text20
from tkserver.wire.scanner import Pairs, Scanner


class InvalidEvent(Exception):
    """The event violates the contract, and is rejected permanently.

    :ivar code: ``unsupported_schema``, ``invalid_schema`` or ``event_too_large``.
    :ivar message: begins with the path of the invalid field, if there is one.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


_SURROGATE = re.compile("[\ud800-\udfff]")

_event_decoder = msgspec.json.Decoder(Event)


def read_event(raw: bytes | Raw) -> Event:
    """Decode and validate one event.

    :param raw: well-formed JSON.
    :raise InvalidEvent: if the event violates a rule of the contract.
    """
    text = bytes(raw)
    if len(text) > MAX_EVENT_BYTES:
        raise InvalidEvent(EVENT_TOO_LARGE, f"the event has {len(text)} bytes, the limit is {MAX_EVENT_BYTES}")
    try:
        event = _decode(text)
    except (msgspec.DecodeError, RecursionError):
        # The JSON is well-formed, but the decoder does not support it. The cause can be an unknown key.
        text = _without_unknown_keys(text.decode(), Event).encode()
        event = _decode_or_explain(text)
    _check(event, text)
    return event


def _decode(raw: bytes | Raw) -> Event:
    try:
        return _event_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _explain(raw, error) from None


def _decode_or_explain(raw: bytes) -> Event:
    try:
        return _decode(raw)
    except msgspec.DecodeError:
        # Neither the decoder nor PostgreSQL accepts lone surrogates.
        raise _invalid(_path_of_lone_surrogate(raw), "contains a lone surrogate") from None
    except RecursionError:
        raise _invalid("event.data", f"nested deeper than {MAX_DEPTH} levels") from None


def _without_unknown_keys(text: str, struct: type[Struct]) -> str:
    """Return a JSON object without the keys that are not fields of the struct, at every level.

    :param text: any JSON. A value that is not an object is returned unchanged.
    """
    types = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    members: list[str] = []
    try:
        for key, (start, end) in Scanner(text).members():
            value = text[start:end]
            if key in types:
                field_type = types[key]
                if isinstance(field_type, type) and issubclass(field_type, Struct):
                    value = _without_unknown_keys(value, field_type)
                members.append(f'"{key}":{value}')
    except ValueError:
        return text  # not an object
    return "{" + ",".join(members) + "}"


def _check(event: Event, raw: bytes) -> None:
    """Check the rules that types cannot express."""
    if not event.schema_version.startswith("1."):
        raise _unsupported_schema(event.schema_version)
    if not event.user_id.startswith(USER_ID_PREFIXES):
        raise _invalid("user_id", "must begin with client_ or anon_: only anonymous ids are accepted")
    _check_range("timestamp", event.timestamp)
    _check_range("metadata.transmission_timestamp", event.metadata.transmission_timestamp)
    # \u0000 is the only way to write U+0000 in JSON. Without it, the strings need not be checked.
    if rb"\u0000" in raw:
        for path, text in _texts(event):
            if "\0" in text:
                raise _invalid(path, "contains U+0000")
    if objection := jsonb_objection(bytes(event.event.data)):
        raise _invalid("event.data", objection)


def _check_range(path: str, time: datetime) -> None:
    if time.tzinfo is not timezone.utc:
        try:
            time.astimezone(timezone.utc)
        except OverflowError:
            raise _invalid(path, "out of range in UTC") from None


def _texts(struct: Struct, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the value of every string in a struct and in the structs that it contains."""
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, str):
            yield prefix + name, value
        elif isinstance(value, Struct):
            yield from _texts(value, f"{prefix}{name}.")


def _path_of_lone_surrogate(raw: bytes) -> str:
    """Return the path of the field that contains a lone surrogate.

    :return: ``$`` if a key of the event itself contains it.
    """
    try:
        pending: list[tuple[tuple[str, ...], Any]] = [((), Scanner(raw.decode()).value())]
    except (RecursionError, ValueError):
        return "event.data"
    while pending:
        path, value = pending.pop()
        if isinstance(value, str) and _SURROGATE.search(value):
            return ".".join(path) or "$"
        if isinstance(value, Pairs):
            has_fields = len(path) < 2  # paths in the contract have at most two parts
            pending += [((*path, key) if has_fields else path, child) for key, child in value]
            pending += [(path, key) for key, _ in value]
        elif isinstance(value, list):
            pending += [(path, child) for child in value]
    return "$"


def event_id_of(raw: bytes | Raw) -> UUID:
    """Return the id of an event, which may be invalid otherwise.

    :return: the nil UUID if the event has no valid id.
    """

    class EventId(Struct):
        event_id: UUID

    try:
        return msgspec.json.decode(raw, type=EventId).event_id
    except msgspec.ValidationError:
        return NIL_UUID
    except (msgspec.DecodeError, RecursionError):
        return _scan_for_event_id(bytes(raw).decode())


def _scan_for_event_id(text: str) -> UUID:
    try:
        ids = [text[start:end] for key, (start, end) in Scanner(text).members() if key == "event_id"]
        return msgspec.json.decode(ids[-1], type=UUID)
    except (ValueError, IndexError, RecursionError):
        return NIL_UUID


# --- error messages


def _invalid(path: str, problem: str) -> InvalidEvent:
    return InvalidEvent(INVALID_SCHEMA, f"{path}: {problem}")


def _unsupported_schema(version: str) -> InvalidEvent:
    return InvalidEvent(UNSUPPORTED_SCHEMA, f"schema_version: {version!r} is not supported, use 1.x")


def _explain(raw: bytes | Raw, error: msgspec.ValidationError) -> InvalidEvent:
    """Return the error code of the contract, and a readable message, for an error of the decoder."""
    version = _schema_version_of(raw)
    if version is not None and not version.startswith("1."):
        # Another schema can have other fields, so their errors are not reported.
        return _unsupported_schema(version)
    problem, _, path = str(error).partition(" - at `$.")
    path = path.rstrip("`")
    missing = re.fullmatch(r"Object missing required field `(.+)`", problem)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return _invalid(path, "missing")
    return _invalid(path or "$", _readable(problem))


def _schema_version_of(raw: bytes | Raw) -> str | None:
    class SchemaVersion(Struct):
        schema_version: Text20

    try:
        return msgspec.json.decode(raw, type=SchemaVersion).schema_version
    except (msgspec.DecodeError, RecursionError):
        return None


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
_MESSAGES = (
    (r"Expected `.+` of length <= (\d+)", "longer than {0} characters"),
    (r"Expected `.+` of length >= 1", "empty"),
    (r"Expected `int` >= (.+)", "less than {0}"),
    (r"Expected `int` <= (.+)", "greater than {0}"),
    (r"Expected `(.+)`, got `(.+)`", "must be {0}, not {1}"),
    (r"Expected `datetime` with a timezone component", "has no UTC offset: end it with Z or +hh:mm"),
    (r"Invalid RFC3339 encoded datetime", "not an RFC 3339 date-time"),
    (r"Invalid UUID", "not a UUID"),
)


def _readable(problem: str) -> str:
    """Return a readable form of a message of the decoder."""
    for pattern, message in _MESSAGES:
        if match := re.fullmatch(pattern, problem):
            return message.format(*map(_type_name, match.groups()))
    return problem


# --- values that jsonb does not accept

MAX_DEPTH = 500
"""Maximum number of nested arrays and objects.

The limit of PostgreSQL depends on ``max_stack_depth``. This one is constant, and lower than the limits of PostgreSQL
and of the decoder.
"""

# Limits of numeric_in() in PostgreSQL: digits before and after the decimal point, and the exponent.
_MAX_INTEGRAL_DIGITS = 131_072
_MAX_FRACTIONAL_DIGITS = 16_383
_MAX_EXPONENT = 2_147_483_647 // 2

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_SUSPICIOUS_EXPONENT = re.compile(rb"\d[eE][+\-\d]\d{3}")
_MANY_DIGITS = 15_000
_SUSPICIOUS_DIGITS = re.compile(rb"(?<!\d)\d{%d}" % _MANY_DIGITS)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBER = re.compile(rb"-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?")
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")


def jsonb_objection(text: bytes) -> str | None:
    """Return the reason why the type ``jsonb`` does not accept a value, or ``None`` if it does.

    A few fast searches are sufficient for most values.

    :param text: well-formed JSON.
    """
    if rb"\u0000" in text and _NUL.search(text):
        return "contains U+0000"
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    many_digits = len(text) >= _MANY_DIGITS and _SUSPICIOUS_DIGITS.search(text)
    if many_digits or _SUSPICIOUS_EXPONENT.search(text):
        return _number_objection(text)
    return None


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(_STRING.sub(b"", text)):
        run = len(match[0])
        depth += run if match[0][0] in b"[{" else -run
        deepest = max(deepest, depth)
    return deepest


def _number_objection(text: bytes) -> str | None:
    for match in _NUMBER.finditer(_STRING.sub(b'""', text)):
        if not _fits_numeric(match[1], match[2] or b"", match[3] or b"0"):
            return "contains a number outside the range of PostgreSQL's numeric type"
    return None


def _fits_numeric(integral: bytes, fraction: bytes, exponent_text: bytes) -> bool:
    magnitude = exponent_text.lstrip(b"+-").lstrip(b"0") or b"0"
    if len(magnitude) > 10:
        return False
    exponent = -int(magnitude) if exponent_text.startswith(b"-") else int(magnitude)
    if abs(exponent) >= _MAX_EXPONENT or len(fraction) - exponent > _MAX_FRACTIONAL_DIGITS:
        return False
    digits = (integral + fraction).lstrip(b"0")
    leading_zeros = len(integral) + len(fraction) - len(digits)
    return not digits or len(integral) - leading_zeros + exponent <= _MAX_INTEGRAL_DIGITS
