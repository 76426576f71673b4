"""Validation of events: each field at and beyond its limits, and the error messages."""

from __future__ import annotations

import json
import re
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
    OBJECTS,
    OPTIONAL,
    TEXT_LIMITS,
    TIMES,
    event_text,
    event_with,
    events,
    invalid_events,
    json_texts,
    may_contain_surrogates,
    nested,
    text_for,
    thorough,
)
from tkserver.wire import event_validation
from tkserver.wire.api_errors import EventError
from tkserver.wire.batch import read_batch, run_steps
from tkserver.wire.event import MAX_EVENT_BYTES, NIL_UUID, Event
from tkserver.wire.event_validation import Violation

MANY_DIGITS = "9" * 4301
DIGITS_400 = "9" * 400

ALL_PATHS = [*TEXT_LIMITS, "event_id", *TIMES, *COUNTS, *OBJECTS, "environment.ci", "event.data"]
REQUIRED = [path for path in ALL_PATHS if path not in OPTIONAL]


def read(event: Any, data: str | None = None) -> Event:
    return read_event(event_text(event, data).encode())


def event_or_error(text: bytes) -> Event | EventError:
    """Return the result for an event that is a batch of its own."""
    batch = run_steps(read_batch(b'{"events":[%s]}' % text))
    assert batch.size == 1
    return batch.errors[0] if batch.errors else batch.events[0]


def read_event(text: bytes) -> Event:
    """Return a valid event."""
    result = event_or_error(text)
    assert isinstance(result, Event), result
    return result


TYPES = {
    **dict.fromkeys(TEXT_LIMITS, "string"),
    **dict.fromkeys(TIMES, "time"),
    **dict.fromkeys(COUNTS, "integer"),
    **dict.fromkeys(OBJECTS, "object"),
    "event_id": "id",
    "environment.ci": "boolean",
}
"""The type of each field except ``event.data``."""

VALUES: dict[str, tuple[Any, str]] = {
    "string": ("text", "a string"),
    "integer": (5, "an integer"),
    "fraction": (1.5, "a number with a fraction"),
    "boolean": (True, "a boolean"),
    "array": ([], "an array"),
    "object": ({}, "an object"),
}
"""A value of each JSON type except null, and the name of the type in messages."""


def type_name(path: str) -> str:
    """Return the name in messages of the type of a field."""
    names = {"time": "an RFC 3339 date-time", "id": "a UUID"} | {key: name for key, (_, name) in VALUES.items()}
    return names[TYPES[path]]


def error_of(text: str | bytes) -> EventError:
    """Return the error of an invalid event."""
    result = event_or_error(text.encode() if isinstance(text, str) else text)
    assert isinstance(result, EventError)
    return result


def id_of(text: str) -> UUID:
    """Return the id of a valid or invalid event."""
    return event_or_error(text.encode()).event_id


def message_of(event: Any, data: str | None = None) -> str:
    """Return the message of an ``invalid_schema`` error."""
    error = error_of(event_text(event, data))
    assert error.code == "invalid_schema"
    return error.message


def value_at(event: Any, path: str) -> Any:
    """Return the value at a path of an :class:`Event` or of a dictionary."""
    return reduce(
        lambda parent, key: parent.get(key) if isinstance(parent, dict) else getattr(parent, key),
        path.split("."),
        event,
    )


# --- valid events


def test_all_fields_are_read() -> None:
    """All fields of an event are read."""
    sent = make_event(environment__ci=True, metadata__batch_size=7, metadata__retry_count=3)
    event = read(sent)

    assert event.event_id == UUID(sent["event_id"])
    assert event.timestamp == datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
    assert event.metadata.transmission_timestamp == datetime(2026, 1, 2, 3, 4, 10, tzinfo=timezone.utc)
    assert json.loads(bytes(event.event.data)) == sent["event"]["data"]
    for path in [*TEXT_LIMITS, *COUNTS, "environment.ci"]:
        assert value_at(event, path) == value_at(sent, path)


def test_optional_keys_can_be_missing() -> None:
    """An event without any optional key is read."""
    event = read(make_event(**{path.replace(".", "__"): MISSING for path in OPTIONAL}))

    assert [value_at(event, path) for path in OPTIONAL] == [None] * len(OPTIONAL)


