"""Helpers for Deferreds and Failures."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tkserver import log

T = TypeVar("T")

_log = log.logger(__name__)


class SharedDeferred(Generic[T]):
    """The result of an operation for several waiters, each of which can be cancelled separately.

    When a client disconnects, Klein cancels the Deferred of its request handler, and with it the operation that the
    handler waits for. If other requests wait for the same operation, it must not be cancelled.

    :param expected: exceptions that are not logged if no waiter is left to handle them.
    :ivar done: true if the operation has ended.
    """

    def __init__(self, operation: Deferred[T], expected: type[Exception] | tuple[type[Exception], ...] = ()) -> None:
        self._expected = expected
        self._waiters: dict[Deferred[T], Context] = {}
        self.done = False
        self._result: T | Failure
        operation.addBoth(self._finish)

    def wait(self) -> Deferred[T]:
        """Return a Deferred that fires with the result. Cancelling it does not cancel the operation.

        Its callbacks run in the context in which this method is called, so that log events contain the same request id.
        """
        waiter: Deferred[T] = Deferred(self._remove)
        if self.done:
            waiter.callback(self._result)  # a Failure starts the errback chain
        else:
            self._waiters[waiter] = copy_context()
        return waiter

    def _remove(self, waiter: Deferred[T]) -> None:
        del self._waiters[waiter]

    def _finish(self, result: T | Failure) -> None:
        self.done, self._result = True, result
        waiters, self._waiters = self._waiters, {}
        for waiter, context in waiters.items():
            context.run(waiter.callback, result)
        if not waiters and isinstance(result, Failure) and not isinstance(result.value, self._expected):
            _log.failure("an operation failed, and nothing waited for its result", result, event="unheard_failure")


def clear_traceback(failure: Failure) -> None:
    """Remove the traceback of a failure, so that request bodies are freed immediately.

    The frames of a traceback refer to the body of the request, and form reference cycles with the exception. A flood
    of rejected requests would fill the memory until the next garbage collection.
    """
    failure.tb = None
    error: BaseException | None = failure.value
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
