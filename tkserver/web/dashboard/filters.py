"""The state of a page: the period and the filters, which the URL contains. Pure logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date, timedelta
from urllib.parse import parse_qsl, urlencode

PERIODS: Mapping[str, str] = {
    "7": "7 days",
    "30": "30 days",
    "90": "90 days",
    "365": "365 days",
    "this-month": "this month",
    "last-month": "last month",
    "custom": "from, to",
}
"""The periods that a page offers, with their names."""

CI_MODES: Mapping[str, str] = {"exclude": "without CI", "include": "with CI", "only": "only CI"}

DEFAULT_PERIOD = "30"

_PARAMETERS = {"first": "from", "last": "to"}
"""The names of those parameters that are not the names of their fields."""


class InvalidFilters(ValueError):
    """A parameter of a page is unknown or not valid."""


@dataclass(frozen=True)
class Filters:
    """The period and the filters of a page.

    :ivar period: one of :data:`PERIODS`.
    :ivar first: the first day of the period ``custom``, as ``2026-01-31``; ``last`` is the last one.
    :ivar ci: one of :data:`CI_MODES`.
    :ivar name: of a command, feature or custom type.
    :ivar compare: ``no`` if the page does not compare with the previous period.
    """

    period: str = DEFAULT_PERIOD
    first: str = ""
    last: str = ""
    ci: str = "exclude"
    version: str = ""
    os: str = ""
    arch: str = ""
    name: str = ""
    compare: str = "yes"

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Filters:
        """Return the filters that the query string of a URL describes. Empty parameters count as absent.

        :raise InvalidFilters: if a parameter is unknown, or its value is not one of those that it can have.
        """
        known = {_parameter(field.name): field.name for field in fields(cls)}
        for name in parameters:
            if name not in known:
                raise InvalidFilters(f"There is no parameter {name!r}: use {', '.join(known)}.")
        filters = cls(**{known[name]: value.strip() for name, value in parameters.items() if value.strip()})
        if filters.first and "period" not in parameters:
            filters = replace(filters, period="custom")
        for name, choices in (("period", PERIODS), ("ci", CI_MODES), ("compare", {"yes": "", "no": ""})):
            if getattr(filters, name) not in choices:
                raise InvalidFilters(f"{name} cannot be {getattr(filters, name)!r}: use {', '.join(choices)}.")
        if filters.period == "custom" and not filters.first:
            raise InvalidFilters("Say from which day on, such as from=2026-01-31.")
        return filters

    def with_(self, **changes: str) -> Filters:
        """Return the same filters with some changes."""
        return replace(self, **changes)

    @property
    def query(self) -> str:
        """The query string, with its question mark; empty if all parameters have their defaults."""
        period = self.period == "custom"
        changed = {
            _parameter(field.name): getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default and (field.name not in ("first", "last") or period)
        }
        return f"?{urlencode(changed)}" if changed else ""

    def days(self, today: date) -> tuple[date, date]:
        """Return the first and the last day of the period.

        :raise InvalidFilters: if a day is not valid.
        """
        if self.period.isdigit():
            return today - timedelta(int(self.period) - 1), today
        if self.period == "this-month":
            return today.replace(day=1), today
        if self.period == "last-month":
            last = today.replace(day=1) - timedelta(1)
            return last.replace(day=1), last
        return _day("from", self.first), _day("to", self.last) if self.last else today

    def end(self, today: date, days: int) -> Filters:
        """Return the same filters for the last days of the period."""
        first, last = self.days(today)
        start = max(first, last - timedelta(days - 1))
        return self if start == first else self.with_(period="custom", first=str(start), last=str(last))

    def parameters(self, today: date, applicable: tuple[str, ...]) -> dict[str, str]:
        """Return the parameters of a panel.

        :param today: in the time zone of the application.
        :param applicable: the filters that the panel has.
        """
        first, last = self.days(today)
        filters = {name: getattr(self, name) for name in applicable if getattr(self, name)}
        period = {"days": self.period} if self.period.isdigit() else {"from": str(first), "to": str(last)}
        return {**period, "ci": self.ci, **filters}

    @classmethod
    def from_query(cls, query: str) -> Filters:
        """Return the filters of a :attr:`query`.

        :raise InvalidFilters: see :meth:`parse`.
        """
        return cls.parse(dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True)))

    @property
    def description(self) -> str:
        """The period and the filters for people, such as ``30 days, without CI, os: linux``."""
        period = f"{self.first} to {self.last or 'today'}" if self.period == "custom" else PERIODS[self.period]
        return ", ".join([period, CI_MODES[self.ci], *(f"{name}: {value}" for name, value in self.active.items())])

    @property
    def active(self) -> dict[str, str]:
        """The filters that are not empty, by name."""
        names = ("version", "os", "arch", "name")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def _parameter(field: str) -> str:
    return _PARAMETERS.get(field, field)


def _day(name: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidFilters(f"{name} is not a day such as 2026-01-31: {text!r}.") from None
