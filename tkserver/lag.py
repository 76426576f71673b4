"""How late the reactor is: everything that a server does waits for everything else that it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

INTERVAL = 0.25
"""Seconds between two looks."""


class LagMeter:
    """Has itself called again and again, and looks by how much that is late.

    :param observe: is told of each time, in seconds.
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
