"""What is logged while a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer


@implementer(ILogObserver)
class Failures(list[LogEvent]):
    """The events that have a failure, and with it a traceback."""

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):
            self.append(event)


@implementer(ILogObserver)
class Lines(list[str]):
    """The texts of this server's own events."""

    def __call__(self, event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("tkserver."):
            self.append(formatEvent(event))


@contextmanager
def logged_lines() -> Iterator[Lines]:
    """What is logged as long as the context lasts."""
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(lines)


@contextmanager
def logged_failures() -> Iterator[Failures]:
    """Failures that are logged as long as the context lasts."""
    failures = Failures()
    globalLogPublisher.addObserver(failures)
    try:
        yield failures
    finally:
        globalLogPublisher.removeObserver(failures)
