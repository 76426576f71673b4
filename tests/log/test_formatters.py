"""The formats of log lines."""

from __future__ import annotations

import json
import re
from typing import Any, cast

import psycopg2.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, Logger
from twisted.python.failure import Failure

from tests.support.memory_sink import MemorySink
from tkserver.log import formatters
from tkserver.log.formatters import LogRecord
from tkserver.log.observer import LineObserver
from tkserver.log.tracebacks import format_failure
from tkserver.storage.errors import Unavailable

TIME = 1_790_000_000.25


def event(**values: Any) -> LogEvent:
    """Return an event of a logger of this server."""
    events: list[LogEvent] = []
    Logger("tkserver.part", observer=cast(Any, events.append)).info(values.pop("format", "a text"), **values)
    return {**events[0], "log_time": TIME}


def as_json(event: LogEvent) -> dict[str, Any]:
    """Return the object in the JSON line of an event."""
    line = formatters.format_json(LogRecord.from_event(event, "info"))
    assert b"\n" not in line
    content: dict[str, Any] = json.loads(line)
    return content


def test_json() -> None:
    """A JSON line contains the common keys, and the fields of the event unchanged, except those that are ``None``."""
    assert as_json(event(format="{number} of\n{what}", event="counted", number=1.5, what="them", nothing=None)) == {
        "time": "2026-09-21T14:13:20.250000Z",
        "level": "info",
        "event": "counted",
        "message": "1.5 of\nthem",
        "logger": "tkserver.part",
        "number": 1.5,
        "what": "them",
    }


def test_text() -> None:
    """A text record has its ids after the message. Each further line of it begins with a tab."""
    line = formatters.format_text(
        LogRecord.from_event(event(format="one\ntwo", request_id="r", other=1), "info")
    ).decode()
    assert re.fullmatch(r"\S+T\S+ info  one\n\ttwo request_id=r \[part\]", line)


def test_colours() -> None:
    """On a terminal, the level of a warning has a colour. Without the colours, the line is that of a file."""
    record = LogRecord.from_event(event(format="one"), "warn")
    line = formatters.format_coloured_text(record).decode()
    assert "\x1b[33mwarn \x1b[0m one" in line
    assert re.sub(r"\x1b\[[\d;]*m", "", line) == formatters.format_text(record).decode()


def test_text_of_legacy_event() -> None:
    """The text line of an event from Twisted's legacy interface contains its level and its system."""
    line = formatters.format_text(LogRecord.from_event(event(log_system="http"), "critical")).decode()
    assert line.endswith(" critical a text [http]")


@given(
    st.dictionaries(
        st.text("abc", min_size=1),
        st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.binary(), st.lists(st.integers())),
    ),
    st.text(),
)
def test_any_value(fields: dict[str, Any], text: str) -> None:
    """A JSON line with any values is one line and a flat object."""
    content = as_json(event(format="{text}", text=text, **fields))
    assert not [value for value in content.values() if isinstance(value, (list, dict))]
    assert fields.keys() <= content.keys()


def test_lone_surrogate() -> None:
    """Characters that UTF-8 cannot represent are escaped."""
    assert as_json(event(odd="\ud800"))["odd"] == "\\ud800"
    assert b"\\ud800" in formatters.format_text(LogRecord.from_event(event(format="\ud800"), "info"))


class Unformattable:
    def __str__(self) -> str:
        raise ValueError("marked")


@pytest.mark.parametrize("format_line", [formatters.format_text, formatters.format_json])
def test_event_that_cannot_be_formatted(format_line: formatters.Formatter) -> None:
    """If an event cannot be formatted, a line that names its logger is written instead."""
    sink = MemorySink()
    LineObserver(format_line, sink, MemoryReactorClock())(event(format="{thing}", thing=Unformattable()))
    (line,) = sink
    assert b"tkserver.part" in line
    assert b"marked" not in line


def failure_of(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException:
        return Failure()


OMITTED = " (text omitted: it may contain data from clients)"

ERRORS: list[tuple[BaseException, str]] = [
    (ValueError("marked"), "ValueError" + OMITTED),
    (KeyError("marked"), "KeyError" + OMITTED),
    (UnicodeDecodeError("ascii", b"marked", 0, 1, "marked"), "UnicodeDecodeError" + OMITTED),
    (psycopg2.errors.RaiseException("marked"), "psycopg2.errors.RaiseException" + OMITTED),
    (OSError(28, "marked", "marked"), "OSError: No space left on device"),
    (AttributeError("no such attribute"), "AttributeError: no such attribute"),
    (Unavailable("disk full (53100)"), "tkserver.storage.errors.Unavailable: disk full (53100)"),
    (ConnectionLost(), "twisted.internet.error.ConnectionLost: Connection to the other side was lost"),
]


@pytest.mark.parametrize(("error", "last_line"), ERRORS, ids=lambda value: type(value).__name__)
def test_traceback(error: BaseException, last_line: str) -> None:
    """A traceback contains the frames, and the text of the exception only if it is known to contain no data."""
    text = format_failure(failure_of(error))
    assert "in failure_of" in text
    assert text.splitlines()[-1].startswith(last_line)
    assert "marked" not in text


def test_causes() -> None:
    """A traceback contains the causes of an exception in the same format, each of them once."""
    first, second = ValueError("marked"), RuntimeError("marked")
    first.__cause__, second.__context__ = second, first
    text = format_failure(failure_of(first))
    assert text.count("Caused by:") == 1
    assert "RuntimeError (" in text
    assert "marked" not in text
