"""SharedDeferred work outlives those who wait for it."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.support.logs import logged_failures
from tkserver.deferreds import SharedDeferred
from tkserver.storage.errors import Unavailable


def outcome(deferred: Deferred[str]) -> list[object]:
    found: list[object] = []
    deferred.addCallbacks(found.append, lambda failure: found.append(failure.value))
    return found


def test_cancelling_one_disturbs_nobody() -> None:
    """One waiter gives up; the work goes on, and the others get its result, also those who come later."""
    work: Deferred[str] = Deferred()
    shared = SharedDeferred(work)
    first, second = shared.wait(), shared.wait()
    first_found, second_found = outcome(first), outcome(second)
    first.cancel()
    assert isinstance(first_found[0], CancelledError)
    assert not work.called
    work.callback("done")
    assert second_found == ["done"]
    assert outcome(shared.wait()) == ["done"]


def test_every_waiter_hears_of_a_failure() -> None:
    """Each of them, now or later."""
    work: Deferred[str] = Deferred()
    shared = SharedDeferred(work)
    waiting = [outcome(shared.wait()) for _ in range(2)]
    error = ValueError()
    work.errback(error)
    assert [*waiting, outcome(shared.wait())] == [[error]] * 3


@pytest.mark.parametrize(("error", "logged"), [(ValueError("a fault"), 1), (Unavailable("away"), 0)])
def test_a_failure_that_nobody_hears_of(error: Exception, logged: int) -> None:
    """A fault of ours is logged when nobody is left to be told; that the database was away is not one."""
    with logged_failures() as failures:
        work: Deferred[str] = Deferred()
        waiter = SharedDeferred(work).wait()
        outcome(waiter)
        waiter.cancel()
        work.errback(error)
    assert len(failures) == logged
