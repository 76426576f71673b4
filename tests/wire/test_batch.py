"""Reading of batches: errors of a whole body, and the separate validation of each event."""

from __future__ import annotations

import json
import re
import uuid
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.events import MISSING, make_event
from tests.support.strategies import (
    DEEP,
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
from tkserver.wire import batch as batch_module
from tkserver.wire.api_errors import (
    ApiError,
    BatchSizeMismatch,
    BatchTooLarge,
    EmptyBatch,
    EventError,
    InvalidEncoding,
    InvalidJson,
)
from tkserver.wire.batch import MAX_EVENTS, Batch, run_steps
from tkserver.wire.event import MAX_EVENT_BYTES, NIL_UUID

MANY_DIGITS = "9" * 4301
DIGITS_400 = "9" * 400
VALID = event_text(make_event())

SURROGATE_MEMBER = r'"x":"\ud800"'
"""A member because of which the decoder rejects a body. It is ignored nevertheless."""


def read_batch(body: bytes, declared_size: str | None = None) -> Batch:
    return run_steps(batch_module.read_batch(body, declared_size=declared_size))


def count_events(body: bytes) -> int:
    return run_steps(batch_module.count_events(body))


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
        f'{{"events":[{VALID}],"x":{nested(500)}}}',
        f'{{"x":{nested(500, bracket="{")},"\\u0065vents":[{VALID}]}}',
        f'{{"events":[1,{VALID}],"events":null,"events":[{VALID}]}}',
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


def test_body_with_lone_surrogate_and_without_events_is_rejected() -> None:
    """A body with a lone surrogate is rejected if it has no ``events`` array."""
    with pytest.raises(InvalidJson):
        read_batch(f"{{{SURROGATE_MEMBER}}}".encode())


@pytest.mark.parametrize(
    "end",
    ["", "}}", '"events":null}', '"events":{}}', '"events":[1,]}', '"events":[1}', '"events":[]', '"events":[]}x'],
)
@pytest.mark.parametrize("member", [SURROGATE_MEMBER, f'"x":{nested(DEEP)}'], ids=["surrogate", "depth"])
def test_invalid_json_with_lone_surrogate_or_depth_is_rejected(member: str, end: str) -> None:
    """A body that is not JSON is rejected, even if it also has other values that the decoder does not accept."""
    with pytest.raises(InvalidJson):
        read_batch(f"{{{member},{end}".encode())


@pytest.mark.parametrize(
    "body",
    [
        r'{"events":[1],"events":null}',
        r'{"events":[1],"events":{}}',
        '{"events":[' + "1," * 9_000 + '1],"events":null}',
    ],
    ids=len,
)
def test_last_member_of_several_with_same_key_counts(body: str) -> None:
    """If a key is repeated, the last value counts, for short and for long bodies."""
    with pytest.raises(InvalidJson):
        read_batch(body.encode())


# --- nesting


def _at_each_place(value: str) -> dict[str, str]:
    """Return bodies that contain a value at each kind of place."""
    with_data = event_text(make_event(), value)
    in_service = json.dumps(make_event(service__unknown="@@")).replace('"@@"', value)
    return {
        "data": batch_body([VALID, with_data, VALID]).decode(),
        "an event": batch_body([VALID, value, VALID]).decode(),
        "the first event of many": batch_body([value, *[VALID] * 100]).decode(),
        "the id": batch_body([f'{{"event_id":{value}}}']).decode(),
        "an unknown key of an event": batch_body([f'{{"unknown":{value}}}']).decode(),
        "an unknown key of an object": batch_body([in_service]).decode(),
        "a member before events": f'{{"x":{value},"events":[{VALID}]}}',
        "a member after events": f'{{"events":[{VALID}],"x":{value}}}',
        "next to a lone surrogate": batch_body([r'"\ud800"', with_data]).decode(),
    }


@pytest.mark.parametrize("bracket", ["[", "{"])
@pytest.mark.parametrize("place", _at_each_place(""))
def test_at_least_500_levels_are_accepted(place: str, bracket: str) -> None:
    """Values with 500 nested levels are accepted at each place of a body where any value is accepted."""
    expected = read(_at_each_place("[1]" if bracket == "[" else '{"a":1}')[place])
    result = read(_at_each_place(nested(500, bracket=bracket))[place])

    assert isinstance(expected, Batch)
    assert isinstance(result, Batch)
    assert list(result.events) == list(expected.events)
    assert [error.code for error in result.errors] == [error.code for error in expected.errors]


@pytest.mark.parametrize("bracket", ["[", "{"])
@pytest.mark.parametrize("place", _at_each_place(""))
def test_body_that_is_nested_too_deeply_is_rejected(place: str, bracket: str) -> None:
    """A body that contains a value nested too deeply for the decoder is rejected as a whole."""
    with pytest.raises(InvalidJson, match="nested too deeply"):
        read_batch(_at_each_place(nested(DEEP, bracket=bracket))[place].encode())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("{" + "[" * DEEP, id="as a key"),
        pytest.param('{"events":[],' + nested(DEEP) + ":1}", id="as a later key"),
        pytest.param('{"events":[{"a":' + nested(DEEP) + ",nope}]}", id="before an invalid key"),
        pytest.param('{"events":[{"a":' + nested(DEEP) + ",}]}", id="before a trailing comma"),
        pytest.param('{"events":[{' + nested(DEEP) + ":1}]}", id="as a key of an event"),
        pytest.param('{"events":[{"a":' + "[" * DEEP + "}" * (DEEP + 1) + "]}", id="mismatched brackets in an event"),
        pytest.param('{"events":[' + "[" * DEEP + "}" * DEEP + "]}", id="mismatched brackets"),
    ],
)
def test_syntax_error_around_deep_value_is_rejected(body: str) -> None:
    """A body with a deeply nested value and a syntax error is rejected."""
    with pytest.raises(InvalidJson):
        read_batch(body.encode())


