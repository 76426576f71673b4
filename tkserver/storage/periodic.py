"""Periodic writes of values that are collected in memory, instead of a write with each request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import LoopingCall

from tkserver.deferreds import SharedDeferred

LAST_WRITE_TIMEOUT = 2.0
"""Seconds for the last write when the server stops."""


class PeriodicWriter:
    """Calls a function periodically, and once more at the end.

    :param write: writes the collected values. It handles all errors of the database.
    :param interval: seconds between two calls.
    """

    def __init__(self, write: Callable[[], Coroutine[Any, Any, None]], interval: float, reactor: Any) -> None:
        self._write = write
        self._interval = interval
        self._reactor = reactor
        self._loop = LoopingCall(lambda: ensureDeferred(self._write()))
        self._loop.clock = reactor

    def start(self) -> None:
        self._loop.start(self._interval, now=False)

    async def stop(self) -> None:
        """Write the remaining values, unless the database does not respond soon."""
        if self._loop.running:
            self._loop.stop()
        # The timeout cancels the waiting, not the statement, which may still succeed. The values need not be exact.
        with suppress(defer.TimeoutError):
            await SharedDeferred(ensureDeferred(self._write())).wait().addTimeout(LAST_WRITE_TIMEOUT, self._reactor)
