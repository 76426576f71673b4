"""Exports of unusual rows: very long as text, or dangerous for terminals and spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st

from tests.support.client import App
from tests.support.command import PROGRAM, Command
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.server import client_of, running_server
from tests.support.stored import store
from tkserver.cli.output import printable
from tkserver.operations.export_formats import shorten_numbers
from tkserver.spreadsheets import escape_formula
from tkserver.wire.event import MAX_EVENT_BYTES

MAX_MEMORY = 300 << 20
"""Bytes that an export of rows of any length may use."""

MEASURE_MEMORY = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""Prints the memory that a command used. The figure of a direct child would include the memory of the tests."""


def set_data(database: Database, sql: str) -> str:
    """Set the data of one event that still has none, and return its id."""
    first = "SELECT id FROM events WHERE event_data = '{}' LIMIT 1"
    return str(database.value(f"UPDATE events SET event_data = ({sql}) WHERE id = ({first}) RETURNING event_id::text"))


def test_rows_that_cannot_be_exported(database: Database, directory: Path) -> None:
    """An export names the rows that are too long, writes all others in little memory, and exits with status 1."""
    app = App()
    store(database, app, 20)
    too_long = [
        set_data(database, "SELECT jsonb_agg('1e131071'::jsonb) FROM generate_series(1, 10000)"),  # 1.3 GB as text
        set_data(database, "SELECT jsonb_agg('1e399'::jsonb) FROM generate_series(1, 50000)"),  # 20 MB as text
    ]
    long = set_data(database, "SELECT jsonb_agg('1e399'::jsonb) FROM generate_series(1, 1000)")
    command = Command.on(database, directory)
    arguments = [sys.executable, "-c", MEASURE_MEMORY, str(PROGRAM), "export", "-o", "events"]
    measured = subprocess.run(arguments, cwd=directory, env=command.environment, capture_output=True, text=True)
    errors = measured.stderr
    assert measured.returncode == 1, errors
    assert all(f"event {event_id} of application {app.app_id}" in errors for event_id in too_long)
    assert "18 events" in errors
    exported = [str(UUID(json.loads(line)["event_id"])) for line in (directory / "events").read_text().splitlines()]
    assert len(exported) == len(set(exported)) == 18
    assert long in exported
    assert not set(exported) & set(too_long)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(measured.stdout) * unit < MAX_MEMORY


def largest_event(number: str) -> bytes:
    """Return an event of the maximum size whose fields all become longer in the database."""
    event = make_event(event_id=make_event()["event_id"].replace("-", ""), timestamp="2026-01-01T00:00:00.5Z")
    event["metadata"]["transmission_timestamp"] = "2026-01-01T00:00:00.5Z"
    event["event"]["data"] = "@"
    text = json.dumps(event, separators=(",", ":"))
    element = f"{number},".encode()
    data = b"[" + element * ((MAX_EVENT_BYTES - len(text)) // len(element))
    data += b"1" * (MAX_EVENT_BYTES - len(text) + len('"@"') - len(data) - 1) + b"]"
    return text.encode().replace(b'"@"', data)


@pytest.mark.parametrize("number", ["1e399", "1.5E+20", "1e-30", "-10", '"é"', "{}"])
@pytest_twisted.ensureDeferred
async def test_largest_events_can_be_sent_again(database: Database, directory: Path, number: str) -> None:
    """An exported event is not longer than when it was sent, although PostgreSQL writes numbers and spaces in full."""
    app, event = App().install(database), largest_event(number)
    assert len(event) == MAX_EVENT_BYTES
    async with running_server(database) as server:
        client = client_of(server)
        first = await client.send(app, b'{"events":[%s]}' % event)
        assert (first.status, first.json["duplicates"]) == (200, 0), first.body
        line = Command.on(database, directory)("export", code=0).output.strip()
        assert len(line) <= MAX_EVENT_BYTES
        again = await client.send(app, b'{"events":[%s]}' % line)
    assert (again.status, again.json["duplicates"]) == (200, 1), again.body


numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)


@given(st.lists(numbers, max_size=8))
def test_short_numbers_have_the_same_value(shared_database: Database, texts: list[str]) -> None:
    """PostgreSQL reads a shortened number as the same value with the same scale, and it is not longer than as sent."""
    sent = f"[{','.join(texts)}]"
    stored = shared_database.value("SELECT %s::jsonb::text", sent).replace(" ", "")
    shortened = shorten_numbers(stored.encode()).decode()
    assert len(shortened) <= len(sent)
    assert shared_database.value("SELECT %s::jsonb::text", shortened).replace(" ", "") == stored


def test_numbers_in_strings_are_not_changed() -> None:
    """Digits within strings and keys stay as they are."""
    text = rb'{"1000":"1000","a\"1000":[1000,"\\",1000]}'
    assert shorten_numbers(text) == rb'{"1000":"1000","a\"1000":[1e3,"\\",1e3]}'


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_in_csv(database: Database, directory: Path, text: str) -> None:
    """A cell that a spreadsheet takes for a formula begins with an apostrophe, unless ``--raw`` is used."""
    store(database, App(), 1)
    database.query("UPDATE events SET event_type = %s", text)
    command = Command.on(database, directory)
    for options, expected in (((), f"'{text}"), (("--raw",), text)):
        exported = command("export", "--format", "csv", *options, code=0).output.decode()
        (record,) = csv.DictReader(io.StringIO(exported, newline=""))
        assert record["event_type"] == expected
    assert escape_formula("a=1") == "a=1"


@pytest.mark.parametrize(
    "character", ["\x00", "\x07", "\x1b", "\r", "\x7f", "\x9b", "\u200b", "\u202e", "\u2066", "\ufeff"]
)
def test_unprintable_characters(character: str) -> None:
    """Characters that control a terminal, or are invisible, become escapes; ordinary text stays."""
    assert printable(f"a{character}b") == f"a\\u{ord(character):04x}b"
    assert printable("é\t日本\n") == "é\t日本\n"
