"""Monthly quotas: what an application may still store. Pure; the time is the database's."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Allowance:
    """What an application may store in a calendar month, UTC.

    :ivar quota: events.
    :ivar used: events of this month that are stored already. More than the quota where that was lowered.
    :ivar now: a time in this month, in UTC.
    """

    quota: int
    used: int
    now: datetime

    @classmethod
    def read(cls, quota: int, month: date | None, used: int, now: datetime) -> Allowance:
        """
        :param month: first day of the month that ``used`` counts; in any other nothing is used yet.
        :param now: with any offset.
        """
        now = now.astimezone(timezone.utc)
        return cls(quota, used if month == first_day(now) else 0, now)

    @property
    def month(self) -> date:
        """Its first day."""
        return first_day(self.now)

    @property
    def left(self) -> int:
        return max(self.quota - self.used, 0)

    @property
    def resets_at(self) -> datetime:
        """When the next month begins."""
        next_month = first_day(self.month + timedelta(days=31))
        return datetime(next_month.year, next_month.month, 1, tzinfo=timezone.utc)

    @property
    def retry_after(self) -> int:
        """Whole seconds until then; at least 1."""
        return math.ceil((self.resets_at - self.now).total_seconds())

    def has_room_for(self, events: int) -> bool:
        """Whether so many new events fit. None always do, also where more is used than there is."""
        return events <= self.left

    def after(self, events: int) -> Allowance:
        """The same when so many more are stored."""
        return replace(self, used=self.used + events)


def first_day(of: date) -> date:
    """The first day of a month, given any day or time in it."""
    return date(of.year, of.month, 1)


def admit(allowance: Allowance, batches: Sequence[Collection[T]], known: set[T]) -> list[Allowance | None]:
    """Which of several batches fit, each as a whole, the earlier ones first.

    :param batches: the ids of their events.
    :param known: the ids among them that are stored already, and take up nothing.
    :return: for each batch ``None`` where it fits, and otherwise what was left when its turn came.
    """
    taken = set(known)
    refusals: list[Allowance | None] = []
    for batch in batches:
        new = set(batch) - taken
        if allowance.has_room_for(len(new)):
            allowance = allowance.after(len(new))
            taken |= new
            refusals.append(None)
        else:
            refusals.append(allowance)
    return refusals
