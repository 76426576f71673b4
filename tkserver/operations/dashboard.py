"""Access to the dashboard: create a sign-in link, and end all sessions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address

from tkserver.config import Settings, variable
from tkserver.operations.exceptions import OperationError
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection, rows, value
from tkserver.storage.sign_in import (
    DELETE_ALL,
    DELETE_EXPIRED,
    INSERT_LINK,
    LINK_LIFETIME,
    LINK_PREFIX,
    hash_token,
    new_token,
)


class NoDashboard(OperationError):
    """The settings do not say where the dashboard is, or disable it."""


@dataclass(frozen=True)
class SignInLink:
    """A link with which somebody can sign in once.

    :ivar app: the only application that the session may see; ``None`` for all.
    :ivar can_share: true if the session may share numbers with others.
    """

    url: str = field(repr=False)
    app: App | None
    can_share: bool
    expires_at: datetime


def create_link(connection: Connection, base_url: str, app: App | None, *, can_share: bool) -> SignInLink:
    """Create a sign-in link, and delete links and sessions that have expired.

    :param base_url: see :func:`dashboard_url`.
    """
    token = new_token(LINK_PREFIX)
    app_id, org_id = (None, None) if app is None else app.key
    rows(connection, DELETE_EXPIRED)
    expires_at = value(connection, INSERT_LINK, hash_token(token), org_id, app_id, can_share, LINK_LIFETIME)
    return SignInLink(f"{base_url}/dashboard/sign-in?token={token}", app, can_share, expires_at)


def sign_out_everywhere(connection: Connection) -> int:
    """End all sessions, delete all links, and return the number of sessions. Servers notice it within two seconds."""
    return int(value(connection, DELETE_ALL))


def dashboard_url(settings: Settings) -> str:
    """Return the URL of the server, without a slash at the end, by which browsers reach its dashboard.

    :raise NoDashboard: if it cannot be known.
    """
    admin = settings.admin
    if admin.port is None:
        raise NoDashboard(
            f"the server has no admin port, which serves the dashboard: set {variable('admin', 'port')}, for example to"
            " 3001, and start the server again"
        )
    if not settings.dashboard_enabled:
        raise NoDashboard(
            f"the dashboard is disabled: set {variable('dashboard', 'enabled')}=true, and start the server again"
        )
    if settings.dashboard.url is not None:
        return settings.dashboard.url
    if admin.port == 0:
        raise NoDashboard(
            f"the server selects its admin port itself, because {variable('admin', 'port')} is 0: set it to a port, or"
            " use --url with the address that the server logs when it starts"
        )
    return f"http://{_reachable(admin.host)}:{admin.port}"


def _reachable(host: str) -> str:
    """Return the host part of a URL for an address on which the server listens."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"
