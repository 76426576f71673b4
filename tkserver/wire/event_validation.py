"""Validation of one event: decode it, check every rule of the contract, and explain what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from tkserver.wire.event import MAX_EVENT_BYTES, NIL_UUID, USER_ID_PREFIXES, Event, Text20
from tkserver.wire.scanner import Pairs, Scanner


class InvalidEvent(Exception):
    """An event that would be refused again for ever.

    :ivar code: ``unsupported_schema``, ``invalid_schema`` or ``event_too_large``.
    :ivar message: begins with the path of the field that is wrong, where one is.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


_SURROGATE = re.compile("[\ud800-\udfff]")

_event_decoder = msgspec.json.Decoder(Event)


def read_event(raw: bytes | Raw) -> Event:
    """Decode and check one event.

    :param raw: its JSON text, known to be well-formed.
    :raise InvalidEvent: when it breaks a rule.
    """
    text = bytes(raw)
    if len(text) > MAX_EVENT_BYTES:
        raise InvalidEvent("event_too_large", f"the event has {len(text)} bytes, the limit is {MAX_EVENT_BYTES}")
    try:
        event = _decode(text)
    except (msgspec.DecodeError, RecursionError):
        # Well-formed, and still not decoded: perhaps for something that is to be ignored.
        text = _without_ignored_keys(text.decode(), Event).encode()
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
        # The decoder has no place for a lone surrogate, and nor has PostgreSQL.
        raise _invalid(_path_of_lone_surrogate(raw), "holds a lone surrogate") from None
    except RecursionError:
        raise _invalid("event.data", f"nested deeper than {MAX_DEPTH} levels") from None


def _without_ignored_keys(text: str, struct: type[Struct]) -> str:
    """The text of an object with those members only that the struct has, at every level."""
    types = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    kept: list[str] = []
    try:
        for key, (start, end) in Scanner(text).members():
            value = text[start:end]
            if key in types:
                inner = types[key]
                if isinstance(inner, type) and issubclass(inner, Struct):
                    value = _without_ignored_keys(value, inner)
                kept.append(f'"{key}":{value}')
    except ValueError:
        return text  # no object at all
    return "{" + ",".join(kept) + "}"


def _check(event: Event, raw: bytes) -> None:
    """The rules that types alone do not express."""
    if not event.schema_version.startswith("1."):
        raise _unsupported_schema(event.schema_version)
    if not event.user_id.startswith(USER_ID_PREFIXES):
        raise _invalid("user_id", "must begin with client_ or anon_: only anonymous ids are taken")
    _check_range("timestamp", event.timestamp)
    _check_range("metadata.transmission_timestamp", event.metadata.transmission_timestamp)
    # JSON has one way only to write U+0000, so that its absence spares a look at every string.
    if rb"\u0000" in raw:
        for path, text in _texts(event):
            if "\0" in text:
                raise _invalid(path, "holds U+0000")
    if objection := jsonb_objection(bytes(event.event.data)):
        raise _invalid("event.data", objection)


def _check_range(path: str, time: datetime) -> None:
    if time.tzinfo is not timezone.utc:
        try:
            time.astimezone(timezone.utc)
        except OverflowError:
            raise _invalid(path, "is out of range in UTC") from None


