"""The aggregating process: keeps the aggregates up to date while the server runs.

Of all servers of a database, one aggregates, and the others are ready to continue if it dies. The process is separate,
because aggregation needs much processor time, and the reactor must not wait.

The server passes the :class:`Task` as the first line of standard input. When standard input ends, the process exits,
also if the server was killed. A transaction in progress is rolled back then. Messages to the server are written to
standard output, see :mod:`tkserver.insight.messages`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime, timezone
from traceback import extract_tb, format_list
from typing import BinaryIO, NoReturn

import msgspec
from msgspec import Struct

from tkserver.insight import aggregator, public_pages
from tkserver.insight.aggregator import Status
from tkserver.insight.messages import (
    Aggregated,
    Crashed,
    Message,
    Newer,
    Progress,
    Rebuilding,
    State,
    Unavailable,
    encode,
)
from tkserver.storage.blocking import BlockingConnections, Connection, rows
from tkserver.storage.errors import StorageError

NICENESS = 5
"""The server uses the processor first. With a much lower priority, a transaction could take minutes on a busy machine,
and erasures wait for it."""

IDLE_RATE = 500.0
"""Events per second. If fewer are stored, there is no need to leave time to the server."""

BUSY_SHARE = 0.25
"""The share of the time in which transactions run while more events are stored. The rest is pauses."""

MAX_PAUSE = 10.0
"""Seconds."""

REFRESH_INTERVAL = 60.0
"""Seconds after which the time up to which events are aggregated advances although there are no new events."""

STATE_INTERVAL = 1.0
"""Seconds between two looks at the lag during an aggregation."""

PROGRESS_INTERVAL = 10.0
"""Seconds between two messages about the progress of a long aggregation."""

LONG = 40_000
"""Events. The progress of an aggregation of more events is reported."""

MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.5, 10.0
"""Seconds between two attempts to connect to the database."""

_SESSION = """
SELECT set_config(s.name, s.value, false)
FROM (VALUES ('tcp_keepalives_idle', '5'), ('tcp_keepalives_interval', '2'), ('tcp_keepalives_count', '3'))
    AS s (name, value)
