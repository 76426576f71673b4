"""Processes that compute statistics, and the queue of requests that wait for them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from tkserver import log
from tkserver.insight.query_process import LENGTH_BYTES, Computed, Failed, Outcome, Startup, Task, Unavailable, framed
from tkserver.server.child_process import import_path, start_python
from tkserver.wire.api_errors import InternalError, Overloaded

_log = log.logger(__name__)

IDLE_TIMEOUT = 60.0
"""Seconds after which an idle process is ended."""

QUEUE_TIMEOUT = 30.0
"""Seconds for which a job waits for a process."""

START_TIME = 10.0
"""Seconds that a process may need to start, in addition to the time limit of its first job."""

RESPONSE_TIME = 1.0
"""Seconds that a job may take longer than its time limit, so that the database can cancel its statement."""

MODULE = "tkserver.insight.query_process"

_decode = msgspec.json.Decoder(Outcome).decode


@dataclass(frozen=True)
class QueryLimits:
    """Limits of computations.

    :ivar processes: the maximum number of processes; each has one connection to the database.
    :ivar seconds: the time limit of a computation.
    :ivar waiting: the maximum number of jobs that wait.
    """

    processes: int
    seconds: float
    waiting: int


@dataclass
class QueryCounts:
    """What has happened to jobs since the start of the server.

    :ivar failed: jobs that failed because of an error in the server.
    :ivar unavailable: jobs that failed because of the database.
    :ivar rejected: jobs that found the queue full.
    :ivar expired: jobs that waited too long for a process.
    :ivar timed_out: jobs that took too long.
    """

    computed: int = 0
    failed: int = 0
    unavailable: int = 0
    rejected: int = 0
    expired: int = 0
    timed_out: int = 0


@dataclass(eq=False)
class _Waiting:
    """A task that waits for a process."""

    task: Task
    result: Deferred[Outcome]
    timer: IDelayedCall


class QueryProcesses:
    """Computes panels in processes, in the order in which they are requested.

    Processes are started when they are needed, and end when they are idle.

    :param observe: called with the seconds of each computation, without the wait.
    :ivar counts: for metrics.
    :ivar is_stopping: true if :meth:`stop` has been called.
    """

    def __init__(self, reactor: Any, dsn: str, limits: QueryLimits, observe: Callable[[float], None]) -> None:
        self._reactor = reactor
        self.limits = limits
        self.observe = observe
        self.startup = framed(Startup(dsn, limits.seconds))
        self.counts = QueryCounts()
        self._processes: list[_QueryProcess] = []
        self._queue: deque[_Waiting] = deque()
        self.is_stopping = False

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a process."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """The number of jobs that are being computed."""
        return sum(process.is_busy for process in self._processes)

    def compute(self, task: Task) -> Deferred[Outcome]:
        """Compute a panel as soon as a process is free. Cancelling the Deferred ends only the wait for a process.

        :raise Overloaded: if too many jobs are waiting, or if this one has waited or taken too long.
        """
        if self.is_stopping:
            raise Overloaded("the server is stopping")
        if len(self._queue) >= self.limits.waiting and not self._has_free_process():
            self.counts.rejected += 1
            raise Overloaded("too many statistics are being computed: try again later")
        entry: _Waiting
        result: Deferred[Outcome] = Deferred(lambda _: self._remove(entry))
        entry = _Waiting(task, result, self._reactor.callLater(QUEUE_TIMEOUT, lambda: self._expire(entry)))
        self._queue.append(entry)
        self._dispatch()
        return result

    async def stop(self) -> None:
        """End all processes. Jobs in progress fail."""
        self.is_stopping = True
        while self._queue:
            self._take().result.errback(Overloaded("the server is stopping"))
        await gatherResults([process.kill() for process in self._processes])

    # --- the queue

    def _has_free_process(self) -> bool:
        return len(self._processes) < self.limits.processes or any(not process.is_busy for process in self._processes)

    def _dispatch(self) -> None:
        """Give jobs to processes, as far as there are free ones."""
        while self._queue and not self.is_stopping and self._has_free_process():
            entry = self._take()
            known = entry.task.known()
            if known is not None:
                entry.result.callback(known)
                continue
            try:
                process = next((process for process in self._processes if not process.is_busy), None) or self._start()
            except OSError as error:
                self._cannot_start(entry.result, os.strerror(error.errno or 0))
                continue
            process.run(entry.task, entry.result)

    def _take(self) -> _Waiting:
        entry = self._queue.popleft()
        entry.timer.cancel()
        return entry

    def _remove(self, entry: _Waiting) -> None:
        """Forget a job whose client has disconnected. If it is being computed, the result is ignored."""
        if entry in self._queue:
            entry.timer.cancel()
            self._queue.remove(entry)

    def _expire(self, entry: _Waiting) -> None:
        self._queue.remove(entry)
        self.counts.expired += 1
        entry.result.errback(Overloaded("other statistics are being computed: try again later"))

    # --- processes

    def _start(self) -> _QueryProcess:
        process = _QueryProcess(self._reactor, self)
        start_python(self._reactor, process, MODULE)
        self._processes.append(process)
        return process

    def _cannot_start(self, result: Deferred[Outcome], reason: str) -> None:
        self.counts.failed += 1
        _log.error(
            "no process that computes statistics can be started: {reason}",
            reason=reason,
            event="statistics_process_lost",
        )
        _fire(result, Overloaded("no statistics can be computed at the moment: try again later"))

    def on_free(self) -> None:
        """Called by a process that has computed its job."""
        self._dispatch()

    def took_too_long(self) -> Overloaded:
        """Count a computation that exceeded the time limit, and return the error."""
        self.counts.timed_out += 1
        return Overloaded(f"these statistics took longer than {self.limits.seconds:g} s: choose a shorter period")

    def on_ended(self, process: _QueryProcess) -> None:
        """Called by a process that has ended."""
        self._processes.remove(process)
        self._dispatch()


class _QueryProcess(ProcessProtocol):
    """A process that computes one job at a time."""

    transport: Any

    def __init__(self, reactor: Any, owner: QueryProcesses) -> None:
        self._reactor = reactor
        self._owner = owner
        self._received = bytearray()
        self._task: Task | None = None
        self._result: Deferred[Outcome] | None = None
        self._began = 0.0
        self._is_new = True
        self._timed_out = False
        self._is_ending = False
        self._timer: IDelayedCall | None = None
        self._ended: Deferred[None] = Deferred()

    @property
    def is_busy(self) -> bool:
        """True if it cannot take a job."""
        return self._result is not None or self._is_ending

    def run(self, task: Task, result: Deferred[Outcome]) -> None:
        """Compute a job, and fire its Deferred."""
        self._task, self._result = task, result
        self._began = self._reactor.seconds()
        limit = self._owner.limits.seconds + RESPONSE_TIME + (START_TIME if self._is_new else 0.0)
        self._set_timer(limit, self._time_out)
        self._is_new = False
        self.transport.write(framed(task.job))

    def kill(self) -> Deferred[None]:
        """End the process, and return a Deferred that fires when it has ended."""
        self._is_ending = True
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")
        ended: Deferred[None] = Deferred()
        self._ended.addCallback(ended.callback)
        return ended

    def connectionMade(self) -> None:
        self.transport.write(import_path() + self._owner.startup)

    def outReceived(self, data: bytes) -> None:
        self._received += data
        length = int.from_bytes(self._received[:LENGTH_BYTES], "big")
        if len(self._received) >= LENGTH_BYTES and len(self._received) >= LENGTH_BYTES + length:
            message = bytes(self._received[LENGTH_BYTES:])
            self._received.clear()
            self._finish(_decode(message))

    def processEnded(self, _: Failure) -> None:
        self._is_ending = True
        self._clear_timer()
        result, self._result = self._result, None
        if result is not None:
            self._fail(result)
        self._owner.on_ended(self)
        self._ended.callback(None)

    def _finish(self, outcome: Outcome) -> None:
        counts = self._owner.counts
        self._owner.observe(self._reactor.seconds() - self._began)
        task, result = self._task, self._result
        assert task is not None
        assert result is not None
        self._task = self._result = None
        self._set_timer(IDLE_TIMEOUT, self._end)
        if isinstance(outcome, Computed):
            counts.computed += 1
            task.keep(outcome)
        elif isinstance(outcome, Failed):
            counts.failed += 1
            place = outcome.location
            _log.error("statistics could not be computed: {place}", place=place, event="statistics_failed")
        elif isinstance(outcome, Unavailable) and not outcome.timed_out:
            counts.unavailable += 1
        timed_out = isinstance(outcome, Unavailable) and outcome.timed_out
        _fire(result, self._owner.took_too_long() if timed_out else outcome)
        self._owner.on_free()

    def _fail(self, result: Deferred[Outcome]) -> None:
        """Report that the process has ended before its job."""
        if self._timed_out:
            _fire(result, self._owner.took_too_long())
            return
        self._owner.counts.failed += 1
        if not self._owner.is_stopping:
            _log.error("a process that computes statistics has ended unexpectedly", event="statistics_process_lost")
        _fire(result, InternalError("the statistics could not be computed"))

    def _time_out(self) -> None:
        self._timer = None
        self._timed_out = True
        self.kill()

    def _end(self) -> None:
        """Let the process end, because it is idle."""
        self._timer = None
        self._is_ending = True
        self.transport.closeStdin()

    def _set_timer(self, seconds: float, call: Callable[[], None]) -> None:
        self._clear_timer()
        self._timer = self._reactor.callLater(seconds, call)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _fire(result: Deferred[Outcome], value: Outcome | Overloaded | InternalError) -> None:
    """Fire a Deferred, unless its client has disconnected."""
    if result.called:
        return
    if isinstance(value, Exception):
        result.errback(value)
    else:
        result.callback(value)
