"""Export of stored events, read in chunks through a server-side cursor: any number of events, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tkserver.operations.apps import APPS_WITH_EVENTS
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection, chunks, rows, transaction, value

CHUNK_ROWS = 500
"""Rows that are fetched at a time: 50 MB of events of the maximum size."""


class StoredEvent(NamedTuple):
    """A row of the table ``events``, without the sequence number.

    :ivar event_data: JSON, as PostgreSQL formats it.
    """

    event_id: str
    org_id: str
    app_id: str
    schema_version: str
    timestamp: datetime
    service_name: str
    service_version: str
    service_language: str
    service_language_version: str | None
    user_id: str
    session_id: str | None
    os: str
    os_version: str | None
    arch: str | None
    ci: bool | None
    shell: str | None
    event_type: str
    event_category: str | None
    event_data: str
    sdk_version: str
    transmission_timestamp: datetime
    batch_size: int
    retry_count: int
    received_at: datetime


@dataclass(frozen=True)
class Selection:
    """The conditions that exported events meet. ``None`` means no condition.

    :ivar since: the earliest ``timestamp``, inclusive.
    :ivar until: the latest ``timestamp``, exclusive.
    """

    app: App | None = None
    user_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Query(NamedTuple):
    """An SQL query and its parameters."""

    sql: str
    parameters: Sequence[object]


_TEXT_COLUMNS = {"event_id", "org_id", "app_id", "event_data"}
_COLUMNS = ", ".join(f"{name}::text" if name in _TEXT_COLUMNS else f'"{name}"' for name in StoredEvent._fields)

_APP_IDS = f"WITH {APPS_WITH_EVENTS} SELECT DISTINCT app_id::text FROM app_with_events"


class Export:
    """The selected events, as they were when the first method was called."""

    def __init__(self, connection: Connection, query: Query) -> None:
        self._connection = connection
        self._query = query

    def estimate(self) -> int:
        """Return the approximate number of events. To count them would take as long as to read them."""
        plan = value(self._connection, f"EXPLAIN (FORMAT JSON) {self._query.sql}", *self._query.parameters)
        return int((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]["Plan Rows"])

    def chunks(self) -> Iterator[list[StoredEvent]]:
        """Yield the events in lists of at most ``CHUNK_ROWS``, in no particular order."""
        sql, parameters = self._query
        for chunk in chunks(self._connection, sql, *parameters, size=CHUNK_ROWS, name="tkserver_export"):
            yield list(map(StoredEvent._make, chunk))


@contextmanager
def open_export(connection: Connection, selection: Selection) -> Iterator[Export]:
    """Open a transaction that sees a snapshot of the database, and return the selected events in it."""
    with transaction(connection):
        rows(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # The driver can represent the years 1 to 9999. In another time zone, the first and last hours would not fit.
        rows(connection, "SET LOCAL TimeZone = 'UTC'")
        # Plan for the time until the last row instead of the first.
        rows(connection, "SET LOCAL cursor_tuple_fraction = 1")
        yield Export(connection, build_query(connection, selection))


def build_query(connection: Connection, selection: Selection) -> Query:
    """Return the query for the selected events.

    Indexes of ``events`` begin with the application. If no application is selected, the query lists all of them, so
    that the other conditions can use an index.
    """
    conditions: list[str] = []
    parameters: list[object] = []
    if selection.app is not None:
        conditions += ["app_id = %s", "org_id = %s"]
        parameters += selection.app.key
    elif selection != Selection():
        conditions.append("app_id = ANY (%s::uuid[])")
        parameters.append([app_id for (app_id,) in rows(connection, _APP_IDS)])
    for condition, parameter in (
        ("user_id = %s", selection.user_id),
        ("timestamp >= %s", selection.since),
        ("timestamp < %s", selection.until),
    ):
        if parameter is not None:
            conditions.append(condition)
            parameters.append(parameter)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return Query(f"SELECT {_COLUMNS} FROM events{where}", parameters)
