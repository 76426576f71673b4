"""Reading of batches: errors of a whole body, and the separate validation of each event."""

from __future__ import annotations

import json
import uuid
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.events import MISSING, make_event
from tests.support.strategies import (
    batch_body,
    batches,
    bodies,
    damaged,
    event_text,
    events,
    is_shallow,
    is_well_formed,
    json_texts,
    nested,
    thorough,
)
from tkserver.wire.api_errors import (
    ApiError,
    BatchSizeMismatch,
    BatchTooLarge,
    EmptyBatch,
    EventError,
    InvalidEncoding,
    InvalidJson,
)
from tkserver.wire.batch import MAX_EVENTS, Batch, count_events, read_batch
from tkserver.wire.event import MAX_EVENT_BYTES, NIL_UUID

DEEP = 20_000
MANY_DIGITS = "9" * 4301
VALID = event_text(make_event())

# Members of a body that the decoder does not support. The body is read with the scanner.
UNSUPPORTED_MEMBERS = [pytest.param(r'"x":"\ud800"', id="surrogate"), pytest.param(f'"x":{nested(DEEP)}', id="depth")]


def read(body: str | bytes, declared_size: str | None = None) -> Batch | ApiError:
    try:
        return read_batch(body.encode() if isinstance(body, str) else body, declared_size=declared_size)
    except ApiError as error:
        return error


def assert_rejected(result: Batch | ApiError) -> None:
    """Check that either the whole body or each of its events is rejected."""
    assert isinstance(result, InvalidJson) or (isinstance(result, Batch) and not result.events)


# --- valid bodies


def test_events_and_errors_have_their_indexes() -> None:
    """A batch contains its valid events and the errors of its invalid events by their indexes."""
    valid, invalid = make_event(), make_event(service__name=MISSING)
    batch = read_batch(json.dumps({"events": [valid, invalid, valid]}).encode())

    assert {index: event.event_id for index, event in batch.events.items()} == {
        0: UUID(valid["event_id"]),
        2: UUID(valid["event_id"]),
    }
    assert batch.errors == (EventError(1, UUID(invalid["event_id"]), "invalid_schema", "service.name: missing"),)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"events":[{VALID}]}}',
        f' \n{{ "events"\t: [ {VALID} ]\r\n}} ',
        f'{{"version":1,"events":[{VALID}],"sent":null}}',
        f'{{"Events":1,"event":[],"events":[{VALID}]}}',
        f'{{"nested":{{"events":[]}},"events":[{VALID}]}}',
        f'{{"\\u0065vents":[{VALID}]}}',
        f'{{"x":"\\u0000","events":[{VALID}]}}',
        f'{{"x":{MANY_DIGITS},"y":1e999999,"events":[{VALID}]}}',
        f'{{"x":"\\ud800","events":[{VALID}]}}',
        f'{{"\\udfff":1,"events":[{VALID}]}}',
        f'{{"events":[{VALID}],"x":{nested(DEEP)}}}',
        f'{{"x":{nested(15_000, bracket="{")},"\\u0065vents":[{VALID}]}}',
    ],
    ids=lambda body: f"{body[:25]}...{body[-3:]}",
)
def test_other_members_are_ignored(body: str) -> None:
    """All members of a body except ``events`` are ignored."""
    batch = read_batch(body.encode())

    assert list(batch.events) == [0]
    assert batch.errors == ()


def test_repeated_event_ids_are_accepted() -> None:
    """Two events of a batch can have the same id."""
    assert len(read_batch(batch_body([VALID, VALID])).events) == 2


