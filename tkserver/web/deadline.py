"""A time limit that is moved far more often than it is reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall


class Deadline:
    """Calls a function when a time is over.

    To move it costs next to nothing: its timer is touched only where it would ring too late, and one that rings too
    early is set again for the rest.

    :param too_late: called once for each deadline that passes.
    """

    def __init__(self, reactor: Any, too_late: Callable[[], None]) -> None:
        self._reactor = reactor
        self._too_late = too_late
        self._at: float | None = None
        self._timer: IDelayedCall | None = None

    def set(self, seconds: float | None) -> None:
        """Begin anew.

        :param seconds: from now on; ``None`` for as long as it takes.
        """
        if seconds is None:
            self._at = None
            return
        self._at = self._reactor.seconds() + seconds
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, self._rings)
        elif self._timer.getTime() > self._at:
            self._timer.reset(seconds)

    def stop(self) -> None:
        """No more of this."""
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rings(self) -> None:
        self._timer = None
        if self._at is None:
            return
        left = self._at - self._reactor.seconds()
        if left > 0:
            self._timer = self._reactor.callLater(left, self._rings)
        else:
            self._at = None
            self._too_late()
