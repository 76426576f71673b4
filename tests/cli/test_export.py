"""``tkserver export``: what was stored, as it was sent."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pyarrow import parquet
from twisted.internet import reactor

from tests.support.client import App
from tests.support.command import PROGRAM, Command
from tests.support.database import Database
from tests.support.events import MISSING, make_event
from tests.support.server import start_server
from tkserver.client import Client, Result
from tkserver.operations.export import Selection, StoredEvent, query, reading
from tkserver.storage.blocking import BlockingConnections

MOST_MEMORY = 300 << 20
"""Bytes, of a process that exports."""

MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Says how much memory a command took. A child of the tests themselves would be said to have taken what they do."""

FILL = """
INSERT INTO events (event_id, org_id, app_id, schema_version, timestamp, service_name, service_version,
    service_language, user_id, os, event_type, event_data, sdk_version, transmission_timestamp, batch_size, retry_count)
SELECT gen_random_uuid(), org_id, app_id, '1.0.0', '2026-01-01Z'::timestamptz + n * interval '1 second', 'my-cli',
    '1.0.0', 'rust', 'client_' || n %% 1000, 'linux', 'built', jsonb_build_object('n', n, 'text', repeat('x', 300)),
    '0.3.0', now(), 1, 0
FROM generate_series(1, %s) AS n,
    (SELECT id, org_id, app_id, row_number() OVER (ORDER BY id) AS m, count(*) OVER () AS apps FROM api_tokens) AS t
WHERE n %% apps = m - 1
"""


def fill(database: Database, events: int, apps: int = 1) -> list[App]:
    """Applications with so many events in all."""
    made = [App().install(database) for _ in range(apps)]
    database.query(FILL, events)
    database.query("ANALYZE events")
    return made


ODD = [
    make_event(),
    make_event(
        **dict.fromkeys(("session_id", "service__language_version", "event__category"), MISSING),
        **{f"environment__{name}": MISSING for name in ("os_version", "arch", "ci", "shell")},
    ),
    make_event(event__data=None, environment__ci=True),
    make_event(event__data=[1, 2.5, 10**30, 'a,"b"\r\n', {"ü": "\U0001f600 \x7f"}]),
    make_event(timestamp="0001-01-01T00:00:00Z", user_id='anon_ü,"\n'),
    make_event(timestamp="9999-12-31T23:59:59.999999Z", event__data="=1+1"),
]


def comparable(events: list[Any]) -> list[Any]:
    """In an order that has nothing to do with that of the database."""
    return sorted(events, key=lambda event: str(event["event_id"]))


@pytest_twisted.ensureDeferred
async def test_sent_again(database: Database, directory: Path) -> None:
    """NDJSON has the very events that were sent, and each of them is a duplicate when it is sent again."""
    app = App().install(database)
    server = await start_server(database)
    client = Client(f"http://127.0.0.1:{server.port}", app.org_id, app.app_id, app.token, app.secret, reactor=reactor)
    try:
        assert await client.send(ODD) == Result(accepted=len(ODD))
        done = Command.on(database, directory)("export", "--format", "ndjson")
        assert (done.code, done.errors) == (0, f"{len(ODD)} events\n")
        lines = done.output.splitlines()
        assert comparable([json.loads(line) for line in lines]) == comparable(ODD)
        assert await client.send(lines) == Result(accepted=len(ODD), duplicates=len(ODD))
    finally:
        await client.close()
        await server.stopService()
    _check_tables(Command.on(database, directory), database)


