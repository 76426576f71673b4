"""Staging: applications whose events are only for tests, until they are promoted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from tkserver.insight.aggregation import lock_progress
from tkserver.operations.exceptions import NotStaging
from tkserver.operations.models import App
from tkserver.operations.paced import Clock, PacedTransactions, Sleep
from tkserver.operations.publishing import public_slug, publish
from tkserver.operations.retention import delete_events
from tkserver.storage.blocking import Connection, rows, transaction, value
from tkserver.storage.quarantine import LOCK

DELETED_TABLES = ("events", "quarantine", "insight_duplicates", "insight_apps")
"""Tables whose rows are deleted by a promotion. Rows of ``insight_apps`` take all other aggregates with them."""

# A server that stores events of an application with a quota waits for this lock.
_LOCK_APP = "SELECT staging FROM apps WHERE app_id = %s AND org_id = %s FOR UPDATE"
_LIFT = """
UPDATE apps SET staging = false, monthly_quota = NULL, retention_days = NULL WHERE app_id = %s AND org_id = %s
"""
# All events until then are of tests, even if another process promotes the application in the meantime.
_NOW = "SELECT now() FROM apps WHERE app_id = %s AND org_id = %s AND staging"


def promote(
    connection: Connection, app: App, clock: Clock, sleep: Sleep, progress: Callable[[int], object] = lambda _: None
) -> int:
    """Make a staging application an ordinary one: delete its events and statistics, and lift its limits.

    Its tokens, its names, the users who are erased, and who may see it stay the same. Events that are stored later are
    kept. If this function is interrupted, the application is still a staging application, and can be promoted again.

    :param progress: called after each transaction with the number of events that it deleted.
    :return: the number of deleted events.
    :raise NotStaging: if it is not a staging application.
    """
    check_staging(app)
    now: datetime | None = value(connection, _NOW, *app.key)
    if now is None:
        raise _no_longer(app)
    deleted = delete_events(connection, app.key, now, PacedTransactions(clock, sleep), progress)
    with transaction(connection):
        if value(connection, _LOCK_APP, *app.key) is not True:
            raise _no_longer(app)
        rows(connection, LOCK, *app.key)
        lock_progress(connection)
        counts = [len(rows(connection, _delete_statement(table), *app.key)) for table in DELETED_TABLES]
        rows(connection, _LIFT, *app.key)
    if public_slug(connection, app) is not None:  # its page still shows the events of the tests
        publish(connection, app, None, now, sleep)
    return deleted + counts[0]


def check_staging(app: App) -> None:
    """Check that an application can be promoted.

    :raise NotStaging: otherwise.
    """
    if not app.staging:
        raise NotStaging(f"{app.label} is not a staging application: it has nothing to promote, and keeps its events")


def _no_longer(app: App) -> NotStaging:
    return NotStaging(f"{app.label} was promoted or deleted a moment ago")


def _delete_statement(table: str) -> str:
    return f"DELETE FROM {table} WHERE app_id = %s AND org_id = %s RETURNING true"
