"""What is logged while a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer


@implementer(ILogObserver)
class Failures(list[LogEvent]):
    """The events that have a failure, and with it a traceback."""

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):
            self.append(event)


@contextmanager
def logged_failures() -> Iterator[Failures]:
    """Failures that are logged as long as the context lasts."""
    failures = Failures()
    globalLogPublisher.addObserver(failures)
    try:
        yield failures
    finally:
        globalLogPublisher.removeObserver(failures)
