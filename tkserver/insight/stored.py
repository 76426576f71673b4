"""What the database stores of an application, besides the aggregates: duplicates, quarantine, and space."""

from __future__ import annotations

from typing import Any, NamedTuple

from tkserver.insight.cells import DAY, ONE_ITEM, WITH_CI, WITHOUT_CI
from tkserver.insight.days import iso
from tkserver.insight.facts import Topic
from tkserver.storage.blocking import Connection, rows, value

_DUPLICATES = """
SELECT coalesce(sum(events), 0)::bigint FROM insight_duplicates
WHERE app_id = %s AND org_id = %s AND day >= %s AND day <= %s
"""

_QUARANTINED = """
SELECT code, count(*) FROM quarantine
WHERE app_id = %s AND org_id = %s
    AND received_at >= %s::date::timestamp AT TIME ZONE %s AND received_at < (%s::date + 1)::timestamp AT TIME ZONE %s
GROUP BY code ORDER BY code
"""

_SPACE = """
SELECT coalesce(sum(c.events) FILTER (WHERE (i.app_id, i.org_id) = (%s::uuid, %s::uuid)), 0)::bigint,
       coalesce(sum(c.events), 0)::bigint, pg_total_relation_size('events')
FROM insight_apps AS i JOIN insight_cells AS c USING (app)
WHERE c.topic = %s AND c.period = %s AND c.segment = ANY (%s) AND c.item = %s AND c.start >= i.frozen_before
"""


class AppKey(NamedTuple):
    """The ids of an application, and the time zone of its days."""

    app_id: str
    org_id: str
    timezone: str


def count_duplicates(connection: Connection, app: AppKey, first: int, last: int) -> int:
    """Return the number of duplicates that were received in a period."""
    return int(value(connection, _DUPLICATES, app.app_id, app.org_id, iso(first), iso(last)))


def count_quarantined(connection: Connection, app: AppKey, first: int, last: int) -> dict[str, int]:
    """Return the number of events in quarantine that were received in a period, by code."""
    zone = app.timezone
    return dict(rows(connection, _QUARANTINED, app.app_id, app.org_id, iso(first), zone, iso(last), zone))


def measure_space(connection: Connection, app: AppKey) -> tuple[int, int]:
    """Return the number of stored events of days that are not frozen, and their part of the space of all events."""
    parameters: tuple[Any, ...] = (Topic.ALL, DAY, [WITHOUT_CI, WITH_CI], ONE_ITEM)
    ((own, total, size),) = rows(connection, _SPACE, app.app_id, app.org_id, *parameters)
    return own, round(size * own / total) if total else 0
