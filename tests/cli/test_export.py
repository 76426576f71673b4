"""``tkserver export``: stored events, as they were sent."""

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
from datetime import datetime
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
from tests.support.server import running_server
from tests.support.stored import store_many
from tkserver.client import Client, Result
from tkserver.operations.export import StoredEvent

MAX_MEMORY = 300 << 20
"""Bytes that the process of an export may use."""

MEASURE_MEMORY = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Prints the memory that a command used. The figure of a direct child would include the memory of the tests."""

UNUSUAL_EVENTS = [
    make_event(),
    make_event(
        **dict.fromkeys(("session_id", "service__language_version", "event__category"), MISSING),
        **{f"environment__{name}": MISSING for name in ("os_version", "arch", "ci", "shell")},
    ),
    make_event(event__data=None, environment__ci=True),
    make_event(event__data=[1, 2.5, 10**30, 'a,"b"\r\n', {"ü": "\U0001f600 \x7f"}]),
    make_event(timestamp="0001-01-01T00:00:00Z", user_id='anon_,"', session_id='ü,"\n'),
    make_event(timestamp="9999-12-31T23:59:59.999999Z", event__data="=1+1"),
]


def by_id(events: list[Any]) -> list[Any]:
    """Return events in the order of their ids."""
    return sorted(events, key=lambda event: str(event["event_id"]))


@pytest_twisted.ensureDeferred
async def test_exported_events_can_be_sent_again(database: Database, directory: Path) -> None:
    """NDJSON contains exactly the events that were sent, and each is a duplicate when it is sent again."""
    app = App().install(database)
    async with running_server(database) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with Client(url, app.org_id, app.app_id, app.token, app.secret, reactor=reactor) as client:
            assert await client.send(UNUSUAL_EVENTS) == Result(accepted=len(UNUSUAL_EVENTS))
            exported = Command.on(database, directory)("export", "--format", "ndjson")
            assert (exported.code, exported.errors) == (0, f"{len(UNUSUAL_EVENTS)} events\n")
            lines = exported.output.splitlines()
            assert by_id([json.loads(line) for line in lines]) == by_id(UNUSUAL_EVENTS)
            expected = Result(accepted=len(UNUSUAL_EVENTS), duplicates=len(UNUSUAL_EVENTS))
            assert await client.send(lines) == expected
    check_csv(Command.on(database, directory), database)
    check_parquet(Command.on(database, directory), database)


def check_csv(command: Command, database: Database) -> None:
    """CSV contains the rows of the table."""
    columns = ", ".join(f'"{name}"::text' for name in StoredEvent._fields)
    exported = command("export", "--format", "csv")
    header, *lines = csv.reader(io.StringIO(exported.output.decode(), newline=""))
    assert header == list(StoredEvent._fields)
    assert exported.output.count(b"\r\n") >= len(UNUSUAL_EVENTS) + 1
    rows = database.query(f"SELECT {columns} FROM events ORDER BY event_id")
    times = [header.index(name) for name in ("timestamp", "transmission_timestamp", "received_at")]
    for line, row in zip(sorted(lines), rows, strict=True):
        assert all(datetime.fromisoformat(line[column]) for column in times)
        others = [column for column in range(len(line)) if column not in times]
        assert [line[column] for column in others] == [row[column] or "" for column in others]


def check_parquet(command: Command, database: Database) -> None:
    """Parquet contains the rows of the table, with types."""
    assert command("export", "--format", "parquet", "-o", "events.parquet").code == 0
    records = parquet.read_table(command.directory / "events.parquet").to_pylist()
    assert all(list(record) == list(StoredEvent._fields) for record in records)
    rows = database.query(
        "SELECT event_id::text, timestamp AT TIME ZONE 'UTC', ci, batch_size, event_data::text FROM events ORDER BY 1"
    )
    names = ("event_id", "timestamp", "ci", "batch_size", "event_data")
    found = [{**record, "timestamp": record["timestamp"].replace(tzinfo=None)} for record in by_id(records)]
    assert [tuple(record[name] for name in names) for record in found] == rows


@pytest.fixture(scope="module")
def filled(database_server: Any) -> Iterator[tuple[Database, list[App]]]:
    """A database with 60,000 events of three applications."""
    with database_server.migrated() as database:
        yield database, store_many(database, 60_000, apps=3)


def test_selections(filled: tuple[Database, list[App]], directory: Path) -> None:
    """Events are selected by application, user, and time; the beginning is inclusive, and the end is exclusive."""
    database, apps = filled
    command = Command.on(database, directory)
    minute = ("--since", "2026-01-01T01:00:00+01:00", "--until", "2026-01-01T00:01:00Z")
    for arguments, condition in (
        ((), "true"),
        (("--app", apps[0].app_id), f"app_id = '{apps[0].app_id}'"),
        (("--user", "client_7"), "user_id = 'client_7'"),
        (("--since", "2026-01-01", "--until", "2026-01-02"), "timestamp < '2026-01-02Z'"),
        (minute, "timestamp < '2026-01-01T00:01Z'"),
        (
            ("--app", apps[1].app_id, "--user", "client_7", "--until", "2026-01-01T02:00:00Z"),
            f"app_id = '{apps[1].app_id}' AND user_id = 'client_7' AND timestamp < '2026-01-01T02:00Z'",
        ),
        (("--user", "client_nobody"), "false"),
    ):
        exported = command("export", *arguments)
        assert exported.code == 0, exported.errors
        ids = {(str(row[0]),) for row in database.query(f"SELECT event_id FROM events WHERE {condition}")}
        assert {(json.loads(line)["event_id"],) for line in exported.output.splitlines()} == ids
        assert exported.errors == f"{len(ids):,} events\n"


@pytest.fixture(scope="module")
def large(database_server: Any) -> Iterator[Database]:
    """A database with more events than fit into the memory that an export may use."""
    with database_server.migrated() as database:
        store_many(database, 300_000)
        yield database


@pytest.mark.parametrize("format_name", ["ndjson", "csv", "parquet"])
def test_memory_is_constant(large: Database, directory: Path, format_name: str) -> None:
    """The memory of an export does not grow with the number of events."""
    command = Command.on(large, directory)
    arguments = [sys.executable, "-c", MEASURE_MEMORY, str(PROGRAM), "export", "--format", format_name, "-o", "events"]
    measured = subprocess.run(arguments, cwd=directory, env=command.environment, capture_output=True, check=True)
    assert measured.stderr == b"300,000 events\n"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(measured.stdout) * unit < MAX_MEMORY
    if format_name == "parquet":
        written = parquet.ParquetFile(directory / "events").metadata
        assert written.num_rows == 300_000
        assert written.num_row_groups > 1


@pytest.mark.parametrize("format_name", ["ndjson", "csv", "parquet"])
def test_files_are_complete(filled: tuple[Database, list[App]], directory: Path, format_name: str) -> None:
    """An existing file is replaced only with ``--force``, and an export that fails leaves no file behind."""
    database, _ = filled
    command = Command.on(database, directory)
    target = directory / "events"
    target.write_text("precious")
    failed = command("export", "-o", target)
    assert (failed.code, "--force" in failed.errors, target.read_text()) == (1, True, "precious")
    limited = subprocess.run(
        [PROGRAM, "export", "--format", format_name, "-o", "events", "--force"],
        cwd=directory,
        env=command.environment,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert (limited.returncode, b"events cannot be written: " in limited.stderr) == (1, True), limited.stderr
    assert b"Traceback" not in limited.stderr
    assert [path.name for path in directory.iterdir()] == ["events"]
    assert target.read_text() == "precious"
    assert command("export", "-o", target, "--force").code == 0
    assert len(target.read_text().splitlines()) == 60_000
    assert target.stat().st_mode & 0o077 == 0


def test_directories_are_not_replaced(database: Database, directory: Path) -> None:
    """A path that is not a file is an error, also with ``--force``."""
    (directory / "events").mkdir()
    failed = Command.on(database, directory)("export", "-o", "events", "--force", code=1)
    assert "specify another path" in failed.errors


def test_progress_bar(filled: tuple[Database, list[App]], directory: Path) -> None:
    """On a terminal, a bar shows the progress on standard error, and standard output contains only events."""
    database, _ = filled
    terminal, command_side = pty.openpty()
    command = Command.on(database, directory, TERM="xterm")
    with open(directory / "events", "wb") as events:
        process = subprocess.Popen(
            [PROGRAM, "export"], cwd=directory, env=command.environment, stdout=events, stderr=command_side
        )
    os.close(command_side)
    shown = b"".join(read_terminal(terminal)).decode()
    assert process.wait(60) == 0
    assert "about" in shown
    assert shown.splitlines()[-1].endswith("60,000 events")
    assert len([json.loads(line) for line in (directory / "events").read_bytes().splitlines()]) == 60_000


def read_terminal(terminal: int) -> Iterator[bytes]:
    """Yield the output until all processes have closed the terminal, which Linux reports as an error."""
    with suppress(OSError):
        while output := os.read(terminal, 1 << 16):
            yield output
    os.close(terminal)


def test_pipes(filled: tuple[Database, list[App]], directory: Path) -> None:
    """Parquet can be written to a pipe, and a reader that closes the pipe early causes no traceback."""
    database, (app, *_) = filled
    command = Command.on(database, directory)
    exported = command("export", "--app", app.app_id, "--format", "parquet")
    assert parquet.read_table(io.BytesIO(exported.output)).num_rows == 20_000
    first_line = subprocess.run(
        ["bash", "-c", f"{PROGRAM} export | head -n 1"], cwd=directory, env=command.environment, capture_output=True
    )
    assert json.loads(first_line.stdout)["service"]["name"] == "my-cli"
    assert b"Traceback" not in first_line.stderr


@pytest.mark.parametrize("text", ["yesterday", "2026-01-01T00:00:00", "2026-13-01", "9999-12-31T23:59:59-01:00", "5"])
def test_invalid_time_is_wrong_usage(database: Database, directory: Path, text: str) -> None:
    """A text that is not a time, or has no offset, is an error, which contains an example."""
    failed = Command.on(database, directory)("export", "--since", text)
    assert (failed.code, "is not a time such as 2026-01-31" in failed.errors) == (2, True), failed.errors


def test_unknown_app(database: Database, directory: Path) -> None:
    """An application that does not exist has its own exit code."""
    assert Command.on(database, directory)("export", "--app", "nobody").code == 3


def test_no_events(database: Database, directory: Path) -> None:
    """An export without events is an empty file of its format."""
    command = Command.on(database, directory)
    assert command("export").output == b""
    assert command("export", "--format", "csv").output.count(b"\r\n") == 1
    assert parquet.read_table(io.BytesIO(command("export", "--format", "parquet").output)).num_rows == 0
