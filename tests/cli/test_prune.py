"""``tkserver prune`` and ``apps set-retention``: old events are deleted, and no others."""

from __future__ import annotations

import os
import pty
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import App
from tests.support.command import PROGRAM, InProcessCommand
from tests.support.database import Database
from tests.support.process import environment
from tests.support.stored import ages, store


@pytest.fixture
def apps(database: Database, tkserver: InProcessCommand) -> tuple[App, App, App]:
    """An application that stores events for 90 days, one without a retention, and one without a name."""
    created = (App(), App(), App().install(database))
    for name, app in zip(("first", "second"), created, strict=False):
        tkserver("apps", "create", name, "--org", app.org_id, "--app", app.app_id)
    tkserver("apps", "set-retention", "first", "90")
    for app in created:
        for days in (0, 29, 31, 89, 91):
            store(database, app, 3, days=days)
    return created


def prune(tkserver: InProcessCommand, *arguments: str, **settings: str) -> Any:
    """Prune, and return the records, which are the only output."""
    completed = tkserver("prune", *arguments, "--json", code=0, **settings)
    assert completed.errors == ""
    return completed.json


def by_app(records: list[dict[str, object]], key: str = "deleted") -> dict[object, object]:
    """Return the values of one column by the ids of the applications."""
    return {record["app_id"]: record[key] for record in records}


def test_retention_of_the_app_has_priority(
    database: Database, tkserver: InProcessCommand, apps: tuple[App, App, App]
) -> None:
    """The setting applies to applications without a retention; if neither is set, events are stored forever."""
    first, second, unnamed = apps
    all_events = dict.fromkeys((0, 29, 31, 89, 91), 3)
    assert by_app(prune(tkserver)) == {first.app_id: 3}
    assert ages(database, first) == dict.fromkeys((0, 29, 31, 89), 3)
    assert ages(database, second) == ages(database, unnamed) == all_events
    records = prune(tkserver, TK__RETENTION__DAYS="30")
    assert by_app(records) == {first.app_id: 0, second.app_id: 9, unnamed.app_id: 9}
    assert ages(database, first) == dict.fromkeys((0, 29, 31, 89), 3)
    assert ages(database, second) == ages(database, unnamed) == dict.fromkeys((0, 29), 3)
    tkserver("apps", "set-retention", "first", "--default")
    assert by_app(prune(tkserver, TK__RETENTION__DAYS="30"))[first.app_id] == 6


def test_dry_run_deletes_nothing(database: Database, tkserver: InProcessCommand, apps: tuple[App, App, App]) -> None:
    """A dry run prints exactly the numbers that are deleted afterwards."""
    first, second, unnamed = apps
    expected = {first.app_id: 3, second.app_id: 9, unnamed.app_id: 9}
    settings = {"TK__RETENTION__DAYS": "30"}
    assert by_app(prune(tkserver, "--dry-run", **settings), "to_delete") == expected
    assert database.value("SELECT count(*) FROM events") == 45
    assert by_app(prune(tkserver, **settings)) == expected


def test_age_is_measured_by_the_clock_of_the_server(database: Database, tkserver: InProcessCommand) -> None:
    """The time of an event, which clients send, has no influence on its deletion."""
    app = App().install(database)
    store(database, app, 2, days=0, happened="1999-01-01")
    store(database, app, 2, days=8, happened="2999-01-01")
    assert by_app(prune(tkserver, TK__RETENTION__DAYS="7")) == {app.app_id: 2}
    assert ages(database, app) == {0: 2}


def test_app_id_of_two_organizations(database: Database, tkserver: InProcessCommand) -> None:
    """Applications of different organizations with the same id have separate retentions."""
    first = App()
    second = replace(first, org_id=App().org_id)
    for app in (first, second):
        store(database, app, 2, days=8)
    tkserver("apps", "create", "first", "--org", first.org_id, "--app", first.app_id)
    tkserver("apps", "set-retention", "first", "7")
    prune(tkserver)
    assert ages(database, first) == {}
    assert ages(database, second) == {8: 2}


def test_many_events(database: Database, tkserver: InProcessCommand) -> None:
    """Many transactions delete all old events, also those that were received at the same time."""
    app = App().install(database)
    store(database, app, 20_000, days=8)
    store(database, app, 5, days=6)
    assert by_app(prune(tkserver, TK__RETENTION__DAYS="7")) == {app.app_id: 20_000}
    assert ages(database, app) == {6: 5}


def test_progress_bar(database: Database, directory: Path) -> None:
    """On a terminal, a bar shows the progress."""
    app = App().install(database)
    store(database, app, 2000, days=8)
    terminal, command_side = pty.openpty()
    settings = {"TK__DATABASE__URL": database.dsn, "TK__RETENTION__DAYS": "7", "TERM": "xterm"}
    completed = subprocess.run(
        [str(PROGRAM), "prune"], cwd=directory, env={**environment(), **settings}, stderr=command_side, check=True
    )
    os.close(command_side)
    shown = os.read(terminal, 1 << 20).decode()
    os.close(terminal)
    assert completed.returncode == 0
    assert "2000/2000" in shown