# --- invalid bodies


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\xfe\xff",
        b'{"events":[]}\xc3',
        b'{"events":["\xc3"]}',
        b'{"events":["\xed\xa0\x80"]}',
        b'{"events":["\xc0\x80"]}',
        b'{"events":["\xf4\x90\x80\x80"]}',
        b'{"events":["\xe9"]}',
        b"\xff not JSON",
        '{"events":[]}'.encode("utf-16"),
        batch_body([VALID]).replace(b"my-cli", b"my-cl\xef"),
    ],
)
def test_invalid_utf8_is_rejected(body: bytes) -> None:
    """A body that is not valid UTF-8 is rejected with an encoding error, even if it is not JSON either."""
    with pytest.raises(InvalidEncoding):
        read_batch(body)


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "x",
        "null",
        "1",
        '"events"',
        "[]",
        f"[{VALID}]",
        VALID,
        "{}",
        '{"Events":[]}',
        '{"events":null}',
        '{"events":{}}',
        '{"events":"[]"}',
        '{"events":1}',
        '{"events":true}',
        '{"x":{"events":[]}}',
        '{"events":[]',
        '{"events":[}',
        '{"events":[]}}',
        '{"events":[]} x',
        '{"events":[]}{"events":[]}',
        '{"events":[1,]}',
        '{"events":[,1]}',
        '{"events":[1 2]}',
        '{"events":[],}',
        "{'events':[]}",
        "{events:[]}",
        '{"events":[NaN]}',
        '{"events":[-Infinity]}',
        '{"events":[01]}',
        '{"events":["\t"]}',
        '{"events":["\\x"]}',
        '{"events":[]}\0',
        '{"events":[tru]}',
        f'{{"events":[{VALID},{VALID[:-1]}]}}',
        '{"events":[{"event":{"data":1.}}]}',
        "[" * DEEP,
        nested(DEEP),
        '{"a":' * DEEP,
        '{"events":' + "[" * DEEP,
        '{"events":' + nested(DEEP),
        '{"events":[' + "[" * DEEP + '"',
    ],
    ids=lambda body: body if len(body) < 40 else f"{body[:15]}...{body[-3:]}",
)
def test_invalid_json_is_rejected(body: str) -> None:
    """A body that is not a JSON object with an ``events`` array is rejected."""
    with pytest.raises(InvalidJson):
        read_batch(body.encode())


@pytest.mark.parametrize("member", UNSUPPORTED_MEMBERS)
def test_scanned_body_without_events_is_rejected(member: str) -> None:
    """A body that the decoder does not support is rejected if it has no ``events`` array."""
    with pytest.raises(InvalidJson):
        read_batch(f"{{{member}}}".encode())


@pytest.mark.parametrize(
    "end",
    ["", "}}", '"events":null}', '"events":{}}', '"events":[1,]}', '"events":[1}', '"events":[]', '"events":[]}x'],
)
@pytest.mark.parametrize("member", UNSUPPORTED_MEMBERS)
def test_scanned_body_with_invalid_json_is_rejected(member: str, end: str) -> None:
    """A body that the decoder does not support is rejected if it is not JSON."""
    with pytest.raises(InvalidJson):
        read_batch(f"{{{member},{end}".encode())


# Values that are nested too deeply for the standard library, with syntax errors around them.
DEEP_AND_MALFORMED = [
    pytest.param("{" + "[" * DEEP, id="as a key"),
    pytest.param('{"events":[],' + nested(DEEP) + ":1}", id="as a later key"),
    pytest.param('{"events":[{"a":' + nested(DEEP) + ",nope}]}", id="before an invalid key"),
    pytest.param('{"events":[{"a":' + nested(DEEP) + ",}]}", id="before a trailing comma"),
]


@pytest.mark.parametrize("body", DEEP_AND_MALFORMED)
def test_syntax_error_around_deep_value_is_rejected(body: str) -> None:
    """A syntax error next to a deeply nested value is an error of the body or of the event."""
    assert_rejected(read(body))


@pytest.mark.parametrize(
    "body",
    [
        '{"events":[{' + nested(DEEP) + ":1}]}",
        '{"events":[{"a":' + "[" * DEEP + "}" * (DEEP + 1) + "]}",
        '{"events":[' + "[" * DEEP + "}" * DEEP + "]}",
    ],
    ids=["key of an event", "mismatched brackets in an event", "mismatched brackets"],
)
def test_event_with_malformed_deep_value_is_rejected(body: str) -> None:
    """An event is rejected even if the scanner checks only the brackets of a malformed value."""
    assert_rejected(read(body))


