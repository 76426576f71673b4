"""Short transactions with pauses between them, for work that must not slow down the servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tkserver.operations.adaptive_batch import AdaptiveBatch
from tkserver.storage.errors import Collision

Clock = Callable[[], float]
"""Returns seconds, on any scale."""

Sleep = Callable[[float], None]
"""Waits for a number of seconds."""

T = TypeVar("T")


class PacedTransactions:
    """Runs transactions whose size adapts to their duration, with a pause before each."""

    def __init__(self, clock: Clock, sleep: Sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._batch = AdaptiveBatch()
        self._pause = 0.0

    def run(self, work: Callable[[int], T]) -> T:
        """Call ``work``, which is one transaction. Repeat it after a deadlock with another transaction.

        :param work: receives the maximum number of rows to change.
        """
        while True:
            self._sleep(self._pause)
            started = self._clock()
            try:
                return work(self._batch.rows)
            except Collision:
                continue
            finally:
                self._pause = self._batch.pause_after(self._clock() - started)
