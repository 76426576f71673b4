"""Stored events, read in chunks through a server-side cursor: any number of them, in little memory. Blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from tkserver.operations.retention import APPLICATIONS
from tkserver.storage.blocking import Connection, rows, transaction

CHUNK_ROWS = 500
"""Rows that are fetched at once: 50 MB of the longest events."""


class StoredEvent(NamedTuple):
    """A row of ``events``: its columns, but for the number that the database gave it."""

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
    """JSON, as PostgreSQL writes it."""
    sdk_version: str
    transmission_timestamp: datetime
    batch_size: int
    retry_count: int
    received_at: datetime


@dataclass(frozen=True)
class Selection:
    """Which events; all where nothing is said.

    :ivar app: the ids of the organisation and the application.
    :ivar since: by the event's own time, included.
    :ivar until: likewise, not included.
    """

    app: tuple[UUID, UUID] | None = None
    user: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Query(NamedTuple):
    sql: str
    parameters: Sequence[object]


_AS_TEXT = {"event_id", "org_id", "app_id", "event_data"}
_COLUMNS = ", ".join(f"{name}::text" if name in _AS_TEXT else f'"{name}"' for name in StoredEvent._fields)

_APP_IDS = f"WITH {APPLICATIONS} SELECT DISTINCT app_id::text FROM application"


@contextmanager
def reading(connection: Connection) -> Iterator[None]:
    """One view of the database for what is read within, whatever is stored meanwhile."""
    with transaction(connection):
        rows(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Years 1 to 9999 are those of the driver too, in UTC.
        rows(connection, "SET LOCAL TimeZone = 'UTC'")
        # All rows are wanted, and not the first ones soon.
        rows(connection, "SET LOCAL cursor_tuple_fraction = 1")
        yield


def query(connection: Connection, selection: Selection) -> Query:
    """The statement that reads these events. Every index but that of event ids begins with the application."""
    conditions: list[str] = []
    parameters: list[object] = []
    if selection.app is not None:
        org_id, app_id = selection.app
        conditions += ["app_id = %s", "org_id = %s"]
        parameters += [str(app_id), str(org_id)]
    elif selection != Selection():
        conditions.append("app_id = ANY (%s::uuid[])")
        parameters.append([app_id for (app_id,) in rows(connection, _APP_IDS)])
    for condition, value in (
        ("user_id = %s", selection.user),
        ("timestamp >= %s", selection.since),
        ("timestamp < %s", selection.until),
    ):
        if value is not None:
            conditions.append(condition)
            parameters.append(value)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return Query(f"SELECT {_COLUMNS} FROM events{where}", parameters)


def estimate(connection: Connection, of: Query) -> int:
    """About how many rows it gives, by the planner's statistics: to count them would take as long as to read them."""
    ((plan,),) = rows(connection, f"EXPLAIN (FORMAT JSON) {of.sql}", *of.parameters)
    return int((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]["Plan Rows"])


def chunks(connection: Connection, of: Query) -> Iterator[list[StoredEvent]]:
    """The rows, so many at a time, within :func:`reading`."""
    with connection.cursor(name="tkserver_export") as cursor:
        cursor.execute(of.sql, of.parameters or None)
        while chunk := cursor.fetchmany(CHUNK_ROWS):
            yield list(map(StoredEvent._make, chunk))
