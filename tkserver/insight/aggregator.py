"""The aggregator: brings the aggregates up to date, in one process at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from tkserver.insight import aggregation
from tkserver.insight.changes import MAX_EVENTS
from tkserver.insight.facts import DEFINITIONS
from tkserver.storage.blocking import Connection, rows, transaction, value
from tkserver.storage.erased_users import LOAD_ERASED_USERS, ErasedUsers

BATCH = MAX_EVENTS
"""Events in one transaction."""

REBUILT_BATCHES = 5
"""Transactions that rebuild aggregates between two looks for new events, which are not delayed by a long rebuild."""

POLL_INTERVAL = 0.05
"""Seconds between two looks at the transactions that are still writing."""

Sleep = Callable[[float], None]
Progress = Callable[[int], object]

_LOCK_KEY = 0x746B61676772  # "tkaggr" in ASCII
_BACKGROUND_LOCK_KEY = 0x746B6261636B  # "tkback" in ASCII

_OUTDATED = """
SELECT i.app, coalesce(a.timezone, 'UTC') FROM insight_apps AS i LEFT JOIN apps AS a USING (app_id, org_id)
WHERE %s OR i.timezone <> coalesce(a.timezone, 'UTC')
"""
_OF_APP = "SELECT app, timezone FROM insight_apps WHERE app_id = %s AND org_id = %s"
_INCOMPLETE = "SELECT app FROM insight_apps WHERE watermark IS NOT NULL ORDER BY app LIMIT 1"
_IS_INCOMPLETE = "SELECT true FROM insight_apps WHERE app_id = %s AND org_id = %s AND watermark IS NOT NULL"

# How many events are left to rebuild is estimated as if all applications had the same number of events.
_STATUS = """
SELECT p.definitions, e.last_id, greatest(0, e.last_id - p.watermark) + r.events,
    coalesce((
        SELECT extract(epoch FROM clock_timestamp() - received_at) FROM events
        WHERE id > p.watermark ORDER BY id LIMIT 1
    ), 0)::float, extract(epoch FROM clock_timestamp() - p.summed_until)::float, r.apps
FROM insight_progress AS p,
    LATERAL (SELECT coalesce(max(id), 0) AS last_id FROM events) AS e,
    LATERAL (
        SELECT count(*) FILTER (WHERE watermark IS NOT NULL OR i.timezone <> coalesce(a.timezone, 'UTC')) AS apps,
            coalesce(sum(greatest(0, p.watermark - watermark)) / count(*), 0)::bigint AS events
        FROM insight_apps AS i LEFT JOIN apps AS a USING (app_id, org_id)
    ) AS r
"""

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
    :return: the number of events; ``None`` if another process is aggregating, or if a newer version of this program has
        aggregated.
    """
    # The lock lasts as long as the connection. If this process dies, another one can continue.
    if not value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK_KEY):
        return None
    try:
        return _update(connection, sleep, progress)
    finally:
        rows(connection, "SELECT pg_advisory_unlock(%s)", _LOCK_KEY)


def _update(connection: Connection, sleep: Sleep, progress: Progress) -> int | None:
    if not _restart_outdated(connection):
        return None
    total = _add_new_events(connection, sleep, progress)
    while (app := value(connection, _INCOMPLETE)) is not None:
        rebuild = partial(aggregation.rebuild_batch, connection, app, BATCH, erased_users)
        total += _repeat(connection, rebuild, progress, REBUILT_BATCHES)
        total += _add_new_events(connection, sleep, progress)
    return total


def _add_new_events(connection: Connection, sleep: Sleep, progress: Progress) -> int:
    final_id, final_time = final_position(connection, sleep)
    add = partial(aggregation.add_batch, connection, final_id, final_time, BATCH, erased_users)
    return _repeat(connection, add, progress)


def _repeat(connection: Connection, add: Callable[[], int | None], progress: Progress, limit: int | None = None) -> int:
    """Add batches, each in a transaction, until none is left.

    :param limit: the maximum number of batches.
    """
    total = batches = 0
    while limit is None or batches < limit:
        with transaction(connection):
            added = add()
        if added is None:
            break
        batches += 1
        total += added
        progress(added)
    return total


def _restart_outdated(connection: Connection) -> bool:
    """Restart the aggregation of applications whose definitions or time zones have changed.

    :return: false if the aggregates have newer definitions than this program, which must not change them then.
    """
    with transaction(connection):
        stored = aggregation.lock_progress(connection).definitions
        if stored > DEFINITIONS:
            return False
        for app, timezone in rows(connection, _OUTDATED, stored != DEFINITIONS):
            aggregation.restart(connection, app, timezone)
        rows(connection, "UPDATE insight_progress SET definitions = %s WHERE definitions <> %s", *[DEFINITIONS] * 2)
    return True


def rebuild(connection: Connection, app_id: str, org_id: str) -> None:
    """Let the aggregates of an application be computed again, except those of frozen days."""
    with transaction(connection):
        for app, timezone in rows(connection, _OF_APP, app_id, org_id):
            aggregation.restart(connection, app, timezone)


def is_rebuilding(connection: Connection, app_id: str, org_id: str) -> bool:
    """True if the aggregates of an application are being computed again."""
    return bool(rows(connection, _IS_INCOMPLETE, app_id, org_id))


@dataclass(frozen=True)
class Status:
    """The progress of the aggregation.

    :ivar definitions: the version of the definitions by which the aggregates were computed.
    :ivar last_id: the last id of an event.
    :ivar lag_events: about how many events are not aggregated yet, or are aggregated again.
    :ivar lag_seconds: how long the oldest event that was never aggregated has been waiting.
    :ivar age: seconds since the time up to which events are aggregated; ``None`` if there is no such time yet.
    :ivar rebuilding: the number of applications whose aggregates must be computed again.
    """

    definitions: int
    last_id: int
    lag_events: int
    lag_seconds: float
    age: float | None
    rebuilding: int

    @property
    def is_outdated(self) -> bool:
        """True if the definitions have changed since the aggregates were computed."""
        return self.definitions < DEFINITIONS

    @property
    def is_newer(self) -> bool:
        """True if a newer version of this program has computed the aggregates. This one must not change them then."""
        return self.definitions > DEFINITIONS

    @property
    def is_behind(self) -> bool:
        """True if there is something to aggregate."""
        return self.lag_events > 0 or self.rebuilding > 0 or self.is_outdated


def status(connection: Connection) -> Status:
    """Return how far the aggregation has come."""
    (row,) = rows(connection, _STATUS)
    return Status(*row)


def lag(connection: Connection) -> int:
    """Return about how many events are not aggregated yet."""
    return status(connection).lag_events


def lock_background(connection: Connection) -> bool:
    """Make this process the one that aggregates in the background, unless there is another one.

    The lock lasts as long as the connection. It does not keep others from :func:`run_once`.
    """
    return bool(value(connection, "SELECT pg_try_advisory_lock(%s)", _BACKGROUND_LOCK_KEY))


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