"""
_CHECK_CLIENT = "SET client_connection_check_interval = 1000"

Sleep = Callable[[float], None]
Clock = Callable[[], float]
Report = Callable[[Message], None]


class Task(Struct, frozen=True):
    """The task of the process.

    :ivar dsn: the connection string of the database, which may contain a password.
    :ivar interval: seconds between two looks for new events.
    """

    dsn: str
    interval: float


def pause_after(seconds: float, events_per_second: float) -> float:
    """Return how many seconds to pause after a transaction, so that aggregation does not slow down the servers.

    :param seconds: the duration of the transaction.
    :param events_per_second: how many events the servers store.
    """
    return 0.0 if events_per_second < IDLE_RATE else min(MAX_PAUSE, seconds * (1 / BUSY_SHARE - 1))


class BackgroundAggregation:
    """Aggregates again and again on one connection.

    :param interval: see :class:`Task`.
    :param clock: returns seconds, on any scale.
    :param report: receives messages.
    :param now: returns the current time.
    """

    def __init__(
        self,
        connection: Connection,
        interval: float,
        clock: Clock,
        sleep: Sleep,
        report: Report,
        now: Callable[[], datetime],
    ) -> None:
        self._connection = connection
        self._now = now
        self._interval = interval
        self._clock = clock
        self._sleep = sleep
        self._report = report
        self._aggregates = self._is_newer = False
        self._since = self._state_at = self._progress_at = clock()
        self._last_id: int | None = None
        self._rate = 0.0
        self._done = 0
        self._is_long = False

    def run(self) -> NoReturn:
        """Aggregate until the database fails.

        :raise StorageError: if it does.
        """
        while True:
            started = self._clock()
            self.step()
            self._sleep(max(0.0, self._interval - (self._clock() - started)))

    def step(self) -> None:
        """Aggregate the events that are stored now, and compute the numbers of public pages that are not current.

        Do neither if another process is responsible for that.
        """
        if not self._aggregates:
            self._aggregates = aggregator.lock_background(self._connection)
        status = self._look()
        needs_refresh = status.age is None or status.age > REFRESH_INTERVAL
        if not (self._aggregates and self._has_our_definitions(status)):
            return
        if status.is_behind or needs_refresh:
            self._aggregate(status)
        public_pages.update_due(self._connection, self._now())

    def _has_our_definitions(self, status: Status) -> bool:
        """Return false if the definitions are newer, and report when that changes."""
        was_newer, self._is_newer = self._is_newer, status.is_newer
        if self._is_newer and not was_newer:
            self._report(Newer())
        return not self._is_newer

    def _aggregate(self, status: Status) -> None:
        if status.is_outdated and status.age is not None:
            self._report(Rebuilding())
        self._done, self._is_long = 0, False
        self._report_progress(status)
        self._since = self._clock()
        aggregator.run_once(self._connection, self._wait, self._committed)
        if self._is_long:
            self._report(Progress(self._done, 0))
        if self._done:
            self._look()

    def _wait(self, seconds: float) -> None:
        """Wait for a transaction of a server, which counts neither as work nor as progress."""
        self._sleep(seconds)
        self._since = self._clock()
        if self._since - self._state_at >= STATE_INTERVAL:
            self._look()

    def _committed(self, events: int) -> None:
        """Report a transaction, and leave time to the servers if they are busy."""
        now = self._clock()
        seconds = now - self._since
        self._done += events
        self._report(Aggregated(events, seconds))
        if now - self._state_at >= STATE_INTERVAL:
            self._report_progress(self._look())
        self._pause(seconds)
        self._since = self._clock()

    def _pause(self, worked: float) -> None:
        """Pause after a transaction, but not longer than the servers are busy."""
        end = self._clock() + pause_after(worked, self._rate)
        while self._rate >= IDLE_RATE and (left := end - self._clock()) > 0:
            self._sleep(min(left, STATE_INTERVAL))
            if self._clock() - self._state_at >= STATE_INTERVAL:
                self._look()

    def _look(self) -> Status:
        """Report how far the aggregation has come, and measure how many events the servers store."""
        status, now = aggregator.status(self._connection), self._clock()
        elapsed = now - self._state_at
        if self._last_id is not None and elapsed > 0:
            self._rate = (status.last_id - self._last_id) / elapsed
        self._last_id, self._state_at = status.last_id, now
        self._report(State(self._aggregates, status.lag_events, status.lag_seconds))
        return status

    def _report_progress(self, status: Status) -> None:
        """Report the progress of a long aggregation now and then."""
        now = self._clock()
        if status.lag_events > LONG and (not self._is_long or now - self._progress_at >= PROGRESS_INTERVAL):
            self._is_long, self._progress_at = True, now
            self._report(Progress(self._done, status.lag_events))


def aggregate_forever(task: Task, clock: Clock, sleep: Sleep, report: Report) -> NoReturn:
    """Aggregate, and connect to the database again whenever it fails."""
    delay = MIN_RETRY_DELAY
    while True:
        started = clock()
        try:
            with closing(BlockingConnections().connect(task.dsn)) as connection:
                _prepare(connection)
                BackgroundAggregation(connection, task.interval, clock, sleep, report, _now).run()
        except StorageError as error:
            report(Unavailable(str(error)))
        if clock() - started > MAX_RETRY_DELAY:
            delay = MIN_RETRY_DELAY
        sleep(delay)
        delay = min(MAX_RETRY_DELAY, 2 * delay)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _prepare(connection: Connection) -> None:
    """Let the database notice soon if this process or its machine dies, so that another one can continue."""
    rows(connection, _SESSION)
    with suppress(StorageError):  # before PostgreSQL 14, or on some systems
        rows(connection, _CHECK_CLIENT)


def main() -> NoReturn:
    """Run the process."""
    os.nice(NICENESS)
    for number in (signal.SIGINT, signal.SIGTERM):  # the server receives them, too, and closes standard input
        signal.signal(number, signal.SIG_IGN)
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    threading.Thread(target=_exit_at_end, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        aggregate_forever(task, time.monotonic, time.sleep, _write)
    except BaseException as error:
        kind = type(error)
        _write(Crashed(f"{kind.__module__}.{kind.__qualname__}", "".join(format_list(extract_tb(error.__traceback__)))))
        os._exit(1)


def _write(message: Message) -> None:
    try:
        os.write(sys.stdout.fileno(), encode(message) + b"\n")
    except OSError:  # the server is gone
        os._exit(0)


def _exit_at_end(stream: BinaryIO) -> None:
    stream.read()
    os._exit(0)