# --- all fields


@pytest.mark.parametrize("path", REQUIRED)
def test_missing_field_is_rejected(path: str) -> None:
    """An event without a required field is rejected."""
    assert message_of(event_with(path, MISSING)) == f"{path}: missing"


@pytest.mark.parametrize("path", [path for path in REQUIRED if path != "event.data"])
def test_null_in_required_field_is_rejected(path: str) -> None:
    """A required field must not be null, except ``event.data``."""
    assert message_of(event_with(path, None)) == f"{path}: must be {type_name(path)}, not null"


@pytest.mark.parametrize("value", [MISSING, None])
@pytest.mark.parametrize("path", OPTIONAL)
def test_optional_field_can_be_missing_or_null(path: str, value: Any) -> None:
    """An optional field that is missing or null is read as ``None``."""
    assert value_at(read(event_with(path, value)), path) is None


def _wrong_types() -> list[tuple[str, str]]:
    # Ids and times are strings in JSON.
    types = {**TYPES, **dict.fromkeys(["event_id", *TIMES], "string")}
    return [
        (path, other_type) for path, valid_type in types.items() for other_type in VALUES if other_type != valid_type
    ]


@pytest.mark.parametrize(("path", "json_type"), _wrong_types())
def test_wrong_type_is_rejected(path: str, json_type: str) -> None:
    """A field of the wrong type is rejected, and the message contains the expected and the actual type."""
    value, name = VALUES[json_type]

    assert message_of(event_with(path, value)) == f"{path}: must be {type_name(path)}, not {name}"


@pytest.mark.parametrize("path", [*TEXT_LIMITS, *TIMES, *COUNTS, *OBJECTS, "event_id", "environment.ci"])
@pytest.mark.parametrize("number", ["1e400", "1e999999", "-1e999999", MANY_DIGITS])
def test_huge_number_is_rejected(path: str, number: str) -> None:
    """A number that does not fit into any numeric type is rejected in every field except ``event.data``."""
    placeholder = "placeholder of the number"
    text = json.dumps(event_with(path, placeholder)).replace(json.dumps(placeholder), number)
    error = error_of(text)

    assert error.code == "invalid_schema"
    assert error.message.startswith(f"{path}: ")


# --- strings


@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_empty_string_is_rejected(path: str) -> None:
    """An empty string is rejected, even in optional fields."""
    assert message_of(event_with(path, "")) == f"{path}: empty"


@pytest.mark.parametrize(
    ("path", "character"),
    [
        pytest.param(path, character, id=f"{path}-{name}")
        for path in TEXT_LIMITS
        for character, name in (("x", "ASCII"), ('"', "escaped"), ("é", "2 bytes"), ("\U0001f600", "4 bytes"))
        if character.isascii() or path != "user_id"
    ],
)
def test_string_of_maximum_length_is_accepted(path: str, character: str) -> None:
    """The maximum length of a string is in characters, not in bytes."""
    text = text_for(path, TEXT_LIMITS[path], character)

    assert len(text) == TEXT_LIMITS[path]
    assert value_at(read(event_with(path, text)), path) == text


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", '"'], ids=["ASCII", "2 bytes", "4 bytes", "escaped"])
@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_longer_string_is_rejected(path: str, character: str) -> None:
    """A string with one character more than the maximum is rejected."""
    limit = TEXT_LIMITS[path]
    message = message_of(event_with(path, text_for(path, limit + 1, character)))

    assert message == f"{path}: longer than {limit} characters"


@pytest.mark.parametrize("text", ["\0", "\0x", "x\0y", "x\0", "\\\0"])
@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_nul_is_rejected(path: str, text: str) -> None:
    """U+0000 is rejected at any position of any string."""
    assert message_of(event_with(path, text_for(path, 0) + text)) == f"{path}: contains U+0000"


@pytest.mark.parametrize("path", TEXT_LIMITS)
def test_text_similar_to_nul_is_accepted(path: str) -> None:
    r"""A backslash followed by ``u0000`` is accepted, and so are other control characters."""
    text = text_for(path, 0) + "\\u0000" + ("" if path == "user_id" else "\x01")

    assert value_at(read(event_with(path, text)), path) == text


