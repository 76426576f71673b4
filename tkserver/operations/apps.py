"""Applications: create, find and rename."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID, uuid4

from tkserver.operations.exceptions import InvalidArgument, NameTaken, UnknownObject, UnnamedApplication
from tkserver.operations.models import App, Token, parse_uuid
from tkserver.operations.tokens import create_token
from tkserver.storage.blocking import Connection, rows, transaction
from tkserver.storage.embedded import demo
from tkserver.storage.errors import DuplicateKey
from tkserver.storage.quota import Allowance

MAX_NAME_LENGTH = 100

APPS_WITH_EVENTS = """
RECURSIVE app_with_events AS (  -- goes from one application to the next in an index, and does not read all events
    (SELECT app_id, org_id FROM events ORDER BY app_id, org_id LIMIT 1)
    UNION ALL
    SELECT following.app_id, following.org_id FROM app_with_events AS a CROSS JOIN LATERAL (
        SELECT e.app_id, e.org_id FROM events AS e WHERE (e.app_id, e.org_id) > (a.app_id, a.org_id)
        ORDER BY e.app_id, e.org_id LIMIT 1
    ) AS following
)
"""
"""Text to follow ``WITH`` in a statement: defines the table ``app_with_events (app_id, org_id)``."""

_SELECT = """
WITH token_usage AS (
    SELECT app_id, org_id, max(last_used_at) AS last_used_at,
           count(*) FILTER (WHERE is_active AND (expires_at IS NULL OR expires_at > now())) AS active_tokens
    FROM api_tokens GROUP BY app_id, org_id
)
SELECT a.name, org_id::text, app_id::text, a.created_at, a.monthly_quota, a.retention_days,
       coalesce(u.active_tokens, 0), u.last_used_at, a.quota_month, a.quota_used, now()
FROM apps AS a FULL JOIN token_usage AS u USING (app_id, org_id)
"""

_INSERT = "INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, %s)"
_RENAME = f"{_INSERT} ON CONFLICT (app_id, org_id) DO UPDATE SET name = excluded.name"


def list_apps(connection: Connection) -> list[App]:
    """Return all applications that have a name or a token, by name."""
    return [_app(row) for row in rows(connection, f"{_SELECT} ORDER BY a.name NULLS LAST, app_id")]


def find_app(connection: Connection, name_or_id: str) -> App:
    """Return an application, selected by its name or id.

    :raise UnknownObject: if there is none, or if several organizations use this id.
    """
    found = rows(connection, f"{_SELECT} WHERE a.name = %s", name_or_id)
    if not found and (app_id := parse_uuid(name_or_id)) is not None:
        found = rows(connection, f"{_SELECT} WHERE app_id = %s", str(app_id))
    if not found:
        raise UnknownObject(f"there is no application {name_or_id!r}; tkserver apps list shows all applications")
    if len(found) > 1:
        raise UnknownObject(
            f"several organizations have an application with the id {name_or_id}:"
            " give yours a name with tkserver apps create NAME --org ORG --app APP, and use the name"
        )
    return _app(found[0])


def default_app(connection: Connection) -> App:
    """Return the demo application if it has an active token, otherwise the first application that has one, by name.

    :raise UnknownObject: if there are no applications.
    """
    found = list_apps(connection)
    if not found:
        raise UnknownObject("there are no applications; create one with: tkserver apps create NAME")
    active = [app for app in found if app.active_tokens] or found
    return next((app for app in active if str(app.app_id) == demo.APP_ID), active[0])


def create_app(
    connection: Connection, name: str, *, org_id: UUID | None = None, app_id: UUID | None = None, tier: str = "free"
) -> Token:
    """Create an application, or give a name to one that has only tokens, and create a token for it.

    :param org_id: of an existing organization or application; by default, a new random id. The same for ``app_id``.
    :param tier: of the token; one of :data:`~tkserver.operations.models.TIERS`.
    :return: the new token, which contains the ids.
    :raise InvalidArgument: if the name is not valid.
    :raise NameTaken: if the application already has a name, or another application has this name.
    """
    check_app_name(name)
    org_id, app_id = org_id or uuid4(), app_id or uuid4()
    with transaction(connection):
        try:
            rows(connection, _INSERT, str(org_id), str(app_id), name)
        except DuplicateKey:
            raise NameTaken(
                f"the name {name!r} or the application {app_id} exists already: choose another name,"
                " or create a token for the existing application with tkserver tokens create"
            ) from None
        return create_token(connection, org_id, app_id, tier)


def rename_app(connection: Connection, app: App, name: str) -> None:
    """Change the name of an application, or give it its first name.

    :raise InvalidArgument: if the name is not valid.
    :raise NameTaken: if another application has this name.
    """
    check_app_name(name)
    try:
        rows(connection, _RENAME, str(app.org_id), str(app.app_id), name)
    except DuplicateKey:
        raise NameTaken(f"another application has the name {name!r}: choose another name") from None


def check_app_name(name: str) -> None:
    """Check that a name can be printed in one line and typed.

    :raise InvalidArgument: if it cannot.
    """
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise InvalidArgument(
            f"a name consists of 1 to {MAX_NAME_LENGTH} printable characters, without spaces at the beginning or end"
        )


def update_setting(
    connection: Connection, app: App, column: Literal["monthly_quota", "retention_days"], value: int | None
) -> None:
    """Set a column in an application's row of ``apps``.

    :raise UnnamedApplication: if it has no name, and therefore no row.
    """
    sql = f"UPDATE apps SET {column} = %s WHERE app_id = %s AND org_id = %s RETURNING name"
    if not rows(connection, sql, value, *app.key):
        raise UnnamedApplication(
            f"the application {app.app_id} has no name; give it one with: tkserver apps rename {app.app_id} NAME"
        )


def _app(row: tuple[Any, ...]) -> App:
    name, org_id, app_id, created_at, quota, retention_days, active_tokens, last_used_at, month, used, now = row
    allowance = None if quota is None else Allowance.read(quota, month, used, now)
    ids = UUID(org_id), UUID(app_id)
    return App(name, *ids, created_at, quota, retention_days, active_tokens, last_used_at, allowance)
