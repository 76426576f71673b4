"""The deletion of an application with all its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial

from tkserver.operations.models import App
from tkserver.operations.paced import Clock, PacedTransactions, Sleep
from tkserver.operations.retention import delete_events
from tkserver.storage.blocking import Connection, rows, transaction, value
from tkserver.storage.changes import PROPAGATION_TIME

_END_OF_TIME = datetime.max.replace(tzinfo=timezone.utc)

_LAST_TABLES = ("api_tokens", "apps")
"""Commands find an application in these tables. Their rows are deleted last, so that the deletion can be repeated."""

_OWN = "app_id = %s AND org_id = %s"
"""Selects the rows of an application."""

_COUNT_EVENTS = f"SELECT count(*) FROM events WHERE {_OWN}"

_REVOKE = f"UPDATE api_tokens SET is_active = false WHERE {_OWN} AND is_active"

# Tables are found in the catalog, so that a table that is added later is not forgotten.
_OWN_TABLES = """
SELECT c.oid::regclass::text FROM pg_class AS c
WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'apps'::regclass) AND c.relkind = 'r'
  AND 2 = (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname IN ('app_id', 'org_id'))
ORDER BY 1
"""

_REFERRING_TABLES = """
SELECT k.conrelid::regclass::text, quote_ident(a.attname), k.confrelid::regclass::text, quote_ident(b.attname)
FROM pg_constraint AS k
JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
JOIN pg_attribute AS b ON b.attrelid = k.confrelid AND b.attnum = k.confkey[1]
WHERE k.contype = 'f' AND cardinality(k.conkey) = 1
  AND k.confrelid::regclass::text = ANY (%s) AND k.conrelid::regclass::text <> ALL (%s)
ORDER BY 1, 2
"""


def count_events(connection: Connection, app: App) -> int:
    """Return the number of stored events of an application."""
    return int(value(connection, _COUNT_EVENTS, *app.key))


def delete_app(
    connection: Connection, app: App, clock: Clock, sleep: Sleep, progress: Callable[[int], object] = lambda _: None
) -> dict[str, int]:
    """Delete an application, its tokens, its events, and everything else that is stored about it.

    Its tokens are revoked first, and its data is deleted when all servers know about that, in short transactions. If
    this function is interrupted, the application still exists, without active tokens, and can be deleted again.

    :param progress: called after each transaction with the number of events that it deleted.
    :return: the number of deleted rows, for each table that had any.
    """
    rows(connection, _REVOKE, *app.key)
    sleep(PROPAGATION_TIME)
    paced = PacedTransactions(clock, sleep)
    deleted: Counter[str] = Counter()
    # Requests that servers had accepted before can be stored, and aggregated, while data is deleted.
    while latest := _delete_data(connection, app, paced, progress):
        deleted += latest
    with transaction(connection):
        for table in _LAST_TABLES:
            deleted[table] = len(rows(connection, _delete_statement(table, _OWN), *app.key, None))
    return dict(+deleted)


def _delete_data(
    connection: Connection, app: App, paced: PacedTransactions, progress: Callable[[int], object]
) -> Counter[str]:
    """Delete everything except the rows that identify the application, and return the numbers of deleted rows."""
    deleted = Counter(events=delete_events(connection, app.key, _END_OF_TIME, paced, progress))
    own_tables = [table for (table,) in rows(connection, _OWN_TABLES)]
    for table, column, referenced, key in rows(connection, _REFERRING_TABLES, own_tables, own_tables):
        condition = f"{column} IN (SELECT r.{key} FROM {referenced} AS r WHERE {_OWN})"
        deleted[table] += _delete_rows(connection, _delete_statement(table, condition), app, paced)
    for table in own_tables:
        if table not in ("events", *_LAST_TABLES):
            deleted[table] += _delete_rows(connection, _delete_statement(table, _OWN), app, paced)
    return +deleted


def _delete_statement(table: str, condition: str) -> str:
    """Return a statement that deletes rows, and returns a row for each.

    :param condition: its parameters are ``app_id`` and ``org_id``. The statement has another one: the limit.
    """
    selected = f"SELECT ctid FROM {table} WHERE {condition} LIMIT %s"
    return f"DELETE FROM {table} WHERE ctid = ANY (ARRAY({selected})) RETURNING true"


def _delete_rows(connection: Connection, statement: str, app: App, paced: PacedTransactions) -> int:
    total = 0
    while deleted := paced.run(partial(_delete_batch, connection, statement, app)):
        total += deleted
    return total


def _delete_batch(connection: Connection, statement: str, app: App, max_rows: int) -> int:
    return len(rows(connection, statement, *app.key, max_rows))
