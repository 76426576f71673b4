"""When the log observer writes its lines."""

from __future__ import annotations

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel

from tests.support.memory_sink import MemorySink
from tkserver.log import formatters
from tkserver.log.access import AccessLog, RequestRecord
from tkserver.log.observer import MAX_DELAY, LineObserver


@pytest.fixture
def reactor() -> MemoryReactorClock:
    return MemoryReactorClock()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def observer(reactor: MemoryReactorClock, sink: MemorySink) -> LineObserver:
    return LineObserver(formatters.format_text, sink, reactor)


def log_request(observer: LineObserver, status: int = 200) -> None:
    access_log = AccessLog(observer, "info", 1, lambda: 0.0, lambda: 1.0)
    access_log.write_to(observer.write_request)
    access_log(RequestRecord(status=status))


def run(reactor: MemoryReactorClock) -> None:
    """Call what is called when the reactor starts."""
    for call, arguments, keywords in reactor.whenRunningHooks:
        call(*arguments, **keywords)


def stop(reactor: MemoryReactorClock) -> None:
    """Call what is called when the reactor stops."""
    for call, arguments, keywords in reactor.triggers["after"]["shutdown"]:
        call(*arguments, **keywords)


def test_lines_of_requests_are_written_together(
    observer: LineObserver, reactor: MemoryReactorClock, sink: MemorySink
) -> None:
    """Lines of requests are delayed and written together, and none is lost."""
    run(reactor)
    for _ in range(3):
        log_request(observer)
    assert not sink
    reactor.advance(MAX_DELAY)
    log_request(observer)
    assert sink.writes == [3]
    reactor.advance(MAX_DELAY)
    assert sink.writes == [3, 1]


@pytest.mark.parametrize("status", [500, 503])
def test_severe_and_other_events_are_written_immediately(
    observer: LineObserver, reactor: MemoryReactorClock, sink: MemorySink, status: int
) -> None:
    """Lines of severe requests and of other events are written immediately, after the delayed lines."""
    run(reactor)
    log_request(observer)
    log_request(observer, status)
    assert sink.writes == [2]
    assert f" {status} ".encode() in sink[1]
    log_request(observer)
    observer({"log_level": LogLevel.info, "log_format": "another event", "log_namespace": "others"})
    assert sink.writes == [2, 2]
    assert b"another event" in sink[3]
    assert not reactor.getDelayedCalls()


def test_no_delay_while_the_reactor_does_not_run(
    observer: LineObserver, reactor: MemoryReactorClock, sink: MemorySink
) -> None:
    """Lines are not delayed before the reactor runs and after it stops, and delayed lines are written when it stops."""
    log_request(observer)
    assert sink.writes == [1]
    run(reactor)
    log_request(observer)
    stop(reactor)
    log_request(observer)
    assert sink.writes == [1, 1, 1]
    assert not reactor.getDelayedCalls()