@pytest.mark.parametrize("path", TEXT_LIMITS)
@pytest.mark.parametrize("text", ["\ud800", "x\udfff", "\udc00\ud800"], ids=ascii)
def test_lone_surrogate_is_rejected(path: str, text: str) -> None:
    """A lone surrogate is rejected in any string."""
    assert message_of(event_with(path, text_for(path, 0) + text)) == f"{path}: contains a lone surrogate"


@pytest.mark.parametrize("path", [path for path in TEXT_LIMITS if path != "user_id"])
def test_surrogate_pair_is_accepted(path: str) -> None:
    """A surrogate pair is read as one character."""
    text = text_for(path, 0) + "\U0001f600"
    sent = event_text(event_with(path, text))

    assert r"\ud83d\ude00" in sent
    assert value_at(read_event(sent.encode()), path) == text


# --- schema version


@pytest.mark.parametrize("version", ["1.0.0", "1.0", "1.99", "1.x", "1.0.0-beta+1"])
def test_supported_schema_is_accepted(version: str) -> None:
    """Any version that begins with ``1.`` is accepted."""
    assert read(make_event(schema_version=version)).schema_version == version


@pytest.mark.parametrize(
    "version", ["2.0.0", "0.1", "1", "10.0", "11.", "v1.0", " 1.0", "-1.0", "\uff11.0", "1,0", "x" * 20]
)
def test_unsupported_schema_is_rejected(version: str) -> None:
    """Any other version is rejected with the code ``unsupported_schema``."""
    error = error_of(event_text(make_event(schema_version=version)))

    assert error.code == "unsupported_schema"
    assert error.message.startswith("schema_version: ")


@pytest.mark.parametrize(
    "text",
    [
        '{"schema_version":"2.0.0"}',
        '{"schema_version":"10.0"}',
        '{"service":1,"schema_version":"2.0.0"}',
        '{"schema_version":"2.0.0","event_id":null}',
        event_text(make_event(schema_version="2.0.0", service="different")),
        event_text(make_event(schema_version="2.0.0", user_id="")),
        event_text(make_event(schema_version="2.0.0", user_id="jane@example.com")),
        event_text(make_event(schema_version="2.0.0", timestamp="9999-12-31T23:59:59-01:00")),
        event_text(make_event(schema_version="2.0.0", service__name="\0")),
        event_text(make_event(schema_version="2.0.0"), "1e999999"),
    ],
)
def test_unsupported_schema_is_reported_first(text: str) -> None:
    """An unsupported schema is reported before any other error, because its fields can differ."""
    assert error_of(text).code == "unsupported_schema"


@pytest.mark.parametrize("value", [MISSING, None, 2, ["2.0.0"], "", "2" * 21])
def test_invalid_schema_version_is_rejected(value: Any) -> None:
    """A value that is not a version is an ``invalid_schema`` error."""
    assert message_of(make_event(schema_version=value)).startswith("schema_version: ")


# --- ids


def test_event_id_in_upper_case_is_accepted() -> None:
    """A UUID in upper case is accepted."""
    event_id = str(uuid.uuid4())

    assert read(make_event(event_id=event_id.upper())).event_id == UUID(event_id)


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
def test_event_id_that_is_not_a_uuid_is_rejected(value: str) -> None:
    """An id that is not a UUID is rejected."""
    assert message_of(make_event(event_id=value)) == "event_id: not a UUID"


@pytest.mark.parametrize("user_id", ["client_", "client_x", "anon_", "anon_0123", "client_!~", 'anon_"\\'])
def test_anonymous_user_id_is_accepted(user_id: str) -> None:
    """A user id with a prefix for anonymous ids is accepted."""
    assert read(make_event(user_id=user_id)).user_id == user_id


@pytest.mark.parametrize(
    "user_id",
    ["jane@example.com", "client", "anon", "Client_x", "ANON_x", " client_x", "xclient_x", "user_client_", "_"],
)
def test_other_user_id_is_rejected(user_id: str) -> None:
    """Any other user id is rejected."""
    assert message_of(make_event(user_id=user_id)).startswith("user_id: must begin with client_ or anon_")


