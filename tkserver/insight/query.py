"""What to compute statistics of: an application, a period and filters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from tkserver.insight.days import number_of

CI_MODES = ("exclude", "include", "only")
FILTERS = ("version", "os", "arch", "name")
DEFAULT_DAYS = 30
MAX_DAYS = 3660

_NUMBER = re.compile(r"[1-9][0-9]{0,3}")
_DAY = re.compile(r"(199[0-9]|2[0-9]{3})-[0-9]{2}-[0-9]{2}")


class InvalidQuery(Exception):
    """A parameter is unknown or has an invalid value. The message names the allowed ones."""

    holds_no_values = True


@dataclass(frozen=True)
class Query:
    """The parameters of a panel.

    :ivar first: the first day, as a number; ``last`` is the last one, and both are included.
    :ivar ci: one of ``CI_MODES``.
    :ivar filters: values by the names in ``FILTERS``.
    """

    first: int
    last: int
    ci: str = "exclude"
    filters: Mapping[str, str] = field(default_factory=dict)

    @property
    def days(self) -> int:
        """The length of the period."""
        return self.last - self.first + 1


def parse(parameters: Mapping[str, str], today: date, applicable: tuple[str, ...] = FILTERS) -> Query:
    """Return the query that parameters describe.

    :param parameters: values by name.
    :param today: in the time zone of the application.
    :param applicable: the filters of the panel.
    :raise InvalidQuery: if a parameter is unknown or invalid.
    """
    allowed = ("days", "from", "to", "ci", *applicable)
    for name in parameters:
        if name not in allowed:
            raise InvalidQuery(f"unknown parameter {name!r}: use {', '.join(allowed)}")
    ci = parameters.get("ci", "exclude")
    if ci not in CI_MODES:
        raise InvalidQuery(f"ci={ci!r}: use {', '.join(CI_MODES)}")
    first, last = _period(parameters, number_of(today))
    return Query(first, last, ci, {name: parameters[name] for name in applicable if name in parameters})


def _period(parameters: Mapping[str, str], today: int) -> tuple[int, int]:
    if "from" not in parameters and "to" not in parameters:
        return today - _days(parameters.get("days", str(DEFAULT_DAYS))) + 1, today
    if "from" not in parameters or "days" in parameters:
        raise InvalidQuery("use either days, or from with or without to")
    first = _day("from", parameters["from"])
    last = _day("to", parameters["to"]) if "to" in parameters else today
    if first > last:
        raise InvalidQuery("from must not be later than to")
    if last - first >= MAX_DAYS:
        raise InvalidQuery(f"from and to: at most {MAX_DAYS} days")
    return first, last


def _days(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MAX_DAYS:
        raise InvalidQuery(f"days={text!r}: use a number from 1 to {MAX_DAYS}")
    return int(text)


def _day(name: str, text: str) -> int:
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        return number_of(date.fromisoformat(text))
    except ValueError:
        raise InvalidQuery(f"{name}={text!r}: use a day such as 2026-01-31, from 1990 to 2999") from None
