"""An application is deleted with all its data, and nothing of others."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tests.support.stored import store
from tkserver.operations import erasure
from tkserver.operations.app_deletion import count_events, delete_app
from tkserver.operations.apps import create_app, find_app, list_apps, rename_app
from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.models import App
from tkserver.operations.tokens import create_token
from tkserver.storage.blocking import Connection
from tkserver.storage.changes import PROPAGATION_TIME

OTHER_TABLES = """
CREATE TABLE "later Table" (n INT, org_id UUID NOT NULL, app_id UUID NOT NULL);
CREATE TABLE later_apps (app INT PRIMARY KEY, org_id UUID NOT NULL, app_id UUID NOT NULL);
CREATE TABLE later_details (detail INT, app INT NOT NULL REFERENCES later_apps);
"""
"""Tables that a newer version could have: with the ids of the application, and with a reference to such a table."""


def store_everything(connection: Connection, database: Database, name: str, number: int, app: ClientApp) -> App:
    """Create an application with rows in every table, and return it."""
    app.install(database)
    unnamed = next(found for found in list_apps(connection) if found.key == (app.app_id, app.org_id))
    rename_app(connection, unnamed, name)
    found = find_app(connection, name)
    create_token(connection, found.org_id, found.app_id, "free")
    store(database, app, number, days=0)
    store(database, app, number, days=500, user="client_b", happened="2999-01-01")
    erasure.record(connection, "client_c", found)
    database.query("INSERT INTO nonces (app_id, org_id, nonce) VALUES (%s, %s, 'n')", *found.key)
    many = 'INSERT INTO "later Table" SELECT n, %s, %s FROM generate_series(1, 1200) AS n'
    database.query(many, app.org_id, app.app_id)
    database.query("INSERT INTO later_apps VALUES (%s, %s, %s)", number, app.org_id, app.app_id)
    database.query("INSERT INTO later_details SELECT n, %s FROM generate_series(1, 700) AS n", number)
    return found


COUNTED = ("events", "api_tokens", "apps", "erasures", "nonces", '"later Table"', "later_apps")


def numbers(database: Database, app: App) -> dict[str, int]:
    """Return the number of rows of an application in each table."""
    condition = "app_id = %s AND org_id = %s"
    found = {table: database.value(f"SELECT count(*) FROM {table} WHERE {condition}", *app.key) for table in COUNTED}
    joined = f"SELECT count(*) FROM later_details JOIN later_apps USING (app) WHERE {condition}"
    return {**found, "later_details": database.value(joined, *app.key)}


def delete_quickly(connection: Connection, app: App) -> dict[str, int]:
    """Delete an application without pauses."""
    return delete_app(connection, app, time.monotonic, lambda _: None)


def test_everything_is_deleted_and_nothing_of_others(connection: Connection, database: Database) -> None:
    """All tables are emptied of the application, also those of newer versions; another organization is not affected."""
    database.query(OTHER_TABLES)
    first = ClientApp()
    app = store_everything(connection, database, "first", 3000, first)
    same_id = store_everything(connection, database, "second", 20, replace(ClientApp(), app_id=first.app_id))
    same_org = store_everything(connection, database, "third", 10, replace(ClientApp(), org_id=first.org_id))
    erasure.record(connection, "client_c", None)
    before, others = numbers(database, app), [numbers(database, other) for other in (same_id, same_org)]
    assert before["events"] == count_events(connection, app) == 6000
    assert delete_quickly(connection, app) == before
    assert set(numbers(database, app).values()) == {0}
    assert [numbers(database, other) for other in (same_id, same_org)] == others
    assert database.value("SELECT count(*) FROM later_details") == 1400
    assert database.value("SELECT count(*) FROM erasures WHERE app_id IS NULL") == 1
    with pytest.raises(UnknownObject):
        find_app(connection, "first")


def test_tokens_are_revoked_before_events_are_deleted(connection: Connection, database: Database) -> None:
    """All servers know that the tokens are revoked before the first event is deleted; progress adds up."""
    app = ClientApp().install(database)
    store(database, app, 1500)
    slept: list[float] = []
    progress: list[int] = []

    def sleep(seconds: float) -> None:
        if not slept:
            assert database.value("SELECT count(*) FROM api_tokens WHERE is_active") == 0
            assert database.value("SELECT count(*) FROM events") == 1500
        slept.append(seconds)

    delete_app(connection, find_app(connection, app.app_id), time.monotonic, sleep, progress.append)
    assert slept[0] == PROPAGATION_TIME
    assert sum(progress) == 1500


def test_events_that_are_stored_meanwhile_are_deleted(connection: Connection, database: Database) -> None:
    """Events that a server stores while others are deleted are deleted too."""
    app = ClientApp().install(database)
    store(database, app, 10)
    arriving = iter(range(3))

    def progress(_: int) -> None:
        for _ in arriving:
            store(database, app, 5)
            return

    deleted = delete_app(connection, find_app(connection, app.app_id), time.monotonic, lambda _: None, progress)
    assert deleted == {"events": 25, "api_tokens": 1}
    assert database.value("SELECT count(*) FROM events") == 0


def test_interrupted_deletion_can_be_repeated(connection: Connection, database: Database) -> None:
    """If the deletion is interrupted, the application can still be found, and is deleted by another attempt."""
    create_app(connection, "shop")
    app = find_app(connection, "shop")
    store(database, ClientApp(str(app.org_id), str(app.app_id)), 3000)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delete_app(connection, app, time.monotonic, lambda _: None, interrupt)
    again = find_app(connection, "shop")
    assert again.active_tokens == 0
    assert 0 < delete_quickly(connection, again)["events"] < 3000
    assert list_apps(connection) == []