def _accepted_depth(bracket: str) -> int:
    """Return the number of nested levels in ``event.data`` that the decoder accepts from here."""
    accepted, rejected = 1, DEEP
    while rejected - accepted > 1:
        middle = (accepted + rejected) // 2
        if isinstance(read(batch_body([event_text(make_event(), nested(middle, bracket=bracket))])), Batch):
            accepted = middle
        else:
            rejected = middle
    return accepted


@pytest.mark.parametrize("inner", ["nope", "1 2", "1,", r'"\ud800" 1'])
@pytest.mark.parametrize("event", ['{{"a":{}}}', r'{{"a":"\ud800","b":{}}}', '{{"a":{},nope}}'])
def test_syntax_error_at_maximum_depth_is_rejected(event: str, inner: str) -> None:
    """A syntax error at about the maximum depth of the decoder is rejected."""
    depth_of_decoder = _accepted_depth("[")
    for depth in range(depth_of_decoder - 30, depth_of_decoder + 10):
        assert isinstance(read(f'{{"events":[{event.format(nested(depth, inner))},1]}}'), InvalidJson)


@pytest.mark.parametrize("bracket", ["[", "{"])
@pytest.mark.parametrize("surrogate", [False, True])
def test_each_depth_is_accepted_or_rejected_as_a_whole(bracket: str, surrogate: bool) -> None:
    """Up to some depth, an event is accepted. Beyond it, the body is rejected. There is nothing in between."""
    depth_of_decoder = _accepted_depth(bracket)
    results = [
        read(batch_body([event_text(make_event(), nested(depth, bracket=bracket)), *[r'"\ud800"'] * surrogate]))
        for depth in range(depth_of_decoder - 20, depth_of_decoder + 20)
    ]

    assert all(list(result.events) == [0] for result in results if isinstance(result, Batch))
    assert [isinstance(result, InvalidJson) for result in results] == sorted(
        isinstance(result, InvalidJson) for result in results
    )
    assert depth_of_decoder >= 500


# --- number of events


@pytest.mark.parametrize("body", [b'{"events":[]}', b'{"events":[ \n]}', b'{"events":[],"x":"\\ud800"}'])
@pytest.mark.parametrize("declared", [None, "0", "1"])
def test_empty_batch_is_rejected(body: bytes, declared: str | None) -> None:
    """A batch without events is rejected, regardless of ``X-Batch-Size``."""
    with pytest.raises(EmptyBatch):
        read_batch(body, declared_size=declared)


