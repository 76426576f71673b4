"""Starts the aggregating process (:mod:`tkserver.insight.background`), and starts it again when it dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from tkserver import log
from tkserver.insight import messages
from tkserver.insight.background import Task
from tkserver.server.child_process import import_path, start_python

_log = log.logger(__name__)

MODULE = "tkserver.insight.background"

STOP_TIMEOUT = 5.0
"""Seconds after which the process is killed when the server stops."""

HEALTHY_TIME = 60.0
"""Seconds. If the process has run for so long, or has aggregated events, its next death is not a repetition."""

MAX_STATE_AGE = 30.0
"""Seconds. If the process has not reported for longer, the lag is considered to grow."""

MAX_ERROR_BYTES = 4096

ObserveTransaction = Callable[[int, float], None]
"""Called after each transaction with the number of events and the seconds that it took."""


class Aggregation:
    """Runs the aggregating process.

    :param dsn: the connection string of the database.
    :param interval: seconds between two looks for new events.
    :ivar state: what the process has reported last. Another server may be aggregating.
    :ivar failures: how often the database or the process has failed.
    """

    def __init__(self, reactor: Any, dsn: str, interval: float, observe: ObserveTransaction) -> None:
        self._reactor = reactor
        self._task = Task(dsn, interval)
        self._observe = observe
        self._backoff = backoffPolicy(initialDelay=0.5, maxDelay=60.0, factor=2.0)
        self._deaths = 0
        self._process: _Process | None = None
        self._started_at = self._reported_at = reactor.seconds()
        self._restart: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self._kill: IDelayedCall | None = None
        self._is_available = True
        self.state = messages.State(aggregates=False, lag_events=0, lag_seconds=0.0)
        self.failures = 0

    @property
    def lag_seconds(self) -> float:
        """Seconds for which the oldest event that is not aggregated has been waiting, as far as that is known."""
        silent = self._reactor.seconds() - self._reported_at
        is_silent = silent > max(MAX_STATE_AGE, 3 * self._task.interval)
        return self.state.lag_seconds + (silent if is_silent else 0.0)

    def start(self) -> None:
        """Start the process."""
        self._restart = None
        self._started_at = self._reactor.seconds()
        self._process = _Process(self)
        try:
            start_python(self._reactor, self._process, MODULE)
        except OSError as error:
            self._ended(os.strerror(error.errno or 0))

    async def stop(self) -> None:
        """End the process. The transaction in progress is rolled back, and repeated by the next server."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is not None:
            self._stopped = Deferred()
            self._kill = self._reactor.callLater(STOP_TIMEOUT, self._process.kill)
            self._process.end()
            await self._stopped

    def begin(self) -> bytes:
        """Return what the process reads: where it imports modules from, and its task."""
        return import_path() + msgspec.json.encode(self._task) + b"\n"

    def received(self, message: messages.Message) -> None:
        """Log and count what the process reports."""
        if isinstance(message, messages.State):
            self._set_state(message)
        elif isinstance(message, messages.Aggregated):
            self._deaths = 0
            self._observe(message.events, message.seconds)
        elif isinstance(message, messages.Unavailable):
            self._unavailable(message.reason)
        elif isinstance(message, messages.Crashed):
            _log.critical(
                "aggregation failed: {error}\n{traceback_text}",
                error=message.error,
                traceback_text=message.traceback.rstrip(),
                event="aggregation_crashed",
            )
        else:
            _log_news(message)

    def _set_state(self, state: messages.State) -> None:
        if state.aggregates and not self.state.aggregates:
            _log.info("this server aggregates events for statistics", event="aggregation_started")
        if not self._is_available:
            self._is_available = True
            _log.info("aggregation continues", event="aggregation_resumed")
        self.state, self._reported_at = state, self._reactor.seconds()

    def _unavailable(self, reason: str) -> None:
        self.failures += 1
        self.state = msgspec.structs.replace(self.state, aggregates=False)
        if self._is_available:
            self._is_available = False
            _log.warn("aggregation waits for the database: {reason}", reason=reason, event="aggregation_interrupted")

    def ended(self, reason: str) -> None:
        """Start the process again after a while, unless it was meant to end."""
        if self._stopped is not None:
            self._process = None
            if self._kill is not None and self._kill.active():
                self._kill.cancel()
            self._stopped.callback(None)
            return
        self._ended(reason)

    def _ended(self, reason: str) -> None:
        now = self._reactor.seconds()
        self._process = None
        self.failures += 1
        self.state = msgspec.structs.replace(self.state, aggregates=False)
        self._deaths = 1 if now - self._started_at > HEALTHY_TIME else self._deaths + 1
        delay = self._backoff(self._deaths - 1)
        self._restart = self._reactor.callLater(delay, self.start)
        _log.error(
            "the aggregating process has ended ({reason}), and is started again in {delay:.1f} s",
            reason=reason,
            delay=delay,
            event="aggregation_ended",
        )


def _log_news(message: messages.Message) -> None:
    if isinstance(message, messages.Progress) and message.remaining:
        _log.info(
            "events aggregated: {done}; about {remaining} remain",
            done=message.done,
            remaining=message.remaining,
            event="aggregation_progress",
        )
    elif isinstance(message, messages.Progress):
        _log.info(
            "events aggregated: {done}; none remain", done=message.done, remaining=0, event="aggregation_progress"
        )
    elif isinstance(message, messages.Rebuilding):
        _log.info(
            "the definitions of statistics have changed: everything is computed again", event="aggregation_rebuild"
        )
    elif isinstance(message, messages.Newer):
        _log.warn(
            "this server does not aggregate: a newer version of tkserver has computed the statistics",
            event="aggregation_outdated",
        )


class _Process(ProcessProtocol):
    """The connection to a process."""

    def __init__(self, owner: Aggregation) -> None:
        self._owner = owner
        self._buffer = b""
        self._errors = b""
        self._is_running = False

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._owner.begin())

    def outReceived(self, data: bytes) -> None:
        """Handle complete lines."""
        self._is_running = True
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._owner.received(messages.decode(line))

    def errReceived(self, data: bytes) -> None:
        """Keep errors of the start. Later ones may contain data from clients."""
        if not self._is_running:
            self._errors = (self._errors + data)[-MAX_ERROR_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        *_, last = [b"", *self._errors.strip().splitlines()]
        self._owner.ended(last.decode(errors="replace") or _status(reason.value))

    def end(self) -> None:
        """Let the process end."""
        assert self.transport is not None
        self.transport.closeStdin()

    def kill(self) -> None:
        """Kill the process."""
        assert self.transport is not None
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")


def _status(error: Any) -> str:
    return f"exit status {error.exitCode}" if error.signal is None else f"signal {error.signal}"
