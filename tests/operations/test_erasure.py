"""Users are erased, and erasures are undone."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tests.support.stored import events_by_user, store
from tkserver.operations import erasure
from tkserver.operations.apps import create_app, find_app
from tkserver.operations.erasure import Receipt
from tkserver.operations.exceptions import InvalidArgument, UnknownObject
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection
from tkserver.storage.changes import PROPAGATION_TIME

USER, OTHER = "client_to_be_erased", "client_to_be_kept"


def erase(connection: Connection, app: App | None = None, user_id: str = USER) -> Receipt:
    """Erase a user without waiting."""
    return erasure.erase(connection, user_id, app, time.monotonic, lambda _: None)


def test_events_of_all_apps_are_deleted(connection: Connection, database: Database) -> None:
    """All events of the user are deleted, also in applications without tokens; those of others remain."""
    apps = [ClientApp(), ClientApp().install(database)]
    for app in apps:
        store(database, app, 3, user=USER)
        store(database, app, 2, user=OTHER)
    assert erase(connection).deleted == 6
    assert [events_by_user(database, app) for app in apps] == [{OTHER: 2}] * 2


def test_events_are_deleted_when_all_servers_know(connection: Connection, database: Database) -> None:
    """Events that servers store before they know about the erasure are deleted too."""
    app = ClientApp().install(database)
    store(database, app, 1, user=USER)
    waits: list[float] = []

    def store_more(seconds: float) -> None:
        if not waits:
            assert database.value("SELECT count(*) FROM erasures") == 1
            assert events_by_user(database, app) == {USER: 1}
            store(database, app, 2, user=USER)
        waits.append(seconds)

    assert erasure.erase(connection, USER, None, time.monotonic, store_more).deleted == 3
    assert waits[0] == PROPAGATION_TIME
    assert events_by_user(database, app) == {}


def test_one_app(connection: Connection, database: Database) -> None:
    """A user can be erased from one application; one of another organization with the same id is not affected."""
    client_app = ClientApp()
    namesake = replace(ClientApp(), app_id=client_app.app_id)
    create_app(connection, "shop", org=client_app.org_id, app_id=UUID(client_app.app_id))
    for owner in (client_app, namesake):
        store(database, owner, 2, user=USER)
    app = find_app(connection, "shop")
    receipt = erase(connection, app)
    assert (receipt.app, receipt.deleted) == (app, 2)
    assert [events_by_user(database, owner) for owner in (client_app, namesake)] == [{}, {USER: 2}]
    row = database.query("SELECT org_id::text, app_id::text FROM erasures")
    assert row == [(client_app.org_id, client_app.app_id)]


def test_receipt(connection: Connection, database: Database) -> None:
    """The receipt contains the stored hash and the time in UTC, and does not contain the id."""
    receipt = erase(connection)
    assert [bytes(row[0]) for row in database.query("SELECT user_hash FROM erasures")] == [receipt.user_hash]
    assert receipt.app is None
    assert receipt.done_at.utcoffset() == timedelta(0)
    assert abs(receipt.done_at - datetime.now(timezone.utc)) < timedelta(minutes=1)
    assert USER not in repr(receipt)
    assert erase(connection, user_id=OTHER).user_hash != receipt.user_hash


def test_many_events(connection: Connection, database: Database) -> None:
    """Many events are deleted in several transactions with pauses between them."""
    store(database, ClientApp(), 2000, user=USER)
    waits: list[float] = []
    assert erasure.erase(connection, USER, None, time.monotonic, waits.append).deleted == 2000
    assert len(waits) > 2
    assert all(pause > 0 for pause in waits[2:])


def test_undo(connection: Connection, database: Database) -> None:
    """An erasure is undone where it was made: in one application, or everywhere."""
    create_app(connection, "shop")
    app = find_app(connection, "shop")
    first = erase(connection, app)
    receipt = erasure.undo(connection, USER, app)
    assert (receipt.user_hash, receipt.app, receipt.deleted) == (first.user_hash, app, 1)
    for scope in (app, None):
        erase(connection, scope)
        erase(connection, scope)
    assert database.value("SELECT count(*) FROM erasures") == 2
    assert erasure.undo(connection, USER, None).deleted == 2
    assert database.value("SELECT count(*) FROM erasures") == 0


def test_undo_of_nothing(connection: Connection) -> None:
    """Only what was erased can be undone; the error says how to undo an erasure from all applications."""
    with pytest.raises(UnknownObject, match=r"^this user is not erased$"):
        erasure.undo(connection, USER, None)
    create_app(connection, "shop")
    erase(connection)
    with pytest.raises(UnknownObject, match=r"not erased from shop alone; .* without --app"):
        erasure.undo(connection, USER, find_app(connection, "shop"))


OLD_USER_IDS = {
    "zero-width space": "client_a\u200b",
    "line break": "client_a\nb",
    "escape sequence": "client_\x1b[2J",
    "not ASCII": "anon_é\U0001f600",
    "space": "client_a b ",
    "longest": "client_" + "é" * 248,
}
"""User ids that earlier versions stored, although they are not visible ASCII."""


@pytest.mark.parametrize("name", [*OLD_USER_IDS, "visible"])
def test_every_stored_user_id_can_be_erased(connection: Connection, database: Database, name: str) -> None:
    """Every user id that this version or an earlier one could store is accepted, and only its events are deleted."""
    user_id = OLD_USER_IDS.get(name, "anon_!~'\\\"")
    app = ClientApp()
    for user in (user_id, f"{user_id[:-1]}_"):
        store(database, app, 2, user=user)
    assert erase(connection, user_id=user_id).deleted == 2
    assert events_by_user(database, app) == {f"{user_id[:-1]}_": 2}
    assert erasure.undo(connection, user_id, None).deleted == 1


@pytest.mark.parametrize(
    ("user_id", "problem"),
    [
        ("", "begins with client_ or anon_"),
        ("me@example.org", "begins with client_ or anon_"),
        ("Client_a", "begins with client_ or anon_"),
        ("\u200bclient_a", "begins with client_ or anon_"),
        ("client_" + "x" * 249, "at most 255 characters"),
        ("client_\0", r"U\+0000"),
        ("client_\udcff", "not UTF-8"),
    ],
    ids=ascii,
)
def test_user_id_that_was_never_stored(connection: Connection, database: Database, user_id: str, problem: str) -> None:
    """An id that no event can have is rejected with the reason."""
    with pytest.raises(InvalidArgument, match=problem):
        erase(connection, user_id=user_id)
    with pytest.raises(InvalidArgument, match=problem):
        erasure.undo(connection, user_id, None)
    assert database.value("SELECT count(*) FROM erasures") == 0
