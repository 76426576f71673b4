"""One event: each row of the contract's table, at its limits and beyond, and the words for what is wrong."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import reduce
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.support.events import MISSING, make_event
from tests.support.strategies import (
    COUNTS,
    MAX_COUNT,
    OPTIONAL,
    PARTS,
    TEXT_LIMITS,
    TIMES,
    broken_events,
    changed,
    event_text,
    events,
    json_texts,
    long_text,
    may_hold_surrogates,
    nested,
    thorough,
)
from tkserver.wire import event_validation
from tkserver.wire.event import MAX_EVENT_BYTES, NIL_UUID, Event
from tkserver.wire.event_validation import InvalidEvent, event_id_of, read_event

DEEP = 20_000
MANY_DIGITS = "9" * 4301

OPTIONAL_TEXTS = [path for path in TEXT_LIMITS if path in OPTIONAL]
OTHERS = ["event_id", *TIMES, *COUNTS, *PARTS, "environment.ci", "event.data"]
EVERYTHING = [*TEXT_LIMITS, *OTHERS]
REQUIRED = [path for path in EVERYTHING if path not in OPTIONAL]


def read(event: Any, data: str | None = None) -> Event:
    return read_event(event_text(event, data).encode())


KINDS = {
    **dict.fromkeys(TEXT_LIMITS, "string"),
    **dict.fromkeys(TIMES, "time"),
    **dict.fromkeys(COUNTS, "integer"),
    **dict.fromkeys(PARTS, "object"),
    "event_id": "id",
    "environment.ci": "boolean",
}
"""Of which type each field is, the data aside."""

VALUES: dict[str, tuple[Any, str]] = {
    "string": ("words", "a string"),
    "integer": (5, "an integer"),
    "fraction": (1.5, "a number with a fraction"),
    "boolean": (True, "a boolean"),
    "array": ([], "an array"),
    "object": ({}, "an object"),
}
"""A value of each type that JSON has, null aside, and what messages call it."""


def noun_of(path: str) -> str:
    """What messages call the type of the field at this path."""
    nouns = {"time": "an RFC 3339 date-time", "id": "a UUID"} | {kind: noun for kind, (_, noun) in VALUES.items()}
    return nouns[KINDS[path]]


def outcome_of(text: str) -> Event | InvalidEvent:
    try:
        return read_event(text.encode())
    except InvalidEvent as refusal:
        return refusal


def refusal_of(text: str | bytes) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        read_event(text.encode() if isinstance(text, str) else text)
    return caught.value


def complaint(event: Any, data: str | None = None) -> str:
    """The message about an event that is of the right schema and breaks its rules."""
    refusal = refusal_of(event_text(event, data))
    assert refusal.code == "invalid_schema"
    return refusal.message


def value_at(event: Any, path: str) -> Any:
    """What an event has at this path: one that was read, or one to be sent."""
    return reduce(
        lambda part, key: part.get(key) if isinstance(part, dict) else getattr(part, key), path.split("."), event
    )


# --- an event as it should be


def test_whole_event() -> None:
    """Every field of an event is read, and lands where it belongs."""
    sent = make_event(environment__ci=True, metadata__batch_size=7, metadata__retry_count=3)
    event = read(sent)

    assert event.event_id == UUID(sent["event_id"])
    assert event.timestamp == datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
    assert event.metadata.transmission_timestamp == datetime(2026, 1, 2, 3, 4, 10, tzinfo=timezone.utc)
    assert json.loads(bytes(event.event.data)) == sent["event"]["data"]
    for path in [*TEXT_LIMITS, *COUNTS, "environment.ci"]:
        assert value_at(event, path) == value_at(sent, path)


def test_least_event() -> None:
    """An event without any optional key is read."""
    event = read(make_event(**{path.replace(".", "__"): MISSING for path in OPTIONAL}))

    assert [value_at(event, path) for path in OPTIONAL] == [None] * len(OPTIONAL)


# --- every field


@pytest.mark.parametrize("path", REQUIRED)
def test_missing(path: str) -> None:
    """A required field that is missing is refused."""
    assert complaint(changed(path, MISSING)) == f"{path}: missing"


@pytest.mark.parametrize("path", [path for path in REQUIRED if path != "event.data"])
def test_null(path: str) -> None:
    """A required field that is null is refused, save for the data, of which null is a value."""
    assert complaint(changed(path, None)) == f"{path}: must be {noun_of(path)}, not null"


@pytest.mark.parametrize("value", [MISSING, None])
@pytest.mark.parametrize("path", OPTIONAL)
def test_optional(path: str, value: Any) -> None:
    """An optional field may be absent or null, which is the same."""
    assert value_at(read(changed(path, value)), path) is None


def _wrong_types() -> list[tuple[str, str]]:
    # A string where an id or a time should be is of the right type, though the wrong string.
    types = {**KINDS, **dict.fromkeys(["event_id", *TIMES], "string")}
    return [(path, kind) for path, right in types.items() for kind in VALUES if kind != right]


@pytest.mark.parametrize(("path", "kind"), _wrong_types())
def test_wrong_type(path: str, kind: str) -> None:
    """A field of the wrong type is refused, and the message says what it is instead."""
    value, noun = VALUES[kind]

    assert complaint(changed(path, value)) == f"{path}: must be {noun_of(path)}, not {noun}"


@pytest.mark.parametrize("path", [*TEXT_LIMITS, *TIMES, *COUNTS, *PARTS, "event_id", "environment.ci"])
@pytest.mark.parametrize("number", ["1e400", "1e999999", "-1e999999", MANY_DIGITS])
def test_huge_number(path: str, number: str) -> None:
    """A number that no machine type holds is refused wherever it does not belong."""
    mark = "here stands the number"
    text = json.dumps(changed(path, mark)).replace(json.dumps(mark), number)
    refusal = refusal_of(text)

    assert refusal.code == "invalid_schema"
    assert refusal.message.startswith(f"{path}: ")


# --- texts


@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_empty(path: str) -> None:
    """An empty text is refused, an optional one too."""
    assert complaint(changed(path, "")) == f"{path}: empty"


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", '"'], ids=["ASCII", "2 bytes", "4 bytes", "escaped"])
@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_at_the_limit(path: str, character: str) -> None:
    """A text may have as many characters as its limit says, however many bytes those are."""
    text = long_text(path, TEXT_LIMITS[path], character)

    assert len(text) == TEXT_LIMITS[path]
    assert value_at(read(changed(path, text)), path) == text


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", '"'], ids=["ASCII", "2 bytes", "4 bytes", "escaped"])
@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_over_the_limit(path: str, character: str) -> None:
    """One character more is refused."""
    limit = TEXT_LIMITS[path]
    message = complaint(changed(path, long_text(path, limit + 1, character)))

    assert message == f"{path}: longer than {limit} characters"


@pytest.mark.parametrize("text", ["\0", "\0x", "x\0y", "x\0", "\\\0"])
@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_nul(path: str, text: str) -> None:
    """U+0000 is refused at any place of any text."""
    assert complaint(changed(path, long_text(path, 0) + text)) == f"{path}: holds U+0000"


@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_no_nul(path: str) -> None:
    r"""A backslash and ``u0000`` is no U+0000, and neither is any other control character."""
    text = long_text(path, 0) + "\\u0000\x01"

    assert value_at(read(changed(path, text)), path) == text


@pytest.mark.parametrize("path", TEXT_LIMITS)
@pytest.mark.parametrize("text", ["\ud800", "x\udfff", "\udc00\ud800"], ids=ascii)
def test_lone_surrogate(path: str, text: str) -> None:
    """Half of a surrogate pair is refused in any text."""
    assert complaint(changed(path, long_text(path, 0) + text)) == f"{path}: holds a lone surrogate"


@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_surrogate_pair(path: str) -> None:
    """Both halves of one are one character."""
    text = long_text(path, 0) + "\U0001f600"
    sent = event_text(changed(path, text))

    assert r"\ud83d\ude00" in sent
    assert value_at(read_event(sent.encode()), path) == text


# --- schema version


@pytest.mark.parametrize("version", ["1.0.0", "1.0", "1.99", "1.x", "1.0.0-beta+1"])
def test_supported_schema(version: str) -> None:
    """Any version that begins with ``1.`` is taken."""
    assert read(make_event(schema_version=version)).schema_version == version


@pytest.mark.parametrize(
    "version", ["2.0.0", "0.1", "1", "10.0", "11.", "v1.0", " 1.0", "-1.0", "\uff11.0", "1,0", "x" * 20]
)
def test_unsupported_schema(version: str) -> None:
    """Any other version is refused with a code of its own."""
    refusal = refusal_of(event_text(make_event(schema_version=version)))

    assert refusal.code == "unsupported_schema"
    assert refusal.message.startswith("schema_version: ")


@pytest.mark.parametrize(
    "text",
    [
        '{"schema_version":"2.0.0"}',
        '{"schema_version":"10.0"}',
        '{"service":1,"schema_version":"2.0.0"}',
        '{"schema_version":"2.0.0","event_id":null}',
        event_text(make_event(schema_version="2.0.0", service="all different")),
        event_text(make_event(schema_version="2.0.0", user_id="")),
        event_text(make_event(schema_version="2.0.0", user_id="jane@example.com")),
        event_text(make_event(schema_version="2.0.0", timestamp="9999-12-31T23:59:59-01:00")),
        event_text(make_event(schema_version="2.0.0", service__name="\0")),
        event_text(make_event(schema_version="2.0.0"), "1e999999"),
        event_text(make_event(schema_version="2.0.0"), nested(501)),
    ],
)
def test_unsupported_schema_comes_first(text: str) -> None:
    """Of an event of another schema nothing else is found fault with, since it may well look different."""
    assert refusal_of(text).code == "unsupported_schema"


@pytest.mark.parametrize("value", [MISSING, None, 2, ["2.0.0"], "", "2" * 21])
def test_no_schema_version(value: Any) -> None:
    """What is no version at all is a mistake in the shape, not another schema."""
    assert complaint(make_event(schema_version=value)).startswith("schema_version: ")


# --- ids


def test_event_id_in_upper_case() -> None:
    """A UUID may be written in upper case."""
    sent = str(uuid.uuid4())

    assert read(make_event(event_id=sent.upper())).event_id == UUID(sent)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "550e8400-e29b-41d4-a716-44665544000",
        "550e8400-e29b-41d4-a716-4466554400000",
        "550e8400-e29b-41d4-a716-44665544000g",
        "550e8400-e29b-41d4-a71644665544-0000",
        " 550e8400-e29b-41d4-a716-446655440000",
        "550e8400-e29b-41d4-a716-446655440000\0",
        "\uff1550e8400-e29b-41d4-a716-446655440000",
    ],
)
def test_no_uuid(value: str) -> None:
    """An id that is no UUID is refused."""
    assert complaint(make_event(event_id=value)) == "event_id: not a UUID"


@pytest.mark.parametrize("user_id", ["client_", "client_x", "anon_", "anon_0123", "client_\U0001f600"])
def test_anonymous_user(user_id: str) -> None:
    """Users whose ids say that they are anonymous are taken."""
    assert read(make_event(user_id=user_id)).user_id == user_id


@pytest.mark.parametrize(
    "user_id",
    ["jane@example.com", "client", "anon", "Client_x", "ANON_x", " client_x", "xclient_x", "user_client_", "_"],
)
def test_user_with_a_name(user_id: str) -> None:
    """Any other user is refused."""
    assert complaint(make_event(user_id=user_id)).startswith("user_id: must begin with client_ or anon_")


# --- times

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-02T03:04:05Z", TIME),
        ("2026-01-02t03:04:05z", TIME),
        ("2026-01-02T03:04:05+00:00", TIME),
        ("2026-01-02T03:04:05-00:00", TIME),
        ("2026-01-02T05:04:05+02:00", TIME),
        ("2026-01-01T21:34:05-05:30", TIME),
        ("2026-01-03T03:03:05+23:59", TIME),
        ("2026-01-01T03:05:05-23:59", TIME),
        ("2026-01-02T03:04:05.5Z", TIME + timedelta(microseconds=500_000)),
        ("2026-01-02T03:04:05.000001Z", TIME + timedelta(microseconds=1)),
        ("2026-01-02T03:04:05.999999+00:00", TIME + timedelta(microseconds=999_999)),
        ("2026-01-02T03:04:05.123456000Z", TIME + timedelta(microseconds=123_456)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=timezone.utc)),
        ("1969-12-31T23:59:59.9Z", datetime(1969, 12, 31, 23, 59, 59, 900_000, timezone.utc)),
        ("0001-01-01T00:00:00Z", datetime.min.replace(tzinfo=timezone.utc)),
        ("0001-01-01T00:00:00-00:01", datetime.min.replace(minute=1, tzinfo=timezone.utc)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=timezone.utc)),
        ("9999-12-31T23:59:59+00:01", datetime(9999, 12, 31, 23, 58, 59, tzinfo=timezone.utc)),
    ],
)
def test_time(path: str, text: str, time: datetime) -> None:
    """Times are read in any offset, precision and case, and stand for the same moment."""
    found = value_at(read(changed(path, text)), path)

    assert found == time
    assert found.microsecond == time.microsecond


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize("nanoseconds", [1, 499, 500, 123_456_001, 123_456_789, 999_999_999])
def test_nanoseconds(path: str, nanoseconds: int) -> None:
    """Of a time in nanoseconds, what is kept lies within a microsecond of it."""
    kept = value_at(read(changed(path, f"2026-01-02T03:04:05.{nanoseconds:09}Z")), path) - TIME

    assert abs(kept // timedelta(microseconds=1) * 1000 - nanoseconds) < 1000


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02T03:04:05.678901"])
def test_time_without_offset(path: str, text: str) -> None:
    """A time that does not say where on earth is refused."""
    assert complaint(changed(path, text)).startswith(f"{path}: has no offset")


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-02",
        "2026-01-02T03:04Z",
        "2026-01-02T03:04:05.Z",
        "2026-01-02T03:04:05,5Z",
        "2026-1-2T03:04:05Z",
        "20260102T030405Z",
        "1767323045",
        "2026-01-02T03:04:05+02",
        "2026-01-02T03:04:05+2:00",
        "2026-01-02T03:04:05 Z",
        "2026-01-02T03:04:05Z\0",
        " 2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05Z ",
        "2026-01-02T03:04:05ZZ",
        "\uff12026-01-02T03:04:05Z",
    ],
)
def test_no_time(path: str, text: str) -> None:
    """What is not written as RFC 3339 has it is refused."""
    assert complaint(changed(path, text)) == f"{path}: not an RFC 3339 date-time"


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize(
    "text",
    [
        "2026-00-02T03:04:05Z",
        "2026-13-02T03:04:05Z",
        "2026-02-30T03:04:05Z",
        "2025-02-29T03:04:05Z",
        "2026-01-02T24:00:00Z",
        "2026-01-02T03:60:05Z",
        "2026-01-02T03:04:61Z",
        "2026-01-02T03:04:05+24:00",
        "2026-01-02T03:04:05+02:60",
        "10000-01-01T00:00:00Z",
        "-001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "0001-01-01T23:58:59+23:59",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T00:01:00-23:59",
        "9999-12-31T23:59:59.9999999Z",
    ],
)
def test_time_out_of_range(path: str, text: str) -> None:
    """A time that no calendar has, or that lies beyond the years 1 to 9999 once it is in UTC, is refused."""
    assert complaint(changed(path, text)).startswith(f"{path}: ")


# --- counts and switches


@pytest.mark.parametrize("path", COUNTS)
@pytest.mark.parametrize("value", [0, 1, MAX_COUNT])
def test_count(path: str, value: int) -> None:
    """A count may be anything that an INTEGER column holds, from 0."""
    assert value_at(read(changed(path, value)), path) == value


@pytest.mark.parametrize("path", COUNTS)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (-1, "less than 0"),
        (-(2**31), "less than 0"),
        (-(2**63) - 1, "less than 0"),
        (MAX_COUNT + 1, f"greater than {MAX_COUNT}"),
        (2**32, f"greater than {MAX_COUNT}"),
        (2**64, f"greater than {MAX_COUNT}"),
        (10**40, ""),
    ],
)
def test_count_out_of_range(path: str, value: int, problem: str) -> None:
    """A count below 0 or above 2147483647 is refused."""
    assert complaint(changed(path, value)).startswith(f"{path}: {problem}")


@pytest.mark.parametrize("value", [True, False])
def test_switch(value: bool) -> None:
    """A boolean is kept, a false one too."""
    assert read(make_event(environment__ci=value)).environment.ci is value


# --- data

DATA = [
    "null",
    "true",
    "0",
    '""',
    "[]",
    "{}",
    '{"b":1,"a":2,"a":3}',
    ' {"a" :\t[1.0, 1.00,\r\n 1e2]} '.strip(),
    r'"\u0041\/\ud83d\ude00"',
    '"\U0001f600"',
    MANY_DIGITS,
    "1e131071",
    "1e-16383",
    nested(500),
    nested(500, bracket="{"),
]


@pytest.mark.parametrize("data", DATA, ids=lambda data: data[:30])
def test_data(data: str) -> None:
    """The data may be any JSON value, and is kept as it was sent, to the byte."""
    assert bytes(read(make_event(), data).event.data) == data.encode()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (r'"\u0000"', "holds U+0000"),
        (r'{"\u0000":1}', "holds U+0000"),
        (r'[[{"a":"\\\u0000"}]]', "holds U+0000"),
        (r'"\ud800"', "holds a lone surrogate"),
        (r'"\udc00"', "holds a lone surrogate"),
        (r'"\uD800\u0041"', "holds a lone surrogate"),
        (r'"\ud800\ud800"', "holds a lone surrogate"),
        (r'"\udc00\ud800"', "holds a lone surrogate"),
        (r'{"\ud800":1}', "holds a lone surrogate"),
        (r'[{"a":[{"b":"x\udfff"}]}]', "holds a lone surrogate"),
        ("1e131072", "holds a number beyond"),
        ("[-1e999999]", "holds a number beyond"),
        ('{"a":1e-16384}', "holds a number beyond"),
        ("0." + "0" * 16_384, "holds a number beyond"),
        (nested(501), "nested deeper than 500 levels"),
        (nested(501, bracket="{"), "nested deeper than 500 levels"),
        (nested(DEEP), "nested deeper than 500 levels"),
        (nested(15_000, bracket="{"), "nested deeper than 500 levels"),
    ],
    ids=lambda text: text[:30],
)
def test_data_beyond_jsonb(data: str, problem: str) -> None:
    """Data that is JSON and still nothing that PostgreSQL could store is refused, each kind in its own words."""
    assert complaint(make_event(), data).startswith(f"event.data: {problem}")


@pytest.mark.parametrize("data", [r'"\\u0000"', r'{"\\\\u0000":"\\ud800"}', r'"\u0001"'])
def test_data_that_only_looks_so(data: str) -> None:
    """An escaped backslash before what would be an escape is a backslash."""
    assert bytes(read(make_event(), data).event.data) == data.encode()


# --- size


def _padded(size: int, pad: Callable[[dict[str, Any], int], None], character: str) -> bytes:
    """An event of so many bytes; ``pad`` puts in a text of so many characters."""
    event = make_event()
    pad(event, 0)
    room = size - len(json.dumps(event, ensure_ascii=False).encode())
    width = len(character.encode())
    # What is left when the room is no multiple of the width goes into a text that has room for it.
    event["service"]["name"] += "x" * (room % width)
    pad(event, room // width)
    for text in (event["event"], event):
        for key in ("data", "surplus"):
            if isinstance(text.get(key), str):
                text[key] = text[key].replace("x", character)
    raw = json.dumps(event, ensure_ascii=False).encode()
    assert len(raw) == size
    return raw


def _into_data(event: dict[str, Any], length: int) -> None:
    event["event"]["data"] = "x" * length


def _into_surplus(event: dict[str, Any], length: int) -> None:
    event["surplus"] = "x" * length


@pytest.mark.parametrize("pad", [_into_data, _into_surplus])
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
def test_largest_event(pad: Callable[[dict[str, Any], int], None], character: str) -> None:
    """An event may have 102400 bytes of JSON, keys that are ignored included, and not one more."""
    assert read_event(_padded(102_400, pad, character)).service.language == "rust"

    refusal = refusal_of(_padded(102_401, pad, character))
    assert refusal.code == "event_too_large"
    assert "102401" in refusal.message


def test_spaces_count() -> None:
    """The size is that of the JSON as it was sent, with the white space within it."""
    text = event_text(make_event())
    padded = text[:-1] + " " * (MAX_EVENT_BYTES - len(text)) + "}"

    assert read_event(padded.encode()).service.language == "rust"
    assert refusal_of(padded[:-1] + " }").code == "event_too_large"


def test_raw_is_measured_too() -> None:
    """An event that comes as a part of a larger text is measured by itself."""
    text = event_text(make_event())
    largest = text[:-1] + " " * (MAX_EVENT_BYTES - len(text)) + "}"
    first, second = msgspec.json.decode(f"[{largest},  {largest[:-1]} }} ]", type=list[msgspec.Raw])

    assert read_event(first).service.language == "rust"
    with pytest.raises(InvalidEvent, match="event_too_large"):
        read_event(second)


# --- keys that are not listed


@pytest.mark.parametrize("part", ["", "service__", "environment__", "event__", "metadata__"])
@pytest.mark.parametrize(
    "value", ["null", "1e999999", MANY_DIGITS, r'"\u0000"', r'{"\u0000":[1]}', "[[[[]]]]", '{"service":{"name":1}}']
)
def test_unknown_key(part: str, value: str) -> None:
    """Keys that are not listed are ignored at every level, whatever they hold."""
    mark = "anything"
    text = json.dumps(make_event(**{f"{part}surplus": mark})).replace(json.dumps(mark), value)

    assert read_event(text.encode()).service.name == "my-cli"


def test_unknown_keys_hide_nothing() -> None:
    """What is wrong elsewhere is found in spite of keys that are ignored."""
    message = complaint(make_event(surplus="\0", service__name="\0"))

    assert message == "service.name: holds U+0000"


# --- what is no event


@pytest.mark.parametrize(
    "text", ["null", "true", "1", "1.5", '"x"', "[]", "[{}]", nested(DEEP)], ids=lambda text: text[:9]
)
def test_no_object(text: str) -> None:
    """What is no object is refused as a whole."""
    refusal = refusal_of(text)

    assert refusal.code == "invalid_schema"
    assert refusal.message.startswith("$: must be an object, not ")


@pytest.mark.parametrize("text", ["1e999999", MANY_DIGITS, r'"\ud800"', r'["\ud800"]'], ids=len)
def test_hardly_an_event(text: str) -> None:
    """What is no object and hard to decode besides is refused as a whole as well."""
    refusal = refusal_of(text)

    assert refusal.code == "invalid_schema"
    assert refusal.message.startswith("$: ")


def test_empty_object() -> None:
    """An object with nothing in it is refused for what it lacks."""
    assert complaint({}).endswith(": missing")


SURROGATE_AND_DEPTH = event_text(make_event(service__name="\ud800"), nested(DEEP))
SURROGATE_AND_DIGITS = event_text(make_event(service__name="\ud800"), MANY_DIGITS)


@pytest.mark.parametrize(
    "text",
    [
        SURROGATE_AND_DEPTH,
        SURROGATE_AND_DIGITS,
        event_text(make_event(), f'["\\ud800",{nested(DEEP)}]'),
        event_text(make_event(), f'["\\ud800",{MANY_DIGITS}]'),
    ],
    ids=["surrogate and depth", "surrogate and digits", "surrogate and depth in data", "surrogate and digits in data"],
)
def test_two_evils(text: str) -> None:
    """An event that is hard to decode in two ways is refused like one that is so in one."""
    refusal = refusal_of(text)

    assert refusal.code == "invalid_schema"
    assert refusal.message.startswith(("service.name: ", "event.data: "))


REPEATED_KEY = r'{"a":"\ud800","a":1}'


def test_lone_surrogate_in_repeated_key() -> None:
    """A lone surrogate in data is found there, also where its key stands twice."""
    assert complaint(make_event(), REPEATED_KEY) == "event.data: holds a lone surrogate"


def test_memory_for_long_keys() -> None:
    """Where a lone surrogate stands is found in memory in proportion to the event, however long its keys are."""
    members = ",".join(f'"{number}":1' for number in range(4000))
    text = f'{{"{"k" * 40_000}":{{{members},"last":"\\ud800"}}}}'
    tracemalloc.start()
    try:
        refusal = refusal_of(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert refusal.code == "invalid_schema"
    assert peak < 100 * len(text)


# --- the id in a refusal

ID = "0f9d5a3e-1c2b-4d3e-8f4a-5b6c7d8e9f00"


@pytest.mark.parametrize(
    "text",
    [
        event_text(make_event(event_id=ID)),
        event_text(make_event(event_id=ID.upper())),
        f'{{"event_id":"{ID}"}}',
        f'{{"surplus":1,"event_id":"{ID}"}}',
        event_text(make_event(event_id=ID, schema_version="2.0.0")),
        event_text(make_event(event_id=ID, schema_version="\ud800")),
        event_text(make_event(event_id=ID, service__name="\0")),
        event_text(make_event(event_id=ID, service__name="\ud800")),
        event_text(make_event(event_id=ID), nested(DEEP)),
        event_text(make_event(event_id=ID), "1e999999"),
        event_text(make_event(event_id=ID), f'"{"x" * MAX_EVENT_BYTES}"'),
        f'{{"surplus":"\\ud800","event_id":"{ID}"}}',
        f'{{"\\ud800":1,"event_id":"{ID}"}}',
        f'{{"surplus":{nested(DEEP)},"event_id":"{ID}"}}',
        f'{{"surplus":{{"event_id":"\\ud800"}},"event_id":"{ID}"}}',
    ],
    ids=range(15),
)
def test_own_id(text: str) -> None:
    """A refusal names the event's own id wherever that parses, whatever else is wrong with the event."""
    assert event_id_of(text.encode()) == UUID(ID)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "null",
        "1",
        "1e999999",
        f'"{ID}"',
        f'["{ID}"]',
        r'"\ud800"',
        r'["\ud800"]',
        nested(DEEP),
        f'{{"EVENT_ID":"{ID}"}}',
        f'{{"surplus":{{"event_id":"{ID}"}}}}',
        f'{{"surplus":{{"event_id":"{ID}"}},"x":"\\ud800"}}',
        '{"event_id":null}',
        '{"event_id":1}',
        '{"event_id":1e999999}',
        '{"event_id":""}',
        f'{{"event_id":"{ID[:-1]}"}}',
        f'{{"event_id":["{ID}"]}}',
        r'{"event_id":"\ud800"}',
        '{"event_id":' + nested(DEEP) + "}",
        r'{"x":"\ud800","event_id":null}',
        r'{"x":"\ud800"}',
    ],
    ids=lambda text: text[:40],
)
def test_nil_id(text: str) -> None:
    """A refusal names the nil UUID where the event has no id that parses."""
    assert event_id_of(text.encode()) == NIL_UUID == UUID("00000000-0000-0000-0000-000000000000")


