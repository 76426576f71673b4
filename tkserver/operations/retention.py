"""Retention: the deletion of events that are older than the limit of their application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from tkserver.insight import aggregation, aggregator
from tkserver.operations.apps import APPS_WITH_EVENTS, update_setting
from tkserver.operations.models import App
from tkserver.operations.paced import Clock, PacedTransactions, Sleep
from tkserver.storage.arrivals import HOUR
from tkserver.storage.blocking import Connection, rows, transaction, value

MAX_ID = 2**63 - 1

MAX_DAYS = 36_500
"""A hundred years: dates of PostgreSQL do not go back indefinitely."""


@dataclass(frozen=True)
class RetentionLimit:
    """The age limit for the events of an application.

    :ivar name: ``None`` if the application has no name.
    :ivar before: events that the server received before this time are too old. The clock is that of the database.
    """

    name: str | None
    org_id: UUID
    app_id: UUID
    days: int
    before: datetime

    @property
    def key(self) -> tuple[str, str]:
        """``app_id`` and ``org_id`` as text, the parameters of SQL statements."""
        return str(self.app_id), str(self.org_id)


_LIMITS = f"""
WITH {APPS_WITH_EVENTS}, retention AS (
    SELECT a.name, org_id, app_id, least(coalesce(a.retention_days, %s), {MAX_DAYS}) AS days
    FROM app_with_events FULL JOIN apps AS a USING (app_id, org_id)
        FULL JOIN (SELECT DISTINCT app_id, org_id FROM api_tokens) AS t USING (app_id, org_id)
    WHERE coalesce(a.retention_days, %s) IS NOT NULL
)
SELECT name, org_id::text, app_id::text, days, now() - make_interval(days => days)
FROM retention ORDER BY name NULLS LAST, app_id, org_id
"""

_OLD = f"app_id = %s AND org_id = %s AND {HOUR} >= %s::timestamptz AND {HOUR} < %s AND received_at < %s"
"""Selects the events of an application that were received from an hour until a time, which is a parameter twice."""

_COUNT = f"SELECT count(*) FROM events WHERE {_OLD}"

# Begins where the previous statement ended: deleted rows stay in the index until they are vacuumed.
_DELETE = f"""
WITH old AS MATERIALIZED (
    SELECT ctid AS row_id, {HOUR} AS hour FROM events WHERE {_OLD} AND id <= %s ORDER BY {HOUR} LIMIT %s
), deleted AS (
    DELETE FROM events WHERE ctid = ANY (ARRAY(SELECT row_id FROM old)) RETURNING true
)
SELECT (SELECT count(*) FROM old), (SELECT max(hour) FROM old), (SELECT count(*) FROM deleted)
"""


def set_retention(connection: Connection, app: App, days: int | None) -> None:
    """Set for how many days the events of an application are stored after they were received.

    :param days: at most ``MAX_DAYS``; ``None`` applies the setting of the servers.
    :raise UnnamedApplication: if the application has no name.
    """
    update_setting(connection, app, "retention_days", days)


def preview(connection: Connection, default_days: int | None) -> dict[RetentionLimit, int]:
    """Return the number of events that :func:`prune` would delete, for each application that has a limit.

    :param default_days: the limit of applications without one of their own; ``None`` if they store events forever.
    """
    return {limit: _count(connection, limit) for limit in _limits(connection, default_days)}


def prune(
    connection: Connection,
    default_days: int | None,
    clock: Clock,
    sleep: Sleep,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[RetentionLimit, int]:
    """Delete the events that are too old, oldest first, in short transactions.

    The statistics keep the totals of the deleted events, so events that are not aggregated yet are not deleted.

    :param default_days: see :func:`preview`.
    :param progress: called after each transaction with the number of events that it deleted.
    :return: the number of deleted events, for each application that has a limit.
    """
    limits = _limits(connection, default_days)
    if limits:
        aggregator.run_once(connection, sleep)
    return {limit: _delete_old_events(connection, limit, PacedTransactions(clock, sleep), progress) for limit in limits}


def _delete_old_events(
    connection: Connection, limit: RetentionLimit, paced: PacedTransactions, progress: Callable[[int], object]
) -> int:
    with transaction(connection):
        last_id = aggregation.freeze(connection, *limit.key, limit.before)
    return delete_events(connection, limit.key, limit.before, paced, progress, last_id)


def delete_events(
    connection: Connection,
    app_key: tuple[str, str],
    before: datetime,
    paced: PacedTransactions,
    progress: Callable[[int], object] = lambda _: None,
    last_id: int = MAX_ID,
) -> int:
    """Delete the events of an application that were received before a time, oldest first, in short transactions.

    :param app_key: ``app_id`` and ``org_id``.
    :param progress: called after each transaction with the number of events that it deleted.
    :param last_id: events with higher ids are not deleted.
    :return: the number of deleted events.
    """
    total, since = 0, None
    while True:
        batch = paced.run(partial(_delete_batch, connection, app_key, before, last_id, since))
        total += batch.deleted
        progress(batch.deleted)
        if batch.is_last:
            return total
        since = batch.newest


def _limits(connection: Connection, default_days: int | None) -> list[RetentionLimit]:
    return [
        RetentionLimit(name, UUID(org_id), UUID(app_id), days, before)
        for name, org_id, app_id, days, before in rows(connection, _LIMITS, default_days, default_days)
    ]


def _count(connection: Connection, limit: RetentionLimit) -> int:
    return int(value(connection, _COUNT, *limit.key, "-infinity", limit.before, limit.before))


@dataclass(frozen=True)
class _Batch:
    """The result of one transaction.

    :ivar deleted: the number of events that it deleted. Other transactions may have deleted some of those it found.
    :ivar newest: the hour in which the newest of them was received.
    :ivar is_last: true if no old events are left.
    """

    deleted: int
    newest: datetime | None
    is_last: bool


def _delete_batch(
    connection: Connection,
    app_key: tuple[str, str],
    before: datetime,
    last_id: int,
    since: datetime | None,
    max_rows: int,
) -> _Batch:
    start: Any = "-infinity" if since is None else since
    ((found, newest, deleted),) = rows(connection, _DELETE, *app_key, start, before, before, last_id, max_rows)
    return _Batch(deleted, newest, is_last=found < max_rows)
