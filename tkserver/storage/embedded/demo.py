"""The demo application, for which the first example of the README sends an event.

Its credentials are public. Therefore it exists only in the embedded database.
"""

from __future__ import annotations

from contextlib import closing

from tkserver.storage.blocking import BlockingConnections, rows

ORG_ID = "550e8400-e29b-41d4-a716-446655440000"
APP_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
TOKEN = "tk_550e8400e29b41d4a716446655440000_a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6"  # noqa: S105 -- public
SECRET = "9f4b3c2a1e8d7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0"  # noqa: S105 -- public

_INSTALL = "INSERT INTO api_tokens (org_id, app_id, token, secret) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"


def install(dsn: str, connections: BlockingConnections) -> None:
    """Create the demo application unless it exists, even if its token is inactive. Blocks.

    :raise StorageError: if the database is not available.
    """
    with closing(connections.connect(dsn)) as connection:
        rows(connection, _INSTALL, ORG_ID, APP_ID, TOKEN, SECRET)