# --- anything at all


@thorough
@given(events(), st.booleans())
def test_valid_events(event: dict[str, Any], ascii_only: bool) -> None:
    """Events that keep every rule are taken, and their values are those that were sent."""
    read_back = read_event(event_text(event, ascii_only=ascii_only).encode())

    assert read_back.event_id == UUID(event["event_id"])
    for path in TIMES:
        sent = value_at(event, path).upper().replace("Z", "+00:00")
        assert value_at(read_back, path) == datetime.fromisoformat(sent)
    for path in [*TEXT_LIMITS, *COUNTS, "environment.ci"]:
        assert value_at(read_back, path) == value_at(event, path)


@thorough
@given(broken_events())
def test_broken_events(broken: tuple[dict[str, Any], str]) -> None:
    """Events with one mistake are refused for it, by its path."""
    event, path = broken

    assert complaint(event).startswith(f"{path}: ")


@thorough
@given(events(), json_texts())
@example(make_event(), REPEATED_KEY)
@example(make_event(), f'["\\ud800",{MANY_DIGITS}]')
def test_any_data(event: dict[str, Any], data: str) -> None:
    """Data is kept to the byte where jsonb can hold it, and refused by its path where it cannot."""
    text = event_text(event, data)
    assume(len(text.encode()) <= MAX_EVENT_BYTES)
    outcome = outcome_of(text)

    if isinstance(outcome, Event):
        assert bytes(outcome.event.data) == data.encode()
        assert event_validation.jsonb_objection(data.encode()) is None
    else:
        assert outcome.code == "invalid_schema"
        assert outcome.message.startswith("event.data: ")
        assert event_validation.jsonb_objection(data.encode()) or may_hold_surrogates(data)


