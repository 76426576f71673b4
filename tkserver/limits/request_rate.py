"""How many requests a minute an application may send, by the tier of its token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from twisted.internet.defer import Deferred, ensureDeferred

from tkserver.limits.redis import RedisTokenBuckets, RedisUnavailable
from tkserver.limits.token_bucket import SECOND, Decision, Rate, TokenBuckets

MAX_APPS = 50_000
"""Applications whose buckets one process keeps: some ten megabytes."""


class RequestRateLimit:
    """One bucket for each application, kept by all servers together where there is a Redis, and else by each.

    :param per_minute: requests a minute by tier; a tier that is not in it has no limit. At least one is.
    :param clock: gives seconds since 1970.
    """

    def __init__(
        self, per_minute: Mapping[str, int], shared: RedisTokenBuckets | None, clock: Callable[[], float]
    ) -> None:
        self._rates = {tier: Rate.per_minute(requests) for tier, requests in per_minute.items()}
        self._local = TokenBuckets(MAX_APPS, max(rate.window for rate in self._rates.values()) / SECOND, clock)
        self._shared = shared

    def take(self, tier: str, org_id: UUID, app_id: UUID) -> Decision | Deferred[Decision] | None:
        """Count a request, unless its application is over its limit; ``None`` where it has none."""
        rate = self._rates.get(tier)
        if rate is None:
            return None
        key = f"{org_id}/{app_id}"
        if self._shared is None or not self._shared.available:
            return self._local.take(key, rate)
        return ensureDeferred(self._ask(self._shared, key, rate))

    async def _ask(self, shared: RedisTokenBuckets, key: str, rate: Rate) -> Decision:
        try:
            return await shared.take(key, rate)
        except RedisUnavailable:
            return self._local.take(key, rate)
