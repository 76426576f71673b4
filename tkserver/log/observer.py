"""The log observer. It writes a line for each event to standard output, a file, or syslog."""

from __future__ import annotations

import gc
import os
import sys
import syslog
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import ILogObserver, LogEvent
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.python.threadable import isInIOThread
from zope.interface import implementer

from tkserver.log import logger, request_id
from tkserver.log.access import RequestRecord
from tkserver.log.context import request_id_of
from tkserver.log.formatters import Formatter, LogRecord, is_announcement, is_unhandled_error, level_of

_log = logger(__name__)

MAX_DELAY = 0.1
"""Seconds for which the line of a request may be delayed.

Formatting a line alone, between two requests, takes three times as long, because the code is not in the caches of the
processor."""

DELAYED_LEVELS = frozenset(("debug", "info"))
"""Levels of requests whose lines may be delayed. A process that is killed loses delayed lines."""

MAX_FILE_SIZE = 100_000_000
"""Bytes. A larger file is rotated."""

ROTATED_FILES = 10
"""The maximum number of rotated files. Older ones are deleted."""

Line = tuple[str, bytes]
"""A log level, and a line without the line break at its end."""


class Sink(Protocol):
    """Writes lines. Never fails, because there is nowhere to report an error."""

    def write(self, lines: Sequence[Line]) -> None: ...


@implementer(ILogObserver)
class LineObserver:
    """Writes a line for each event, including events of Twisted.

    Lines are written immediately, except lines of requests while the reactor runs: these are delayed until another
    event is logged, by at most :data:`MAX_DELAY`. Lines are written in the order of their events.

    If an event cannot be formatted, a line says so instead. If a line cannot be written, it is lost.
    """

    def __init__(self, format_line: Formatter, sink: Sink, reactor: Any) -> None:
        self._format = format_line
        self._sink = sink
        self._reactor = reactor
        self._pending: list[tuple[RequestRecord | LogEvent, str]] = []
        self._timer: IDelayedCall | None = None
        self._may_delay = False
        self._lock = RLock()  # threads log events, and a garbage collection may log one while another is being logged
        self._collecting_garbage = False
        gc.callbacks.append(self._on_garbage_collection)
        reactor.callWhenRunning(self._start_delaying)
        reactor.addSystemEventTrigger("after", "shutdown", self._stop_delaying)

    def __call__(self, event: LogEvent) -> None:
        if is_announcement(event):
            return
        if "request_id" not in event:
            event = {**event, "request_id": self._request_id(event)}
        with self._lock:
            self._pending.append((event, level_of(event)))
            self._flush()

    def write_request(self, record: RequestRecord, level: str) -> None:
        """Write the line of a request, possibly with a delay."""
        with self._lock:
            self._pending.append((record, level))
            if not self._may_delay or level not in DELAYED_LEVELS:
                self._flush()
            elif self._timer is None:
                self._timer = self._reactor.callLater(MAX_DELAY, self._flush)

    def _flush(self) -> None:
        """Write all pending lines."""
        with self._lock:
            if self._timer is not None and isInIOThread():
                if self._timer.active():
                    self._timer.cancel()
                self._timer = None
            pending, self._pending = self._pending, []
            if pending:
                self._sink.write([(level, self._line(entry, level)) for entry, level in pending])

    def _start_delaying(self) -> None:
        self._may_delay = True

    def _stop_delaying(self) -> None:
        self._may_delay = False
        self._flush()

    def _line(self, entry: RequestRecord | LogEvent, level: str) -> bytes:
        if isinstance(entry, RequestRecord):
            return self._format(LogRecord.from_request(entry, level))
        try:
            return self._format(LogRecord.from_event(entry, level))
        except Exception as error:
            replacement = {
                "log_time": entry.get("log_time"),
                "log_namespace": __name__,
                "log_format": "cannot format an event of {source}: {error}",
                "event": "unformattable",
                "source": str(entry.get("log_namespace")),
                "error": error,
            }
            return self._format(LogRecord.from_event(replacement, level))

    def _request_id(self, event: LogEvent) -> str | None:
        """Return the id of the request that caused an event without an id."""
        if is_unhandled_error(event):
            found = request_id_of(event["log_failure"])
            if found is not None or self._collecting_garbage:  # the current request is not the cause of a collection
                return found
        return request_id.get()

    def _on_garbage_collection(self, phase: str, _: Mapping[str, Any]) -> None:
        self._collecting_garbage = phase == "start"


def log_uncaught_exceptions() -> None:
    """Log exceptions in threads and finalizers. Python would print them with their texts."""

    def log(uncaught: Any) -> None:
        if uncaught.exc_value is not None:
            failure = Failure(uncaught.exc_value, uncaught.exc_type, uncaught.exc_traceback)
            _log.failure("uncaught exception", failure, event="unhandled_error")

    sys.unraisablehook = log
    threading.excepthook = log


class StreamSink:
    """Writes to a stream, such as standard output."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, lines: Sequence[Line]) -> None:
        try:
            self._stream.write(_join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            return


class _LogFile(LogFile):
    """A log file that notices when it has been moved or deleted."""

    def __init__(self, path: str, max_size: int, rotated_files: int) -> None:
        file = Path(path).absolute()
        super().__init__(file.name, str(file.parent), rotateLength=max_size, maxRotatedFiles=rotated_files)
        self._opened = Path(self.path).stat()

    def rotate(self) -> None:
        super().rotate()
        self._opened = Path(self.path).stat()

    def reopen(self) -> None:
        super().reopen()
        self._opened = Path(self.path).stat()

    def is_in_place(self) -> bool:
        """Return whether the path leads to the open file. logrotate moves the file, and may create another."""
        try:
            return os.path.samestat(Path(self.path).stat(), self._opened)
        except FileNotFoundError:
            return False


class FileSink:
    """Writes to a file. The file is rotated when it is full or when :meth:`rotate` is called.

    :raise OSError: if the file cannot be opened.
    """

    def __init__(self, path: str, *, max_size: int = MAX_FILE_SIZE, rotated_files: int = ROTATED_FILES) -> None:
        self._file = _LogFile(path, max_size, rotated_files)

    def write(self, lines: Sequence[Line]) -> None:
        try:
            self._file.write(_join(lines))
        except (OSError, ValueError):
            return

    def close(self) -> None:
        self._file.close()

    def rotate(self) -> None:
        """Start a new file. If another program has moved the file, open the path again instead."""
        if self._file.is_in_place():
            self._file.rotate()
        else:
            self._file.reopen()


class SyslogSink:
    """Writes to syslog: one message for each line, with the priority of its level.

    :param send: takes a priority and a text.
    """

    _PRIORITIES = {
        "debug": syslog.LOG_DEBUG,
        "info": syslog.LOG_INFO,
        "warn": syslog.LOG_WARNING,
        "error": syslog.LOG_ERR,
        "critical": syslog.LOG_CRIT,
    }

    def __init__(self, prefix: str, send: Callable[[int, str], None] = syslog.syslog) -> None:
        syslog.openlog(prefix, syslog.LOG_NDELAY, syslog.LOG_USER)  # connects before root privileges are given up
        self._send = send

    def write(self, lines: Sequence[Line]) -> None:
        for level, line in lines:
            for part in line.decode().split("\n"):
                self._send(self._PRIORITIES[level], part)


def _join(lines: Sequence[Line]) -> bytes:
    return b"".join([line + b"\n" for _, line in lines])