@thorough
@given(json_texts())
@example(f'["\\ud800",{nested(DEEP)}]')
@example(f'["\\ud800",{MANY_DIGITS}]')
def test_any_json(text: str) -> None:
    """Whatever JSON stands for an event, or within one, nothing but InvalidEvent is raised, and it has an id."""
    around = event_text(make_event(event_id=ID), text)
    refusal = outcome_of(text)
    outcome = outcome_of(around)

    assert isinstance(refusal, InvalidEvent)
    assert refusal.code in {"invalid_schema", "event_too_large"}
    assert isinstance(outcome, Event) or outcome.code in {"invalid_schema", "event_too_large"}
    assert event_id_of(text.encode()) == NIL_UUID
    assert event_id_of(around.encode()) == UUID(ID)


@pytest.mark.parametrize("surplus", [r'"\ud800"', nested(DEEP), MANY_DIGITS, r'{"\ud800":[1]}', '"\\u0000"'], ids=len)
@pytest.mark.parametrize("part", ["", "service", "environment", "event", "metadata"])
def test_anything_under_ignored_keys(surplus: str, part: str) -> None:
    """Keys that are not listed are ignored at every level, also when their values are hard to decode."""
    event = make_event()
    (event[part] if part else event)["surplus"] = "@@"
    text = json.dumps(event).replace('"@@"', surplus)
    assert read_event(text.encode()).event_id == UUID(event["event_id"])
