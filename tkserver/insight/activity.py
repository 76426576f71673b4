"""The recent activity of all applications, from the aggregates as they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from uuid import UUID
from zoneinfo import ZoneInfo

from tkserver.insight.cells import DAY, ONE_ITEM, WITH_CI, WITHOUT_CI, LastTimes
from tkserver.insight.days import iso, number_of
from tkserver.insight.dictionary import all_segments
from tkserver.insight.facts import Topic
from tkserver.insight.query import DEFAULT_DAYS, Query
from tkserver.insight.reader import Reader
from tkserver.insight.selection import Sum
from tkserver.insight.stored import AppKey
from tkserver.storage.blocking import Connection, rows, transaction, value

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_IS_AGGREGATED = "SELECT summed_until IS NOT NULL FROM insight_progress"
_APPS = """
SELECT app_id::text, org_id::text, app, timezone, CASE WHEN isfinite(frozen_before) THEN frozen_before END
FROM insight_apps WHERE watermark IS NULL
"""
_REBUILT = "SELECT app_id::text, org_id::text FROM insight_apps WHERE watermark IS NOT NULL"

_LAST_DAY = """
SELECT max(start) - date '1970-01-01' FROM unnest(%s::int[]) AS s (segment) CROSS JOIN LATERAL (
    SELECT start FROM insight_cells AS c
    WHERE c.app = %s AND c.topic = %s AND c.period = %s AND c.segment = s.segment AND c.item = %s
    ORDER BY start DESC LIMIT 1
) AS last
"""
_LAST_TIMES = """
SELECT last_times FROM insight_cells
WHERE app = %s AND topic = %s AND period = %s AND segment = ANY (%s) AND start = %s AND item = %s
    AND last_times IS NOT NULL
"""

Ids = tuple[UUID, UUID]
"""``app_id`` and ``org_id``."""


@dataclass(frozen=True)
class Activity:
    """The recent activity of an application. ``None`` stands for what is not known.

    :ivar events: events in the last 30 days, without those of CI.
    :ivar users: users with at least one of these events.
    :ivar last_event_at: the time of the last event, also of CI, by the definition of the statistics.
    """

    events: int | None = None
    users: int | None = None
    last_event_at: datetime | None = None


NO_EVENTS = Activity(0, 0, None)


class RecentActivity:
    """The activity of applications.

    :param known: of those that have aggregates.
    :param default: of all others.
    """

    def __init__(self, known: dict[Ids, Activity], default: Activity) -> None:
        self._known = known
        self._default = default

    def of(self, app_id: UUID, org_id: UUID) -> Activity:
        """Return the activity of an application."""
        return self._known.get((app_id, org_id), self._default)


def read_activity(connection: Connection, now: datetime) -> RecentActivity:
    """Return the activity of all applications in the last 30 days, including today."""
    with transaction(connection):
        rows(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        known = {_ids(app): Activity() for app in rows(connection, _REBUILT)}
        for app_id, org_id, app, zone, frozen_before in rows(connection, _APPS):
            today = number_of(now.astimezone(ZoneInfo(zone)).date())
            frozen = number_of(frozen_before or date.min)
            key = AppKey(app_id, org_id, zone)
            known[_ids((app_id, org_id))] = _of_app(connection, key, app, today, frozen)
        is_aggregated = value(connection, _IS_AGGREGATED)
    return RecentActivity(known, NO_EVENTS if is_aggregated else Activity())


def _ids(ids: tuple[str, ...]) -> Ids:
    app_id, org_id = map(UUID, ids)
    return app_id, org_id


def _of_app(connection: Connection, key: AppKey, app: int, today: int, frozen_before: int) -> Activity:
    query = Query(today - DEFAULT_DAYS + 1, today)
    reader = Reader(connection, key, app, query, today, frozen_before)
    total = reader.sums(Topic.ALL, reader.totals(), [ONE_ITEM]).get(ONE_ITEM, Sum())
    return Activity(total.events, total.user_count, _last_event_at(connection, app))


def _last_event_at(connection: Connection, app: int) -> datetime | None:
    """Return the time of the last event; ``None`` if there is none, or if it was deleted."""
    scope = (app, Topic.ALL, DAY)
    day = value(connection, _LAST_DAY, [WITHOUT_CI, WITH_CI], *scope, ONE_ITEM)
    if day is None:
        return None
    segments = list(all_segments(connection, app))
    found = rows(connection, _LAST_TIMES, *scope, segments, iso(day), ONE_ITEM)
    times = [LastTimes.decode(bytes(data)).times for (data,) in found]
    last = max((int(own.max()) for own in times if len(own)), default=None)
    return None if last is None else _EPOCH + timedelta(microseconds=last)