@pytest.mark.parametrize("element", ["1", '{"service":{}}'], ids=["short", "long"])
@pytest.mark.parametrize("member", ["", SURROGATE_MEMBER, f'"x":"{"x" * 20_000}"'], ids=len)
def test_batch_of_more_than_1000_events_is_rejected(member: str, element: str) -> None:
    """A batch of 1000 events is accepted, and one of 1001 events is rejected, regardless of ``X-Batch-Size``."""
    end = f",{member}}}" if member else "}"
    largest, larger = (f'{{"events":[{",".join([element] * size)}]{end}'.encode() for size in (1000, 1001))

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
    "U+0000 in data": (invalid_event(r'{"\u0000":1}'), "invalid_schema"),
    "U+0000 in a string": (invalid_event(session_id="\0"), "invalid_schema"),
    "huge exponent": (invalid_event("1e999999"), "invalid_schema"),
    "huge count": (event_with_text("metadata", "1e999999"), "invalid_schema"),
    "many digits": (event_with_text("metadata", MANY_DIGITS), "invalid_schema"),
    "401 digits in data": (invalid_event("9" * 401), "invalid_schema"),
    "user id with a line break": (invalid_event(user_id="client_x\n"), "invalid_schema"),
    "wrong type": (invalid_event(service=[]), "invalid_schema"),
    "out of range in UTC": (invalid_event(timestamp="9999-12-31T23:59:59-01:00"), "invalid_schema"),
    "another schema": (invalid_event(schema_version="2.0.0"), "unsupported_schema"),
    "too large": (invalid_event(f'"{"x" * MAX_EVENT_BYTES}"'), "event_too_large"),
    "too large with a surrogate": (invalid_event(f'"{"x" * MAX_EVENT_BYTES}\\ud800"'), "event_too_large"),
}
_WITHOUT_ID = {
    "null": ("null", "invalid_schema"),
    "number": ("1e999999", "invalid_schema"),
    "digits": (MANY_DIGITS, "invalid_schema"),
    "surrogate": (r'"\ud800"', "invalid_schema"),
    "empty": ("{}", "invalid_schema"),
    "no id": (event_text(make_event(event_id=MISSING)), "invalid_schema"),
    "id is not a UUID": (event_text(make_event(event_id="x")), "invalid_schema"),
    "id is a surrogate": (event_text(make_event(event_id="\ud800")), "invalid_schema"),
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


def test_number_with_400_digits_next_to_lone_surrogate() -> None:
    """A number with 400 digits is accepted even if another event contains a lone surrogate."""
    many_digits = event_text(make_event(), DIGITS_400)
    batch = read_batch(batch_body([INVALID["surrogate in data"][0], many_digits, VALID]))

    assert list(batch.events) == [1, 2]
    assert bytes(batch.events[1].event.data) == DIGITS_400.encode()


@pytest.mark.parametrize("data", [r'"\u0000"', MANY_DIGITS, r'"\udfff"'], ids=["U+0000", "digits", "surrogate"])
def test_event_with_two_problems_does_not_affect_others(data: str) -> None:
    """An event with a lone surrogate and another problem does not affect other events."""
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


# --- texts of events


@pytest.mark.parametrize("surrogate", [False, True])
@pytest.mark.parametrize("padding", [0, 20_000], ids=["short", "long"])
def test_batch_contains_texts_as_received(padding: int, surrogate: bool) -> None:
    """A batch contains the text of each event as it was received, also if it contains lone surrogates."""
    texts = [
        VALID,
        "1",
        "{ }",
        f'"{"x" * padding}"',
        '["\ue800\\ue800"]',
        invalid_event(r'{"\ud800":"\uDfFf\ud83d\ude00"}'),
    ]
    if surrogate:
        texts += [r'"\ud800"', r'["\uDC00\\\ud800"]', VALID[:-1] + r',"unknown":"\ud800"}']
    batch = read_batch(batch_body(f" {text}\n" for text in texts))

    assert [bytes(text).decode() for text in batch.texts] == texts
    assert list(batch.events) == ([0, 8] if surrogate else [0])


# --- long bodies are read in steps


@pytest.mark.parametrize("character", ["é", "€", "\U0001f600"])
@pytest.mark.parametrize("distance", range(5))
def test_character_at_boundary_of_steps_is_valid(character: str, distance: int) -> None:
    """A character can be at any position of a long body."""
    start = f'{{"events":[{VALID}],"x":"'.encode()
    body = start + b"x" * ((1 << 20) - distance - len(start)) + character.encode() * 1000 + b'"}'

    assert list(read_batch(body).events) == [0]


@pytest.mark.parametrize("invalid", [b"\xff", b"\xe2\x82", b"\xe2\x82x", b"\xed\xa0\x80", b"\x80" * 9, b"\xf0\x9f\x98"])
@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 5, 1000, (1 << 20) + 1])
@pytest.mark.parametrize("end", [b"", b'"}', b"\xc3\xa9" * 600_000])
def test_position_of_invalid_utf8_is_reported(invalid: bytes, distance: int, end: bytes) -> None:
    """The position of invalid UTF-8 is reported as for the whole body."""
    body = b"x" * ((1 << 20) - distance) + invalid + end
    with pytest.raises(UnicodeDecodeError) as expected:
        body.decode()
    with pytest.raises(InvalidEncoding) as caught:
        read_batch(body)

    assert caught.value.message == f"the body is not valid UTF-8 at byte {expected.value.start}"


