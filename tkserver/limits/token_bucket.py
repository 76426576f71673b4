"""A token bucket as one number: the moment at which it is full again. Pure: the time is an argument.

Times are whole microseconds since 1970, so that sums of them are exact, in Redis' Lua as well. How full a bucket is
follows from how far off that moment is; none means full, so that what is not remembered allows most."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cachetools import TTLCache

SECOND = 1_000_000
"""Microseconds."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a bucket fills, and what fits into it.

    :ivar limit: tokens in a full bucket: what may be taken at once after a long rest.
    :ivar interval: microseconds for one token to come back.
    """

    limit: int
    interval: int

    @classmethod
    def per_minute(cls, tokens: int, *, burst: int | None = None) -> Rate:
        """So many tokens a minute.

        :param burst: how many may be taken at once; a minute's unless it is said.
        """
        return cls(tokens if burst is None else burst, max(1, 60 * SECOND // tokens))

    @property
    def window(self) -> int:
        """Microseconds for an empty bucket to be full again."""
        return self.limit * self.interval


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a token was to be had, and what there is left.

    :ivar full_at: when the bucket is full again, after this.
    """

    rate: Rate
    allowed: bool
    full_at: int
    now: int

    @property
    def remaining(self) -> int:
        """Tokens that may be taken at once."""
        return (self.rate.window - (self.full_at - self.now)) // self.rate.interval

    @property
    def reset(self) -> int:
        """Seconds since 1970, rounded up, at which the bucket is full again."""
        return _seconds(self.full_at)

    @property
    def retry_after(self) -> int:
        """Whole seconds after which there is a token: 0 where there is one now."""
        return max(0, _seconds(self.full_at + self.rate.interval - self.rate.window - self.now))


def look(rate: Rate, full_at: int, now: int) -> Decision:
    """Whether there is a token, without taking it.

    :param full_at: when the bucket is full again. A moment further off than its window, which only a clock that was
        set back leaves behind, counts as the window's end.
    """
    full_at = min(max(full_at, now), now + rate.window)
    return Decision(rate, full_at + rate.interval <= now + rate.window, full_at, now)


def take(rate: Rate, full_at: int, now: int) -> Decision:
    """Take a token, where there is one."""
    seen = look(rate, full_at, now)
    return Decision(rate, True, seen.full_at + rate.interval, now) if seen.allowed else seen


def _seconds(microseconds: int) -> int:
    return -(-microseconds // SECOND)


class TokenBuckets:
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

    def look(self, key: Hashable, rate: Rate) -> Decision:
        """Whether there is a token, without taking it."""
        return look(rate, self._full_at.get(key, 0), self._now())

    def take(self, key: Hashable, rate: Rate) -> Decision:
        """Take a token, where there is one."""
        decision = take(rate, self._full_at.get(key, 0), self._now())
        self._full_at[key] = decision.full_at
        return decision

    def _now(self) -> int:
        return int(self._clock() * SECOND)
