"""Checks of an installation find problems and say what to do."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.database import Database, DatabaseServer
from tkserver.config import Settings, load
from tkserver.operations import checks
from tkserver.operations.checks import Finding, run_checks

READ_ONLY = "&options=-c%20default_transaction_read_only%3Don"
UNREACHABLE = "postgresql://u:secret-word@127.0.0.1:1/x"


def findings(settings: Settings) -> dict[str, Finding]:
    """Return the findings by the names of their checks."""
    return {finding.check: finding for finding in run_checks(settings)}


def on(dsn: str) -> Settings:
    return load({"TK__DATABASE__URL": dsn})


def problems(settings: Settings) -> dict[str, Finding]:
    return {name: finding for name, finding in findings(settings).items() if not finding.ok}


def test_good_installation(database: Database) -> None:
    """If everything is in order, there is no advice."""
    found = findings(on(database.dsn))
    assert list(found) == ["settings", "database", "writable", "schema", "database's clock", "disk", "open files"]
    assert all(finding.ok and finding.advice is None for finding in found.values()), found


def test_checks_change_one_row(database: Database) -> None:
    """A check writes only the row with which servers test that the database accepts writes."""
    run_checks(on(database.dsn))
    run_checks(on(database.dsn))
    tables = [name for (name,) in database.query("SELECT relname FROM pg_stat_user_tables")]
    counts = {name: database.value(f"SELECT count(*) FROM {name}") for name in tables}
    assert counts["readiness"] == 1
    one_row = {"readiness", "dashboard_key", "erasure_key", "nonce_window", "insight_progress"}
    migrations = {name for name in tables if "yoyo" in name}
    assert {name for name, count in counts.items() if count} <= one_row | migrations


def test_database_without_schema(database_server: DatabaseServer) -> None:
    """An empty database needs a migration."""
    with database_server.empty() as database:
        found = problems(on(database.dsn))
    assert set(found) == {"writable", "schema"}
    assert all("tkserver migrate" in (finding.advice or "") for finding in found.values())


def test_newer_schema(database: Database) -> None:
    """A database that a newer version has migrated needs that version."""
    database.query("INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_later')")
    (finding,) = problems(on(database.dsn)).values()
    assert (finding.check, finding.found) == ("schema", "newer than this version of tkserver: 9999_later")
    assert finding.advice is not None


def test_read_only_database(database: Database) -> None:
    """A database that accepts no writes is a problem."""
    (finding,) = problems(on(database.dsn + READ_ONLY)).values()
    assert (finding.check, "25006" in finding.found) == ("writable", True)


def test_unreachable_database() -> None:
    """If the database cannot be reached, the other checks still run, and the password is not shown."""
    found = findings(on(UNREACHABLE))
    assert list(found) == ["settings", "database", "disk", "open files"]
    assert found["database"].found.startswith("cannot be reached: ")
    assert "TK__DATABASE__URL" in (found["database"].advice or "")
    assert "secret-word" not in str(found)


def test_clock_difference(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that differ too much are a problem."""
    monkeypatch.setattr(checks, "MAX_CLOCK_DIFFERENCE", -1.0)
    (finding,) = problems(on(database.dsn)).values()
    assert (finding.check, "NTP" in (finding.advice or "")) == ("database's clock", True)


@pytest.mark.processes
def test_disk_of_the_embedded_database(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the embedded database must have free space."""
    settings = load({"TK__DATABASE__DATA_DIR": str(directory / "data")})
    assert findings(settings)["disk"].ok
    monkeypatch.setattr(checks, "MIN_FREE_DISK", 1 << 80)
    finding = findings(settings)["disk"]
    assert f"GiB free at {directory / 'data'}" in finding.found
    assert not finding.ok


@contextmanager
def hard_limit(open_files: int) -> Iterator[None]:
    """Pretend that the process has this hard limit of open files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (open_files, open_files))
        yield


def test_open_files(database: Database) -> None:
    """The hard limit of open files must allow the configured number of connections."""
    with hard_limit(100):
        finding = problems(on(database.dsn))["open files"]
    assert finding.found == "limited to 100"
    assert "TK__SERVER__MAX_CONNECTIONS" in (finding.advice or "")
    with hard_limit(resource.RLIM_INFINITY):
        assert problems(on(database.dsn)) == {}
