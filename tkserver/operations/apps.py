"""Applications and their credentials, as an operator manages them. Blocks.

Each function takes a connection on which each statement is a transaction, and raises ``psycopg2.Error`` when the
database does not do what it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg2.errors import UniqueViolation

from tkserver.storage.blocking import Connection, rows
from tkserver.storage.quota import Allowance

TIERS = ("free", "pro", "business", "enterprise")

Random = Callable[[int], str]
"""So many random bytes in hexadecimal, from the operating system's generator: ``secrets.token_hex``."""


class NameTaken(Exception):
    """Another application has this name, or this application another one."""


class Unnamed(Exception):
    """Nothing can be set for an application that has no name."""


class Unknown(Exception):
    """There is no such application or token."""


@dataclass(frozen=True)
class App:
    """An application.

    :ivar name: ``None`` where it has none, but credentials.
    :ivar active_tokens: how many of its credentials are active.
    :ivar last_used_at: when any of them was last used, to the minute.
    :ivar allowance: what of its quota is used this month; ``None`` where it has none.
    """

    name: str | None
    org_id: UUID
    app_id: UUID
    created_at: datetime | None
    monthly_quota: int | None
    retention_days: int | None
    active_tokens: int
    last_used_at: datetime | None
    allowance: Allowance | None


@dataclass(frozen=True)
class Token:
    """A credential.

    :ivar expires_at: from when on it is not active any more, where that is known.
    """

    id: UUID
    org_id: UUID
    app_id: UUID
    token: str = field(repr=False)
    secret: str = field(repr=False)
    tier: str
    is_active: bool
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


_ACTIVE = "t.is_active AND (t.expires_at IS NULL OR t.expires_at > now())"

_APPS = f"""
WITH used AS (
    SELECT app_id, org_id, count(*) FILTER (WHERE {_ACTIVE}) AS active_tokens, max(last_used_at) AS last_used_at
    FROM api_tokens AS t GROUP BY app_id, org_id
)
SELECT a.name, org_id::text, app_id::text, a.created_at, a.monthly_quota, a.retention_days,
       coalesce(u.active_tokens, 0), u.last_used_at, a.quota_month, a.quota_used, now()
FROM apps AS a FULL JOIN used AS u USING (app_id, org_id)
"""

_CREDENTIAL = """
id::text, org_id::text, app_id::text, token, secret, tier::text,
is_active AND (expires_at IS NULL OR expires_at > now()), created_at, last_used_at, expires_at
"""


def apps(connection: Connection) -> list[App]:
    """All applications that have a name or a credential, by name."""
    return [_app(row) for row in rows(connection, f"{_APPS} ORDER BY a.name NULLS LAST, app_id")]


def app(connection: Connection, name: str) -> App:
    """The application with this name, or with this id.

    :raise Unknown: when there is none, or, for an id that several organisations use, more than one.
    """
    found = rows(connection, f"{_APPS} WHERE a.name = %s", name)
    if not found and (app_id := _uuid(name)) is not None:
        found = rows(connection, f"{_APPS} WHERE app_id = %s", str(app_id))
    if not found:
        raise Unknown(f"there is no application {name!r}: see tkserver apps list")
    if len(found) > 1:
        raise Unknown(f"several organisations have an application {name}: name it with tkserver apps create --org")
    return _app(found[0])


def create_app(connection: Connection, name: str, org_id: UUID, app_id: UUID) -> None:
    """Give an application a name.

    :raise NameTaken: when it has one already, or another one has this one.
    """
    try:
        rows(
            connection,
            "INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, %s)",
            str(org_id),
            str(app_id),
            name,
        )
    except UniqueViolation:
        raise NameTaken(f"the name {name!r} or the application {app_id} is there already") from None


def rename_app(connection: Connection, of: App, name: str) -> None:
    """Give an application another name, or its first.

    :raise NameTaken: when another one has it.
    """
    try:
        rows(
            connection,
            "INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, %s)"
            " ON CONFLICT (app_id, org_id) DO UPDATE SET name = excluded.name",
            str(of.org_id),
            str(of.app_id),
            name,
        )
    except UniqueViolation:
        raise NameTaken(f"another application has the name {name!r}") from None


def set_quota(connection: Connection, of: App, quota: int | None) -> None:
    """Let an application store so many events in a calendar month, UTC, or any number (``None``).

    What it has stored this month already counts. Where it had none before, that is looked up and may take a while.

    :raise Unnamed: when the application has no name.
    """
    _set(connection, of, "monthly_quota", quota)


