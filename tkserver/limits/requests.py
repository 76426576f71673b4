"""How many requests a minute an application may send, by the tier of its token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from twisted.internet.defer import Deferred, ensureDeferred

from tkserver.limits.bucket import SECOND, Rate, Verdict
from tkserver.limits.buckets import Buckets
from tkserver.limits.shared import SharedBuckets, SharedUnavailable

MAX_APPS = 50_000
"""Applications whose buckets one process keeps: some ten megabytes."""


class RequestLimit:
    """One bucket for each application, kept by all servers together where there is a Redis, and else by each.

    :param per_minute: requests a minute by tier; a tier that is not in it has no limit. At least one is.
    :param clock: gives seconds since 1970.
    """

    def __init__(self, per_minute: Mapping[str, int], shared: SharedBuckets | None, clock: Callable[[], float]) -> None:
        self._rates = {tier: Rate.per_minute(requests) for tier, requests in per_minute.items()}
        self._local = Buckets(MAX_APPS, max(rate.window for rate in self._rates.values()) / SECOND, clock)
        self._shared = shared

    def take(self, tier: str, org_id: UUID, app_id: UUID) -> Verdict | Deferred[Verdict] | None:
        """Count a request, unless its application is over its limit; ``None`` where it has none."""
        rate = self._rates.get(tier)
        if rate is None:
            return None
        key = f"{org_id}/{app_id}"
        if self._shared is None or not self._shared.available:
            return self._local.take(key, rate)
        return ensureDeferred(self._ask(self._shared, key, rate))

    async def _ask(self, shared: SharedBuckets, key: str, rate: Rate) -> Verdict:
        try:
            return await shared.take(key, rate)
        except SharedUnavailable:
            return self._local.take(key, rate)
