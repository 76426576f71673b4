"""Events of all kinds as lines."""

from __future__ import annotations

import json
from typing import Any, cast

import psycopg2.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, Logger
from twisted.python.failure import Failure

from tests.support.kept import Kept
from tkserver.log import formatters
from tkserver.log.formatters import LogRecord
from tkserver.log.observer import LineObserver
from tkserver.log.tracebacks import format_failure
from tkserver.storage.errors import Unavailable

TIME = 1_790_000_000.25


def event(**values: Any) -> LogEvent:
    """Published by a logger of ours."""
    found: list[LogEvent] = []
    Logger("tkserver.part", observer=cast(Any, found.append)).info(values.pop("format", "a text"), **values)
    return {**found[0], "log_time": TIME}


def as_json(published: LogEvent) -> dict[str, Any]:
    line = formatters.format_json(LogRecord.from_event(published, "info"))
    assert b"\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_json() -> None:
    """What every line has, and the fields of the event as they are."""
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
    """Further lines begin with a tab, and ids stand at the end."""
    line = formatters.format_text(
        LogRecord.from_event(event(format="one\ntwo", request_id="r", other=1), "info")
    ).decode()
    assert line.endswith(" [tkserver.part#info] one\n\ttwo request_id=r")


def test_text_of_others() -> None:
    """What comes by Twisted's old interface tells how severe it is, as all else does."""
    line = formatters.format_text(LogRecord.from_event(event(log_system="http"), "critical")).decode()
    assert line.endswith(" [http#critical] a text")


@given(
    st.dictionaries(
        st.text("abc", min_size=1),
        st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.binary(), st.lists(st.integers())),
    ),
    st.text(),
)
def test_any_value(fields: dict[str, Any], text: str) -> None:
    """Whatever is logged is one line, and flat."""
    found = as_json(event(format="{text}", text=text, **fields))
    assert not [value for value in found.values() if isinstance(value, (list, dict))]
    assert fields.keys() <= found.keys()


def test_lone_surrogate() -> None:
    """What UTF-8 does not have is escaped."""
    assert as_json(event(odd="\ud800"))["odd"] == "\\ud800"
    assert b"\\ud800" in formatters.format_text(LogRecord.from_event(event(format="\ud800"), "info"))


class Unsayable:
    def __str__(self) -> str:
        raise ValueError("marked")


@pytest.mark.parametrize("render", [formatters.format_text, formatters.format_json])
def test_cannot_be_made(render: lines.Formatter) -> None:
    """There is a line all the same, which says whose."""
    kept = Kept()
    LineObserver(render, kept, MemoryReactorClock())(event(format="{thing}", thing=Unsayable()))
    (line,) = kept
    assert b"tkserver.part" in line
    assert b"marked" not in line


def raised(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException:
        return Failure()


WITHHELD = " (its text is not logged: it may hold what a client has sent)"

ERRORS: list[tuple[BaseException, str]] = [
    (ValueError("marked"), "ValueError" + WITHHELD),
    (KeyError("marked"), "KeyError" + WITHHELD),
    (UnicodeDecodeError("ascii", b"marked", 0, 1, "marked"), "UnicodeDecodeError" + WITHHELD),
    (psycopg2.errors.RaiseException("marked"), "psycopg2.errors.RaiseException" + WITHHELD),
    (OSError(28, "marked", "marked"), "OSError: No space left on device"),
    (AttributeError("no such attribute"), "AttributeError: no such attribute"),
    (Unavailable("disk full (53100)"), "tkserver.storage.errors.Unavailable: disk full (53100)"),
    (ConnectionLost(), "twisted.internet.error.ConnectionLost: Connection to the other side was lost"),
]


@pytest.mark.parametrize(("error", "last"), ERRORS, ids=lambda value: type(value).__name__)
def test_traceback(error: BaseException, last: str) -> None:
    """Where it came from, and its text only where that is known to hold no values."""
    text = format_failure(raised(error))
    assert "in raised" in text
    assert text.splitlines()[-1].startswith(last)
    assert "marked" not in text


def test_causes() -> None:
    """What led to an error is told of in the same way, once."""
    first, second = ValueError("marked"), RuntimeError("marked")
    first.__cause__, second.__context__ = second, first
    text = format_failure(raised(first))
    assert text.count("Because of:") == 1
    assert "RuntimeError (" in text
    assert "marked" not in text
