"""Paced transactions adapt to the database, and are repeated after deadlocks."""

from __future__ import annotations

import pytest

from tkserver.operations.adaptive_batch import TARGET
from tkserver.operations.paced import PacedTransactions
from tkserver.storage.errors import Collision, Unavailable


class Clock:
    """A clock that work and pauses advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_slow_transactions_get_smaller() -> None:
    """After a slow transaction, the next one is smaller, and the pause before it is longer than the transaction."""
    clock = Clock()
    paced = PacedTransactions(clock, clock.sleep)
    sizes: list[int] = []

    def work(max_rows: int) -> None:
        sizes.append(max_rows)
        clock.now += 2 * TARGET

    for _ in range(3):
        paced.run(work)
    assert sizes[0] > sizes[1] > sizes[2]
    assert clock.pauses[0] == 0
    assert all(pause > 2 * TARGET for pause in clock.pauses[1:])


def test_deadlock_is_repeated() -> None:
    """A transaction that fails because of a deadlock is repeated after a pause."""
    clock = Clock()
    attempts: list[int] = []

    def work(max_rows: int) -> str:
        attempts.append(max_rows)
        clock.now += 1
        if len(attempts) < 3:
            raise Collision("deadlock detected (40P01)")
        return "result"

    assert PacedTransactions(clock, clock.sleep).run(work) == "result"
    assert len(attempts) == len(clock.pauses) == 3
    assert all(clock.pauses[1:])


def test_other_errors_are_not_repeated() -> None:
    """An unavailable database ends the work."""

    def work(_: int) -> None:
        raise Unavailable("admin shutdown (57P01)")

    clock = Clock()
    with pytest.raises(Unavailable):
        PacedTransactions(clock, clock.sleep).run(work)
    assert len(clock.pauses) == 1
