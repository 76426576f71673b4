"""Tokens: create, find, rotate and revoke."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.models import App, Token, id_pattern, parse_uuid
from tkserver.storage.blocking import Connection, rows, transaction

_ACTIVE = "is_active AND (expires_at IS NULL OR expires_at > now())"

_COLUMNS = f"""
id::text, org_id::text, app_id::text, token, secret, tier::text, {_ACTIVE}, created_at, last_used_at, expires_at
"""

_INSERT = f"""
INSERT INTO api_tokens (org_id, app_id, token, secret, tier) VALUES (%s, %s, %s, %s, %s) RETURNING {_COLUMNS}
"""

_EXPIRE_OTHERS = f"""
UPDATE api_tokens SET expires_at = least(expires_at, now() + %s)
WHERE app_id = %s AND org_id = %s AND id <> %s AND {_ACTIVE}
RETURNING id
"""


@dataclass(frozen=True)
class Rotation:
    """The result of :func:`rotate_tokens`.

    :ivar token: the new token.
    :ivar expiring: the number of older tokens that are active until the overlap ends.
    """

    token: Token
    expiring: int


def list_tokens(connection: Connection, app: App | None = None) -> list[Token]:
    """Return the tokens of one application or of all applications, newest first."""
    sql = f"SELECT {_COLUMNS} FROM api_tokens"
    if app is None:
        return _query(connection, f"{sql} ORDER BY app_id, created_at DESC, id")
    return _query(connection, f"{sql} WHERE app_id = %s AND org_id = %s ORDER BY created_at DESC, id", *app.key)


def find_token(connection: Connection, token_or_id: str) -> Token:
    """Return a token, selected by the token itself or by its id, which can be short.

    :raise UnknownObject: if there is none, or if several ids begin so.
    """
    found = _query(connection, f"SELECT {_COLUMNS} FROM api_tokens WHERE token = %s", token_or_id)
    if not found and (token_id := parse_uuid(token_or_id)) is not None:
        found = _query(connection, f"SELECT {_COLUMNS} FROM api_tokens WHERE id = %s", str(token_id))
    if not found and (pattern := id_pattern(token_or_id)) is not None:
        found = _query(connection, f"SELECT {_COLUMNS} FROM api_tokens WHERE id::text LIKE %s", pattern)
    if not found:
        raise UnknownObject("there is no such token; tkserver tokens list shows all tokens")
    if len(found) > 1:
        raise UnknownObject(f"several tokens have an id that begins with {token_or_id}: use more of it")
    return found[0]


def newest_active_token(connection: Connection, app: App) -> Token:
    """Return the active token of an application that was created last.

    :raise UnknownObject: if it has no active token.
    """
    for token in list_tokens(connection, app):
        if token.is_active:
            return token
    raise UnknownObject(f"{app.label} has no active token; create one with: tkserver tokens create {app.label}")


def create_token(connection: Connection, org_id: UUID, app_id: UUID, tier: str) -> Token:
    """Create a token that contains the id of the organization, and a secret of 256 bits.

    :param tier: one of :data:`~tkserver.operations.models.TIERS`.
    """
    token, secret = f"tk_{org_id.hex}_{secrets.token_hex(16)}", secrets.token_hex(32)
    return _query(connection, _INSERT, str(org_id), str(app_id), token, secret, tier)[0]


def rotate_tokens(connection: Connection, app: App, overlap: timedelta) -> Rotation:
    """Create a token, and let all other active tokens of the application expire.

    The new token has the tier of the newest active token.

    :param overlap: the time for which the other tokens remain active, unless they expire earlier.
    """
    with transaction(connection):
        lock_tokens(connection, app)
        active = [token for token in list_tokens(connection, app) if token.is_active]
        tier = active[0].tier if active else "free"
        token = create_token(connection, app.org_id, app.app_id, tier)
        expiring = rows(connection, _EXPIRE_OTHERS, overlap, *app.key, str(token.id))
        return Rotation(token, len(expiring))


def lock_tokens(connection: Connection, app: App) -> None:
    """Wait until no other transaction rotates the tokens of an application, and prevent it until this one ends.

    Without the lock, two concurrent rotations would not see each other's new token, and neither token would expire.
    """
    rows(connection, "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", f"tokens of {app.org_id}/{app.app_id}")


def revoke_token(connection: Connection, token: Token) -> None:
    """Deactivate a token."""
    rows(connection, "UPDATE api_tokens SET is_active = false WHERE id = %s", str(token.id))


def _query(connection: Connection, sql: str, *parameters: object) -> list[Token]:
    return [
        Token(UUID(token_id), UUID(org_id), UUID(app_id), *columns)
        for token_id, org_id, app_id, *columns in rows(connection, sql, *parameters)
    ]
