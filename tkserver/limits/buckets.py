"""The buckets of one process, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from cachetools import TTLCache

from tkserver.limits import bucket
from tkserver.limits.bucket import SECOND, Rate, Verdict


class Buckets:
    """Those buckets that are not full; a full one needs no memory.

    :param maximum: how many are kept. Beyond it, the one that was used longest ago counts as full.
    :param window: seconds after which the slowest of them is full again.
    :param clock: gives seconds since 1970.
    """

    def __init__(self, maximum: int, window: float, clock: Callable[[], float]) -> None:
        self._full_at: TTLCache[Hashable, int] = TTLCache(maximum, window, clock)
        self._clock = clock

    def __len__(self) -> int:
        return len(self._full_at)

    def look(self, key: Hashable, rate: Rate) -> Verdict:
        """Whether there is a token, without taking it."""
        return bucket.look(rate, self._full_at.get(key, 0), self._now())

    def take(self, key: Hashable, rate: Rate) -> Verdict:
        """Take a token, where there is one."""
        verdict = bucket.take(rate, self._full_at.get(key, 0), self._now())
        self._full_at[key] = verdict.full_at
        return verdict

    def _now(self) -> int:
        return int(self._clock() * SECOND)
