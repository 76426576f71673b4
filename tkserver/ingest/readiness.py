"""Whether the database stores events, found out at most once a second however many want to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred, ensureDeferred

from tkserver.ingest.shield import Shared
from tkserver.storage.errors import StorageError

FRESH = 1.0
"""Seconds for which an answer holds. Anybody may ask, and finding out costs a write."""


class Readiness:
    """Asks, and remembers the answer for a moment.

    :param probe: returns when the database accepts writes, and raises a ``StorageError`` where it does not.
    :param clock: gives seconds, on any scale.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], clock: Callable[[], float]) -> None:
        self._probe = probe
        self._clock = clock
        self._asked_at = float("-inf")
        self._answer: Shared[None] | None = None

    def check(self) -> Deferred[None]:
        """
        :raise StorageError: when the database accepts no writes.
        """
        now = self._clock()
        if self._answer is None or now - self._asked_at >= FRESH:
            self._asked_at = now
            answer = self._answer = Shared(ensureDeferred(self._ask()))
            return answer.wait()
        return self._answer.wait()

    async def _ask(self) -> None:
        try:
            await self._probe()
        except StorageError:
            self._asked_at = float("-inf")  # nothing was written, and it may be over at any moment
            raise
