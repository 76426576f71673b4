"""Statistics of an application, from up-to-date aggregates."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tkserver.insight import aggregator
from tkserver.insight.activity import Activity, read_activity
from tkserver.insight.panels import APPLICABLE_FILTERS, PANELS, Json
from tkserver.insight.query import InvalidQuery
from tkserver.insight.stats import compute
from tkserver.operations.apps import update_setting
from tkserver.operations.exceptions import InvalidArgument
from tkserver.operations.models import App
from tkserver.operations.paced import Sleep
from tkserver.storage.blocking import Connection, value

__all__ = [
    "PANEL_NAMES",
    "Activity",
    "Json",
    "day_before",
    "finish_rebuild",
    "is_applicable",
    "lag",
    "read_activity",
    "read_panel",
    "refresh",
    "set_timezone",
    "start_rebuild",
]

PANEL_NAMES = tuple(PANELS)

MAX_AGO = timedelta(days=36_500)

_DAY_BEFORE = """
SELECT ((now() - %s) AT TIME ZONE coalesce(
    (SELECT timezone FROM apps WHERE app_id = %s AND org_id = %s), 'UTC'
))::date::text
"""

REBUILD_POLL_INTERVAL = 0.25
"""Seconds between two looks at the progress of another process."""


def is_applicable(panel: str, parameter: str) -> bool:
    """True if a panel has a parameter."""
    return parameter in ("days", "from", "to", "ci", *APPLICABLE_FILTERS[panel])


def lag(connection: Connection) -> int:
    """Return about how many events are not aggregated yet."""
    return aggregator.lag(connection)


def read_panel(connection: Connection, app: App, panel: str, parameters: Mapping[str, str], now: datetime) -> Json:
    """Return the JSON of a panel, from the aggregates as they are.

    :param panel: one of :data:`PANEL_NAMES`.
    :param parameters: of the panel: ``days``, ``from``, ``to``, ``ci`` and the filters, as texts.
    :raise InvalidArgument: if a parameter is not valid.
    """
    try:
        return compute(connection, *app.key, app.label, panel, parameters, now)
    except InvalidQuery as error:
        raise InvalidArgument(str(error)) from None


def day_before(connection: Connection, app: App, ago: timedelta) -> str:
    """Return the day of a moment in the past, such as ``2026-01-31``, in the time zone of an application.

    :raise InvalidArgument: if it is too long ago.
    """
    if ago > MAX_AGO:
        raise InvalidArgument(f"use a time of at most {MAX_AGO.days} days")
    return str(value(connection, _DAY_BEFORE, ago, *app.key))


def refresh(connection: Connection, sleep: Sleep, progress: aggregator.Progress = lambda _: None) -> bool:
    """Aggregate all events that are stored now.

    :return: false if another process is aggregating.
    """
    return aggregator.run_once(connection, sleep, progress) is not None


def start_rebuild(connection: Connection, app: App) -> None:
    """Let the aggregates of an application be computed again. Days whose events were deleted stay unchanged.

    :raise InvalidArgument: if a newer version of this program has computed them.
    """
    if aggregator.status(connection).is_newer:
        raise InvalidArgument("a newer version of tkserver has computed the statistics: use that version")
    aggregator.rebuild(connection, *app.key)


def finish_rebuild(
    connection: Connection, app: App, sleep: Sleep, progress: aggregator.Progress = lambda _: None
) -> None:
    """Aggregate the events of an application after :func:`start_rebuild`, or wait while another process does so."""
    before = lag(connection)
    while aggregator.run_once(connection, sleep, progress) is None and aggregator.is_rebuilding(connection, *app.key):
        sleep(REBUILD_POLL_INTERVAL)
        now = lag(connection)
        progress(max(0, before - now))
        before = now


def set_timezone(connection: Connection, app: App, timezone: str) -> None:
    """Set the time zone that divides time into days. The next aggregation computes the aggregates again.

    :raise InvalidArgument: if there is no such time zone.
    :raise UnnamedApplication: if the application has no name.
    """
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidArgument(f"there is no time zone {timezone!r}; use a name such as Europe/Berlin or UTC") from None
    update_setting(connection, app, "timezone", timezone)