def recount(connection: Connection, of: App) -> None:
    """Count also what servers that had not heard of an application's first quota have stored since it was set."""
    sql = """
        UPDATE apps SET quota_used = greatest(quota_used, tkserver_stored_this_month(org_id, app_id))
        WHERE app_id = %s AND org_id = %s AND quota_month = (date_trunc('month', now() AT TIME ZONE 'UTC'))::date
    """
    rows(connection, sql, *_ids(of))


def set_retention(connection: Connection, of: App, days: int | None) -> None:
    """Have the events of an application kept for so many days; ``None`` for what the servers' settings say.

    :raise Unnamed: when the application has no name.
    """
    _set(connection, of, "retention_days", days)


def _set(connection: Connection, of: App, column: str, value: int | None) -> None:
    sql = f"UPDATE apps SET {column} = %s WHERE app_id = %s AND org_id = %s RETURNING name"
    if not rows(connection, sql, value, *_ids(of)):
        raise Unnamed(f"the application {of.app_id} has no name yet: tkserver apps rename {of.app_id} NAME")


def tokens(connection: Connection, of: App | None) -> list[Token]:
    """The credentials of an application, or of all, the newest first."""
    sql = f"SELECT {_CREDENTIAL} FROM api_tokens"
    if of is not None:
        return _tokens(connection, f"{sql} WHERE app_id = %s AND org_id = %s ORDER BY created_at DESC, id", *_ids(of))
    return _tokens(connection, f"{sql} ORDER BY app_id, created_at DESC, id")


def token(connection: Connection, text: str) -> Token:
    """The credential with this token, or with this id.

    :raise Unknown: when there is none.
    """
    found = _tokens(connection, f"SELECT {_CREDENTIAL} FROM api_tokens WHERE token = %s", text)
    if not found and (token_id := _uuid(text)) is not None:
        found = _tokens(connection, f"SELECT {_CREDENTIAL} FROM api_tokens WHERE id = %s", str(token_id))
    if not found:
        raise Unknown("there is no such token: see tkserver tokens list")
    return found[0]


def create_token(connection: Connection, org_id: UUID, app_id: UUID, tier: str, random_hex: Random) -> Token:
    """Make a credential: a token that begins with the organisation's id, and a secret of 256 bits.

    :param tier: one of :data:`TIERS`.
    """
    sql = f"""
        INSERT INTO api_tokens (org_id, app_id, token, secret, tier) VALUES (%s, %s, %s, %s, %s)
        RETURNING {_CREDENTIAL}
    """
    text, secret = f"tk_{org_id.hex}_{random_hex(16)}", random_hex(32)
    return _tokens(connection, sql, str(org_id), str(app_id), text, secret, tier)[0]


def lock_tokens(connection: Connection, of: App) -> None:
    """Keep others from rotating an application's credentials until this transaction ends.

    Two rotations at once would not see each other's new credential, and both would stay.
    """
    rows(connection, "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", f"tokens of {of.org_id}/{of.app_id}")


def expire_others(connection: Connection, keep: Token, overlap: timedelta) -> int:
    """Have every other active credential of the same application end after a while.

    :return: how many.
    """
    sql = f"""
        UPDATE api_tokens AS t SET expires_at = least(expires_at, now() + %s)
        WHERE app_id = %s AND org_id = %s AND id <> %s AND {_ACTIVE}
        RETURNING id
    """
    return len(rows(connection, sql, overlap, str(keep.app_id), str(keep.org_id), str(keep.id)))


def revoke(connection: Connection, revoked: Token) -> None:
    """Have a credential end at once."""
    rows(connection, "UPDATE api_tokens SET is_active = false WHERE id = %s", str(revoked.id))


def _tokens(connection: Connection, sql: str, *parameters: object) -> list[Token]:
    return [
        Token(UUID(token_id), UUID(org_id), UUID(app_id), *rest)
        for token_id, org_id, app_id, *rest in rows(connection, sql, *parameters)
    ]


def _app(row: tuple[Any, ...]) -> App:
    name, org_id, app_id, created_at, quota, retention_days, active_tokens, last_used_at, month, used, now = row
    allowance = None if quota is None else Allowance.read(quota, month, used, now)
    return App(
        name, UUID(org_id), UUID(app_id), created_at, quota, retention_days, active_tokens, last_used_at, allowance
    )


def _ids(of: App) -> tuple[str, str]:
    return str(of.app_id), str(of.org_id)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
