"""Credentials in the table ``api_tokens``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from tkserver.storage.blocking import BlockingConnections, value
from tkserver.storage.pool import Pool
from tkserver.wire.ids import PathId

CHANNEL = "tkserver_credentials"
"""The NOTIFY channel for changes of credentials, slugs, tokens to read, and of whether an application has a quota."""


@dataclass(frozen=True)
class Credential:
    """An active row of ``api_tokens``.

    :ivar expires_at: Unix time.
    :ivar has_quota: true if its application has a monthly quota.
    :ivar org_slug: the slug of its organization, if there is one. The same for ``app_slug``.
    """

    id: UUID
    org_id: UUID
    app_id: UUID
    token: str = field(repr=False)
    secret: str = field(repr=False)
    tier: str = "free"
    expires_at: float = math.inf
    has_quota: bool = False
    org_slug: str | None = None
    app_slug: str | None = None

    @property
    def application(self) -> tuple[int, int]:
        """A dictionary key for the application. UUIDs are slower keys, because Python code hashes them."""
        return self.org_id.int, self.app_id.int


_SELECT = """
SELECT t.id::text, t.org_id::text, t.app_id::text, t.token, t.secret, t.tier::text,
       extract(epoch FROM t.expires_at)::float8, a.monthly_quota IS NOT NULL, o.slug, a.slug
FROM api_tokens AS t
LEFT JOIN apps AS a ON a.app_id = t.app_id AND a.org_id = t.org_id
LEFT JOIN orgs AS o ON o.org_id = t.org_id
WHERE t.is_active AND (t.expires_at IS NULL OR t.expires_at > now())
"""
_BY_TOKEN = f"{_SELECT} AND t.token = %s"


def has_credentials(dsn: str, connections: BlockingConnections) -> bool:
    """Return whether there is an active token. Blocks.

    :raise StorageError: if the database is not available.
    """
    with closing(connections.connect(dsn)) as connection:
        return bool(value(connection, "SELECT EXISTS (SELECT FROM api_tokens WHERE is_active)"))


def _by_app(org: str, app: str) -> str:
    """Return the query for the credentials of an application, which is selected by these columns."""
    return f"{_SELECT} AND {app} = %s AND {org} = %s ORDER BY t.created_at DESC"


_BY_APP = {
    (UUID, UUID): _by_app("t.org_id", "t.app_id"),
    (UUID, str): _by_app("t.org_id", "a.slug"),
    (str, UUID): _by_app("o.slug", "t.app_id"),
    (str, str): _by_app("o.slug", "a.slug"),
}
_MARK_USED = """
UPDATE api_tokens AS t SET last_used_at = u.used_at
FROM unnest(%s::uuid[], %s::timestamptz[]) AS u (id, used_at)
WHERE t.id = u.id AND (t.last_used_at IS NULL OR t.last_used_at < u.used_at)
"""


class CredentialStore:
    """The credentials of all applications."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def by_token(self, token: str) -> tuple[Credential, ...]:
        """Return the active credential with this bearer token, if there is one."""
        return tuple(map(_credential, await self._pool.run(_BY_TOKEN, (token,))))

    async def by_app(self, org: PathId, app: PathId) -> tuple[Credential, ...]:
        """Return all active credentials of an application, newest first."""
        return tuple(map(_credential, await self._pool.run(_BY_APP[type(org), type(app)], (str(app), str(org)))))

    async def mark_used(self, times: Mapping[UUID, datetime]) -> None:
        """Store the times when credentials were last used, unless a later time is stored already.

        :param times: by the id of the credential.
        """
        await self._pool.run(_MARK_USED, ([str(credential_id) for credential_id in times], list(times.values())))


def _credential(row: tuple[Any, ...]) -> Credential:
    credential_id, org_id, app_id, token, secret, tier, expires_at, *others = row
    expiry = math.inf if expires_at is None else expires_at
    return Credential(UUID(credential_id), UUID(org_id), UUID(app_id), token, secret, tier, expiry, *others)
