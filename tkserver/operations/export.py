"""Export of stored events: any number of events, in constant memory.

A server-side cursor returns only the ids, and the rows are read by their ids. ``jsonb`` can be much longer as text than
in the table, so long rows are read one at a time, and very long ones not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tkserver.operations.apps import APPS_WITH_EVENTS
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection, chunks, rows, savepoint, transaction, value
from tkserver.storage.errors import ConnectionLost, StorageError

CHUNK_ROWS = 500
"""Rows that are fetched at a time."""

LONG_DATA = 131_072
"""Bytes of ``event_data`` as text. Rows with more are fetched one at a time."""

MAX_DATA = 16 << 20
"""Bytes of ``event_data`` as text. Rows with more are not exported."""


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


@dataclass(frozen=True)
class UnreadableEvent:
    """An event that cannot be exported.

    :ivar problem: for people.
    """

    event_id: str
    app_id: str
    problem: str


_TEXT_COLUMNS = {"event_id", "org_id", "app_id"}
_COLUMNS = ", ".join(f"{name}::text" if name in _TEXT_COLUMNS else f'"{name}"' for name in StoredEvent._fields)

_DATA_IF_SHORT = "CASE WHEN octet_length(event_data) <= %s THEN event_data END"

# OFFSET 0 prevents PostgreSQL from converting event_data to text several times.
_ROWS = f"""
SELECT id, octet_length(event_data), {_COLUMNS.replace('"event_data"', _DATA_IF_SHORT)}
FROM (
    SELECT id, {", ".join(name if name != "event_data" else "event_data::text" for name in StoredEvent._fields)}
    FROM events WHERE id = ANY (%s) OFFSET 0
) AS e
"""

_IDENTITY = "SELECT event_id::text, app_id::text FROM events WHERE id = %s"

_APP_IDS = f"WITH {APPS_WITH_EVENTS} SELECT DISTINCT app_id::text FROM app_with_events"


class Export:
    """The selected events, as they were when the first method was called.

    :ivar unreadable: the events that :meth:`chunks` could not yield.
    """

    def __init__(self, connection: Connection, query: Query) -> None:
        self._connection = connection
        self._query = query
        self.unreadable: list[UnreadableEvent] = []

    def estimate(self) -> int:
        """Return the approximate number of events. To count them would take as long as to read them."""
        plan = value(self._connection, f"EXPLAIN (FORMAT JSON) {self._query.sql}", *self._query.parameters)
        return int((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]["Plan Rows"])

    def chunks(self) -> Iterator[list[StoredEvent]]:
        """Yield the events in lists of at most ``CHUNK_ROWS``, in no particular order."""
        sql, parameters = self._query
        for chunk in chunks(self._connection, sql, *parameters, size=CHUNK_ROWS, name="tkserver_export"):
            yield from self._read([number for (number,) in chunk])

    def _read(self, numbers: list[int]) -> Iterator[list[StoredEvent]]:
        """Yield the rows with these sequence numbers; rows with long data in lists of their own."""
        try:
            with savepoint(self._connection):
                found = rows(self._connection, _ROWS, LONG_DATA, numbers)
        except ConnectionLost:
            raise
        except StorageError as error:  # PostgreSQL cannot convert the data of one of them to text
            if len(numbers) == 1:
                self._add_unreadable(numbers[0], str(error))
            for number in numbers if len(numbers) > 1 else []:
                yield from self._read([number])
            return
        yield [StoredEvent(*columns) for _, length, *columns in found if length <= LONG_DATA]
        for number, length, *_ in found:
            if length > MAX_DATA:
                self._add_unreadable(number, f"event.data has {length:,} bytes as text")
            elif length > LONG_DATA:
                yield [StoredEvent(*columns) for _, _, *columns in rows(self._connection, _ROWS, MAX_DATA, [number])]

    def _add_unreadable(self, number: int, problem: str) -> None:
        ((event_id, app_id),) = rows(self._connection, _IDENTITY, number)
        self.unreadable.append(UnreadableEvent(event_id, app_id, problem))


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
    """Return the query for the sequence numbers of the selected events.

    The index of users begins with the application. If a user and no application is selected, the query lists all
    applications, so that it can use this index.
    """
    conditions: list[str] = []
    parameters: list[object] = []
    if selection.app is not None:
        conditions += ["app_id = %s", "org_id = %s"]
        parameters += selection.app.key
    elif selection.user_id is not None:
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
    return Query(f"SELECT id FROM events{where}", parameters)
