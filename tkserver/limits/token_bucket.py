"""Token buckets. A bucket is represented by the time at which it is full again.

Times are Unix times in whole microseconds, so that arithmetic is exact, also in the Lua of Redis. A bucket without a
stored time is full.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cachetools import TTLCache

SECOND = 1_000_000
"""Microseconds."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The capacity of a bucket and the rate at which it is refilled.

    :ivar limit: the number of tokens in a full bucket.
    :ivar interval: microseconds after which a token is added.
    """

    limit: int
    interval: int

    @classmethod
    def per_minute(cls, tokens: int, *, burst: int | None = None) -> Rate:
        """Return a rate in tokens per minute.

        :param burst: the number of tokens in a full bucket; by default ``tokens``.
        """
        return cls(tokens if burst is None else burst, max(1, 60 * SECOND // tokens))

    @property
    def window(self) -> int:
        """Microseconds after which an empty bucket is full."""
        return self.limit * self.interval


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a token is available, and the state of the bucket afterwards.

    :ivar full_at: when the bucket is full again.
    """

    rate: Rate
    allowed: bool
    full_at: int
    now: int

    @property
    def remaining(self) -> int:
        """The number of tokens in the bucket."""
        return (self.rate.window - (self.full_at - self.now)) // self.rate.interval

    @property
    def reset(self) -> int:
        """The Unix time in seconds at which the bucket is full again, rounded up."""
        return _round_up(self.full_at)

    @property
    def retry_after(self) -> int:
        """Seconds until a token is available, rounded up; 0 if there is one now."""
        return max(0, _round_up(self.full_at + self.rate.interval - self.rate.window - self.now))


def peek(rate: Rate, full_at: int, now: int) -> Decision:
    """Return whether a token is available, without taking it.

    :param full_at: when the bucket is full again. The bucket counts as empty if that is later than a window from now,
        which only happens when the clock is set back.
    """
    full_at = min(max(full_at, now), now + rate.window)
    return Decision(rate, full_at + rate.interval <= now + rate.window, full_at, now)


def take(rate: Rate, full_at: int, now: int) -> Decision:
    """Take a token if one is available. The parameters are those of :func:`peek`."""
    decision = peek(rate, full_at, now)
    return Decision(rate, True, decision.full_at + rate.interval, now) if decision.allowed else decision


def _round_up(microseconds: int) -> int:
    """Return whole seconds."""
    return -(-microseconds // SECOND)


class TokenBuckets:
    """The buckets that are not full, by key. Full buckets need no memory.

    :param maximum: the maximum number of buckets. Beyond that, the least recently used bucket is removed and thus full.
    :param window: seconds after which the slowest bucket is full again.
    :param clock: returns Unix time.
    """

    def __init__(self, maximum: int, window: float, clock: Callable[[], float]) -> None:
        self._full_at: TTLCache[Hashable, int] = TTLCache(maximum, window, clock)
        self._clock = clock

    def __len__(self) -> int:
        return len(self._full_at)

    def peek(self, key: Hashable, rate: Rate) -> Decision:
        """Return whether a token is available, without taking it."""
        return peek(rate, self._full_at.get(key, 0), self._now())

    def take(self, key: Hashable, rate: Rate) -> Decision:
        """Take a token if one is available."""
        decision = take(rate, self._full_at.get(key, 0), self._now())
        self._full_at[key] = decision.full_at
        return decision

    def _now(self) -> int:
        return int(self._clock() * SECOND)