@pytest.mark.parametrize(
    "character",
    [
        "\u200b",
        "\n",
        "\r",
        "\t",
        "\x1b",
        "\x01",
        "\x7f",
        "\x80",
        " ",
        "\xa0",
        "\u2028",
        "\u202e",
        "\ufeff",
        "é",
        "\uff11",
        "\U0001f600",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("user_id", ["client_{}", "client_x{}", "anon_{}x", "anon_x{}x"])
def test_user_id_with_other_than_visible_ascii_is_rejected(user_id: str, character: str) -> None:
    """A user id that contains anything except visible ASCII characters is rejected."""
    message = message_of(make_event(user_id=user_id.format(character)))

    assert message == "user_id: must contain only visible ASCII characters"


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
def test_time_is_read(path: str, text: str, time: datetime) -> None:
    """Times are read with any offset, precision and case."""
    value = value_at(read(event_with(path, text)), path)

    assert value == time
    assert value.microsecond == time.microsecond


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize("nanoseconds", [1, 499, 500, 501, 999, 123_456_001, 123_456_789, 999_999_499, 999_999_999])
def test_nanoseconds_are_truncated(path: str, nanoseconds: int) -> None:
    """A time with nanoseconds is truncated to microseconds."""
    time = value_at(read(event_with(path, f"2026-01-02T03:04:05.{nanoseconds:09}Z")), path)

    assert time == TIME + timedelta(microseconds=nanoseconds // 1000)


LAST_MICROSECOND_OF_2024 = datetime(2024, 12, 31, 23, 59, 59, 999_999, timezone.utc)


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-12-31T23:59:59.9999996Z", LAST_MICROSECOND_OF_2024),
        ("2024-12-31t23:59:59.9999996z", LAST_MICROSECOND_OF_2024),
        ("2024-12-31T23:59:59.9999999999999999999999999999999Z", LAST_MICROSECOND_OF_2024),
        ("2025-01-01T01:59:59.9999996+02:00", LAST_MICROSECOND_OF_2024),
        ("2024-12-31T23:59:59.99999960-00:00", LAST_MICROSECOND_OF_2024),
        ("9999-12-31T23:59:59.9999999Z", datetime.max.replace(tzinfo=timezone.utc)),
        ("9999-12-31T23:59:59.9999999+00:00", datetime.max.replace(tzinfo=timezone.utc)),
        ("0001-01-01T00:00:00.0000009Z", datetime.min.replace(tzinfo=timezone.utc)),
        ("1969-12-31T23:59:59.9999999Z", datetime(1969, 12, 31, 23, 59, 59, 999_999, timezone.utc)),
    ],
)
def test_truncation_does_not_change_other_parts(path: str, text: str, time: datetime) -> None:
    """The truncation of a fraction never changes the second, the day or the year."""
    assert value_at(read(event_with(path, text)), path) == time


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize("index", range(len("2024-12-31T23:59:59.9999996Z")))
def test_escaped_time_is_truncated(path: str, index: int) -> None:
    """A fraction is truncated even if a character of the time is written as an escape."""
    time = "2024-12-31T23:59:59.9999996Z"
    for code in (f"\\u{ord(time[index]):04x}", f"\\u{ord(time[index]):04X}"):
        escaped = time[:index] + code + time[index + 1 :]
        text = event_text(event_with(path, time)).replace(time, escaped)

        assert escaped in text
        assert value_at(read_event(text.encode()), path) == LAST_MICROSECOND_OF_2024


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize(
    "fraction", ["123456\u0663", "1234567\u0663", "1234567x", "1234567 ", "123456789-", "1234567.1"]
)
def test_invalid_long_fraction_is_rejected(path: str, fraction: str) -> None:
    """A long fraction can contain only ASCII digits."""
    assert message_of(event_with(path, f"2026-01-02T03:04:05.{fraction}Z")) == f"{path}: not an RFC 3339 date-time"


TRUNCATED = "2026-01-02T03:04:05.1234567Z"


@pytest.mark.parametrize("path", [path for path in TEXT_LIMITS if path != "schema_version"])
def test_text_that_looks_like_time_is_unchanged(path: str) -> None:
    """Only times are truncated, and not other strings that look like one."""
    text = text_for(path, 0) + TRUNCATED
    event = read(make_event(timestamp=TRUNCATED, **{path.replace(".", "__"): text}), f'"{TRUNCATED}"')

    assert value_at(event, path) == text
    assert bytes(event.event.data) == f'"{TRUNCATED}"'.encode()


@pytest.mark.parametrize("path", [*TEXT_LIMITS, *TIMES, *COUNTS, *OBJECTS, "environment.ci"])
def test_messages_do_not_depend_on_fractions(path: str) -> None:
    """The message about an invalid field is the same if a time of the event has a long fraction."""
    others = {time.replace(".", "__"): TRUNCATED for time in TIMES if time != path and not path.startswith("metadata")}
    for value in (5, 1.5, True, [], {}, "", "x" * 300, None, MISSING):
        expected = event_or_error(event_text(event_with(path, value) | {"event_id": ID}).encode())
        event = make_event(event_id=ID, **{**others, path.replace(".", "__"): value})
        result = event_or_error(event_text({**event, "unknown": TRUNCATED}).encode())

        assert isinstance(result, EventError) == isinstance(expected, EventError)
        if isinstance(result, EventError):
            assert result == expected


@pytest.mark.parametrize("path", TIMES)
@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02T03:04:05.678901"])
def test_time_without_offset_is_rejected(path: str, text: str) -> None:
    """A time without UTC offset is rejected."""
    assert message_of(event_with(path, text)).startswith(f"{path}: has no UTC offset")


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
def test_other_time_format_is_rejected(path: str, text: str) -> None:
    """A time in another format than RFC 3339 is rejected."""
    assert message_of(event_with(path, text)) == f"{path}: not an RFC 3339 date-time"


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
        "9999-12-31T23:59:59.9999999-00:01",
        "0001-01-01T00:00:00.9999999+00:01",
    ],
)
def test_time_out_of_range_is_rejected(path: str, text: str) -> None:
    """A time that does not exist, or is outside of the years 1 to 9999 in UTC, is rejected."""
    assert message_of(event_with(path, text)).startswith(f"{path}: ")