def _check_tables(command: Command, database: Database) -> None:
    """CSV and Parquet have the same rows as the table."""
    columns = ", ".join(f'"{name}"' for name in StoredEvent._fields)
    texts = ", ".join(f'"{name}"::text' for name in StoredEvent._fields)
    done = command("export", "--format", "csv")
    heading, *rows = csv.reader(io.StringIO(done.output.decode(), newline=""))
    assert heading == list(StoredEvent._fields)
    assert done.output.count(b"\r\n") >= len(ODD) + 1
    stored = database.query(f"SELECT {texts} FROM events ORDER BY event_id")
    times = [heading.index(name) for name in ("timestamp", "transmission_timestamp", "received_at")]
    for row, expected in zip(sorted(rows), stored, strict=True):
        assert all(datetime.fromisoformat(row[place]) for place in times)
        kept = [place for place in range(len(row)) if place not in times]
        assert [row[place] for place in kept] == [expected[place] or "" for place in kept]

    assert command("export", "--format", "parquet", "-o", "events.parquet").code == 0
    read = parquet.read_table(command.directory / "events.parquet").to_pylist()
    database.query(f"SELECT {columns} FROM events LIMIT 0")
    expected_types = database.query(
        "SELECT event_id::text, timestamp AT TIME ZONE 'UTC', ci, batch_size, event_data::text FROM events ORDER BY 1"
    )
    found = [
        (r["event_id"], r["timestamp"].replace(tzinfo=None), r["ci"], r["batch_size"], r["event_data"])
        for r in comparable(read)
    ]
    assert found == expected_types


@pytest.fixture(scope="module")
def full(database_server: Any) -> Any:
    """A database with many events of three applications."""
    with database_server.migrated() as database:
        yield database, fill(database, 60_000, apps=3)


def test_selections(full: tuple[Database, list[App]], directory: Path) -> None:
    """By application, by user, by time with the beginning included and the end not, and all of them together."""
    database, apps = full
    command = Command.on(database, directory)
    span = ("--since", "2026-01-01T01:00:00+01:00", "--until", "2026-01-01T00:01:00Z")
    for arguments, condition in (
        ((), "true"),
        (("--app", apps[0].app_id), f"app_id = '{apps[0].app_id}'"),
        (("--user", "client_7"), "user_id = 'client_7'"),
        (("--since", "2026-01-01", "--until", "2026-01-02"), "timestamp < '2026-01-02Z'"),
        (span, "timestamp < '2026-01-01T00:01Z'"),
        (
            ("--app", apps[1].app_id, "--user", "client_7", "--until", "2026-01-01T02:00:00Z"),
            f"app_id = '{apps[1].app_id}' AND user_id = 'client_7' AND timestamp < '2026-01-01T02:00Z'",
        ),
        (("--user", "client_nobody"), "false"),
    ):
        done = command("export", *arguments)
        assert done.code == 0, done.errors
        ids = {(str(row[0]),) for row in database.query(f"SELECT event_id FROM events WHERE {condition}")}
        assert {(json.loads(line)["event_id"],) for line in done.output.splitlines()} == ids
        assert done.errors == f"{len(ids):,} events\n"


@pytest.mark.parametrize("by_app", [True, False])
@pytest.mark.parametrize("by", ["user", "time"])
def test_index(full: tuple[Database, list[App]], by_app: bool, by: str) -> None:
    """No selection reads the table whole, also where no application is named."""
    database, (app, *_) = full
    ids = (app.org_id, app.app_id) if by_app else None
    until = datetime(2026, 1, 1, 0, 5, tzinfo=timezone.utc)
    selection = Selection(app=ids, user="client_7") if by == "user" else Selection(app=ids, until=until)  # type: ignore[arg-type]
    connection = BlockingConnections().connect(database.dsn)
    with reading(connection), connection.cursor() as cursor:
        statement = query(connection, selection)
        cursor.execute(f"EXPLAIN {statement.sql}", statement.parameters)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    connection.close()
    assert {"user": "events_app_user_idx", "time": "events_app_timestamp_idx"}[by] in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize("form", ["ndjson", "csv", "parquet"])
def test_memory(many: Database, directory: Path, form: str) -> None:
    """Memory does not grow with the events."""
    command = Command.on(many, directory)
    arguments = [sys.executable, "-c", MEASURE, str(PROGRAM), "export", "--format", form, "-o", "events"]
    done = subprocess.run(arguments, cwd=directory, env=command.environment, capture_output=True, check=True)
    assert done.stderr == b"300,000 events\n"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < MOST_MEMORY
    if form == "parquet":
        written = parquet.ParquetFile(directory / "events").metadata
        assert written.num_rows == 300_000
        assert written.num_row_groups > 1


