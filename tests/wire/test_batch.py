"""Bodies: the refusals of a whole one, and how each event of one is judged by itself."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.events import MISSING, make_event
from tests.support.strategies import (
    batches,
    bodies,
    body_of,
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
GOOD = event_text(make_event())

# What the decoder refuses as a whole, so that a second look is needed; and a body member that brings it about.
HARD_MEMBERS = [pytest.param(r'"x":"\ud800"', id="surrogate"), pytest.param(f'"x":{nested(DEEP)}', id="depth")]


def read(body: str | bytes, declared_size: str | None = None) -> Batch | ApiError:
    try:
        return read_batch(body.encode() if isinstance(body, str) else body, declared_size=declared_size)
    except ApiError as refusal:
        return refusal


# --- the batch


def test_batch() -> None:
    """The events of a batch are there by their places, and so are its refusals."""
    good, bad = make_event(), make_event(service__name=MISSING)
    batch = read_batch(json.dumps({"events": [good, bad, good]}).encode())

    assert {place: event.event_id for place, event in batch.events.items()} == {
        0: UUID(good["event_id"]),
        2: UUID(good["event_id"]),
    }
    assert batch.refusals == (EventError(1, UUID(bad["event_id"]), "invalid_schema", "service.name: missing"),)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"events":[{GOOD}]}}',
        f' \n{{ "events"\t: [ {GOOD} ]\r\n}} ',
        f'{{"version":1,"events":[{GOOD}],"sent":null}}',
        f'{{"Events":1,"event":[],"events":[{GOOD}]}}',
        f'{{"nested":{{"events":[]}},"events":[{GOOD}]}}',
        f'{{"\\u0065vents":[{GOOD}]}}',
        f'{{"x":"\\u0000","events":[{GOOD}]}}',
        f'{{"x":{MANY_DIGITS},"y":1e999999,"events":[{GOOD}]}}',
        f'{{"x":"\\ud800","events":[{GOOD}]}}',
        f'{{"\\udfff":1,"events":[{GOOD}]}}',
        f'{{"events":[{GOOD}],"x":{nested(DEEP)}}}',
        f'{{"x":{nested(15_000, bracket="{")},"\\u0065vents":[{GOOD}]}}',
    ],
    ids=lambda body: f"{body[:25]}...{body[-3:]}",
)
def test_around_the_events(body: str) -> None:
    """Members of a body beside its events are ignored, whatever they are."""
    batch = read_batch(body.encode())

    assert list(batch.events) == [0]
    assert batch.refusals == ()


def test_same_id_twice() -> None:
    """An id that stands twice is no concern of the reader."""
    assert len(read_batch(body_of([GOOD, GOOD])).events) == 2


# --- bodies that are refused


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
        b"\xff no JSON either",
        '{"events":[]}'.encode("utf-16"),
        body_of([GOOD]).replace(b"my-cli", b"my-cl\xef"),
    ],
)
def test_invalid_encoding(body: bytes) -> None:
    """A body that is not UTF-8 is refused for that, though it may be no JSON either."""
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
        f"[{GOOD}]",
        GOOD,
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
        f'{{"events":[{GOOD},{GOOD[:-1]}]}}',
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
def test_invalid_json(body: str) -> None:
    """A body that is no JSON, or no object with an array of events, is refused for that."""
    with pytest.raises(InvalidJson):
        read_batch(body.encode())


@pytest.mark.parametrize("member", HARD_MEMBERS)
def test_no_events_at_second_look(member: str) -> None:
    """A body that is hard to decode and has no events is refused for that."""
    with pytest.raises(InvalidJson):
        read_batch(f"{{{member}}}".encode())


@pytest.mark.parametrize(
    "end",
    ["", "}}", '"events":null}', '"events":{}}', '"events":[1,]}', '"events":[1}', '"events":[]', '"events":[]}x'],
)
@pytest.mark.parametrize("member", HARD_MEMBERS)
def test_invalid_json_at_second_look(member: str, end: str) -> None:
    """A body that is hard to decode is held to the same rules."""
    with pytest.raises(InvalidJson):
        read_batch(f"{{{member},{end}".encode())


# Found by going deeper than the standard library goes, in places where no value may stand, or is known to be sound.
MALFORMED_DEPTHS = [
    pytest.param("{" + "[" * DEEP, id="as a key"),
    pytest.param('{"events":[],' + nested(DEEP) + ":1}", id="as a later key"),
    pytest.param('{"events":[{"a":' + nested(DEEP) + ",nope}]}", id="before what is no key"),
    pytest.param('{"events":[{"a":' + nested(DEEP) + ",}]}", id="before nothing"),
]


@pytest.mark.parametrize("body", MALFORMED_DEPTHS)
def test_malformed_depths(body: str) -> None:
    """Depths with something malformed around them are refused, the body or the event, and raise nothing else."""
    outcome = read(body)

    assert isinstance(outcome, InvalidJson) or (isinstance(outcome, Batch) and not outcome.events)


@pytest.mark.parametrize(
    "body",
    [
        '{"events":[{' + nested(DEEP) + ":1}]}",
        '{"events":[{"a":' + "[" * DEEP + "}" * (DEEP + 1) + "]}",
        '{"events":[' + "[" * DEEP + "}" * DEEP + "]}",
    ],
    ids=["a key of an event", "unlike brackets in an event", "unlike brackets"],
)
def test_malformed_depths_of_events(body: str) -> None:
    """Where only the brackets of a malformed depth are looked at, its event is refused all the same."""
    outcome = read(body)

    assert isinstance(outcome, InvalidJson) or (isinstance(outcome, Batch) and not outcome.events)


def _deepest() -> int:
    """How many levels the standard library decodes from here."""
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
def test_malformed_at_the_last_level(event: str, inner: str) -> None:
    """What is malformed just about where decoders give up is refused, whichever of them gets to see it."""
    deepest = _deepest()
    # How deep a decoder goes depends on where it is called from, so that some see what others do not.
    for depth in range(deepest - 50, deepest + 10):
        outcome = read(f'{{"events":[{event.format(nested(depth, inner))},1]}}')

        assert isinstance(outcome, InvalidJson) or (isinstance(outcome, Batch) and not outcome.events)


# --- how many there are


@pytest.mark.parametrize("body", [b'{"events":[]}', b'{"events":[ \n]}', b'{"events":[],"x":"\\ud800"}'])
@pytest.mark.parametrize("declared", [None, "0", "1"])
def test_empty_batch(body: bytes, declared: str | None) -> None:
    """A batch without events is refused, whatever its header says."""
    with pytest.raises(EmptyBatch):
        read_batch(body, declared_size=declared)


@pytest.mark.parametrize("rest", ["", *HARD_MEMBERS])
def test_largest_batch(rest: str) -> None:
    """A batch may have 1000 events, and not one more, however its header counts them."""
    end = f",{rest}}}" if rest else "}"
    largest, larger = (f'{{"events":[{",".join(["1"] * size)}]{end}'.encode() for size in (1000, 1001))

    assert MAX_EVENTS == 1000
    assert len(read_batch(largest, declared_size="1000").refusals) == 1000
    for declared in (None, "1001", "1000", "1"):
        with pytest.raises(BatchTooLarge):
            read_batch(larger, declared_size=declared)


@pytest.mark.parametrize("declared", [None, "2", " 2 "])
def test_batch_size(declared: str | None) -> None:
    """A header that counts the events, the refused ones too, is agreed with."""
    batch = read_batch(body_of([GOOD, "1"]), declared_size=declared)

    assert (len(batch.events), len(batch.refusals)) == (1, 1)


@pytest.mark.parametrize(
    "declared",
    ["", " ", "0", "1", "3", "22", "-2", "+2", "2.0", "2e0", "0x2", "two", "2,2", "2 2", "²", "٢", "9" * 5000],
)
def test_batch_size_mismatch(declared: str) -> None:
    """A header that says anything else is refused, in few words."""
    with pytest.raises(BatchSizeMismatch) as caught:
        read_batch(body_of([GOOD, "1"]), declared_size=declared)

    assert len(caught.value.message) < 100


# --- one bad event never costs a good one

ID = "0f9d5a3e-1c2b-4d3e-8f4a-5b6c7d8e9f00"

BAD_EVENTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "surrogate in data": lambda event: event_text(event, r'"\ud800"'),
    "surrogate in a text": lambda event: event_text({**event, "user_id": "client_\udfff"}),
    "depth in data": lambda event: event_text(event, nested(DEEP)),
    "501 levels in data": lambda event: event_text(event, nested(501)),
    "depth elsewhere": lambda event: event_text({**event, "service": MARK}).replace(f'"{MARK}"', nested(DEEP)),
    "U+0000 in data": lambda event: event_text(event, r'{"\u0000":1}'),
    "U+0000 in a text": lambda event: event_text({**event, "session_id": "\0"}),
    "huge exponent": lambda event: event_text(event, "1e999999"),
    "huge count": lambda event: event_text({**event, "metadata": MARK}).replace(f'"{MARK}"', "1e999999"),
    "many digits": lambda event: event_text({**event, "metadata": MARK}).replace(f'"{MARK}"', MANY_DIGITS),
    "wrong type": lambda event: event_text({**event, "service": []}),
    "out of range in UTC": lambda event: event_text({**event, "timestamp": "9999-12-31T23:59:59-01:00"}),
}
MARK = "here stands a value"

ALSO_BAD: dict[str, tuple[str, str]] = {
    "another schema": (event_text(make_event(event_id=ID, schema_version="2.0.0")), "unsupported_schema"),
    "too large": (event_text(make_event(event_id=ID), f'"{"x" * MAX_EVENT_BYTES}"'), "event_too_large"),
    "too large and deep": (event_text(make_event(event_id=ID), nested(MAX_EVENT_BYTES)), "event_too_large"),
    "too large with a surrogate": (
        event_text(make_event(event_id=ID), f'"{"x" * MAX_EVENT_BYTES}\\ud800"'),
        "event_too_large",
    ),
}

_NAMED = {
    **{name: (make(make_event(event_id=ID)), "invalid_schema") for name, make in BAD_EVENTS.items()},
    **ALSO_BAD,
}
_NAMELESS = {
    "null": ("null", "invalid_schema"),
    "number": ("1e999999", "invalid_schema"),
    "digits": (MANY_DIGITS, "invalid_schema"),
    "surrogate": (r'"\ud800"', "invalid_schema"),
    "depth": (nested(DEEP), "invalid_schema"),
    "deep objects": (nested(15_000, bracket="{"), "invalid_schema"),
    "empty": ("{}", "invalid_schema"),
    "no id": (event_text(make_event(event_id=MISSING)), "invalid_schema"),
    "id is no UUID": (event_text(make_event(event_id="x")), "invalid_schema"),
    "id is a surrogate": (event_text(make_event(event_id="\ud800")), "invalid_schema"),
    "id is deep": (f'{{"event_id":{nested(DEEP)}}}', "invalid_schema"),
}
BAD = {
    **{name: (text, UUID(ID), code) for name, (text, code) in _NAMED.items()},
    **{name: (text, NIL_UUID, code) for name, (text, code) in _NAMELESS.items()},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_event(name: str) -> None:
    """An event that breaks a rule is refused by its place and, where it has one, its own id; its neighbours are not."""
    text, event_id, code = BAD[name]
    batch = read_batch(body_of([GOOD, text, GOOD]))

    assert list(batch.events) == [0, 2]
    assert [(refusal.index, refusal.event_id, refusal.code) for refusal in batch.refusals] == [(1, event_id, code)]


@thorough
@given(st.lists(st.sampled_from(sorted(BAD)) | st.none(), min_size=1, max_size=8), st.booleans())
def test_bad_events_among_good_ones(names: list[str | None], with_size: bool) -> None:
    """Whatever bad events a batch has, and wherever they stand, each is refused and each good one is taken."""
    # The standard library has no place for so many digits beside what the decoder has none for; shown further down.
    names = [name for name in names if name not in ("many digits", "digits")] or [None]
    batch = read_batch(
        body_of(GOOD if name is None else BAD[name][0] for name in names),
        declared_size=str(len(names)) if with_size else None,
    )

    assert list(batch.events) == [place for place, name in enumerate(names) if name is None]
    assert [(refusal.index, refusal.event_id, refusal.code) for refusal in batch.refusals] == [
        (place, *BAD[name][1:]) for place, name in enumerate(names) if name is not None
    ]


@pytest.mark.parametrize("bad", ["surrogate in data", "depth in data"])
def test_many_digits_beside_bad_event(bad: str) -> None:
    """A number of many digits is not lost for what another event has."""
    many_digits = event_text(make_event(), MANY_DIGITS)
    batch = read_batch(body_of([BAD[bad][0], many_digits, GOOD]))

    assert list(batch.events) == [1, 2]
    assert bytes(batch.events[1].event.data) == MANY_DIGITS.encode()


@pytest.mark.parametrize("data", [nested(DEEP), MANY_DIGITS], ids=["depth", "digits"])
def test_two_evils_beside_good_event(data: str) -> None:
    """An event with a lone surrogate and something else that is hard to decode costs its neighbours nothing either."""
    event = make_event(service__name="\ud800")
    batch = read_batch(body_of([GOOD, event_text(event, data), GOOD]))

    assert list(batch.events) == [0, 2]
    assert [refusal.event_id for refusal in batch.refusals] == [UUID(event["event_id"])]


def test_spaces_around_events_do_not_count() -> None:
    """The size of an event is its own, without the white space around it."""
    largest = GOOD[:-1] + " " * (MAX_EVENT_BYTES - len(GOOD)) + "}"
    batch = read_batch(body_of([f"  {largest}\n", f" {largest[:-1]} }}"]))

    assert list(batch.events) == [0]
    assert [(refusal.index, refusal.code) for refusal in batch.refusals] == [(1, "event_too_large")]


# --- anything at all


@thorough
@given(bodies(), st.none() | st.text(max_size=5) | st.integers(0, 5).map(str))
@example(b"{" + b"[" * DEEP, None)
@example(f'{{"events":[["\\ud800",{nested(DEEP)}]]}}'.encode(), None)
@example(f'{{"events":[["\\ud800",{MANY_DIGITS}]]}}'.encode(), None)
@example(f'{{"events":[{{"a":{nested(DEEP)},nope}}]}}'.encode(), None)
def test_any_body(body: bytes, declared_size: str | None) -> None:
    """Whatever the body is, it is read or refused, and each of its events is one or the other."""
    outcome = read(body, declared_size)

    if isinstance(outcome, Batch):
        places = sorted([*outcome.events, *(refusal.index for refusal in outcome.refusals)])
        assert places == list(range(len(places)))
        assert 1 <= len(places) <= MAX_EVENTS


@thorough
@given(st.lists(st.tuples(events(), json_texts()), min_size=1, max_size=4))
@example([(make_event(), r'"\ud800"'), (make_event(), MANY_DIGITS)])
def test_any_data(sent: list[tuple[dict[str, Any], str]]) -> None:
    """Events keep the very bytes of their data and their own ids, whatever stands beside them."""
    batch = read_batch(body_of(event_text(event, data) for event, data in sent))

    assert len(batch.events) + len(batch.refusals) == len(sent)
    for place, event in batch.events.items():
        assert event.event_id == UUID(sent[place][0]["event_id"])
        assert bytes(event.event.data) == sent[place][1].encode()
    for refusal in batch.refusals:
        assert refusal.event_id == UUID(sent[refusal.index][0]["event_id"])


_SHORT_DATA = st.sampled_from(["null", r'"\ud800"', r'"\u0000"', "[1, 2]", "1e999999"])


@thorough
@given(damaged(batches(st.builds(event_text, events(), _SHORT_DATA) | _SHORT_DATA)).filter(is_shallow))
def test_damaged_body(text: str) -> None:
    """A damaged body is refused exactly when it is no longer JSON, an object, with an array of events in it."""
    outcome = read(text)
    content = json.loads(text, parse_int=str) if is_well_formed(text) else None

    if isinstance(content, dict) and isinstance(content.get("events"), list):
        assert isinstance(outcome, Batch if content["events"] else EmptyBatch)
    else:
        assert isinstance(outcome, InvalidJson)


def test_ids_are_not_shared() -> None:
    """Each refusal has the id of its own event."""
    ids = [uuid.uuid4() for _ in range(3)]
    batch = read_batch(body_of(event_text(make_event(event_id=str(one), service__name="")) for one in ids))

    assert [refusal.event_id for refusal in batch.refusals] == ids


@thorough
@given(bodies())
@example(b'{"events": ["\xff"]}')
@example(json.dumps({"events": [1] * (MAX_EVENTS + 1)}).encode())
def test_counted(body: bytes) -> None:
    """Events that are not to be tracked are as many as would have been read, and none where that would be refused."""
    outcome = read(body)
    read_events = len(outcome.events) + len(outcome.refusals) if isinstance(outcome, Batch) else 0
    assert count_events(body) == read_events