# --- counts and booleans


@pytest.mark.parametrize("path", COUNTS)
@pytest.mark.parametrize("value", [0, 1, MAX_COUNT])
def test_count_is_read(path: str, value: int) -> None:
    """A count can be any number from 0 to the maximum of the PostgreSQL type ``integer``."""
    assert value_at(read(event_with(path, value)), path) == value


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
def test_count_out_of_range_is_rejected(path: str, value: int, problem: str) -> None:
    """A count below 0 or above 2147483647 is rejected."""
    assert message_of(event_with(path, value)).startswith(f"{path}: {problem}")


@pytest.mark.parametrize("value", [True, False])
def test_boolean_is_read(value: bool) -> None:
    """Both values of a boolean are read."""
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
    DIGITS_400,
    "1e399",
    "1e-400",
    nested(500),
    nested(500, bracket="{"),
]


@pytest.mark.parametrize("data", DATA, ids=lambda data: data[:30])
def test_data_is_unchanged(data: str) -> None:
    """The data can be any JSON value, and its bytes are not changed."""
    assert bytes(read(make_event(), data).event.data) == data.encode()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (r'"\u0000"', "contains U+0000"),
        (r'{"\u0000":1}', "contains U+0000"),
        (r'[[{"a":"\\\u0000"}]]', "contains U+0000"),
        (r'"\ud800"', "contains a lone surrogate"),
        (r'"\udc00"', "contains a lone surrogate"),
        (r'"\uD800\u0041"', "contains a lone surrogate"),
        (r'"\ud800\ud800"', "contains a lone surrogate"),
        (r'"\udc00\ud800"', "contains a lone surrogate"),
        (r'{"\ud800":1}', "contains a lone surrogate"),
        (r'[{"a":[{"b":"x\udfff"}]}]', "contains a lone surrogate"),
        ("1e400", "contains a number with more than 400 digits"),
        ("1e131071", "contains a number with more than 400 digits"),
        ("1e131072", "contains a number with more than 400 digits"),
        ("[-1e999999]", "contains a number with more than 400 digits"),
        ('{"a":1e-401}', "contains a number with more than 400 digits"),
        ("0e-999", "contains a number with more than 400 digits"),
        ("9" * 350 + "e99", "contains a number with more than 400 digits"),
        (MANY_DIGITS, "contains a number with more than 400 digits"),
        ("0." + "0" * 401, "contains a number with more than 400 digits"),
        ("[" + "1e131071," * 10_000 + "1]", "contains a number with more than 400 digits"),
    ],
    ids=lambda text: text[:30],
)
def test_data_that_is_not_stored_is_rejected(data: str, problem: str) -> None:
    """Data that PostgreSQL cannot store, or would make much longer, is rejected with a message that says why."""
    assert message_of(make_event(), data).startswith(f"event.data: {problem}")


