"""What the pages of an application show: the panels that each page needs, and its charts. Pure logic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tkserver.web.dashboard.charts import COLOURS, Chart, Series, time_chart
from tkserver.web.dashboard.formats import Formats

Json = dict[str, Any]
Panels = Mapping[str, Json]

SHOWN_VERSIONS = COLOURS - 1
"""Versions with a colour of their own. The others are drawn together."""


RECENT_DAYS = 30
"""Days at the end of the period in which the overview looks for the last release."""


@dataclass(frozen=True)
class Page:
    """A page of an application.

    :ivar title: ``None`` if the page has no link in the navigation.
    :ivar panels: that it shows.
    :ivar recent_panels: those of which it shows only the end of the period.
    """

    title: str | None
    panels: tuple[str, ...]
    recent_panels: tuple[str, ...] = ()


PAGES: Mapping[str, Page] = {
    "overview": Page("Overview", ("overview", "commands", "versions", "releases"), ("releases",)),
    "commands": Page("Commands", ("commands",)),
    "versions": Page("Versions", ("versions", "releases", "overview")),
    "errors": Page("Errors", ("errors",)),
    "environment": Page("Environment", ("environment",)),
    "retention": Page("Retention", ("retention",)),
    "data": Page("Data", ("quality",)),
    "live": Page("Live", ()),
    "command": Page(None, ("overview", "commands", "errors", "releases")),
}
"""The pages by the last segment of their paths."""


def charts_of(page: str, panels: Panels, formats: Formats) -> dict[str, Chart]:
    """Return the charts of a page by name."""
    if page in ("overview", "command"):
        return {"users": users_chart(panels["overview"], formats), "events": events_chart(panels["overview"], formats)}
    if page == "versions":
        return {"versions": versions_chart(panels["versions"], panels["overview"], formats)}
    return {}


def users_chart(overview: Json, formats: Formats) -> Chart:
    """Return the users of each day, and those of the last 7 and 28 days."""
    series = [
        Series("28 days", _column(overview, "users_28d"), 2),
        Series("7 days", _column(overview, "users_7d"), 1),
        Series("day", _column(overview, "users"), 0, "area"),
    ]
    return _chart("Users", overview, series, formats)


def events_chart(overview: Json, formats: Formats) -> Chart:
    """Return the events and failures of each day."""
    series = [Series("events", _column(overview, "events"), 0, "bars")]
    series.append(Series("failures", _column(overview, "failures"), 3, "bars"))
    return _chart("Events", overview, series, formats)


def versions_chart(versions: Json, overview: Json, formats: Formats) -> Chart:
    """Return the users of each day by version, those of the versions with the most users separately."""
    most_used = sorted(versions["items"], key=lambda item: (-item["users"], item["version"]))[:SHOWN_VERSIONS]
    shown = [item["version"] for item in versions["items"] if item in most_used]  # the newest first
    days = [day["users"] for day in versions["days"]]
    series = [
        Series(version, [users.get(version, 0) for users in days], number + 1) for number, version in enumerate(shown)
    ]
    others = [sum(users.values()) - sum(users.get(version, 0) for version in shown) for users in days]
    if any(others):
        series.append(Series("others", others, 0))
    return time_chart(
        "Users by version",
        [day["day"] for day in versions["days"]],
        series,
        formats.number,
        releases=_releases(overview),
        filling_from=versions["filling_from"],
        stacked=True,
    )


def _chart(title: str, overview: Json, series: list[Series], formats: Formats) -> Chart:
    return time_chart(
        title,
        [day["day"] for day in overview["days"]],
        series,
        formats.number,
        releases=_releases(overview),
        filling_from=overview["filling_from"],
    )


def _column(overview: Json, name: str) -> list[float | None]:
    return [day[name] for day in overview["days"]]


def _releases(overview: Json) -> Iterable[tuple[str, str]]:
    return [(release["day"], release["version"]) for release in overview["releases"]]


def tables_of(panel: Json) -> dict[str, list[Json]]:
    """Return the lists of a panel by name: the tables that can be saved as CSV."""
    return {
        name: rows
        for name, rows in panel.items()
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    }
