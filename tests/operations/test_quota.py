"""Monthly quotas are set and removed."""

from __future__ import annotations

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tests.support.stored import store
from tkserver.operations.apps import create_app, find_app
from tkserver.operations.exceptions import UnnamedApplication
from tkserver.operations.quota import MAX_QUOTA, set_quota
from tkserver.storage.blocking import Connection
from tkserver.storage.changes import PROPAGATION_TIME


@pytest.fixture
def client_app(connection: Connection) -> ClientApp:
    """The application ``shop``."""
    token = create_app(connection, "shop")
    return ClientApp(str(token.org_id), str(token.app_id), token.token, token.secret)


def do_not_wait(seconds: float) -> None:
    raise AssertionError(f"waits for {seconds} s")


def test_first_quota_counts_all_events(connection: Connection, database: Database, client_app: ClientApp) -> None:
    """Events that are stored count, also those that servers store before they know about the quota."""
    store(database, client_app, 2)
    waits: list[float] = []

    def store_without_counting(seconds: float) -> None:
        waits.append(seconds)
        assert find_app(connection, "shop").monthly_quota == 10
        store(database, client_app, 3)

    set_quota(connection, find_app(connection, "shop"), 10, store_without_counting)
    assert waits == [PROPAGATION_TIME]
    app = find_app(connection, "shop")
    assert app.allowance is not None
    assert (app.monthly_quota, app.allowance.quota, app.allowance.used) == (10, 10, 5)


def test_deleted_events_remain_counted(connection: Connection, database: Database, client_app: ClientApp) -> None:
    """The second count does not lower the number of used events."""
    store(database, client_app, 2)

    def delete_events(_: float) -> None:
        database.query("DELETE FROM events")

    set_quota(connection, find_app(connection, "shop"), 10, delete_events)
    allowance = find_app(connection, "shop").allowance
    assert allowance is not None
    assert allowance.used == 2


@pytest.mark.usefixtures("client_app")
def test_changed_quota_does_not_wait(connection: Connection) -> None:
    """Servers already count if there was a quota, so that a change of the number applies immediately."""
    set_quota(connection, find_app(connection, "shop"), 10, lambda _: None)
    set_quota(connection, find_app(connection, "shop"), MAX_QUOTA, do_not_wait)
    assert find_app(connection, "shop").monthly_quota == MAX_QUOTA
    set_quota(connection, find_app(connection, "shop"), 0, do_not_wait)
    assert find_app(connection, "shop").monthly_quota == 0


@pytest.mark.usefixtures("client_app")
def test_removed_quota(connection: Connection) -> None:
    """A quota can be removed, also if there was none."""
    set_quota(connection, find_app(connection, "shop"), None, do_not_wait)
    set_quota(connection, find_app(connection, "shop"), 10, lambda _: None)
    set_quota(connection, find_app(connection, "shop"), None, do_not_wait)
    app = find_app(connection, "shop")
    assert (app.monthly_quota, app.allowance) == (None, None)


def test_unnamed_app_cannot_have_a_quota(connection: Connection, database: Database) -> None:
    """The error says how to give the application a name."""
    app = ClientApp().install(database)
    with pytest.raises(UnnamedApplication, match=f"tkserver apps rename {app.app_id} NAME"):
        set_quota(connection, find_app(connection, app.app_id), 10, do_not_wait)
