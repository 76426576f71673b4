"""Credentials in the table ``api_tokens``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from tkserver.storage.pool import Pool

CHANNEL = "tkserver_credentials"
"""The NOTIFY channel for changes of credentials, and of whether an application has a quota."""


@dataclass(frozen=True)
class Credential:
    """An active row of ``api_tokens``.

    :ivar expires_at: Unix time.
    :ivar has_quota: true if its application has a monthly quota.
    """

    id: UUID
    org_id: UUID
    app_id: UUID
    token: str = field(repr=False)
    secret: str = field(repr=False)
    tier: str = "free"
    expires_at: float = math.inf
    has_quota: bool = False


_COLUMNS = """
id::text, org_id::text, app_id::text, token, secret, tier::text, extract(epoch FROM expires_at)::float8,
EXISTS (
    SELECT FROM apps AS a WHERE a.app_id = t.app_id AND a.org_id = t.org_id AND a.monthly_quota IS NOT NULL
)
"""
_ACTIVE = "is_active AND (expires_at IS NULL OR expires_at > now())"
_BY_TOKEN = f"SELECT {_COLUMNS} FROM api_tokens AS t WHERE token = %s AND {_ACTIVE}"
_BY_APP = f"""
SELECT {_COLUMNS} FROM api_tokens AS t WHERE app_id = %s AND org_id = %s AND {_ACTIVE} ORDER BY created_at DESC
"""
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

    async def by_app(self, org_id: UUID, app_id: UUID) -> tuple[Credential, ...]:
        """Return all active credentials of an application, newest first."""
        return tuple(map(_credential, await self._pool.run(_BY_APP, (str(app_id), str(org_id)))))

    async def mark_used(self, times: Mapping[UUID, datetime]) -> None:
        """Store the times when credentials were last used, unless a later time is stored already.

        :param times: by the id of the credential.
        """
        await self._pool.run(_MARK_USED, ([str(credential_id) for credential_id in times], list(times.values())))


def _credential(row: tuple[Any, ...]) -> Credential:
    credential_id, org_id, app_id, token, secret, tier, expires_at, has_quota = row
    expiry = math.inf if expires_at is None else expires_at
    return Credential(UUID(credential_id), UUID(org_id), UUID(app_id), token, secret, tier, expiry, has_quota)
