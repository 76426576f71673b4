"""Events that are older than their application keeps them: which these are, and their end. Blocks.

Each function takes a connection on which each statement is a transaction, and raises ``psycopg2.Error`` when the
database does not do what it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg2.errors import DeadlockDetected

from tkserver.storage.adaptive_batch import AdaptiveBatch
from tkserver.storage.blocking import Connection, rows, value

MOST_DAYS = 36_500
"""A hundred years. PostgreSQL's calendar has a beginning, too."""

Clock = Callable[[], float]
Sleep = Callable[[float], None]
"""Both in seconds, on any scale."""


@dataclass(frozen=True)
class Limit:
    """For how long the events of an application are kept.

    :ivar name: ``None`` where it has none.
    :ivar before: what was received earlier, by the clock of the database, is too old.
    """

    name: str | None
    org_id: UUID
    app_id: UUID
    days: int
    before: datetime


APPLICATIONS = """
RECURSIVE application AS (  -- from one to the next by their index, and not through all events
    (SELECT app_id, org_id FROM events ORDER BY app_id, org_id LIMIT 1)
    UNION ALL
    SELECT following.app_id, following.org_id FROM application AS a CROSS JOIN LATERAL (
        SELECT e.app_id, e.org_id FROM events AS e WHERE (e.app_id, e.org_id) > (a.app_id, a.org_id)
        ORDER BY e.app_id, e.org_id LIMIT 1
    ) AS following
)
"""
"""What follows WITH, for the table ``application (app_id, org_id)`` of those that have events."""

_LIMITS = f"""
WITH {APPLICATIONS}, kept AS (
    SELECT a.name, org_id, app_id, least(coalesce(a.retention_days, %s), {MOST_DAYS}) AS days
    FROM application LEFT JOIN apps AS a USING (app_id, org_id)
    WHERE coalesce(a.retention_days, %s) IS NOT NULL
)
SELECT name, org_id::text, app_id::text, days, now() - make_interval(days => days)
FROM kept ORDER BY name NULLS LAST, app_id, org_id
"""

_COUNT = "SELECT count(*) FROM events WHERE app_id = %s AND org_id = %s AND received_at < %s"

# From where the last one ended: what was deleted stays in the index until it is vacuumed.
_DELETE = """
WITH old AS MATERIALIZED (
    SELECT ctid AS place, received_at FROM events
    WHERE app_id = %s AND org_id = %s AND received_at >= %s::timestamptz AND received_at < %s
    ORDER BY received_at LIMIT %s
), gone AS (
    DELETE FROM events WHERE ctid = ANY (ARRAY(SELECT place FROM old)) RETURNING true
)
SELECT (SELECT count(*) FROM old), (SELECT max(received_at) FROM old), (SELECT count(*) FROM gone)
"""


def limits(connection: Connection, default_days: int | None) -> list[Limit]:
    """Of every application that has events and does not keep them for ever.

    :param default_days: for those that have no number of their own; ``None`` for ever.
    """
    return [
        Limit(name, UUID(org_id), UUID(app_id), days, before)
        for name, org_id, app_id, days, before in rows(connection, _LIMITS, default_days, default_days)
    ]


def count(connection: Connection, limit: Limit) -> int:
    """How many events are too old."""
    return int(value(connection, _COUNT, str(limit.app_id), str(limit.org_id), limit.before))


def prune(connection: Connection, limit: Limit, clock: Clock, sleep: Sleep, gone: Callable[[int], None]) -> int:
    """Delete the events that are too old, the oldest first, in short transactions with pauses.

    :param gone: called after each transaction with the number of events that it has deleted.
    :return: how many in all.
    """
    since: Any = "-infinity"
    pace, deleted = AdaptiveBatch(), 0
    more = True
    while more:
        began, most = clock(), pace.rows
        try:
            ((found, last, number),) = rows(
                connection, _DELETE, str(limit.app_id), str(limit.org_id), since, limit.before, most
            )
        except DeadlockDetected:  # with an erasure of the same events: this one can wait
            sleep(pace.pause_after(clock() - began))
            continue
        deleted += number
        gone(number)
        more = found == most
        if more:
            since = last
            sleep(pace.pause_after(clock() - began))
    return deleted
