"""Long bodies are read in steps, with the same results as short ones."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.events import make_event
from tests.support.strategies import batches, bodies, damaged, event_text, events, json_texts, thorough
from tkserver.wire import batch as batch_module
from tkserver.wire import long_batch
from tkserver.wire.batch import MAX_EVENTS, read_batch, run_steps
from tkserver.wire.event import MAX_EVENT_BYTES
from tkserver.wire.long_batch import texts_of_long_body

VALID = json.dumps(make_event())


def body_of(*texts: str, separator: str = ",", before: str = "", after: str = "") -> bytes:
    return f'{{{before}"events":[{separator.join(texts)}]{after}}}'.encode()


def texts_of(body: bytes, *, is_long: bool) -> list[bytes] | str | None:
    """Return the texts of the events, the kind of error, or ``None`` if the body has an unusual form."""
    steps: Any = texts_of_long_body(body, MAX_EVENTS) if is_long else batch_module._decode(body)
    try:
        found = run_steps(steps)
    except msgspec.DecodeError:
        return "invalid"
    except RecursionError:
        return "too deep"
    except Exception as error:
        return "too deep" if "nested" in str(error) else "invalid"
    return None if found is None else [bytes(text) for text in found]


WINDOWS = ((MAX_EVENT_BYTES, 32_768), (300, 120), (60, 40))
"""Lengths of the parts that are decoded at once: of a single event, and of several events."""


@thorough
@given(bodies() | damaged(batches(st.builds(event_text, events(), json_texts()) | json_texts())).map(str.encode))
@example(b'{"events":[1,2]}')
@example(b'{"events":[],"x":1}')
@example(b'{"events":[1,2],"events":[3]}')
@example(b'{"x":{"events":[1,2]}}')
@example(b'{"x":"\\"events\\":[","events":[1]}')
@example(b'{"\\u0065vents":[3],"events":[1]}')
@example(b'{"events":[1,2],"\\u0065vents":[3]}')
@example(b'{"events":[1,2]')
@example(b'{"events":[1,2]}x')
@example(b'{"events":[1,2}')
@example(b'{"events":[1 2]}')
@example(b'{"events":[1,]}')
@example(b'{"events":[{},{}},{}]}')
@example(b'{"events":[{"a":"},{"},{"b":[{},{}]} , {}\n]}')
@example(b'{"events":[{"a":"\\ud800"},{}]}')
@example(b'{"events":[{}, {}, {"a": 1}, 12, "},{"]}')
@example(b'["events":[1]]')
def test_texts_are_the_same(body: bytes) -> None:
    """The texts and errors are those of short bodies, unless the body has an unusual form."""
    expected = texts_of(body, is_long=False)
    accepted = (None, expected, "too deep") if expected == "invalid" else (None, expected)  # depends on the stack
    for window, group in WINDOWS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(long_batch, "_WINDOW", window)
            patch.setattr(long_batch, "_GROUP", group)
            assert texts_of(body, is_long=True) in accepted


@pytest.mark.parametrize(
    "body",
    [
        body_of(*[VALID] * 500),
        body_of(*[VALID] * 500, separator=", "),
        body_of(*[VALID] * 500, separator="\n ,\n"),
        body_of(*[VALID] * 500, before='"sdk":"x",', after=',"sent":[1,2,{"a":null}]'),
        body_of(*[event_text(make_event(), f'"{"x" * 90_000}"')] * 50),
        body_of(*[event_text(make_event(), f"[{'{},' * 30_000}1]")] * 50),
        body_of(*["[]"] * 500, *[VALID] * 200),
        body_of(*['"' + "x" * 500 + '"'] * 1000),
        body_of(*[f'"{number}"' + " " * 200 for number in range(1000)]),
    ],
    ids=["compact", "spaces", "lines", "other members", "long", "nested", "lists", "strings", "white space"],
)
def test_usual_long_bodies_are_read_in_short_steps(body: bytes) -> None:
    """No step decodes more than one event of maximum length, or a group of short ones."""
    texts = texts_of(body, is_long=True)
    assert texts is not None
    assert texts == texts_of(body, is_long=False)
    assert sum(1 for _ in texts_of_long_body(body, MAX_EVENTS)) >= len(body) // (2 * MAX_EVENT_BYTES)


@pytest.mark.parametrize(
    "body",
    [
        body_of('"' + "x" * 200_000 + '"'),
        body_of(*["1"] * 1001),
        body_of("1", before='"a":1,' * 20_000),
        body_of("1", after=',"a":1' * 20_000),
        body_of(),
        b"{}",
    ],
    ids=["long event", "many events", "members before", "members after", "no events", "no array"],
)
def test_unusual_form(body: bytes) -> None:
    """Bodies of an unusual form are left to the caller."""
    assert texts_of(body, is_long=True) is None


@pytest.mark.parametrize("place", [1, 10, 400, 499])
@pytest.mark.parametrize("damage", ["}", "nope", '"', "[1,}"])
def test_position_of_a_syntax_error(place: int, damage: str) -> None:
    """The error of a long body has the same position as that of the whole body."""
    texts = [event_text(make_event(), f'"{"x" * 500}"')] * 500
    texts[place] = texts[place][:-1] + "," + damage + "}"
    body = body_of(*texts)
    with pytest.raises(msgspec.DecodeError) as caught:
        run_steps(texts_of_long_body(body, MAX_EVENTS))
    with pytest.raises(msgspec.DecodeError) as whole:
        msgspec.json.decode(body, type=msgspec.Raw)
    assert re.findall(r"\d+", str(caught.value)) == re.findall(r"\d+", str(whole.value))


def test_long_batch_is_read() -> None:
    """All events of a long batch are read, also if some are invalid or contain lone surrogates."""
    texts = [event_text(make_event(), f'"{"x" * 500}"')] * 400
    texts[7], texts[8], texts[300] = "{}", event_text(make_event(), '"\\ud800"'), "[1]"
    batch = run_steps(read_batch(body_of(*texts)))
    assert [error.index for error in batch.errors] == [7, 8, 300]
    assert [bytes(text).decode() for text in batch.texts] == texts


def test_steps_of_the_most_expensive_valid_events_are_short() -> None:
    """A step takes at most a tenth of the time of a long body, in CPU time: no value is decoded as a whole."""
    body = body_of(*[event_text(make_event(), f"[{'1e399,' * 16_000}1]")] * 20)
    steps, durations = read_batch(body), []
    before = time.thread_time()
    for _ in steps:
        now = time.thread_time()
        durations.append(now - before)
        before = now
    assert max(durations) < sum(durations) / 10