def _max_depth() -> int:
    """Return the number of nested levels that the standard library can decode from here."""
    low, high = 1, DEEP
    while high - low > 1:
        middle = (low + high) // 2
        try:
            json.loads(nested(middle))
        except RecursionError:
            high = middle
        else:
            low = middle
    return low


@pytest.mark.parametrize("inner", ["nope", "1 2", "1,", r'"\ud800" 1'])
@pytest.mark.parametrize("event", ['{{"a":{}}}', r'{{"a":"\ud800","b":{}}}', '{{"a":{},nope}}'])
def test_syntax_error_at_maximum_depth_is_rejected(event: str, inner: str) -> None:
    """A syntax error at about the maximum depth of the decoders is rejected, regardless of which decoder finds it."""
    max_depth = _max_depth()
    # The maximum depth of the standard library depends on the current stack, so a range of depths is tested.
    for depth in range(max_depth - 50, max_depth + 10):
        assert_rejected(read(f'{{"events":[{event.format(nested(depth, inner))},1]}}'))


# --- number of events


@pytest.mark.parametrize("body", [b'{"events":[]}', b'{"events":[ \n]}', b'{"events":[],"x":"\\ud800"}'])
@pytest.mark.parametrize("declared", [None, "0", "1"])
def test_empty_batch_is_rejected(body: bytes, declared: str | None) -> None:
    """A batch without events is rejected, regardless of ``X-Batch-Size``."""
    with pytest.raises(EmptyBatch):
        read_batch(body, declared_size=declared)


@pytest.mark.parametrize("member", ["", *UNSUPPORTED_MEMBERS])
def test_batch_of_more_than_1000_events_is_rejected(member: str) -> None:
    """A batch of 1000 events is accepted, and one of 1001 events is rejected, regardless of ``X-Batch-Size``."""
    end = f",{member}}}" if member else "}"
    largest, larger = (f'{{"events":[{",".join(["1"] * size)}]{end}'.encode() for size in (1000, 1001))

    assert MAX_EVENTS == 1000
    assert len(read_batch(largest, declared_size="1000").errors) == 1000
    for declared in (None, "1001", "1000", "1"):
        with pytest.raises(BatchTooLarge):
            read_batch(larger, declared_size=declared)


@pytest.mark.parametrize("declared", [None, "2", " 2 "])
def test_batch_size_includes_invalid_events(declared: str | None) -> None:
    """The value of ``X-Batch-Size`` is the number of all events, including invalid ones."""
    batch = read_batch(batch_body([VALID, "1"]), declared_size=declared)

    assert (len(batch.events), len(batch.errors)) == (1, 1)


@pytest.mark.parametrize(
    "declared",
    ["", " ", "0", "1", "3", "22", "-2", "+2", "2.0", "2e0", "0x2", "two", "2,2", "2 2", "²", "٢", "9" * 5000],
)
def test_wrong_batch_size_is_rejected(declared: str) -> None:
    """Any other value of ``X-Batch-Size`` is rejected with a short message."""
    with pytest.raises(BatchSizeMismatch) as caught:
        read_batch(batch_body([VALID, "1"]), declared_size=declared)

    assert len(caught.value.message) < 100


# --- invalid events do not affect valid events

ID = "0f9d5a3e-1c2b-4d3e-8f4a-5b6c7d8e9f00"


def invalid_event(data: str | None = None, **overrides: Any) -> str:
    """Return an event with a valid id.

    :param data: the JSON text of ``event.data``.
    """
    return event_text(make_event(event_id=ID, **overrides), data)


def event_with_text(key: str, text: str) -> str:
    """Return an event in which the value of a key is this JSON text."""
    placeholder = "placeholder of the value"
    return invalid_event(**{key: placeholder}).replace(json.dumps(placeholder), text)


