"""Whether the database stores events, found out a few times a second however many want to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred, ensureDeferred

from tkserver.ingest.shield import Shared

FRESH = 0.25
"""Seconds for which an answer holds. Anybody may ask, and finding out costs a write."""


class Readiness:
    """Asks, and remembers the answer for a moment.

    :param probe: returns when the database accepts writes, and raises a ``StorageError`` where it does not.
    :param clock: gives seconds, on any scale.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], clock: Callable[[], float]) -> None:
        self._probe = probe
        self._clock = clock
        self._stale_from = float("-inf")
        self._answer: Shared[None] | None = None

    def check(self) -> Deferred[None]:
        """
        :raise StorageError: when the database accepts no writes.
        """
        if self._answer is None or self._clock() >= self._stale_from:
            self._stale_from = float("inf")  # while it is being found out, everyone waits for the same answer
            self._answer = Shared(ensureDeferred(self._ask()))
        return self._answer.wait()

    async def _ask(self) -> None:
        try:
            await self._probe()
        finally:
            self._stale_from = self._clock() + FRESH
