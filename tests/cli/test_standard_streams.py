"""Commands whose output cannot be written: they say so, and create nothing that nobody has seen."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import PROGRAM, Command, InProcessCommand
from tests.support.database import Database


@pytest.fixture
def command(database: Database, directory: Path) -> Command:
    """The command as a process."""
    return Command.on(database, directory)


@pytest.fixture
def name(command: Command) -> str:
    """The name of an application."""
    command("apps", "create", "my-cli", code=0)
    return "my-cli"


COMMANDS = ["--help", "apps list", "tokens list --json", "stats my-cli", "export --format csv", "check"]

CREATING = [
    "apps create other",
    "apps create other --json",
    "tokens create my-cli",
    "tokens create --all --read --json",
    "tokens rotate my-cli",
    "shares create my-cli --name x",
]

CREATED = """
SELECT (SELECT count(*) FROM apps), (SELECT count(*) FROM api_tokens WHERE expires_at IS NULL),
       (SELECT count(*) FROM read_tokens), (SELECT count(*) FROM share_links)
"""


def run(command: Command, arguments: str, redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell with a redirection."""
    script = f'"$0" {arguments} {redirection}'
    return subprocess.run(
        ["bash", "-c", script, str(PROGRAM)],
        cwd=command.directory,
        env=dict(command.environment),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", COMMANDS + CREATING)
def test_full_disk(command: Command, database: Database, name: str, arguments: str) -> None:
    """If the output cannot be written, the command fails with one line, and has created nothing."""
    before = database.query(CREATED)
    done = run(command, arguments, ">/dev/full")
    assert done.returncode == 1
    assert "standard output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert database.query(CREATED) == before


@pytest.mark.parametrize("arguments", ["--help", "export", "apps create other"])
def test_closed_output(command: Command, database: Database, name: str, arguments: str) -> None:
    """If standard output is closed, the command does nothing."""
    before = database.query(CREATED)
    done = run(command, arguments, ">&-")
    assert (done.returncode, done.stderr) == (1, "Error: standard output is closed\n")
    assert database.query(CREATED) == before


@pytest.mark.parametrize("arguments", [*COMMANDS[:-1], "apps create other", "tokens create --all --read"])
def test_closed_pipe(command: Command, database: Database, name: str, arguments: str) -> None:
    """If the reader of a pipe has gone, the command ends without a traceback, and has created nothing."""
    before = database.query(CREATED)
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [PROGRAM, *arguments.split()],
        cwd=command.directory,
        env=dict(command.environment),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr
    assert database.query(CREATED) == before


@pytest.mark.parametrize("redirection", ["<&-", "<&- 2>&-"])
def test_other_closed_streams(command: Command, name: str, redirection: str) -> None:
    """Commands work if standard input or standard error is closed."""
    done = run(command, "apps show my-cli", redirection)
    assert done.returncode == 0
    assert "my-cli" in done.stdout


def test_encodings(command: Command, database: Database) -> None:
    """Characters that the encoding of the terminal cannot represent are printed as escape sequences."""
    settings = {**command.environment, "PYTHONIOENCODING": "latin-1"}
    for arguments in (["apps", "create", "日本"], ["apps", "list"], ["apps", "show", "日本"]):
        done = subprocess.run([PROGRAM, *arguments], cwd=command.directory, env=settings, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert rb"\u65e5\u672c" in done.stdout
    assert database.query("SELECT name FROM apps") == [("日本",)]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_times_that_python_cannot_represent(
    tkserver: InProcessCommand, database: Database, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """Tokens are listed, whatever their times are."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    tkserver("apps", "create", "my-cli")
    for text, shown in (
        ("infinity", "infinity"),
        ("12000-01-01", "infinity"),
        ("-infinity", "-infinity"),
        ("0044-03-15 BC", "-infinity"),
        ("9999-12-31 23:59:59+00", "9999-12-31"),
        ("0001-01-01 00:00:01+00", "0001-01-01"),
    ):
        database.query("UPDATE api_tokens SET expires_at = %s, created_at = %s, last_used_at = %s", text, text, text)
        assert shown in tkserver("tokens", "list").out
        for arguments in (["tokens", "list", "--json"], ["apps", "list"], ["apps", "show", "my-cli"]):
            tkserver(*arguments)
    monkeypatch.undo()
    time.tzset()
