"""Applications: create, find and rename."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID, uuid4

from tkserver.operations.exceptions import NameTaken, UnknownObject, UnnamedApplication
from tkserver.operations.models import STAGING_DAYS, STAGING_QUOTA, App, Token, id_pattern, parse_uuid
from tkserver.operations.names import check_name, check_slug, default_slug
from tkserver.operations.orgs import find_or_create_org
from tkserver.operations.tokens import create_token
from tkserver.storage.blocking import Connection, rows, transaction, value
from tkserver.storage.embedded import demo
from tkserver.storage.errors import DuplicateKey
from tkserver.storage.quota import Allowance

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
SELECT a.name, a.slug, o.name, org_id::text, app_id::text, a.created_at, a.monthly_quota, a.retention_days,
       coalesce(u.active_tokens, 0), u.last_used_at, a.quota_month, a.quota_used, now(),
       coalesce(a.staging, false)
FROM (apps AS a FULL JOIN token_usage AS u USING (app_id, org_id)) LEFT JOIN orgs AS o USING (org_id)
"""

# An application without a name and without tokens still has events, for example if its tokens were deleted by hand.
_SELECT_ALL = _SELECT.replace("WITH ", f"WITH {APPS_WITH_EVENTS}, ", 1).replace(
    "USING (app_id, org_id))", "USING (app_id, org_id) FULL JOIN app_with_events USING (app_id, org_id))"
)

_HAS_NAME = """
%s IN (a.name, a.slug) OR %s IN (
    SELECT org || '/' || app FROM unnest(ARRAY[o.name, o.slug, org_id::text]) AS org,
                                  unnest(ARRAY[a.name, a.slug, app_id::text]) AS app
)
"""

_INSERT = "INSERT INTO apps (org_id, app_id, name, slug) VALUES (%s, %s, %s, %s)"
_LIMIT = "UPDATE apps SET staging = true, monthly_quota = %s, retention_days = %s WHERE app_id = %s AND org_id = %s"
_RENAME = f"{_INSERT} ON CONFLICT (app_id, org_id) DO UPDATE SET name = excluded.name"


def list_apps(connection: Connection) -> list[App]:
    """Return all applications that have a name or a token, by name."""
    return [_app(row) for row in rows(connection, f"{_SELECT} ORDER BY a.name NULLS LAST, app_id")]


def find_app(connection: Connection, name_or_id: str) -> App:
    """Return an application, selected by its id, name or slug, or by these after that of the organization and a slash.

    Its id can be short if no other one begins with it. Applications that have only events are found by their ids.

    :raise UnknownObject: if there is none, or if there are several.
    """
    found: list[tuple[Any, ...]] = []
    if (app_id := parse_uuid(name_or_id)) is not None:
        found = rows(connection, f"{_SELECT} WHERE app_id = %s", str(app_id))
    if not found:
        found = rows(connection, f"{_SELECT} WHERE {_HAS_NAME}", name_or_id, name_or_id)
    if not found and (pattern := id_pattern(str(app_id or name_or_id))) is not None:
        found = rows(connection, f"{_SELECT_ALL} WHERE app_id::text LIKE %s", pattern)
    if not found:
        raise UnknownObject(f"there is no application {name_or_id!r}; tkserver apps list shows all applications")
    if len(found) > 1:
        choices = ", ".join(sorted(f"{app.org_id}/{app.app_id} ({app.label})" for app in map(_app, found)))
        raise UnknownObject(f"several applications are called {name_or_id!r}; specify one of: {choices}")
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
    connection: Connection,
    name: str,
    *,
    slug: str | None = None,
    org: str | None = None,
    app_id: UUID | None = None,
    tier: str = "free",
    staging: bool = False,
) -> Token:
    """Create an application, or give a name to one that has only tokens, and create a token for it.

    :param slug: by default, the name, if it can be a slug.
    :param org: id, name or slug of an organization, which is created if it does not exist; by default, a new random id.
    :param app_id: of an existing application; by default, a new random id.
    :param tier: of the token; one of :data:`~tkserver.operations.models.TIERS`.
    :param staging: its events are only for tests, and limited, until it is promoted.
    :return: the new token, which contains the ids.
    :raise InvalidArgument: if a name or the slug is not valid.
    :raise NameTaken: if the application already has a name, or another one of the organization has this name or slug;
        or another one of any organization, if ``org`` is ``None``.
    """
    check_name(name)
    if slug is not None:
        check_slug(slug)
    existing = "" if app_id is None else f" or the application {app_id}"
    app_id = app_id or uuid4()
    with transaction(connection):
        if org is None:
            _check_unused(connection, name)
        org_id = uuid4() if org is None else find_or_create_org(connection, org)
        try:
            rows(connection, _INSERT, str(org_id), str(app_id), name, slug or default_slug(name))
        except DuplicateKey:
            raise NameTaken(
                f"the name or slug {slug or name!r}{existing} exists already: choose another one, or create a token for"
                " the existing application with tkserver tokens create"
            ) from None
        if staging:
            rows(connection, _LIMIT, STAGING_QUOTA, STAGING_DAYS, str(app_id), str(org_id))
        return create_token(connection, org_id, app_id, tier)


def rename_app(connection: Connection, app: App, name: str) -> None:
    """Change the name of an application, or give it its first name, which is also its slug if it fits.

    A later name does not change the slug, because programs send events to it.

    :raise InvalidArgument: if the name is not valid.
    :raise NameTaken: if another application of the organization has this name; or another one of any organization, if
        this organization has no name.
    """
    check_name(name)
    if app.org is None and name != app.name:
        _check_unused(connection, name)
    try:
        rows(connection, _RENAME, str(app.org_id), str(app.app_id), name, default_slug(name))
    except DuplicateKey:
        raise NameTaken(
            f"another application of the organization has the name or the slug {name!r}: choose another name"
        ) from None


def _check_unused(connection: Connection, name: str) -> None:
    """Check that no application has this name, because an organization without a name cannot tell them apart.

    :raise NameTaken: if one has it.
    """
    if value(connection, "SELECT true FROM apps WHERE name = %s", name):
        raise NameTaken(
            f"another application with the name {name!r} exists already: choose another name, or an organization with a"
            " name (apps create --org, orgs rename), or create a token for that application with tokens create"
        )


def set_app_slug(connection: Connection, app: App, slug: str) -> None:
    """Change the slug of an application.

    :raise InvalidArgument: if the slug is not valid.
    :raise NameTaken: if another application of the organization has this slug.
    :raise UnnamedApplication: if the application has no name.
    """
    check_slug(slug)
    try:
        update_setting(connection, app, "slug", slug)
    except DuplicateKey:
        raise NameTaken(f"another application of the organization has the slug {slug!r}: choose another slug") from None


def update_setting(
    connection: Connection,
    app: App,
    column: Literal["slug", "monthly_quota", "retention_days", "timezone"],
    value: str | int | None,
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
    (
        name,
        slug,
        org,
        org_id,
        app_id,
        created_at,
        quota,
        retention_days,
        active_tokens,
        last_used_at,
        month,
        used,
        now,
        staging,
    ) = row
    allowance = None if quota is None else Allowance.read(quota, month, used, now)
    ids = UUID(org_id), UUID(app_id)
    return App(
        name, slug, org, *ids, created_at, quota, retention_days, active_tokens, last_used_at, allowance, staging
    )
