"""The aggregator: adds new events to the aggregates, in the background, on one server at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from uuid import UUID

from tkserver.insight import aggregation
from tkserver.insight.facts import DEFINITIONS
from tkserver.storage.blocking import Connection, rows, transaction, value
from tkserver.storage.erasures import LOAD_ERASED_USERS, ErasedUsers

BATCH = 20_000
"""Events in one transaction."""

POLL_INTERVAL = 0.05
"""Seconds between two looks at the transactions that are still writing."""

Sleep = Callable[[float], None]
Progress = Callable[[int], object]

_LOCK_KEY = 0x746B61676772  # "tkaggr" in ASCII

_OUTDATED = """
SELECT i.app, coalesce(a.timezone, 'UTC') FROM insight_apps AS i LEFT JOIN apps AS a USING (app_id, org_id)
WHERE %s OR i.timezone <> coalesce(a.timezone, 'UTC')
"""
_OF_APP = "SELECT app, timezone FROM insight_apps WHERE app_id = %s AND org_id = %s"
_INCOMPLETE = "SELECT app FROM insight_apps WHERE watermark IS NOT NULL"
_LAG = "SELECT greatest(0, (SELECT coalesce(max(id), 0) FROM events) - watermark) FROM insight_progress"

# The id is read first: whoever got a lower id has locked the table before, and either has ended or is in _WRITERS.
_LAST_ID = "SELECT coalesce(max(id), 0), clock_timestamp() FROM events"
_WRITERS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND relation = 'events'::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
"""
_APP_IDS = "SELECT org_id::text, app_id::text FROM insight_apps WHERE app = %s"


def run_once(connection: Connection, sleep: Sleep, progress: Progress = lambda _: None) -> int | None:
    """Bring the aggregates up to date, unless another process is doing so.

    :param sleep: waits for a number of seconds.
    :param progress: called after each transaction with the number of events.
    :return: the number of events; ``None`` if another process is aggregating.
    """
    # The lock lasts as long as the connection. If this process dies, another one can continue.
    if not value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK_KEY):
        return None
    try:
        return _update(connection, sleep, progress)
    finally:
        rows(connection, "SELECT pg_advisory_unlock(%s)", _LOCK_KEY)


def _update(connection: Connection, sleep: Sleep, progress: Progress) -> int:
    _restart_outdated(connection)
    final_id, final_time = final_position(connection, sleep)
    add = partial(aggregation.add_batch, connection, final_id, final_time, BATCH, erased_users)
    total = _repeat(connection, add, progress)
    for (app,) in rows(connection, _INCOMPLETE):
        total += _repeat(connection, partial(aggregation.rebuild_batch, connection, app, BATCH, erased_users), progress)
    return total


def _repeat(connection: Connection, add: Callable[[], int | None], progress: Progress) -> int:
    """Add batches, each in a transaction, until none is left."""
    total = 0
    while True:
        with transaction(connection):
            added = add()
        if added is None:
            return total
        total += added
        progress(added)


def _restart_outdated(connection: Connection) -> None:
    """Restart the aggregation of applications whose definitions or time zones have changed."""
    with transaction(connection):
        outdated = aggregation.lock_progress(connection).definitions != DEFINITIONS
        for app, timezone in rows(connection, _OUTDATED, outdated):
            aggregation.restart(connection, app, timezone)
        rows(connection, "UPDATE insight_progress SET definitions = %s WHERE definitions <> %s", *[DEFINITIONS] * 2)


def rebuild(connection: Connection, app_id: str, org_id: str) -> None:
    """Let the aggregates of an application be computed again, except those of frozen days."""
    with transaction(connection):
        for app, timezone in rows(connection, _OF_APP, app_id, org_id):
            aggregation.restart(connection, app, timezone)


def lag(connection: Connection) -> int:
    """Return about how many events are not aggregated yet."""
    return int(value(connection, _LAG))


def final_position(connection: Connection, sleep: Sleep) -> tuple[int, datetime]:
    """Return an id and a time; all events up to them are visible, now and in the future.

    Ids are assigned before transactions commit. So the last id is read, and then all transactions are awaited that
    are writing at that time.
    """
    ((last_id, now),) = rows(connection, _LAST_ID)
    pending = {transaction_id for (transaction_id,) in rows(connection, _WRITERS)}
    while pending:
        sleep(POLL_INTERVAL)
        pending &= {transaction_id for (transaction_id,) in rows(connection, _WRITERS)}
    return last_id, now


def erased_users(connection: Connection) -> aggregation.IsErased:
    """Return a function that finds the erased users of an application."""
    erased = ErasedUsers.from_rows(rows(connection, LOAD_ERASED_USERS))

    def of_app(app: int, users: set[str]) -> set[str]:
        if not erased.everywhere and not erased.by_app:
            return set()
        ((org_id, app_id),) = rows(connection, _APP_IDS, app)
        return erased.intersection((UUID(org_id).int, UUID(app_id).int), users)

    return of_app