@pytest.mark.parametrize("data", [r'"\\u0000"', r'{"\\\\u0000":"\\ud800"}', r'"\u0001"'])
def test_escaped_backslash_in_data_is_accepted(data: str) -> None:
    """An escaped backslash followed by ``u0000`` or ``ud800`` is accepted."""
    assert bytes(read(make_event(), data).event.data) == data.encode()


# --- size


def _padded(size: int, pad: Callable[[dict[str, Any], int], None], character: str) -> bytes:
    """Return an event of this size in bytes.

    :param pad: adds a string of ``x`` with this number of characters to an event.
    :param character: replaces each ``x``.
    """
    event = make_event()
    pad(event, 0)
    missing = size - len(json.dumps(event, ensure_ascii=False).encode())
    width = len(character.encode())
    # The remainder is added to another string, with characters of one byte.
    event["service"]["name"] += "x" * (missing % width)
    pad(event, missing // width)
    for parent in (event["event"], event):
        for key in ("data", "unknown"):
            if isinstance(parent.get(key), str):
                parent[key] = parent[key].replace("x", character)
    raw = json.dumps(event, ensure_ascii=False).encode()
    assert len(raw) == size
    return raw


def _pad_data(event: dict[str, Any], length: int) -> None:
    event["event"]["data"] = "x" * length


def _pad_unknown_key(event: dict[str, Any], length: int) -> None:
    event["unknown"] = "x" * length


@pytest.mark.parametrize("pad", [_pad_data, _pad_unknown_key])
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
def test_event_of_more_than_102400_bytes_is_rejected(
    pad: Callable[[dict[str, Any], int], None], character: str
) -> None:
    """An event can have 102400 bytes of JSON, including unknown keys, but not more."""
    assert read_event(_padded(102_400, pad, character)).service.language == "rust"

    error = error_of(_padded(102_401, pad, character))
    assert error.code == "event_too_large"
    assert "102401" in error.message


def test_size_includes_white_space_in_event() -> None:
    """The size of an event is that of the JSON as received, including white space."""
    text = event_text(make_event())
    padded = text[:-1] + " " * (MAX_EVENT_BYTES - len(text)) + "}"

    assert read_event(padded.encode()).service.language == "rust"
    assert error_of(padded[:-1] + " }").code == "event_too_large"


def test_size_of_raw_event_excludes_surroundings() -> None:
    """The size of an event that is a part of a larger text does not include the rest of the text."""
    text = event_text(make_event())
    largest = text[:-1] + " " * (MAX_EVENT_BYTES - len(text)) + "}"
    first, second = msgspec.json.decode(f"[{largest},  {largest[:-1]} }} ]", type=list[msgspec.Raw])

    event, violation = event_validation.read_event(first), event_validation.read_event(second)
    assert isinstance(event, Event)
    assert event.service.language == "rust"
    assert isinstance(violation, Violation)
    assert violation.code == "event_too_large"


# --- unknown keys


@pytest.mark.parametrize("prefix", ["", "service__", "environment__", "event__", "metadata__"])
@pytest.mark.parametrize(
    "value", ["null", "1e999999", MANY_DIGITS, r'"\u0000"', r'{"\u0000":[1]}', "[[[[]]]]", '{"service":{"name":1}}']
)
def test_unknown_keys_are_ignored(prefix: str, value: str) -> None:
    """Unknown keys are ignored at every level, regardless of their values."""
    placeholder = "placeholder of the value"
    text = json.dumps(make_event(**{f"{prefix}unknown": placeholder})).replace(json.dumps(placeholder), value)

    assert read_event(text.encode()).service.name == "my-cli"


def test_errors_next_to_unknown_keys_are_reported() -> None:
    """Errors of known keys are reported even if there are unknown keys."""
    message = message_of(make_event(unknown="\0", service__name="\0"))

    assert message == "service.name: contains U+0000"


# --- values that are not events


@pytest.mark.parametrize(
    "text", ["null", "true", "1", "1.5", '"x"', "[]", "[{}]", nested(500)], ids=lambda text: text[:9]
)
def test_other_json_type_is_rejected(text: str) -> None:
    """A value that is not an object is rejected with the path ``$``."""
    error = error_of(text)

    assert error.code == "invalid_schema"
    assert error.message.startswith("$: must be an object, not ")


@pytest.mark.parametrize("text", ["1e999999", MANY_DIGITS, r'"\ud800"', r'["\ud800"]'], ids=len)
def test_other_json_type_that_decoder_rejects_is_rejected(text: str) -> None:
    """A value that is not an object, and that the decoder does not support, is rejected with the path ``$``."""
    error = error_of(text)

    assert error.code == "invalid_schema"
    assert error.message.startswith("$: ")


def test_empty_object_is_rejected() -> None:
    """An empty object is rejected because of a missing field."""
    assert message_of({}).endswith(": missing")


@pytest.mark.parametrize(
    "text",
    [
        event_text(make_event(service__name="\ud800"), MANY_DIGITS),
        event_text(make_event(service__name="\ud800"), r'"\u0000"'),
        event_text(make_event(), f'["\\ud800",{MANY_DIGITS}]'),
        event_text(make_event(), r'["\ud800","\u0000"]'),
    ],
    ids=["surrogate and digits", "surrogate and U+0000", "both in data", "surrogate and U+0000 in data"],
)
def test_event_with_two_problems_is_rejected(text: str) -> None:
    """An event with two problems is rejected with the path of one of them."""
    error = error_of(text)

    assert error.code == "invalid_schema"
    assert error.message.startswith(("service.name: ", "event.data: "))


REPEATED_KEY = r'{"a":"\ud800","a":1}'


def test_lone_surrogate_in_repeated_key_is_reported() -> None:
    """The path of a lone surrogate in the data is reported even if its key is repeated."""
    assert message_of(make_event(), REPEATED_KEY) == "event.data: contains a lone surrogate"


def test_search_for_lone_surrogate_needs_linear_memory() -> None:
    """The memory for the search of a lone surrogate is proportional to the size of the event, even with long keys."""
    members = ",".join(f'"{number}":1' for number in range(4000))
    text = f'{{"{"k" * 40_000}":{{{members},"last":"\\ud800"}}}}'
    tracemalloc.start()
    try:
        error = error_of(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert error.code == "invalid_schema"
    assert peak < 100 * len(text)


# --- ids of invalid events

ID = "0f9d5a3e-1c2b-4d3e-8f4a-5b6c7d8e9f00"


@pytest.mark.parametrize(
    "text",
    [
        event_text(make_event(event_id=ID)),
        event_text(make_event(event_id=ID.upper())),
        f'{{"event_id":"{ID}"}}',
        f'{{"unknown":1,"event_id":"{ID}"}}',
        event_text(make_event(event_id=ID, schema_version="2.0.0")),
        event_text(make_event(event_id=ID, schema_version="\ud800")),
        event_text(make_event(event_id=ID, service__name="\0")),
        event_text(make_event(event_id=ID, service__name="\ud800")),
        event_text(make_event(event_id=ID), nested(500)),
        event_text(make_event(event_id=ID), "1e999999"),
        event_text(make_event(event_id=ID), f'"{"x" * MAX_EVENT_BYTES}"'),
        f'{{"unknown":"\\ud800","event_id":"{ID}"}}',
        f'{{"\\ud800":1,"event_id":"{ID}"}}',
        f'{{"unknown":{nested(500)},"event_id":"{ID}"}}',
        f'{{"unknown":{{"event_id":"\\ud800"}},"event_id":"{ID}"}}',
    ],
    ids=range(15),
)
def test_id_of_invalid_event_is_found(text: str) -> None:
    """The id of an event is found if it is valid, regardless of other errors."""
    assert id_of(text) == UUID(ID)


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
        nested(500),
        f'{{"EVENT_ID":"{ID}"}}',
        f'{{"unknown":{{"event_id":"{ID}"}}}}',
        f'{{"unknown":{{"event_id":"{ID}"}},"x":"\\ud800"}}',
        '{"event_id":null}',
        '{"event_id":1}',
        '{"event_id":1e999999}',
        '{"event_id":""}',
        f'{{"event_id":"{ID[:-1]}"}}',
        f'{{"event_id":["{ID}"]}}',
        r'{"event_id":"\ud800"}',
        '{"event_id":' + nested(500) + "}",
        r'{"x":"\ud800","event_id":null}',
        r'{"x":"\ud800"}',
    ],
    ids=lambda text: text[:40],
)
def test_event_without_valid_id_has_nil_id(text: str) -> None:
    """The nil UUID is returned if an event has no valid id."""
    assert id_of(text) == NIL_UUID == UUID("00000000-0000-0000-0000-000000000000")


