"""``tkserver prune`` and ``apps set-retention``: what is too old goes, and nothing else."""

from __future__ import annotations

import os
import pty
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.client import App
from tests.support.command import PROGRAM
from tests.support.database import Database
from tests.support.process import environment
from tests.support.run_command import run, run_json
from tests.support.stored import ages, store


@pytest.fixture
def apps(database: Database, directory: Path) -> tuple[App, App, App]:
    """Two with names, the first of which keeps its events for 90 days, and one without a name."""
    made = (App(), App(), App().install(database))
    for name, app in zip(("first", "second"), made, strict=False):
        run_json(database, directory, "apps", "create", name, "--org", app.org_id, "--app", app.app_id)
    assert run(database, directory, "apps", "set-retention", "first", "90").code == 0
    for app in made:
        for days in (0, 29, 31, 89, 91):
            store(database, app, 3, days=days)
    return made


def deleted(records: list[dict[str, object]], key: str = "deleted") -> dict[object, object]:
    return {record["app_id"]: record[key] for record in records}


def test_an_app_s_own_number_wins(database: Database, directory: Path, apps: tuple[App, App, App]) -> None:
    """Where an application has a number that holds; else the setting; and without either all is kept."""
    first, second, unnamed = apps
    everything = dict.fromkeys((0, 29, 31, 89, 91), 3)
    assert deleted(run_json(database, directory, "prune")) == {first.app_id: 3}
    assert ages(database, first) == dict.fromkeys((0, 29, 31, 89), 3)
    assert ages(database, second) == ages(database, unnamed) == everything
    records = run_json(database, directory, "prune", TK__RETENTION__DAYS="30")
    assert deleted(records) == {first.app_id: 0, second.app_id: 9, unnamed.app_id: 9}
    assert ages(database, first) == dict.fromkeys((0, 29, 31, 89), 3)
    assert ages(database, second) == ages(database, unnamed) == dict.fromkeys((0, 29), 3)
    assert run(database, directory, "apps", "set-retention", "first", "--default").code == 0
    assert deleted(run_json(database, directory, "prune", TK__RETENTION__DAYS="30"))[first.app_id] == 6


def test_dry_run(database: Database, directory: Path, apps: tuple[App, App, App]) -> None:
    """It says exactly what would then be deleted, and deletes nothing."""
    first, second, unnamed = apps
    expected = {first.app_id: 3, second.app_id: 9, unnamed.app_id: 9}
    settings = {"TK__RETENTION__DAYS": "30"}
    assert deleted(run_json(database, directory, "prune", "--dry-run", **settings), "to_delete") == expected
    assert database.value("SELECT count(*) FROM events") == 45
    assert deleted(run_json(database, directory, "prune", **settings)) == expected


def test_the_server_s_clock_decides(database: Database, directory: Path) -> None:
    """What a client says of when an event happened neither shortens nor prolongs its stay."""
    app = App().install(database)
    store(database, app, 2, days=0, happened="1999-01-01")
    store(database, app, 2, days=8, happened="2999-01-01")
    assert deleted(run_json(database, directory, "prune", TK__RETENTION__DAYS="7")) == {app.app_id: 2}
    assert ages(database, app) == {0: 2}


def test_one_app_id_of_two_organisations(database: Database, directory: Path) -> None:
    """Each has its own number."""
    one = App()
    other = replace(one, org_id=App().org_id)
    for app in (one, other):
        store(database, app, 2, days=8)
    run_json(database, directory, "apps", "create", "one", "--org", one.org_id, "--app", one.app_id)
    assert run(database, directory, "apps", "set-retention", "one", "7").code == 0
    run_json(database, directory, "prune")
    assert ages(database, one) == {}
    assert ages(database, other) == {8: 2}


def test_many(database: Database, directory: Path) -> None:
    """Many transactions delete as one would; those that have the same time are not forgotten between them."""
    app = App().install(database)
    store(database, app, 20_000, days=8)
    store(database, app, 5, days=6)
    assert deleted(run_json(database, directory, "prune", TK__RETENTION__DAYS="7")) == {app.app_id: 20_000}
    assert ages(database, app) == {6: 5}


@pytest.mark.parametrize("arguments", [(), ("90", "--default"), ("0",), ("36501",), ("soon",)])
def test_wrong_usage(database: Database, directory: Path, arguments: tuple[str, ...]) -> None:
    assert run(database, directory, "apps", "set-retention", "any", *arguments).code == 2


def test_progress(database: Database, directory: Path) -> None:
    """On a terminal a bar moves."""
    app = App().install(database)
    store(database, app, 2000, days=8)
    ours, theirs = pty.openpty()
    settings = {"TK__DATABASE__URL": database.dsn, "TK__RETENTION__DAYS": "7", "TERM": "xterm"}
    done = subprocess.run(
        [str(PROGRAM), "prune"], cwd=directory, env={**environment(), **settings}, stderr=theirs, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "2000/2000" in shown


def test_by_index(database: Database) -> None:
    """Neither what is too old nor which applications there are is found by reading all events."""
    from tkserver.storage import retention

    app = App().install(database)
    for days in range(40):
        store(database, app, 500, days=days)
    database.query("VACUUM ANALYZE events")
    for sql, parameters in (
        (retention._LIMITS, (30, 30)),
        (retention._DELETE, (app.app_id, app.org_id, "-infinity", "1999-01-01", 500)),
        (retention._COUNT, (app.app_id, app.org_id, "1999-01-01")),
    ):
        plan = "\n".join(line for (line,) in database.query(f"EXPLAIN {sql}", *parameters))
        assert "events_retention_idx" in plan, plan
        assert "Seq Scan on events" not in plan, plan
