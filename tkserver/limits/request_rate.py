"""Limit on the requests per minute of an application, by the tier of its token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from twisted.internet.defer import Deferred, ensureDeferred

from tkserver.limits.redis import RedisTokenBuckets, RedisUnavailable
from tkserver.limits.token_bucket import SECOND, Decision, Rate, TokenBuckets

MAX_APPS = 50_000
"""The maximum number of applications with buckets in memory: about ten megabytes."""


class RequestRateLimit:
    """A token bucket for each application. All servers share it if there is a Redis; otherwise, each has its own.

    :param per_minute: requests per minute by tier. Other tiers have no limit. Must not be empty.
    :param shared: ``None`` if there is no Redis.
    :param clock: returns Unix time.
    """

    def __init__(
        self, per_minute: Mapping[str, int], shared: RedisTokenBuckets | None, clock: Callable[[], float]
    ) -> None:
        self._rates = {tier: Rate.per_minute(requests) for tier, requests in per_minute.items()}
        self._local = TokenBuckets(MAX_APPS, max(rate.window for rate in self._rates.values()) / SECOND, clock)
        self._shared = shared

    def take(self, tier: str, org_id: UUID, app_id: UUID) -> Decision | Deferred[Decision] | None:
        """Take a token for a request; return ``None`` if the tier has no limit."""
        rate = self._rates.get(tier)
        if rate is None:
            return None
        key = f"{org_id}/{app_id}"
        if self._shared is None or not self._shared.available:
            return self._local.take(key, rate)
        return ensureDeferred(self._take_shared(self._shared, key, rate))

    async def _take_shared(self, shared: RedisTokenBuckets, key: str, rate: Rate) -> Decision:
        try:
            return await shared.take(key, rate)
        except RedisUnavailable:
            return self._local.take(key, rate)