_WITH_ID = {
    "surrogate in data": (invalid_event(r'"\ud800"'), "invalid_schema"),
    "surrogate in a string": (invalid_event(user_id="client_\udfff"), "invalid_schema"),
    "depth in data": (invalid_event(nested(DEEP)), "invalid_schema"),
    "501 levels in data": (invalid_event(nested(501)), "invalid_schema"),
    "depth elsewhere": (event_with_text("service", nested(DEEP)), "invalid_schema"),
    "U+0000 in data": (invalid_event(r'{"\u0000":1}'), "invalid_schema"),
    "U+0000 in a string": (invalid_event(session_id="\0"), "invalid_schema"),
    "huge exponent": (invalid_event("1e999999"), "invalid_schema"),
    "huge count": (event_with_text("metadata", "1e999999"), "invalid_schema"),
    "many digits": (event_with_text("metadata", MANY_DIGITS), "invalid_schema"),
    "wrong type": (invalid_event(service=[]), "invalid_schema"),
    "out of range in UTC": (invalid_event(timestamp="9999-12-31T23:59:59-01:00"), "invalid_schema"),
    "another schema": (invalid_event(schema_version="2.0.0"), "unsupported_schema"),
    "too large": (invalid_event(f'"{"x" * MAX_EVENT_BYTES}"'), "event_too_large"),
    "too large and deep": (invalid_event(nested(MAX_EVENT_BYTES)), "event_too_large"),
    "too large with a surrogate": (invalid_event(f'"{"x" * MAX_EVENT_BYTES}\\ud800"'), "event_too_large"),
}
_WITHOUT_ID = {
    "null": ("null", "invalid_schema"),
    "number": ("1e999999", "invalid_schema"),
    "digits": (MANY_DIGITS, "invalid_schema"),
    "surrogate": (r'"\ud800"', "invalid_schema"),
    "depth": (nested(DEEP), "invalid_schema"),
    "deep objects": (nested(15_000, bracket="{"), "invalid_schema"),
    "empty": ("{}", "invalid_schema"),
    "no id": (event_text(make_event(event_id=MISSING)), "invalid_schema"),
    "id is not a UUID": (event_text(make_event(event_id="x")), "invalid_schema"),
    "id is a surrogate": (event_text(make_event(event_id="\ud800")), "invalid_schema"),
    "id is deep": (f'{{"event_id":{nested(DEEP)}}}', "invalid_schema"),
}
INVALID = {
    **{name: (text, UUID(ID), code) for name, (text, code) in _WITH_ID.items()},
    **{name: (text, NIL_UUID, code) for name, (text, code) in _WITHOUT_ID.items()},
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_event_is_reported_with_index_and_id(name: str) -> None:
    """An invalid event is reported with its index and its id, if it has one, and all other events are accepted."""
    text, event_id, code = INVALID[name]
    batch = read_batch(batch_body([VALID, text, VALID]))

    assert list(batch.events) == [0, 2]
    assert [(error.index, error.event_id, error.code) for error in batch.errors] == [(1, event_id, code)]


@thorough
@given(st.lists(st.sampled_from(sorted(INVALID)) | st.none(), min_size=1, max_size=8), st.booleans())
def test_any_mix_of_valid_and_invalid_events(names: list[str | None], with_size: bool) -> None:
    """In any mix of valid and invalid events, each invalid event is rejected and each valid event is accepted."""
    # Numbers with many digits are tested separately below.
    names = [name for name in names if name not in ("many digits", "digits")] or [None]
    batch = read_batch(
        batch_body(VALID if name is None else INVALID[name][0] for name in names),
        declared_size=str(len(names)) if with_size else None,
    )

    assert list(batch.events) == [index for index, name in enumerate(names) if name is None]
    assert [(error.index, error.event_id, error.code) for error in batch.errors] == [
        (index, *INVALID[name][1:]) for index, name in enumerate(names) if name is not None
    ]


@pytest.mark.parametrize("name", ["surrogate in data", "depth in data"])
def test_number_with_many_digits_next_to_invalid_event(name: str) -> None:
    """A number with many digits is accepted even if another event requires the scanner."""
    many_digits = event_text(make_event(), MANY_DIGITS)
    batch = read_batch(batch_body([INVALID[name][0], many_digits, VALID]))

    assert list(batch.events) == [1, 2]
    assert bytes(batch.events[1].event.data) == MANY_DIGITS.encode()


@pytest.mark.parametrize("data", [nested(DEEP), MANY_DIGITS], ids=["depth", "digits"])
def test_event_with_two_problems_does_not_affect_others(data: str) -> None:
    """An event with a lone surrogate and another value that the decoder rejects does not affect other events."""
    event = make_event(service__name="\ud800")
    batch = read_batch(batch_body([VALID, event_text(event, data), VALID]))

    assert list(batch.events) == [0, 2]
    assert [error.event_id for error in batch.errors] == [UUID(event["event_id"])]


def test_size_excludes_white_space_around_event() -> None:
    """The size of an event does not include the white space around it."""
    largest = VALID[:-1] + " " * (MAX_EVENT_BYTES - len(VALID)) + "}"
    batch = read_batch(batch_body([f"  {largest}\n", f" {largest[:-1]} }}"]))

    assert list(batch.events) == [0]
    assert [(error.index, error.code) for error in batch.errors] == [(1, "event_too_large")]


# --- arbitrary bodies


@thorough
@given(bodies(), st.none() | st.text(max_size=5) | st.integers(0, 5).map(str))
@example(b"{" + b"[" * DEEP, None)
@example(f'{{"events":[["\\ud800",{nested(DEEP)}]]}}'.encode(), None)
@example(f'{{"events":[["\\ud800",{MANY_DIGITS}]]}}'.encode(), None)
@example(f'{{"events":[{{"a":{nested(DEEP)},nope}}]}}'.encode(), None)
def test_any_body_is_read_or_rejected(body: bytes, declared_size: str | None) -> None:
    """Any body is read or rejected, and each event of a batch is either valid or has an error."""
    result = read(body, declared_size)

    if isinstance(result, Batch):
        indexes = sorted([*result.events, *(error.index for error in result.errors)])
        assert indexes == list(range(len(indexes)))
        assert 1 <= len(indexes) <= MAX_EVENTS


@thorough
@given(st.lists(st.tuples(events(), json_texts()), min_size=1, max_size=4))
@example([(make_event(), r'"\ud800"'), (make_event(), MANY_DIGITS)])
def test_data_and_ids_are_unchanged(sent: list[tuple[dict[str, Any], str]]) -> None:
    """The bytes of the data and the id of each event are unchanged, regardless of other events."""
    batch = read_batch(batch_body(event_text(event, data) for event, data in sent))

    assert len(batch.events) + len(batch.errors) == len(sent)
    for index, event in batch.events.items():
        assert event.event_id == UUID(sent[index][0]["event_id"])
        assert bytes(event.event.data) == sent[index][1].encode()
    for error in batch.errors:
        assert error.event_id == UUID(sent[error.index][0]["event_id"])


_SHORT_DATA = st.sampled_from(["null", r'"\ud800"', r'"\u0000"', "[1, 2]", "1e999999"])


@thorough
@given(damaged(batches(st.builds(event_text, events(), _SHORT_DATA) | _SHORT_DATA)).filter(is_shallow))
def test_damaged_body_is_read_if_still_valid(text: str) -> None:
    """A damaged body is read if it is still a JSON object with an ``events`` array, and rejected otherwise."""
    result = read(text)
    content = json.loads(text, parse_int=str) if is_well_formed(text) else None

    if isinstance(content, dict) and isinstance(content.get("events"), list):
        assert isinstance(result, Batch if content["events"] else EmptyBatch)
    else:
        assert isinstance(result, InvalidJson)


def test_each_error_has_id_of_its_event() -> None:
    """Each error contains the id of its event."""
    ids = [uuid.uuid4() for _ in range(3)]
    batch = read_batch(batch_body(event_text(make_event(event_id=str(event_id), service__name="")) for event_id in ids))

    assert [error.event_id for error in batch.errors] == ids


@thorough
@given(bodies())
@example(b'{"events": ["\xff"]}')
@example(json.dumps({"events": [1] * (MAX_EVENTS + 1)}).encode())
def test_count_equals_number_of_read_events(body: bytes) -> None:
    """The count of events equals the size of the batch that would be read, and is 0 if the body would be rejected."""
    result = read(body)
    expected = len(result.events) + len(result.errors) if isinstance(result, Batch) else 0
    assert count_events(body) == expected
