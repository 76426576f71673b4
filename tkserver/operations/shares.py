"""Share links of the dashboard: create, list and revoke them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection, rows, value
from tkserver.storage.share_links import DELETE, DELETE_EXPIRED, INSERT, PATH, SELECT_ALL, ShareLink, new_share_token
from tkserver.storage.sign_in import hash_token

_LABELS = """
SELECT a.org_id::text, a.app_id::text, CASE WHEN o.name IS NULL THEN a.name ELSE o.name || '/' || a.name END
FROM apps AS a LEFT JOIN orgs AS o USING (org_id)
"""


@dataclass(frozen=True)
class Share:
    """A share link, with the name of its application, or its id if it has no name."""

    link: ShareLink
    app: str


def create_share(
    connection: Connection, app: App, name: str, pages: Sequence[str], days: int, lifetime: timedelta
) -> tuple[str, datetime]:
    """Create a link, and return its path and when it expires.

    :param pages: see :data:`~tkserver.storage.share_links.SHAREABLE`.
    :param days: that the pages show, up to today.
    """
    token, filters = new_share_token(), f"?period={days}"
    app_id, org_id = app.key
    rows(connection, DELETE_EXPIRED)
    expires_at = value(connection, INSERT, hash_token(token), org_id, app_id, name, list(pages), filters, lifetime)
    return f"{PATH}{token}", expires_at


def list_shares(connection: Connection, app: App | None) -> list[Share]:
    """Return the links of an application, or of all, that have not expired."""
    labels = {(org_id, app_id): label for org_id, app_id, label in rows(connection, _LABELS)}
    links = [ShareLink.from_row(row) for row in rows(connection, SELECT_ALL, *_of(app))]
    return [Share(link, labels.get((link.org_id, link.app_id), link.app_id)) for link in links]


def revoke_share(connection: Connection, link_id: int) -> str:
    """Revoke a link, with immediate effect, and return its name.

    :raise UnknownObject: if there is none with this id.
    """
    for (name,) in rows(connection, DELETE, link_id, *_of(None)):
        return str(name)
    raise UnknownObject(f"there is no share link {link_id}: tkserver shares list shows all")


def _of(app: App | None) -> tuple[str | None, str | None, str | None]:
    """Return the parameters that select the links of an application, or all."""
    app_id, org_id = (None, None) if app is None else app.key
    return app_id, app_id, org_id
