"""The filters of a page: its query string, and the parameters of its panels."""

from __future__ import annotations

from datetime import date
from urllib.parse import parse_qsl

import pytest

from tkserver.insight.query import parse
from tkserver.web.dashboard.filters import PERIODS, Filters, InvalidFilters

TODAY = date(2026, 3, 31)
FILTERS = ("version", "os", "arch", "name")


@pytest.mark.parametrize(
    ("period", "first", "last"),
    [
        ("7", "2026-03-25", "2026-03-31"),
        ("30", "2026-03-02", "2026-03-31"),
        ("90", "2026-01-01", "2026-03-31"),
        ("365", "2025-04-01", "2026-03-31"),
        ("this-month", "2026-03-01", "2026-03-31"),
        ("last-month", "2026-02-01", "2026-02-28"),
    ],
)
def test_days_of_periods(period: str, first: str, last: str) -> None:
    """A period has a first and a last day."""
    assert Filters.parse({"period": period}).days(TODAY) == (date.fromisoformat(first), date.fromisoformat(last))


def test_custom_period() -> None:
    """A first day selects a period of its own, up to today unless there is a last day."""
    assert Filters.parse({"from": "2026-01-05"}).days(TODAY) == (date(2026, 1, 5), TODAY)
    filters = Filters.parse({"period": "custom", "from": "2026-01-05", "to": "2026-01-09"})
    assert filters.parameters(TODAY, FILTERS) == {"from": "2026-01-05", "to": "2026-01-09", "ci": "exclude"}


@pytest.mark.parametrize("period", PERIODS)
def test_panels_accept_the_parameters(period: str) -> None:
    """The parameters of each period and of all filters are valid for panels, and mean the same days."""
    values = {"version": "1.0 β", "os": "linux", "arch": "x86_64", "name": "build & test", "ci": "include"}
    filters = Filters.parse({"period": period, "from": "2026-03-01", **values})
    query = parse(filters.parameters(TODAY, FILTERS), TODAY)
    first, last = filters.days(TODAY)
    assert query.days == (last - first).days + 1
    assert query.ci == "include"
    assert query.filters == {name: values[name] for name in FILTERS}


def test_query_string_contains_what_differs_from_the_defaults() -> None:
    """A query string is short, and describes the same filters."""
    assert Filters().query == ""
    filters = Filters.parse({"period": "90", "version": "1.0+a/b c", "compare": "no", "name": ""})
    assert filters.query == "?period=90&version=1.0%2Ba%2Fb+c&compare=no"
    assert Filters.parse(dict(parse_qsl(filters.query[1:]))) == filters
    custom = Filters.parse({"from": "2026-01-05"})
    assert Filters.parse(dict(parse_qsl(custom.query[1:]))) == custom


def test_filters_that_a_panel_does_not_have_are_left_out() -> None:
    """A filter applies only to panels that have it."""
    filters = Filters.parse({"version": "1.0", "name": "build"})
    assert filters.parameters(TODAY, ("os",)) == {"days": "30", "ci": "exclude"}
    assert filters.active == {"version": "1.0", "name": "build"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"versoin": "1"}, "no parameter 'versoin': use period, from, to, ci, version"),
        ({"period": "12"}, "period cannot be '12': use 7, 30"),
        ({"ci": "maybe"}, "ci cannot be 'maybe'"),
        ({"compare": "1"}, "compare cannot be"),
        ({"period": "custom"}, "from=2026-01-31"),
    ],
)
def test_invalid_parameters(parameters: dict[str, str], message: str) -> None:
    """An error says which parameter is wrong, and what is allowed."""
    with pytest.raises(InvalidFilters, match=message):
        Filters.parse(parameters)


@pytest.mark.parametrize("parameters", [{"from": "yesterday"}, {"from": "2026-01-01", "to": "2026-02-30"}])
def test_invalid_days(parameters: dict[str, str]) -> None:
    """A day that does not exist is an error."""
    with pytest.raises(InvalidFilters, match="is not a day such as 2026-01-31"):
        Filters.parse(parameters).days(TODAY)
