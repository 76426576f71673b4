"""What is told of every event, and writes those that are severe enough."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Mapping
from typing import Any

from twisted.logger import ILogObserver, LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from tkserver.log import logger, passes, request_id
from tkserver.log.context import request_of
from tkserver.log.entries import Entry, is_headline, is_unhandled, level_of
from tkserver.log.lines import Render
from tkserver.log.output import Output

_log = logger(__name__)


@implementer(ILogObserver)
class LineObserver:
    """Writes a line for each event, Twisted's own included, at once: what was logged outlives a crash.

    A line that cannot be made is replaced by one that says so; one that cannot be written is lost, and the server
    goes on.
    """

    def __init__(self, render: Render, output: Output) -> None:
        self._render = render
        self._output = output
        self._collecting_garbage = False
        gc.callbacks.append(self._note_collection)

    def __call__(self, event: LogEvent) -> None:
        level = level_of(event)
        if passes(level) and not is_headline(event):
            self._output.write(self._line(event, level), level)

    def _line(self, event: LogEvent, level: str) -> bytes:
        try:
            if "request_id" not in event:
                event = {**event, "request_id": self._request_of(event)}
            return self._render(Entry(event, level))
        except Exception as error:
            unknown = {
                "log_time": event.get("log_time"),
                "log_namespace": __name__,
                "log_format": "an event of {source} cannot be put into a line: {error}",
                "event": "unformattable",
                "source": str(event.get("log_namespace")),
                "error": error,
            }
            return self._render(Entry(unknown, level))

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
