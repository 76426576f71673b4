"""Organizations: find and name them."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid4

from tkserver.operations.exceptions import NameTaken, UnknownObject, UnnamedOrganization
from tkserver.operations.models import id_pattern, parse_uuid
from tkserver.operations.names import check_name, check_slug, default_slug
from tkserver.storage.blocking import Connection, rows, value
from tkserver.storage.errors import DuplicateKey


@dataclass(frozen=True)
class Org:
    """An organization.

    :ivar name: ``None`` if it has only applications.
    :ivar slug: stands for its id in the path of a request; ``None`` if it has no slug.
    :ivar apps: the number of its applications.
    """

    org_id: UUID
    name: str | None
    slug: str | None
    apps: int

    @property
    def label(self) -> str:
        """The name, or the id if it has no name."""
        return self.name or str(self.org_id)


_SELECT = """
WITH app AS (
    SELECT org_id, count(*) AS apps
    FROM (SELECT org_id, app_id FROM apps UNION SELECT org_id, app_id FROM api_tokens) AS ids GROUP BY org_id
)
SELECT org_id::text, o.name, o.slug, coalesce(app.apps, 0) FROM orgs AS o FULL JOIN app USING (org_id)
"""

_INSERT = "INSERT INTO orgs (org_id, name, slug) VALUES (%s, %s, %s)"
_RENAME = f"{_INSERT} ON CONFLICT (org_id) DO UPDATE SET name = excluded.name"


def list_orgs(connection: Connection) -> list[Org]:
    """Return all organizations that have a name or an application, by name."""
    return _query(connection, f"{_SELECT} ORDER BY o.name NULLS LAST, org_id")


def find_org(connection: Connection, name_or_id: str) -> Org:
    """Return an organization, selected by its id, name or slug. The id can be short.

    :raise UnknownObject: if there is none, or if it is the name of one organization and the slug of another.
    """
    found = []
    if (org_id := parse_uuid(name_or_id)) is not None:
        found = _query(connection, f"{_SELECT} WHERE org_id = %s", str(org_id))
    if not found:
        found = _query(connection, f"{_SELECT} WHERE %s IN (o.name, o.slug)", name_or_id)
    if not found and (pattern := id_pattern(name_or_id)) is not None:
        found = _query(connection, f"{_SELECT} WHERE org_id::text LIKE %s", pattern)
    if not found:
        raise UnknownObject(f"there is no organization {name_or_id!r}; tkserver orgs list shows all organizations")
    if len(found) > 1:
        ids = ", ".join(str(org.org_id) for org in found)
        raise UnknownObject(f"{name_or_id!r} stands for several organizations; use an id: {ids}")
    return found[0]


def find_or_create_org(connection: Connection, name_or_id: str) -> UUID:
    """Return the id of an organization, selected as in :func:`find_org`. If there is none, create it.

    :raise InvalidArgument: if there is none, and the name is not valid.
    :raise NameTaken: if another transaction has created the organization just now.
    """
    if (org_id := parse_uuid(name_or_id)) is not None:
        return org_id  # an organization needs no row
    if value(connection, "SELECT true FROM orgs WHERE %s IN (name, slug)", name_or_id):
        return find_org(connection, name_or_id).org_id
    check_name(name_or_id)
    org_id = uuid4()
    _write(connection, _INSERT, org_id, name_or_id)
    return org_id


def rename_org(connection: Connection, org: Org, name: str) -> None:
    """Change the name of an organization, or give it its first name, which is also its slug if it fits.

    :raise InvalidArgument: if the name is not valid.
    :raise NameTaken: if another organization has this name.
    """
    check_name(name)
    _write(connection, _RENAME, org.org_id, name)


def set_org_slug(connection: Connection, org: Org, slug: str) -> None:
    """Change the slug of an organization.

    :raise InvalidArgument: if the slug is not valid.
    :raise NameTaken: if another organization has this slug.
    :raise UnnamedOrganization: if the organization has no name.
    """
    check_slug(slug)
    sql = "UPDATE orgs SET slug = %s WHERE org_id = %s RETURNING org_id"
    try:
        updated = rows(connection, sql, slug, str(org.org_id))
    except DuplicateKey:
        raise NameTaken(f"another organization has the slug {slug!r}: choose another slug") from None
    if not updated:
        raise UnnamedOrganization(
            f"the organization {org.org_id} has no name; give it one with: tkserver orgs rename {org.org_id} NAME"
        )


def _write(connection: Connection, sql: str, org_id: UUID, name: str) -> None:
    try:
        rows(connection, sql, str(org_id), name, default_slug(name))
    except DuplicateKey:
        raise NameTaken(f"another organization has the name or the slug {name!r}: choose another name") from None


def _query(connection: Connection, sql: str, *parameters: object) -> list[Org]:
    return [Org(UUID(org_id), *columns) for org_id, *columns in rows(connection, sql, *parameters)]
