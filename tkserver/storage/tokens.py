"""Credentials in their table: looked up, watched for changes, and marked as used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall

from tkserver import log
from tkserver.storage.connection import PersistentConnection
from tkserver.storage.errors import StorageError
from tkserver.storage.pool import Pool

_log = log.logger(__name__)

CHANNEL = "tkserver_credentials"
"""Where ``schema/`` announces that a credential, or whether its application has a quota, has changed."""

HEARTBEAT = 1.0
"""Seconds between two signs of life of the connection that listens, and for each of them to come."""


@dataclass(frozen=True)
class Credential:
    """An active row of ``api_tokens``.

    :ivar expires_at: seconds since 1970 from when on it is not active any more.
    :ivar metered: whether its application has a monthly quota.
    """

    id: UUID
    org_id: UUID
    app_id: UUID
    token: str = field(repr=False)
    secret: str = field(repr=False)
    tier: str = "free"
    expires_at: float = math.inf
    metered: bool = False


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


class TokenStore:
    """The credentials of every application."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def by_token(self, token: str) -> tuple[Credential, ...]:
        """The active credential with this bearer token, if there is one."""
        return tuple(map(_credential, await self._pool.run(_BY_TOKEN, (token,))))

    async def by_app(self, org_id: UUID, app_id: UUID) -> tuple[Credential, ...]:
        """All active credentials of an application, the newest first."""
        return tuple(map(_credential, await self._pool.run(_BY_APP, (str(app_id), str(org_id)))))

    async def mark_used(self, times: Mapping[UUID, datetime]) -> None:
        """Note when credentials were last used. A later time that is already there stays."""
        await self._pool.run(_MARK_USED, ([str(credential_id) for credential_id in times], list(times.values())))


def _credential(row: tuple[Any, ...]) -> Credential:
    credential_id, org_id, app_id, token, secret, tier, expires_at, metered = row
    ends = math.inf if expires_at is None else expires_at
    return Credential(UUID(credential_id), UUID(org_id), UUID(app_id), token, secret, tier, ends, metered)


class ChangeListener:
    """Tells when what servers remember of the database may have changed.

    :param changed: by channel, what is called with every change that is announced there, and whenever one may have
        been missed.
    :ivar listening: whether a change would be heard now. While it is not, nothing may be remembered.
    """

    def __init__(self, reactor: Any, dsn: str, changed: Mapping[str, Callable[[], None]]) -> None:
        self._changed = changed
        self._heartbeat = LoopingCall(self._beat)
        self._heartbeat.clock = reactor
        self._connection = PersistentConnection(
            reactor, dsn, session=[f"LISTEN {channel}" for channel in changed], up=self._up, down=self._down
        )
        self._connection.on_notify(lambda notice: self._changed[notice.channel]())
        self.listening = False

    def start(self) -> None:
        self._connection.start()

    async def stop(self) -> None:
        await self._connection.stop()

    def _up(self) -> None:
        for changed in self._changed.values():
            changed()
        self.listening = True
        self._heartbeat.start(HEARTBEAT)

    def _down(self, _: StorageError) -> None:
        self.listening = False
        if self._heartbeat.running:
            self._heartbeat.stop()

    def _beat(self) -> Deferred[None]:
        return ensureDeferred(self._give_a_sign())

    async def _give_a_sign(self) -> None:
        """A connection that has gone silent hears nothing: better to know soon, and to ask the table meanwhile."""
        with suppress(StorageError):
            await self._connection.query("SELECT 1", timeout=HEARTBEAT)
