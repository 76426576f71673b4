"""Keeping work alive when the client that asked for it goes away."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tkserver import log
from tkserver.storage.errors import StorageError

T = TypeVar("T")

_log = log.logger(__name__)


class Shared(Generic[T]):
    """Work with any number of waiters, who may give up waiting without disturbing it or each other.

    When a client hangs up, its handler's Deferred is cancelled, and with it whatever that is waiting for: which must
    not be a query that others are waiting for too.

    :ivar done: whether the work has ended.
    """

    def __init__(self, work: Deferred[T]) -> None:
        self._waiting: dict[Deferred[T], Context] = {}
        self.done = False
        self._result: T | Failure
        work.addBoth(self._finish)

    def wait(self) -> Deferred[T]:
        """A Deferred with the result, whose cancellation does not reach the work.

        What hangs on it goes on in the context that this is called in, and so for the same request.
        """
        waiter: Deferred[T] = Deferred(self._forget)
        if self.done:
            waiter.callback(self._result)  # a Failure becomes an errback by itself
        else:
            self._waiting[waiter] = copy_context()
        return waiter

    def _forget(self, waiter: Deferred[T]) -> None:
        del self._waiting[waiter]

    def _finish(self, result: T | Failure) -> None:
        self.done, self._result = True, result
        waiting, self._waiting = self._waiting, {}
        for waiter, context in waiting.items():
            context.run(waiter.callback, result)
        if not waiting and isinstance(result, Failure) and not result.check(StorageError):
            _log.failure("nobody was left to hear of this", result, event="unheard_failure")
