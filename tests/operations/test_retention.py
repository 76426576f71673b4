"""Old events are counted and deleted."""

from __future__ import annotations

import time
from uuid import UUID

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tests.support.stored import ages, store
from tkserver.operations import retention
from tkserver.operations.apps import create_app, find_app
from tkserver.operations.exceptions import UnnamedApplication
from tkserver.operations.retention import RetentionLimit, preview, prune, set_retention
from tkserver.storage.blocking import Connection


def by_app(numbers: dict[RetentionLimit, int]) -> dict[str, int]:
    """Return the numbers of events by the ids of their applications."""
    return {str(limit.app_id): number for limit, number in numbers.items()}


def prune_quickly(connection: Connection, default_days: int | None) -> dict[str, int]:
    """Prune without pauses."""
    return by_app(prune(connection, default_days, time.monotonic, lambda _: None))


@pytest.fixture
def named(connection: Connection, database: Database) -> ClientApp:
    """The application ``shop``, which stores events for 90 days and has events of several ages."""
    app = ClientApp()
    create_app(connection, "shop", org=app.org_id, app_id=UUID(app.app_id))
    set_retention(connection, find_app(connection, "shop"), 90)
    for days in (0, 31, 91):
        store(database, app, 3, days=days)
    return app


@pytest.fixture
def unnamed(database: Database) -> ClientApp:
    """An application without a name that has events of several ages."""
    app = ClientApp().install(database)
    for days in (0, 31, 91):
        store(database, app, 3, days=days)
    return app


def test_limit_of_the_app_has_priority(
    connection: Connection, database: Database, named: ClientApp, unnamed: ClientApp
) -> None:
    """The default applies only to applications without a limit of their own."""
    assert prune_quickly(connection, None) == {named.app_id: 3}
    assert prune_quickly(connection, 30) == {named.app_id: 0, unnamed.app_id: 6}
    assert ages(database, named) == {0: 3, 31: 3}
    assert ages(database, unnamed) == {0: 3}


def test_removed_limit(connection: Connection, database: Database, named: ClientApp) -> None:
    """Without a limit of its own, the default applies to an application again."""
    set_retention(connection, find_app(connection, "shop"), None)
    assert find_app(connection, "shop").retention_days is None
    assert prune_quickly(connection, None) == {}
    assert prune_quickly(connection, 30) == {named.app_id: 6}
    assert ages(database, named) == {0: 3}


def test_preview_deletes_nothing(
    connection: Connection, database: Database, named: ClientApp, unnamed: ClientApp
) -> None:
    """The preview returns the numbers that are then deleted, with the limits of the applications."""
    expected = {named.app_id: 3, unnamed.app_id: 6}
    assert by_app(preview(connection, 30)) == expected
    assert database.value("SELECT count(*) FROM events") == 18
    assert [(limit.name, limit.days) for limit in preview(connection, 30)] == [("shop", 90), (None, 30)]
    assert prune_quickly(connection, 30) == expected


def test_progress_and_pauses(connection: Connection, database: Database) -> None:
    """Many transactions delete everything; each reports how much it deleted, and pauses separate them."""
    app = ClientApp().install(database)
    store(database, app, 2000, days=8)
    store(database, app, 5, days=6)
    deleted: list[int] = []
    pauses: list[float] = []
    assert by_app(prune(connection, 7, time.monotonic, pauses.append, deleted.append)) == {app.app_id: 2000}
    assert sum(deleted) == 2000
    assert len(deleted) == len(pauses) > 1
    assert all(pause > 0 for pause in pauses[1:])
    assert ages(database, app) == {6: 5}


def test_unnamed_app_cannot_have_a_limit(connection: Connection, unnamed: ClientApp) -> None:
    """The error says how to give the application a name."""
    with pytest.raises(UnnamedApplication, match=f"tkserver apps rename {unnamed.app_id} NAME"):
        set_retention(connection, find_app(connection, unnamed.app_id), 10)


def test_statements_use_the_index(database: Database) -> None:
    """Neither the search for old events nor the search for applications reads all events."""
    app = ClientApp().install(database)
    for days in range(40):
        store(database, app, 500, days=days)
    database.query("VACUUM ANALYZE events")
    old = app.app_id, app.org_id, "-infinity", "1999-01-01", "1999-01-01"
    for sql, parameters in (
        (retention._LIMITS, (30, 30)),
        (retention._DELETE, (*old, retention.MAX_ID, 500)),
        (retention._COUNT, old),
    ):
        plan = "\n".join(line for (line,) in database.query(f"EXPLAIN {sql}", *parameters))
        assert "events_app_hour_idx" in plan, plan
        assert "Seq Scan on events" not in plan, plan
