"""Log observers that collect events during a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

T = TypeVar("T", bound=ILogObserver)


@implementer(ILogObserver)
class Failures(list[LogEvent]):
    """The events that report an exception."""

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):
            self.append(event)


@implementer(ILogObserver)
class Lines(list[str]):
    """The messages of events of this server."""

    def __call__(self, event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("tkserver."):
            self.append(formatEvent(event))


@contextmanager
def observing(observer: T) -> Iterator[T]:
    """Pass all events to an observer while the context lasts."""
    globalLogPublisher.addObserver(observer)
    try:
        yield observer
    finally:
        globalLogPublisher.removeObserver(observer)


@contextmanager
def logged_lines() -> Iterator[Lines]:
    """Collect messages while the context lasts."""
    with observing(Lines()) as lines:
        yield lines


@contextmanager
def logged_failures() -> Iterator[Failures]:
    """Collect failures while the context lasts."""
    with observing(Failures()) as failures:
        yield failures
