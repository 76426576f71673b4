"""Stored events are selected and written in all formats."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from typing import Any

import pytest
from pyarrow import parquet

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tests.support.stored import store, store_many
from tkserver.operations.apps import find_app
from tkserver.operations.export import CHUNK_ROWS, Selection, StoredEvent, build_query, open_export
from tkserver.operations.export_formats import WRITERS, write_events
from tkserver.storage.blocking import BlockingConnections, Connection

ONE_MINUTE = datetime(2026, 1, 1, 0, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def filled(database_server: Any) -> Iterator[tuple[Database, list[ClientApp]]]:
    """A database with 60,000 events of three applications."""
    with database_server.migrated() as database:
        yield database, store_many(database, 60_000, apps=3)


@pytest.fixture
def filled_connection(filled: tuple[Database, list[ClientApp]]) -> Iterator[Connection]:
    """A connection to :func:`filled`."""
    with closing(BlockingConnections().connect(filled[0].dsn)) as connection:
        yield connection


def export(connection: Connection, selection: Selection, format_name: str) -> bytes:
    """Return the selected events in a format."""
    file = io.BytesIO()
    with open_export(connection, selection) as events:
        write_events(events.chunks(), file, format_name)
    return file.getvalue()


def test_selections(filled: tuple[Database, list[ClientApp]], filled_connection: Connection) -> None:
    """Conditions can be combined; the beginning of the time range is inclusive, and its end is exclusive."""
    database, client_apps = filled
    app = find_app(filled_connection, client_apps[1].app_id)
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for selection, condition in (
        (Selection(), "true"),
        (Selection(app=app), f"app_id = '{app.app_id}'"),
        (Selection(user_id="client_7"), "user_id = 'client_7'"),
        (Selection(user_id="client_nobody"), "false"),
        (Selection(since=start, until=ONE_MINUTE), "timestamp < '2026-01-01T00:01Z'"),
        (Selection(since=ONE_MINUTE), "timestamp >= '2026-01-01T00:01Z'"),
        (
            Selection(app, "client_7", until=ONE_MINUTE),
            f"app_id = '{app.app_id}' AND user_id = 'client_7' AND timestamp < '2026-01-01T00:01Z'",
        ),
    ):
        with open_export(filled_connection, selection) as events:
            found = [event.event_id for chunk in events.chunks() for event in chunk]
        expected = database.query(f"SELECT event_id::text FROM events WHERE {condition}")
        assert sorted(found) == sorted(event_id for (event_id,) in expected)


def test_chunks_and_progress(filled_connection: Connection) -> None:
    """Events are read in chunks of a limited size, and each chunk advances the progress."""
    progress: list[int] = []
    with open_export(filled_connection, Selection()) as events:
        assert write_events(events.chunks(), io.BytesIO(), "ndjson", progress.append) == 60_000
    assert progress == [CHUNK_ROWS] * (60_000 // CHUNK_ROWS)


def test_estimate(filled_connection: Connection) -> None:
    """The approximate number of events is known before they are read."""
    with open_export(filled_connection, Selection()) as events:
        assert events.estimate() == pytest.approx(60_000, rel=0.1)


def test_snapshot(connection: Connection, database: Database) -> None:
    """Events that are stored or deleted during an export do not change it."""
    app = ClientApp().install(database)
    store(database, app, 2)
    with open_export(connection, Selection()) as events:
        events.estimate()
        store(database, app, 2)
        database.query("DELETE FROM events WHERE id IN (SELECT min(id) FROM events)")
        assert sum(map(len, events.chunks())) == 2


@pytest.mark.parametrize("with_app", [True, False])
@pytest.mark.parametrize(
    ("selection", "index"),
    [
        (Selection(user_id="client_7"), "events_app_user_idx"),
        (Selection(until=datetime(2026, 1, 1, 0, 5, tzinfo=timezone.utc)), "events_timestamp_idx"),
    ],
    ids=["user", "time"],
)
def test_queries_use_an_index(
    filled: tuple[Database, list[ClientApp]],
    filled_connection: Connection,
    with_app: bool,
    selection: Selection,
    index: str,
) -> None:
    """No selection reads the whole table, even if no application is selected."""
    app = find_app(filled_connection, filled[1][0].app_id) if with_app else None
    selection = Selection(app, selection.user_id, until=selection.until)
    with open_export(filled_connection, selection), filled_connection.cursor() as cursor:
        query = build_query(filled_connection, selection)
        cursor.execute(f"EXPLAIN {query.sql}", query.parameters)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert index in plan
    assert "Seq Scan" not in plan


def test_formats_contain_the_same_events(connection: Connection, database: Database) -> None:
    """NDJSON contains events as they are sent; CSV and Parquet contain the columns of the table."""
    app = ClientApp().install(database)
    store(database, app, 3, user="client_a")
    ids = {event_id for (event_id,) in database.query("SELECT event_id::text FROM events")}
    events = [json.loads(line) for line in export(connection, Selection(), "ndjson").splitlines()]
    assert {event["event_id"] for event in events} == ids
    assert {event["user_id"] for event in events} == {"client_a"}
    header, *lines = csv.reader(io.StringIO(export(connection, Selection(), "csv").decode(), newline=""))
    assert header == list(StoredEvent._fields)
    assert {line[0] for line in lines} == ids
    table = parquet.read_table(io.BytesIO(export(connection, Selection(), "parquet")))
    assert table.column_names == list(StoredEvent._fields)
    assert set(table["event_id"].to_pylist()) == ids


@pytest.mark.parametrize("format_name", list(WRITERS))
def test_no_events(connection: Connection, format_name: str) -> None:
    """An export without events is a valid file."""
    exported = export(connection, Selection(), format_name)
    if format_name == "parquet":
        assert parquet.read_table(io.BytesIO(exported)).num_rows == 0
    else:
        assert exported.count(b"\n") == (1 if format_name == "csv" else 0)


def test_missing_package() -> None:
    """Without pyarrow, Parquet is an error, which says how to install it."""
    script = """
import io, sys
sys.modules["pyarrow"] = None
from tkserver.operations.exceptions import MissingPackage
from tkserver.operations.export_formats import write_events
try:
    write_events([], io.BytesIO(), "parquet")
except MissingPackage as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "pip install 'tkserver[parquet]'" in output
