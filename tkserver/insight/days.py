"""Days as integers: days since 1970-01-01, in the time zone of an application."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tkserver.insight.groups import Ints

Number = TypeVar("Number", "int", "Ints")

EPOCH = date(1970, 1, 1)


def number_of(day: date) -> int:
    """Return the number of a day."""
    return (day - EPOCH).days


def date_of(number: int) -> date:
    """Return the day with a number."""
    return EPOCH + timedelta(days=number)


def iso(number: int) -> str:
    """Return a day in the form 2026-01-31."""
    return date_of(number).isoformat()


def week_of(number: Number) -> Number:
    """Return the Monday of the week of a day, or of each day."""
    return number - (number + 3) % 7  # 1970-01-01 was a Thursday


def iso_week(number: int) -> str:
    """Return the week of a day in the form 2026-W05."""
    year, week, _ = date_of(number).isocalendar()
    return f"{year}-W{week:02}"
