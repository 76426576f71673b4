"""``tkserver psql``: the terminal of PostgreSQL."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.command import Command, InProcessCommand
from tests.support.database import Database
from tests.support.terminal import run_on_terminal
from tkserver.storage.embedded.exceptions import EmbeddedError
from tkserver.storage.psql import without_password

NEEDS_PSQL = pytest.mark.skipif(shutil.which("psql") is None, reason="needs psql")


def test_embedded_database(directory: Path) -> None:
    """The command starts the embedded database, ends with the exit code of psql, and passes arguments on."""
    command = Command({"TK__DATABASE__DATA_DIR": str(directory / "data")}, directory)
    assert command("psql", "-At", "-c", "SELECT 1 + 1", code=0).out == "2\n"
    assert "does not exist" in command("psql", "-c", "SELECT x").check(1).errors
    assert not (directory / "data" / "postmaster.pid").exists()


@NEEDS_PSQL
def test_configured_database(database: Database, directory: Path) -> None:
    """The installed psql is connected to the configured database, also on a terminal."""
    command = Command.on(database, directory)
    name = urlsplit(database.dsn).path.strip("/")
    assert command("psql", "-At", "-c", "SELECT current_database()", code=0).out == f"{name}\n"
    code, printed, _ = run_on_terminal(command, "psql", "-At", typed="SELECT 'a' || 'b';\\q")
    assert (code, printed.splitlines()[-1]) == (0, "ab")


def test_without_psql(database: Database, directory: Path) -> None:
    """If psql is not installed, the one of the embedded database is used."""
    empty = directory / "empty"
    empty.mkdir()
    command = Command.on(database, directory, PATH=str(empty))
    assert command("psql", "-At", "-c", "SELECT 1", code=0).out == "1\n"


def test_without_any_psql(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without both, the command says what to install."""

    def not_installed() -> Path:
        raise EmbeddedError("not installed")

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("tkserver.cli.psql.wheel_programs", not_installed)
    command = InProcessCommand({"TK__DATABASE__URL": database.dsn})
    assert "psql is not installed" in command("psql", code=1).errors


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:s%40cret@h:1/db?sslmode=require", "host=h port=1 dbname=db user=me password='s@cret'"]
)
def test_passwords_are_no_arguments(dsn: str) -> None:
    """The password is in the environment, and not in the connection string. Everything else stays in it."""
    url, environment = without_password(dsn, {"HOME": "/home/me"})
    assert "cret" not in url
    assert {"user=me", "dbname=db", "host=h", "port=1"} <= set(url.split())
    assert environment == {"HOME": "/home/me", "PGPASSWORD": "s@cret"}
    assert without_password("postgresql://h/db", {}) == ("dbname=db host=h", {})