def test_long_body_is_read_in_steps() -> None:
    """Between the events of a long body, the caller can do other work."""
    steps = batch_module.read_batch(batch_body([VALID] * 1000))

    assert sum(1 for _ in steps) >= 50


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
@example([(make_event(), r'"\ud800"'), (make_event(), DIGITS_400)])
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


def _naive_result(event: str) -> str | None:
    """Return the error code for an event that is valid except for its data, in the simplest way."""
    decoded = json.loads(event, object_pairs_hook=list, parse_int=Decimal, parse_float=Decimal)
    pending: list[Any] = [dict(dict(decoded)["event"])["data"]] if isinstance(decoded, list) and decoded else [decoded]
    while pending:
        value = pending.pop()
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            return "invalid_schema"
        if isinstance(value, Decimal):
            _, digits, exponent = value.as_tuple()
            if not isinstance(exponent, int) or exponent < -400 or (value and len(digits) + exponent > 400):
                return "invalid_schema"
        if isinstance(value, (list, tuple)):
            pending.extend(value)
    return None


@thorough
@given(st.lists(st.tuples(events(), json_texts()), min_size=1, max_size=5))
@example([(make_event(), r'"\ud800"'), (make_event(), "[1e399, 1e-400]"), (make_event(), "[1e400]")])
@example([(make_event(), "0e-999"), (make_event(), "-1e131071"), (make_event(), "9" * 350 + "e99")])
@example([(make_event(), r'["\ud83d\ude00","\\ud800","\\u0000","1e999999"]'), (make_event(), '{"1e999999":"\\u0000"}')])
def test_batch_agrees_with_naive_reading(sent: list[tuple[dict[str, Any], str]]) -> None:
    """Exactly the events are accepted that a simple implementation of the contract accepts."""
    texts = [event_text(event, data) for event, data in sent]
    batch = read_batch(batch_body(texts))
    expected = ["event_too_large" if len(text.encode()) > MAX_EVENT_BYTES else _naive_result(text) for text in texts]

    codes = {error.index: error.code for error in batch.errors}
    assert [codes.get(index) for index in range(len(texts))] == expected
    assert sorted([*batch.events, *codes]) == list(range(len(texts)))


@thorough
@given(bodies())
@example(b'{"events": ["\xff"]}')
@example(json.dumps({"events": [1] * (MAX_EVENTS + 1)}).encode())
def test_count_equals_number_of_read_events(body: bytes) -> None:
    """The count of events equals the size of the batch that would be read, and is 0 if the body would be rejected."""
    result = read(body)
    expected = len(result.events) + len(result.errors) if isinstance(result, Batch) else 0
    assert count_events(body) == expected
