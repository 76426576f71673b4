"""When lines are written."""

from __future__ import annotations

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel

from tests.support.kept import Kept
from tkserver.log import formatters
from tkserver.log.access import AccessLog, RequestRecord
from tkserver.log.observer import MAX_DELAY, LineObserver


@pytest.fixture
def reactor() -> MemoryReactorClock:
    return MemoryReactorClock()


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def observer(reactor: MemoryReactorClock, kept: Kept) -> LineObserver:
    return LineObserver(formatters.format_text, kept, reactor)


def answered(observer: LineObserver, status: int = 200) -> None:
    access_log = AccessLog(observer, 1, lambda: 0.0, lambda: 1.0)
    access_log.write_to(observer.write_request)
    access_log(RequestRecord(status=status))


def run(reactor: MemoryReactorClock) -> None:
    for call, arguments, named in reactor.whenRunningHooks:
        call(*arguments, **named)


def stop(reactor: MemoryReactorClock) -> None:
    for call, arguments, named in reactor.triggers["after"]["shutdown"]:
        call(*arguments, **named)


def test_requests_wait_for_each_other(observer: LineObserver, reactor: MemoryReactorClock, kept: Kept) -> None:
    """They are written together, after a moment; none is forgotten."""
    run(reactor)
    for _ in range(3):
        answered(observer)
    assert not kept
    reactor.advance(MAX_DELAY)
    answered(observer)
    assert kept.writes == [3]
    reactor.advance(MAX_DELAY)
    assert kept.writes == [3, 1]


@pytest.mark.parametrize("status", [500, 503])
def test_what_is_severe_does_not(observer: LineObserver, reactor: MemoryReactorClock, kept: Kept, status: int) -> None:
    """It is written at once, and what was before it before it; so is what tells of no request."""
    run(reactor)
    answered(observer)
    answered(observer, status)
    assert kept.writes == [2]
    assert f" {status} ".encode() in kept[1]
    answered(observer)
    observer({"log_level": LogLevel.info, "log_format": "by the way", "log_namespace": "others"})
    assert kept.writes == [2, 2]
    assert b"by the way" in kept[3]
    assert not reactor.getDelayedCalls()


def test_before_and_after(observer: LineObserver, reactor: MemoryReactorClock, kept: Kept) -> None:
    """When the reactor does not run there is nothing to wait for, and its end leaves nothing behind."""
    answered(observer)
    assert kept.writes == [1]
    run(reactor)
    answered(observer)
    stop(reactor)
    answered(observer)
    assert kept.writes == [1, 1, 1]
    assert not reactor.getDelayedCalls()
