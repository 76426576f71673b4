"""Tokens are created, found, rotated and revoked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from uuid import UUID

import pytest

from tests.support.database import Database
from tests.support.waiting import wait_for
from tkserver.operations.apps import create_app, find_app
from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.models import App
from tkserver.operations.tokens import (
    create_token,
    find_token,
    list_tokens,
    lock_tokens,
    newest_active_token,
    revoke_token,
    rotate_tokens,
)
from tkserver.storage.blocking import BlockingConnections, Connection, transaction

DAY = timedelta(days=1)


@pytest.fixture
def app(connection: Connection) -> App:
    create_app(connection, "shop", tier="business")
    return find_app(connection, "shop")


def test_another_token(connection: Connection, app: App) -> None:
    """Another token does not change existing ones; tokens are listed newest first."""
    (first,) = list_tokens(connection, app)
    second = create_token(connection, app.org_id, app.app_id, "pro")
    assert list_tokens(connection, app) == [second, first]
    other = create_app(connection, "other")
    assert list_tokens(connection, app) == [second, first]
    assert {token.id for token in list_tokens(connection)} == {first.id, second.id, other.id}


def test_token_is_found_by_itself_and_by_id(connection: Connection, app: App) -> None:
    """A token is selected by the token itself or by its id."""
    (token,) = list_tokens(connection, app)
    assert find_token(connection, token.token) == find_token(connection, str(token.id)) == token


@pytest.mark.parametrize("text", ["nothing", str(UUID(int=1))])
def test_unknown_token(connection: Connection, text: str) -> None:
    """A token that does not exist is an error, which says how to list tokens."""
    with pytest.raises(UnknownObject, match="tkserver tokens list"):
        find_token(connection, text)


def test_representation_contains_no_secrets(connection: Connection, app: App) -> None:
    """Tokens and secrets do not appear in logs or tracebacks by accident."""
    (token,) = list_tokens(connection, app)
    assert token.token not in repr(token)
    assert token.secret not in repr(token)


def test_newest_active_token(connection: Connection, app: App) -> None:
    """The newest active token is used; an application without one is an error, which says how to create one."""
    (first,) = list_tokens(connection, app)
    second = create_token(connection, app.org_id, app.app_id, "free")
    assert newest_active_token(connection, app) == second
    revoke_token(connection, second)
    assert newest_active_token(connection, app) == first
    revoke_token(connection, first)
    with pytest.raises(UnknownObject, match="tkserver tokens create shop"):
        newest_active_token(connection, app)


def test_revoked_token_is_inactive(connection: Connection, app: App) -> None:
    """A revoked token remains in the list, but is not active."""
    (token,) = list_tokens(connection, app)
    revoke_token(connection, token)
    assert not find_token(connection, token.token).is_active
    assert find_app(connection, "shop").active_tokens == 0


def test_rotation(connection: Connection, app: App) -> None:
    """The new token has the tier of the newest active one; all others expire after the overlap."""
    pro = create_token(connection, app.org_id, app.app_id, "pro")
    revoke_token(connection, create_token(connection, app.org_id, app.app_id, "free"))
    unrelated = create_app(connection, "unrelated")
    rotation = rotate_tokens(connection, app, DAY)
    assert (rotation.token.tier, rotation.token.expires_at, rotation.expiring) == ("pro", None, 2)
    expiring = find_token(connection, pro.token)
    assert expiring.is_active
    assert expiring.expires_at is not None
    assert abs(expiring.expires_at - rotation.token.created_at - DAY) < timedelta(seconds=10)
    assert find_token(connection, unrelated.token).expires_at is None


def test_rotation_does_not_prolong(connection: Connection, app: App) -> None:
    """A token that expires before the overlap ends is not prolonged, and without overlap it expires immediately."""
    (first,) = list_tokens(connection, app)
    rotate_tokens(connection, app, DAY)
    expires_at = find_token(connection, first.token).expires_at
    assert rotate_tokens(connection, app, 7 * DAY).expiring == 2
    assert find_token(connection, first.token).expires_at == expires_at
    newest = rotate_tokens(connection, app, timedelta(0)).token
    assert [token.id for token in list_tokens(connection, app) if token.is_active] == [newest.id]


def test_rotation_without_active_token(connection: Connection, app: App) -> None:
    """If no token is active, the new token has the tier free."""
    revoke_token(connection, newest_active_token(connection, app))
    rotation = rotate_tokens(connection, app, DAY)
    assert (rotation.token.tier, rotation.expiring) == ("free", 0)


def test_concurrent_rotations(connection: Connection, database: Database, app: App) -> None:
    """A rotation waits for another one, and lets its new token expire."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    second_connection = BlockingConnections().connect(database.dsn)
    with closing(second_connection), ThreadPoolExecutor() as threads:
        with transaction(connection):
            lock_tokens(connection, app)
            first = create_token(connection, app.org_id, app.app_id, "free")
            second = threads.submit(rotate_tokens, second_connection, app, DAY)
            wait_for(lambda: second.done() or database.query(waiting))
        new = second.result().token
    assert find_token(connection, first.token).expires_at is not None
    assert [token.id for token in list_tokens(connection, app) if token.expires_at is None] == [new.id]
