"""Shared results of operations, and tracebacks of failures."""

from __future__ import annotations

import gc
import weakref
from contextvars import ContextVar

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from tests.support.logs import logged_failures
from tkserver.deferreds import SharedDeferred, clear_traceback
from tkserver.storage.errors import StorageError, Unavailable


def results_of(deferred: Deferred[str]) -> list[object]:
    """Return a list to which the result or exception is appended."""
    results: list[object] = []
    deferred.addCallbacks(results.append, lambda failure: results.append(failure.value))
    return results


def test_cancelling_a_waiter_affects_no_other() -> None:
    """When a waiter is cancelled, the operation continues, and earlier and later waiters get its result."""
    operation: Deferred[str] = Deferred()
    shared = SharedDeferred(operation)
    first, second = shared.wait(), shared.wait()
    first_results, second_results = results_of(first), results_of(second)
    first.cancel()
    assert isinstance(first_results[0], CancelledError)
    assert not operation.called
    operation.callback("done")
    assert second_results == ["done"]
    assert results_of(shared.wait()) == ["done"]


def test_every_waiter_gets_the_failure() -> None:
    """If the operation fails, earlier and later waiters fail with the same exception."""
    operation: Deferred[str] = Deferred()
    shared = SharedDeferred(operation)
    results = [results_of(shared.wait()) for _ in range(2)]
    error = ValueError()
    operation.errback(error)
    assert [*results, results_of(shared.wait())] == [[error]] * 3


@pytest.mark.parametrize(("error", "logged"), [(ValueError("a bug"), 1), (Unavailable("away"), 0)])
def test_unexpected_failure_without_waiters_is_logged(error: Exception, logged: int) -> None:
    """If no waiter is left, an unexpected exception is logged, and an expected one is not."""
    with logged_failures() as failures:
        operation: Deferred[str] = Deferred()
        waiter = SharedDeferred(operation, expected=StorageError).wait()
        results_of(waiter)
        waiter.cancel()
        operation.errback(error)
    assert len(failures) == logged


def test_callbacks_run_in_the_context_of_their_waiter() -> None:
    """The callbacks of a waiter run in the context in which it was created, for example that of its request."""
    variable: ContextVar[str] = ContextVar("variable")
    operation: Deferred[str] = Deferred()
    shared = SharedDeferred(operation)
    contexts: list[str] = []
    for name in ("first", "second"):
        variable.set(name)
        shared.wait().addCallback(lambda _: contexts.append(variable.get()))
    variable.set("operation")
    operation.callback("done")
    assert contexts == ["first", "second"]


def test_clear_traceback_frees_memory() -> None:
    """Without the traceback, the objects in its frames are freed without a garbage collection."""

    class Body:
        """An object that can be referenced weakly."""

    def raise_error(body: Body) -> None:
        try:
            raise KeyError
        except KeyError:
            raise ValueError from None  # its context refers to the frame, too

    gc.disable()
    try:
        body = Body()
        reference = weakref.ref(body)
        try:
            raise_error(body)
        except ValueError:
            failure = Failure()
        del body
        assert reference() is not None
        clear_traceback(failure)
        assert reference() is None
    finally:
        gc.enable()
    assert failure.check(ValueError)
