"""Applications are created, found and renamed."""

from __future__ import annotations

import re
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tkserver.operations.apps import create_app, default_app, find_app, list_apps, rename_app
from tkserver.operations.exceptions import InvalidArgument, NameTaken, UnknownObject
from tkserver.operations.tokens import list_tokens
from tkserver.storage.blocking import BlockingConnections, Connection
from tkserver.storage.embedded import demo


def test_new_app_has_new_ids_and_a_token(connection: Connection) -> None:
    """An application gets random ids and an active token of the given tier."""
    token = create_app(connection, "shop", tier="pro")
    assert re.fullmatch(rf"tk_{token.org_id.hex}_[0-9a-f]{{32}}", token.token)
    assert re.fullmatch(r"[0-9a-f]{64}", token.secret)
    assert (token.tier, token.is_active, token.expires_at) == ("pro", True, None)
    app = find_app(connection, "shop")
    assert (app.org_id, app.app_id, app.active_tokens) == (token.org_id, token.app_id, 1)
    assert (app.monthly_quota, app.retention_days, app.last_used_at, app.allowance) == (None, None, None, None)
    other = create_app(connection, "other")
    assert token.org_id != other.org_id
    assert token.app_id != other.app_id
    assert token.secret != other.secret


def test_ids_can_be_given(connection: Connection) -> None:
    """An application can have ids that are already used elsewhere."""
    org_id, app_id = uuid4(), uuid4()
    token = create_app(connection, "shop", org=str(org_id), app_id=app_id)
    assert (token.org_id, token.app_id) == (org_id, app_id)


@pytest.mark.parametrize("name", ["", " x", "x ", "x" * 101, "a\nb"])
def test_invalid_name_is_rejected(connection: Connection, name: str) -> None:
    """A name that cannot be typed or printed in one line creates and renames nothing."""
    create_app(connection, "shop")
    with pytest.raises(InvalidArgument, match="1 to 100 printable characters"):
        create_app(connection, name)
    with pytest.raises(InvalidArgument, match="1 to 100 printable characters"):
        rename_app(connection, find_app(connection, "shop"), name)
    assert [app.name for app in list_apps(connection)] == ["shop"]


def test_taken_name_is_rejected(connection: Connection) -> None:
    """If a name is taken, nothing is created, and the connection remains usable."""
    token = create_app(connection, "shop")
    create_app(connection, "other")
    with pytest.raises(NameTaken, match="exists already"):
        create_app(connection, "shop")
    with pytest.raises(NameTaken, match="exists already"):
        create_app(connection, "again", org=str(token.org_id), app_id=token.app_id)
    with pytest.raises(NameTaken, match="another application"):
        rename_app(connection, find_app(connection, "other"), "shop")
    assert [app.name for app in list_apps(connection)] == ["other", "shop"]
    assert len(list_tokens(connection)) == 2


def test_app_is_found_by_name_and_by_id(connection: Connection) -> None:
    """An application is selected by its name or its id; both lead to the same application."""
    token = create_app(connection, "shop")
    assert find_app(connection, "shop") == find_app(connection, str(token.app_id))
    assert find_app(connection, "shop") in list_apps(connection)


@pytest.mark.parametrize("name", ["nothing", str(UUID(int=1))])
def test_unknown_app(connection: Connection, name: str) -> None:
    """An application that does not exist is an error, which says how to list applications."""
    with pytest.raises(UnknownObject, match="tkserver apps list"):
        find_app(connection, name)


def test_ambiguous_id(connection: Connection, database: Database) -> None:
    """If several organizations use an id, the application must be selected by its name."""
    first = ClientApp().install(database)
    second = replace(ClientApp(), app_id=first.app_id).install(database)
    with pytest.raises(UnknownObject, match=f"specify one of: .*{first.app_id}"):
        find_app(connection, first.app_id)
    rename_app(connection, next(app for app in list_apps(connection) if str(app.org_id) == second.org_id), "second")
    assert str(find_app(connection, "second").org_id) == second.org_id


def test_app_with_only_tokens_can_be_named(connection: Connection, database: Database) -> None:
    """An application without a name is listed last, and renaming gives it its first name."""
    unnamed = ClientApp().install(database)
    create_app(connection, "z")
    assert [app.name for app in list_apps(connection)] == ["z", None]
    found = find_app(connection, unnamed.app_id)
    assert (found.label, found.created_at) == (unnamed.app_id, None)
    rename_app(connection, found, "a")
    assert [app.label for app in list_apps(connection)] == ["a", "z"]
    assert find_app(connection, "a").created_at is not None


def test_default_app(connection: Connection, database: Database) -> None:
    """The default application is the demo application, otherwise the first by name; without any it is an error."""
    with pytest.raises(UnknownObject, match="tkserver apps create NAME"):
        default_app(connection)
    create_app(connection, "b")
    create_app(connection, "a")
    assert default_app(connection).name == "a"
    demo.install(database.dsn, BlockingConnections())
    assert str(default_app(connection).app_id) == demo.APP_ID
