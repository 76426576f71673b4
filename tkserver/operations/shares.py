"""Share links of the dashboard: create, list and revoke them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tkserver.operations.apps import list_apps
from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection, rows, value
from tkserver.storage.share_links import (
    DELETE,
    DELETE_EXPIRED,
    INSERT,
    PATH,
    SELECT_ALL,
    ShareLink,
    new_share_token,
    of_app,
)
from tkserver.storage.sign_in import hash_token


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
    labels = {found.key: found.label for found in list_apps(connection)}
    selected = of_app(*((None, None) if app is None else app.key))
    links = [ShareLink.from_row(row) for row in rows(connection, SELECT_ALL, *selected)]
    return [Share(link, labels.get((link.app_id, link.org_id), link.app_id)) for link in links]


def revoke_share(connection: Connection, link_id: int) -> str:
    """Revoke a link, with immediate effect, and return its name.

    :raise UnknownObject: if there is none with this id.
    """
    for (name,) in rows(connection, DELETE, link_id, *of_app(None, None)):
        return str(name)
    raise UnknownObject(f"there is no share link {link_id}: tkserver shares list shows all")