def _texts(struct: Struct, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a struct and those within it, with its path."""
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, str):
            yield prefix + name, value
        elif isinstance(value, Struct):
            yield from _texts(value, f"{prefix}{name}.")


def _path_of_lone_surrogate(raw: bytes) -> str:
    """Where a lone surrogate stands, as a path; ``$`` where it is in a key of the event itself."""
    try:
        pending: list[tuple[tuple[str, ...], Any]] = [((), Scanner(raw.decode()).value())]
    except (RecursionError, ValueError):
        return "event.data"
    while pending:
        path, value = pending.pop()
        if isinstance(value, str) and _SURROGATE.search(value):
            return ".".join(path) or "$"
        if isinstance(value, Pairs):
            listed = len(path) < 2  # no path of the contract has more than two parts
            pending += [((*path, key) if listed else path, inner) for key, inner in value]
            pending += [(path, key) for key, _ in value]
        elif isinstance(value, list):
            pending += [(path, inner) for inner in value]
    return "$"


def event_id_of(raw: bytes | Raw) -> UUID:
    """The id of an event that may otherwise be broken; the nil UUID where it has none that parses."""

    class Identified(Struct):
        event_id: UUID

    try:
        return msgspec.json.decode(raw, type=Identified).event_id
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


# --- what is wrong, in words


def _invalid(path: str, problem: str) -> InvalidEvent:
    return InvalidEvent("invalid_schema", f"{path}: {problem}")


def _unsupported_schema(version: str) -> InvalidEvent:
    return InvalidEvent("unsupported_schema", f"schema_version: {version!r} is not supported, only 1.x is")


def _explain(raw: bytes | Raw, error: msgspec.ValidationError) -> InvalidEvent:
    """Turn the decoder's complaint into the contract's code and a message for people."""
    version = _schema_version_of(raw)
    if version is not None and not version.startswith("1."):
        # An event of another schema may well be shaped differently: say so rather than find fault with it.
        return _unsupported_schema(version)
    problem, _, path = str(error).partition(" - at `$.")
    path = path.rstrip("`")
    missing = re.fullmatch(r"Object missing required field `(.+)`", problem)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return _invalid(path, "missing")
    return _invalid(path or "$", _in_words(problem))


def _schema_version_of(raw: bytes | Raw) -> str | None:
    class Versioned(Struct):
        schema_version: Text20

    try:
        return msgspec.json.decode(raw, type=Versioned).schema_version
    except (msgspec.DecodeError, RecursionError):
        return None


_NOUNS = {
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


def _noun(name: str) -> str:
    return _NOUNS.get(name.removesuffix(" | null"), name)


# The decoder's messages are part of no promise; one that is not known here is passed on as it is.
_WORDS = (
    (r"Expected `.+` of length <= (\d+)", "longer than {0} characters"),
    (r"Expected `.+` of length >= 1", "empty"),
    (r"Expected `int` >= (.+)", "less than {0}"),
    (r"Expected `int` <= (.+)", "greater than {0}"),
    (r"Expected `(.+)`, got `(.+)`", "must be {0}, not {1}"),
    (r"Expected `datetime` with a timezone component", "has no offset: end it with Z or +hh:mm"),
    (r"Invalid RFC3339 encoded datetime", "not an RFC 3339 date-time"),
    (r"Invalid UUID", "not a UUID"),
)


def _in_words(problem: str) -> str:
    for pattern, words in _WORDS:
        if match := re.fullmatch(pattern, problem):
            return words.format(*map(_noun, match.groups()))
    return problem


# --- values that jsonb does not accept

MAX_DEPTH = 500
"""Levels of nesting that are taken. PostgreSQL's own limit moves with its ``max_stack_depth``; this one does not,
and lies well below both it and the decoder's."""

# numeric_in(): digits before and after the decimal point, and the largest exponent that it looks at.
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
    """Why ``jsonb`` would refuse this well-formed JSON text, or ``None`` when it takes it.

    Most values hold nothing that is even suspicious, and cost a few searches in C.
    """
    if rb"\u0000" in text and _NUL.search(text):
        return "holds U+0000"
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    many_digits = len(text) >= _MANY_DIGITS and _SUSPICIOUS_DIGITS.search(text)
    if many_digits or _SUSPICIOUS_EXPONENT.search(text):
        return _bad_number(text)
    return None


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(_STRING.sub(b"", text)):
        run = len(match[0])
        depth += run if match[0][0] in b"[{" else -run
        deepest = max(deepest, depth)
    return deepest


def _bad_number(text: bytes) -> str | None:
    for match in _NUMBER.finditer(_STRING.sub(b'""', text)):
        if not _fits_numeric(match[1], match[2] or b"", match[3] or b"0"):
            return "holds a number beyond what PostgreSQL's numeric can hold"
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
