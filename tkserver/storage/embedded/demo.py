"""The demo application, for which the first example of the README sends an event.

Its credentials are public. Therefore it exists only in the embedded database, and only while the server that uses this
database listens on loopback.
"""

from __future__ import annotations

from contextlib import closing

from tkserver.storage.blocking import BlockingConnections, rows, value

ORG_ID = "550e8400-e29b-41d4-a716-446655440000"
APP_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
TOKEN = "tk_550e8400e29b41d4a716446655440000_a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6"  # noqa: S105 -- public
SECRET = "9f4b3c2a1e8d7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0"  # noqa: S105 -- public

_RESTORE = "UPDATE api_tokens SET is_active = true, expires_at = NULL WHERE token = %s AND expires_at = 'epoch'"

_SUSPEND = "UPDATE api_tokens SET is_active = false, expires_at = 'epoch' WHERE token = %s AND is_active"
"""The expiry time distinguishes a suspended token from one that an operator has revoked."""

_IS_ACTIVE = "SELECT is_active AND (expires_at IS NULL OR expires_at > now()) FROM api_tokens WHERE token = %s"

NAME = "demo"

_NAME = "INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"

_INSTALL = "INSERT INTO api_tokens (org_id, app_id, token, secret) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"


def install(dsn: str, connections: BlockingConnections) -> bool:
    """Create the demo application, or make its token active again if :func:`suspend` has made it inactive. Blocks.

    :return: whether the token is active. It is not if an operator has revoked it.
    :raise StorageError: if the database is not available.
    """
    with closing(connections.connect(dsn)) as connection:
        rows(connection, _RESTORE, TOKEN)
        rows(connection, _INSTALL, ORG_ID, APP_ID, TOKEN, SECRET)
        rows(connection, _NAME, ORG_ID, APP_ID, NAME)
        return bool(value(connection, _IS_ACTIVE, TOKEN))


def suspend(dsn: str, connections: BlockingConnections) -> None:
    """Make the token of the demo application inactive, if it exists. Blocks.

    :raise StorageError: if the database is not available.
    """
    with closing(connections.connect(dsn)) as connection:
        rows(connection, _SUSPEND, TOKEN)
