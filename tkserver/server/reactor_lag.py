"""Reactor lag: how late the reactor runs a timer, because it was busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

INTERVAL = 0.25
"""Seconds between two measurements."""


class ReactorLagMeter:
    """Measures the reactor lag at regular intervals.

    :param observe: called with each measurement, in seconds.
    """

    def __init__(self, reactor: Any, observe: Callable[[float], None]) -> None:
        self._reactor = reactor
        self._observe = observe
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        self._due = self._reactor.seconds() + INTERVAL
        self._call = self._reactor.callLater(INTERVAL, self._measure)

    def stop(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _measure(self) -> None:
        self._observe(max(0.0, self._reactor.seconds() - self._due))  # the clock may have been set back
        self.start()