# --- arbitrary events


@thorough
@given(events(), st.booleans())
def test_any_valid_event_is_read(sent: dict[str, Any], ascii_only: bool) -> None:
    """Valid events are accepted, and their values are not changed."""
    event = read_event(event_text(sent, ascii_only=ascii_only).encode())

    assert event.event_id == UUID(sent["event_id"])
    for path in TIMES:
        time = re.sub(r"(\.\d{6})\d*", r"\1", value_at(sent, path).upper().replace("Z", "+00:00"))
        assert value_at(event, path) == datetime.fromisoformat(time)
    for path in [*TEXT_LIMITS, *COUNTS, "environment.ci"]:
        assert value_at(event, path) == value_at(sent, path)


@thorough
@given(invalid_events())
def test_any_invalid_value_is_reported_with_path(invalid: tuple[dict[str, Any], str]) -> None:
    """An event with one invalid value is rejected with the path of this value."""
    event, path = invalid

    assert message_of(event).startswith(f"{path}: ")


@thorough
@given(events(), json_texts())
@example(make_event(), REPEATED_KEY)
@example(make_event(), f'["\\ud800",{DIGITS_400}]')
def test_any_data_is_unchanged_or_rejected(event: dict[str, Any], data: str) -> None:
    """Data is not changed if ``jsonb`` accepts it, and is rejected with its path otherwise."""
    text = event_text(event, data)
    assume(len(text.encode()) <= MAX_EVENT_BYTES)
    result = event_or_error(text.encode())

    if isinstance(result, Event):
        assert bytes(result.event.data) == data.encode()
        assert event_validation.jsonb_objection(data.encode()) is None
    else:
        assert result.code == "invalid_schema"
        assert result.message.startswith("event.data: ")
        assert event_validation.jsonb_objection(data.encode()) or may_contain_surrogates(data)


