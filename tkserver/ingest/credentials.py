"""Credentials, remembered: a request normally costs no query before its events are written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from cachetools import TTLCache
from twisted.internet import defer
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall

from tkserver import log
from tkserver.ingest.remembered import Remembered
from tkserver.ingest.shield import Shared
from tkserver.storage.errors import StorageError
from tkserver.storage.tokens import Credential, TokenStore

_log = log.logger(__name__)

MAX_REMEMBERED = 10_000
"""How many answers of the table are remembered, those that there is no such credential included."""

LIFETIME = 60.0
"""Seconds for which one is; a change is heard of at once, this is for what was not heard."""

USAGE_INTERVAL = 30.0
"""Seconds between two writes of ``last_used_at``."""

LAST_WRITE_TIMEOUT = 2.0
"""Seconds for the last one, when the server stops."""


Credentials = tuple[Credential, ...]

Found = Credentials | Deferred[Credentials]
"""What is remembered at once, and otherwise when the database has answered."""


class CredentialCache(Remembered):
    """Looks up credentials, each at most once as long as nothing changes.

    Any change forgets everything: changes are rare, and what was looked up by token, by application, or in vain
    hangs together in too many ways to forget less.

    :param clock: gives seconds, on any scale.
    """

    def __init__(self, store: TokenStore, clock: Callable[[], float]) -> None:
        super().__init__()
        self._store = store
        self._remembered: TTLCache[Hashable, Credentials] = TTLCache(MAX_REMEMBERED, LIFETIME, clock)
        self._under_way: dict[Hashable, Shared[Credentials]] = {}

    def forget(self) -> None:
        """A credential may have changed: forget all, and what is being looked up just now with it."""
        super().forget()
        self._remembered.clear()
        self._under_way.clear()

    def by_token(self, token: str) -> Found:
        """The active credential with this bearer token, if there is one."""
        return self._look_up(token, lambda: self._store.by_token(token))

    def by_app(self, org_id: UUID, app_id: UUID) -> Found:
        """All active credentials of an application."""
        return self._look_up((org_id.int, app_id.int), lambda: self._store.by_app(org_id, app_id))

    def _look_up(self, key: Hashable, query: Callable[[], Awaitable[Credentials]]) -> Found:
        if self._listening:
            with suppress(KeyError):
                return self._remembered[key]
        under_way = self._under_way.get(key)
        if under_way is None:
            under_way = Shared(log.outside_requests(ensureDeferred, self._query(key, query)))
            if not under_way.done:  # which it is already where there is no connection at all
                self._under_way[key] = under_way
        return under_way.wait()

    async def _query(self, key: Hashable, query: Callable[[], Awaitable[Credentials]]) -> Credentials:
        generation = self._generation
        try:
            found = await query()
        finally:
            if generation == self._generation:
                self._under_way.pop(key, None)
        if generation == self._generation:
            self._remembered[key] = found
        return found


class Usage:
    """Keeps ``last_used_at`` to the minute without a write per request."""

    def __init__(self, store: TokenStore, reactor: Any) -> None:
        self._store = store
        self._reactor = reactor
        self._times: dict[UUID, float] = {}
        self._loop = LoopingCall(self._write)
        self._loop.clock = reactor

    def start(self) -> None:
        self._loop.start(USAGE_INTERVAL, now=False)

    async def stop(self) -> None:
        """Write what there is still to write."""
        if self._loop.running:
            self._loop.stop()
        with suppress(defer.TimeoutError):  # a minute more or less is not worth waiting for
            await Shared(ensureDeferred(self._flush())).wait().addTimeout(LAST_WRITE_TIMEOUT, self._reactor)

    def note(self, credential: Credential) -> None:
        """This credential has just been used."""
        self._times[credential.id] = self._reactor.seconds()

    def _write(self) -> Deferred[None]:
        return ensureDeferred(self._flush())

    async def _flush(self) -> None:
        times, self._times = self._times, {}
        if times:
            try:
                await self._store.mark_used(
                    {key: datetime.fromtimestamp(at, timezone.utc) for key, at in times.items()}
                )
            except StorageError as error:
                _log.warn(
                    "when tokens were last used could not be written: {error}", error=error, event="usage_not_written"
                )
                self._times = {**times, **self._times}
