"""How many users join and how many events happen in each hour of the simulated time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from random import Random

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
"""Times are integers: microseconds since 1970, in UTC."""

_HOURS = (2, 1, 1, 1, 1, 2, 3, 5, 8, 11, 12, 12, 11, 12, 14, 15, 15, 13, 11, 9, 8, 7, 5, 3)
"""Activity in each hour of the day, in UTC."""

_WEEKEND = 0.35
"""Activity on Saturdays and Sundays, compared with other days."""

_LAUNCH, _LAUNCH_DAYS = 3.0, 5.0
"""How much more users join when the program is published, and how many days that lasts."""

_NOISE = 0.15
"""Standard deviation of the logarithm of the activity in an hour."""

SURVIVAL = ((0.35, 0.0), (0.35, 12.0), (0.30, 300.0))
"""Groups of users: their share, and the mean number of days for which they use the program."""


@dataclass(frozen=True)
class Slot:
    """An hour, or a part of it at the end of the simulated time.

    :ivar joining: the number of users whose first event is in this hour.
    :ivar events: the number of events, including one for each user who joins.
    """

    start: int
    end: int
    joining: int
    events: int


def microseconds(time: datetime) -> int:
    """Return a time as an integer."""
    return (time - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def start_of(until: datetime, days: int) -> datetime:
    """Return when the program is published: at noon (UTC) of the first of the days that end with ``until``.

    Noon leaves half a day until the first event is ``days`` days old.
    """
    last = (until - timedelta(microseconds=1)).astimezone(timezone.utc)
    midnight = last.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    return min(midnight + timedelta(hours=12), until.astimezone(timezone.utc) - timedelta(hours=1))


def schedule(start: int, end: int, users: int, events: int, rng: Random) -> list[Slot]:
    """Divide users and events between the hours from ``start`` to ``end``.

    :param events: at least as many as ``users``.
    """
    hours = [(begin, min(begin + HOUR, end)) for begin in range(start, end, HOUR)]
    usual = [_activity(begin) * (finish - begin) / HOUR for begin, finish in hours]
    joining = _joining([begin - start for begin, _ in hours], usual, users, rng)
    alive = _alive(joining)
    weights = [activity * alive[hour // 24] * math.exp(rng.gauss(0, _NOISE)) for hour, activity in enumerate(usual)]
    further = _rounded(weights, events - users)
    return [
        Slot(begin, finish, new, new + more) for (begin, finish), new, more in zip(hours, joining, further, strict=True)
    ]


def _activity(time: int) -> float:
    """Return the activity in the hour that begins at a time."""
    weekday = (time // DAY + 3) % 7  # 1970 began on a Thursday
    return _HOURS[time // HOUR % 24] * (_WEEKEND if weekday >= 5 else 1.0)


def _joining(ages: Sequence[int], usual: Sequence[float], users: int, rng: Random) -> list[int]:
    """Return the number of users who join in each hour: many at first, then slowly more."""
    weights = [
        activity * (0.5 + age / (ages[-1] + HOUR) + _LAUNCH * math.exp(-age / DAY / _LAUNCH_DAYS))
        for age, activity in zip(ages, usual, strict=True)
    ]
    numbers = Counter(rng.choices(range(len(ages)), weights, k=users))
    return [numbers[hour] for hour in range(len(ages))]


def _alive(joining: Sequence[int]) -> list[float]:
    """Return the expected number of users who still use the program, for each 24 hours."""
    by_day = [sum(joining[hour : hour + 24]) for hour in range(0, len(joining), 24)]
    groups = [0.0 for _ in SURVIVAL]
    alive = []
    for new in by_day:
        for group, (share, mean_days) in enumerate(SURVIVAL):
            kept = math.exp(-1 / mean_days) if mean_days else 0.0
            groups[group] = groups[group] * kept + new * share
        alive.append(sum(groups))
    return alive


def _rounded(weights: Iterable[float], total: int) -> Iterator[int]:
    """Yield integers proportional to the weights, whose sum is ``total``."""
    sums = list(accumulate(weights))
    before = 0
    for so_far in sums:
        now = round(total * so_far / sums[-1])
        yield now - before
        before = now
