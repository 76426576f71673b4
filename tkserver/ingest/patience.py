"""Giving up on the database after a while."""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from tkserver.storage.errors import Unavailable

T = TypeVar("T")


def in_time(work: Deferred[T], seconds: float, reactor: Any, problem: str) -> Deferred[T]:
    """The same Deferred, cancelled after a while, which then fails with :exc:`Unavailable` and this problem."""

    def too_late(_: object, timeout: float) -> T:
        raise Unavailable(f"{problem} within {timeout:g} s")

    return work.addTimeout(seconds, reactor, too_late)


class Patience(Generic[T]):
    """Gives up on any number of Deferreds, each after the same while, with one timer for all.

    :param seconds: after which a Deferred fails with :exc:`Unavailable` and this problem.
    """

    def __init__(self, seconds: float, reactor: Any, problem: str) -> None:
        self._seconds = seconds
        self._reactor = reactor
        self._problem = f"{problem} within {seconds:g} s"
        self._waiting: deque[tuple[float, Deferred[T]]] = deque()
        self._timer: IDelayedCall | None = None

    def wait_for(self, work: Deferred[T]) -> None:
        """Give up on this one too, when its time has come."""
        self._waiting.append((self._reactor.seconds() + self._seconds, work))
        if self._timer is None:
            self._timer = self._reactor.callLater(self._seconds, self._give_up)

    def forget_fired(self) -> None:
        """Let go of the oldest, as far as they have fired."""
        while self._waiting and self._waiting[0][1].called:
            self._waiting.popleft()

    def _give_up(self) -> None:
        self._timer = None
        self.forget_fired()
        while self._waiting and self._waiting[0][0] <= self._reactor.seconds():
            self._waiting.popleft()[1].errback(Unavailable(self._problem))
            self.forget_fired()
        if self._waiting:
            self._timer = self._reactor.callLater(self._waiting[0][0] - self._reactor.seconds(), self._give_up)
