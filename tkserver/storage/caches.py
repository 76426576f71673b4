"""Caches of database content, so that a request normally needs no query before its events are stored.

Cached data is used only while the :class:`~tkserver.storage.changes.ChangeListener` would notice a change. Each
invalidation begins a new generation. The result of a query that began in an earlier generation is not cached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from contextvars import Context
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from cachetools import TTLCache
from twisted.internet.defer import Deferred, ensureDeferred

from tkserver import log
from tkserver.deferreds import SharedDeferred
from tkserver.storage import credentials, erasures
from tkserver.storage.changes import ChangeListener
from tkserver.storage.credentials import Credential, CredentialStore
from tkserver.storage.erased_users import ErasedUsers
from tkserver.storage.erasures import ErasureStore
from tkserver.storage.errors import StorageError
from tkserver.storage.periodic import PeriodicWriter
from tkserver.wire.ids import PathId

_log = log.logger(__name__)

MAX_LOOKUPS = 10_000
"""The maximum number of cached credential lookups with a result, and also of those without. They are separate, so that
invented tokens do not displace those of users."""

LIFETIME = 60.0
"""Seconds for which an entry is valid. Changes invalidate entries immediately; this is only a safeguard."""

LAST_USED_INTERVAL = 30.0
"""Seconds between two updates of ``last_used_at``."""

Credentials = tuple[Credential, ...]

Lookup = Credentials | Deferred[Credentials]
"""A cached result, or a Deferred that fires with the result of a query."""


def _do_nothing() -> None:
    """Allow a query."""


class CredentialCache:
    """Looks up credentials, and caches the results.

    A change of any credential or slug clears the whole cache. Changes are rare, and the affected entries are hard to
    find: a credential can be cached by token and by application, and a new one affects lookups that had no result.

    :param clock: returns seconds, on any scale.
    """

    def __init__(self, store: CredentialStore, changes: ChangeListener, clock: Callable[[], float]) -> None:
        self._store = store
        self._changes = changes
        self._generation = 0
        self._cached: TTLCache[Hashable, Credentials] = TTLCache(MAX_LOOKUPS, LIFETIME, clock)
        self._unknown: TTLCache[Hashable, Credentials] = TTLCache(MAX_LOOKUPS, LIFETIME, clock)
        self._pending: dict[Hashable, SharedDeferred[Credentials]] = {}
        changes.subscribe(credentials.CHANNEL, self.invalidate)

    def invalidate(self) -> None:
        """Clear the cache. Lookups in progress are not cached, and later requests do not wait for them."""
        self._generation += 1
        self._cached.clear()
        self._unknown.clear()
        self._pending.clear()

    def by_token(self, token: str, before_query: Callable[[], None] = _do_nothing) -> Lookup:
        """Return the active credential with this bearer token, if there is one.

        :param before_query: called if the result is not cached; an exception prevents the query.
        """
        return self._look_up(token, lambda: self._store.by_token(token), before_query)

    def by_app(self, org: PathId, app: PathId, before_query: Callable[[], None] = _do_nothing) -> Lookup:
        """Return all active credentials of an application.

        :param before_query: see :meth:`by_token`.
        """
        return self._look_up((_key(org), _key(app)), lambda: self._store.by_app(org, app), before_query)

    def _look_up(
        self, key: Hashable, query: Callable[[], Awaitable[Credentials]], before_query: Callable[[], None]
    ) -> Lookup:
        if self._changes.listening:
            with suppress(KeyError):
                return self._cached[key]
            with suppress(KeyError):
                return self._unknown[key]
        before_query()
        pending = self._pending.get(key)
        if pending is None:
            # Several requests may wait for this query, so it does not run in the context of the first one.
            pending = SharedDeferred(Context().run(ensureDeferred, self._query(key, query)), expected=StorageError)
            if not pending.done:  # it has already failed if there is no connection
                self._pending[key] = pending
        return pending.wait()

    async def _query(self, key: Hashable, query: Callable[[], Awaitable[Credentials]]) -> Credentials:
        generation = self._generation
        try:
            result = await query()
        finally:
            if generation == self._generation:
                self._pending.pop(key, None)
        if generation == self._generation:
            (self._cached if result else self._unknown)[key] = result
        return result


def _key(path_id: PathId) -> int | str:
    """Return a dictionary key. UUIDs are slower keys, because Python code hashes them."""
    return path_id.int if isinstance(path_id, UUID) else path_id


class ErasedUserCache:
    """Caches the set of erased users.

    :param clock: returns seconds, on any scale.
    """

    def __init__(self, store: ErasureStore, changes: ChangeListener, clock: Callable[[], float]) -> None:
        self._store = store
        self._changes = changes
        self._clock = clock
        self._generation = 0
        self._cached: ErasedUsers | None = None
        self._valid_until = float("-inf")
        changes.subscribe(erasures.CHANNEL, self.invalidate)

    def invalidate(self) -> None:
        """Discard the cached set."""
        self._generation += 1
        self._cached = None

    async def current(self) -> tuple[ErasedUsers, int]:
        """Return the set, and its generation for :meth:`may_have_changed_since`.

        :raise StorageError: if the set is not cached and cannot be loaded.
        """
        generation = self._generation
        if self._changes.listening and self._cached is not None and self._clock() < self._valid_until:
            return self._cached, generation
        loaded = await self._store.load()
        if generation == self._generation:
            self._cached, self._valid_until = loaded, self._clock() + LIFETIME
        return loaded, generation

    def may_have_changed_since(self, generation: int) -> bool:
        """Return true if users may have been erased since :meth:`current` returned this generation."""
        return not self._changes.listening or generation != self._generation


class LastUsedTimes:
    """Writes ``last_used_at`` of credentials periodically instead of with each request."""

    def __init__(self, store: CredentialStore, reactor: Any) -> None:
        self._store = store
        self._reactor = reactor
        self._times: dict[UUID, float] = {}
        self._writer = PeriodicWriter(self._flush, LAST_USED_INTERVAL, reactor)
        self.start, self.stop = self._writer.start, self._writer.stop

    def record(self, credential: Credential) -> None:
        """Record that a credential was used now."""
        self._times[credential.id] = self._reactor.seconds()

    async def _flush(self) -> None:
        times, self._times = self._times, {}
        if not times:
            return
        utc = {credential_id: datetime.fromtimestamp(time, timezone.utc) for credential_id, time in times.items()}
        try:
            await self._store.mark_used(utc)
        except StorageError as error:
            _log.warn(
                "the times when tokens were last used could not be written: {error}",
                error=error,
                event="usage_not_written",
            )
            self._times = {**times, **self._times}
