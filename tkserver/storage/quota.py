"""Monthly quotas: how many events an application can still store. The current time is an argument."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Allowance:
    """The quota of an application for a calendar month (UTC), and how much of it is used.

    :ivar quota: events.
    :ivar used: events that were stored this month. It exceeds the quota if an operator has lowered the quota since.
    :ivar now: a time in this month, in UTC.
    """

    quota: int
    used: int
    now: datetime

    @classmethod
    def read(cls, quota: int, month: date | None, used: int, now: datetime) -> Allowance:
        """Return the allowance at a time, from the columns of the table ``apps``.

        :param month: the first day of the month in which ``used`` was counted. In any other month, nothing is used yet.
        :param now: with any offset.
        """
        now = now.astimezone(timezone.utc)
        return cls(quota, used if month == first_day(now) else 0, now)

    @property
    def month(self) -> date:
        """The first day of the month."""
        return first_day(self.now)

    @property
    def left(self) -> int:
        """The number of events that can still be stored this month."""
        return max(self.quota - self.used, 0)

    @property
    def resets_at(self) -> datetime:
        """The beginning of the next month."""
        next_month = first_day(self.month + timedelta(days=31))
        return datetime(next_month.year, next_month.month, 1, tzinfo=timezone.utc)

    @property
    def retry_after(self) -> int:
        """The number of seconds until the next month, rounded up and at least 1."""
        return math.ceil((self.resets_at - self.now).total_seconds())

    def has_room_for(self, events: int) -> bool:
        """Return true if this number of new events can be stored; for 0 events, always true."""
        return events <= self.left

    def after(self, events: int) -> Allowance:
        """Return the allowance after this number of events was stored."""
        return replace(self, used=self.used + events)


def first_day(day: date) -> date:
    """Return the first day of the month of a date or time."""
    return date(day.year, day.month, 1)


def admit(allowance: Allowance, batches: Sequence[Collection[T]], stored: set[T]) -> list[Allowance | None]:
    """Decide which batches fit into an allowance. A batch is admitted as a whole, and earlier batches have priority.

    :param batches: the event ids of each batch.
    :param stored: those ids that are stored already, and therefore do not count.
    :return: for each batch ``None`` if it is admitted, otherwise the allowance that it exceeds.
    """
    known = set(stored)
    exceeded: list[Allowance | None] = []
    for batch in batches:
        new = set(batch) - known
        if allowance.has_room_for(len(new)):
            allowance = allowance.after(len(new))
            known |= new
            exceeded.append(None)
        else:
            exceeded.append(allowance)
    return exceeded
