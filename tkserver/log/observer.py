"""What is told of every event, and writes those that are severe enough."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Mapping
from threading import RLock
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import ILogObserver, LogEvent
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread
from zope.interface import implementer

from tkserver.exchange import Exchange
from tkserver.log import logger, passes, request_id
from tkserver.log.context import request_of
from tkserver.log.entries import Entry, is_headline, is_unhandled, level_of
from tkserver.log.lines import Render
from tkserver.log.output import Output

_log = logger(__name__)

GATHER = 0.1
"""Seconds for which the line of a request may wait for others. To put each into words between two requests would cost
three times as much, for nothing of it would be in the processor's caches."""

MAY_WAIT = frozenset(("debug", "info"))
"""Levels that may. A process that is killed takes with it what waits."""


@implementer(ILogObserver)
class LineObserver:
    """Writes a line for each event, Twisted's own included.

    At once, but for requests: as long as the reactor runs, these may wait for others, until there is something else
    to write or :data:`GATHER` is over. Lines are written in the order of their events.

    A line that cannot be made is replaced by one that says so; one that cannot be written is lost, and the server
    goes on.
    """

    def __init__(self, render: Render, output: Output, reactor: Any) -> None:
        self._render = render
        self._output = output
        self._reactor = reactor
        self._waiting: list[tuple[Exchange | LogEvent, str]] = []
        self._timer: IDelayedCall | None = None
        self._gathering = False
        self._lock = RLock()  # events come from threads, and from the garbage collector amid another one
        self._collecting_garbage = False
        gc.callbacks.append(self._note_collection)
        reactor.callWhenRunning(self._gather)
        reactor.addSystemEventTrigger("after", "shutdown", self._stop_gathering)

    def __call__(self, event: LogEvent) -> None:
        level = level_of(event)
        if not passes(level) or is_headline(event):
            return
        if "request_id" not in event:
            event = {**event, "request_id": self._request_of(event)}
        with self._lock:
            self._waiting.append((event, level))
            self._write()

    def write_request(self, exchange: Exchange, level: str) -> None:
        """Write the line of a request that was answered, soon."""
        with self._lock:
            self._waiting.append((exchange, level))
            if not self._gathering or level not in MAY_WAIT:
                self._write()
            elif self._timer is None:
                self._timer = self._reactor.callLater(GATHER, self._write)

    def _write(self) -> None:
        """Write all that waits."""
        with self._lock:
            if self._timer is not None and isInIOThread():
                if self._timer.active():
                    self._timer.cancel()
                self._timer = None
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._output.write([(level, self._line(what, level)) for what, level in waiting])

    def _gather(self) -> None:
        self._gathering = True

    def _stop_gathering(self) -> None:
        self._gathering = False
        self._write()

    def _line(self, what: Exchange | LogEvent, level: str) -> bytes:
        if isinstance(what, Exchange):
            return self._render(Entry.of_exchange(what, level))
        return self._line_of_event(what, level)

    def _line_of_event(self, event: LogEvent, level: str) -> bytes:
        try:
            return self._render(Entry.of_event(event, level))
        except Exception as error:
            unknown = {
                "log_time": event.get("log_time"),
                "log_namespace": __name__,
                "log_format": "an event of {source} cannot be put into a line: {error}",
                "event": "unformattable",
                "source": str(event.get("log_namespace")),
                "error": error,
            }
            return self._render(Entry.of_event(unknown, level))

    def _request_of(self, event: LogEvent) -> str | None:
        """Which request an event tells of that does not say so itself."""
        if is_unhandled(event):
            found = request_of(event["log_failure"])
            if found is not None or self._collecting_garbage:  # which comes at any time, amid any request
                return found
        return request_id.get()

    def _note_collection(self, phase: str, _: Mapping[str, Any]) -> None:
        self._collecting_garbage = phase == "start"


def log_uncaught() -> None:
    """Log what Python would print, texts of exceptions included: that of threads, and of what is thrown away."""

    def log(caught: Any) -> None:
        if caught.exc_value is not None:
            failure = Failure(caught.exc_value, caught.exc_type, caught.exc_traceback)
            _log.failure("an exception that nobody could catch", failure, event="unhandled_error")

    sys.unraisablehook = log
    threading.excepthook = log
