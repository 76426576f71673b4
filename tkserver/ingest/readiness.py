"""Whether the database stores events, found out a few times a second however many want to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred

from tkserver import log
from tkserver.ingest.patience import in_time
from tkserver.ingest.shield import Shared

FRESH = 0.25
"""Seconds for which an answer holds. Anybody may ask, and finding out costs a write."""

PATIENCE = 2.0
"""Seconds after which a database that does not answer is not ready: probes are not patient themselves."""


class Readiness:
    """Asks, and remembers the answer for a moment.

    :param probe: returns when the database accepts writes, and raises a ``StorageError`` where it does not.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], reactor: Any) -> None:
        self._probe = probe
        self._reactor = reactor
        self._stale_from = float("-inf")
        self._answer: Shared[None] | None = None

    def check(self) -> Deferred[None]:
        """
        :raise StorageError: when the database accepts no writes.
        """
        if self._answer is None or self._reactor.seconds() >= self._stale_from:
            self._stale_from = float("inf")  # while it is being found out, everyone waits for the same answer
            self._answer = Shared(log.outside_requests(ensureDeferred, self._ask()))
        return in_time(self._answer.wait(), PATIENCE, self._reactor, "the database has not answered")

    async def _ask(self) -> None:
        try:
            await self._probe()
        finally:
            self._stale_from = self._reactor.seconds() + FRESH