@thorough
@given(json_texts())
@example(f'["\\ud800",{nested(500)}]')
@example(f'["\\ud800",{MANY_DIGITS}]')
def test_any_json_is_read_or_rejected(text: str) -> None:
    """Any JSON value, as an event or as its data, is accepted or rejected, and the event id is found."""
    with_data = event_text(make_event(event_id=ID), text)
    error = event_or_error(text.encode())
    result = event_or_error(with_data.encode())

    assert isinstance(error, EventError)
    assert error.code in {"invalid_schema", "event_too_large"}
    assert isinstance(result, Event) or result.code in {"invalid_schema", "event_too_large"}
    assert error.event_id == NIL_UUID
    assert result.event_id == UUID(ID)


@pytest.mark.parametrize("value", [r'"\ud800"', nested(500), MANY_DIGITS, r'{"\ud800":[1]}', '"\\u0000"'], ids=len)
@pytest.mark.parametrize("parent", ["", "service", "environment", "event", "metadata"])
def test_unknown_keys_with_unsupported_values_are_ignored(value: str, parent: str) -> None:
    """Unknown keys are ignored at every level even if the decoder does not support their values."""
    event = make_event()
    (event[parent] if parent else event)["unknown"] = "@@"
    text = json.dumps(event).replace('"@@"', value)
    assert read_event(text.encode()).event_id == UUID(event["event_id"])
