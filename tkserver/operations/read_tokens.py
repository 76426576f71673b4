"""Tokens that allow to read statistics: create, list and revoke."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.models import App, id_pattern, parse_uuid
from tkserver.storage.blocking import Connection, rows
from tkserver.storage.read_tokens import hash_read_token, new_read_token

_COLUMNS = "id::text, org_id::text, app_id::text, is_active, created_at"
_INSERT = f"INSERT INTO read_tokens (token_hash, org_id, app_id) VALUES (%s, %s, %s) RETURNING {_COLUMNS}"
_OF_APP = "app_id = %s AND org_id = %s"


@dataclass(frozen=True)
class ReadToken:
    """A row of ``read_tokens``, without the token itself, which is not stored.

    :ivar app_id: ``None`` if the token is valid for all applications. The same applies to ``org_id``.
    """

    id: UUID
    org_id: UUID | None
    app_id: UUID | None
    is_active: bool
    created_at: datetime


def create_read_token(connection: Connection, app: App | None) -> tuple[ReadToken, str]:
    """Create a token, and return it together with its row.

    :param app: the only application whose statistics it allows to read; ``None`` for all.
    """
    token = new_read_token()
    app_id, org_id = (None, None) if app is None else app.key
    (row,) = rows(connection, _INSERT, hash_read_token(token), org_id, app_id)
    return _read_token(row), token


def list_read_tokens(connection: Connection, app: App | None = None) -> list[ReadToken]:
    """Return the tokens, newest first.

    :param app: return only tokens that are for this application and no other.
    """
    condition, parameters = ("true", ()) if app is None else (_OF_APP, app.key)
    sql = f"SELECT {_COLUMNS} FROM read_tokens WHERE {condition} ORDER BY created_at DESC, id"
    return [_read_token(row) for row in rows(connection, sql, *parameters)]


def find_read_token(connection: Connection, token_or_id: str) -> ReadToken | None:
    """Return a token, selected by the token itself or by its id, which can be short; ``None`` if there is none.

    :raise UnknownObject: if several ids begin so.
    """
    found = rows(
        connection,
        f"SELECT {_COLUMNS} FROM read_tokens WHERE token_hash = %s OR id::text LIKE %s",
        hash_read_token(token_or_id),
        id_pattern(str(parse_uuid(token_or_id) or token_or_id)),
    )
    if len(found) > 1:
        raise UnknownObject(f"several tokens have an id that begins with {token_or_id}: use more of it")
    return _read_token(found[0]) if found else None


def revoke_read_token(connection: Connection, token: ReadToken) -> None:
    """Deactivate a token. Servers reject it when they have read the table again."""
    rows(connection, "UPDATE read_tokens SET is_active = false WHERE id = %s", str(token.id))


def _read_token(row: tuple[Any, ...]) -> ReadToken:
    token_id, org_id, app_id, is_active, created_at = row
    return ReadToken(UUID(token_id), org_id and UUID(org_id), app_id and UUID(app_id), is_active, created_at)