@pytest.fixture(scope="module")
def many(database_server: Any) -> Any:
    """A database with more events than would fit into the memory that an export may take."""
    with database_server.migrated() as database:
        fill(database, 300_000)
        yield database


@pytest.mark.parametrize("form", ["ndjson", "csv", "parquet"])
def test_whole_or_not_at_all(full: tuple[Database, list[App]], directory: Path, form: str) -> None:
    """A file that is there stays, unless it is to be replaced; one that could not be written whole leaves no trace."""
    database, _ = full
    command = Command.on(database, directory)
    target = directory / "events"
    target.write_text("precious")
    done = command("export", "-o", target)
    assert (done.code, "--force" in done.errors, target.read_text()) == (1, True, "precious")
    small = subprocess.run(
        [PROGRAM, "export", "--format", form, "-o", "events", "--force"],
        cwd=directory,
        env=command.environment,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert (small.returncode, b"events cannot be written: " in small.stderr) == (1, True), small.stderr
    assert b"Traceback" not in small.stderr
    assert [path.name for path in directory.iterdir()] == ["events"]
    assert target.read_text() == "precious"
    assert command("export", "-o", target, "--force").code == 0
    assert len(target.read_text().splitlines()) == 60_000
    assert target.stat().st_mode & 0o077 == 0


def test_progress(full: tuple[Database, list[App]], directory: Path) -> None:
    """There is a bar where somebody looks, and standard output has nothing but events."""
    database, _ = full
    ours, theirs = pty.openpty()
    command = Command.on(database, directory, TERM="xterm")
    with open(directory / "events", "wb") as events:
        process = subprocess.Popen(
            [PROGRAM, "export"], cwd=directory, env=command.environment, stdout=events, stderr=theirs
        )
    os.close(theirs)
    shown = b"".join(all_of(ours)).decode()
    assert process.wait(60) == 0
    assert "about" in shown
    assert shown.splitlines()[-1].endswith("60,000 events")
    assert len([json.loads(line) for line in (directory / "events").read_bytes().splitlines()]) == 60_000


def all_of(terminal: int) -> Iterator[bytes]:
    """What is shown there until everybody has left, which Linux calls an error."""
    with suppress(OSError):
        while shown := os.read(terminal, 1 << 16):
            yield shown
    os.close(terminal)


def test_pipes(full: tuple[Database, list[App]], directory: Path) -> None:
    """Parquet goes through a pipe too, and a reader that has enough is no error worth a traceback."""
    database, (app, *_) = full
    command = Command.on(database, directory)
    done = command("export", "--app", app.app_id, "--format", "parquet")
    assert parquet.read_table(io.BytesIO(done.output)).num_rows == 20_000
    enough = subprocess.run(
        ["bash", "-c", f"{PROGRAM} export | head -n 1"], cwd=directory, env=command.environment, capture_output=True
    )
    assert json.loads(enough.stdout)["service"]["name"] == "my-cli"
    assert b"Traceback" not in enough.stderr


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-01T00:00:00", "2026-13-01", "9999-12-31T23:59:59-01:00", "5"])
def test_no_time(database: Database, directory: Path, moment: str) -> None:
    """A time that is none, or has no offset, is wrong usage."""
    done = Command.on(database, directory)("export", "--since", moment)
    assert (done.code, "is no time such as 2026-01-31" in done.errors) == (2, True), done.errors


def test_unknown(database: Database, directory: Path) -> None:
    """An application that is not there is said to be so."""
    assert Command.on(database, directory)("export", "--app", "nobody").code == 3


def test_nothing(database: Database, directory: Path) -> None:
    """No events are a file without any, in each format."""
    command = Command.on(database, directory)
    assert command("export").output == b""
    assert command("export", "--format", "csv").output.count(b"\r\n") == 1
    assert parquet.read_table(io.BytesIO(command("export", "--format", "parquet").output)).num_rows == 0
