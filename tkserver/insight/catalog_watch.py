"""The current catalog, which is read every second, and after changes, while somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredLock, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from tkserver.insight.catalog import SELECT_CATALOG, Catalog
from tkserver.storage.connection import PersistentConnection, Rows
from tkserver.storage.credentials import CHANNEL
from tkserver.storage.errors import StorageError, Unavailable

INTERVAL = 1.0
"""Seconds between two reads of the catalog."""

MAX_AGE = 1.9
"""Seconds for which a catalog is used. A token that is revoked is not valid any longer than that."""

GRACE = 30.0
"""Seconds for which a catalog is used while the database is not available, for requests without a token."""

IDLE = 60.0
"""Seconds without a request after which the catalog is not read anymore."""

TIMEOUT = 5.0
"""Seconds in which the database must respond."""


class CatalogWatch:
    """Reads the catalog on a connection of its own, which it opens with the first request.

    :param clock: returns seconds, on any scale.
    """

    def __init__(self, reactor: Any, dsn: str, clock: Callable[[], float]) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._clock = clock
        self._connection: PersistentConnection | None = None
        self._loop = LoopingCall(lambda: ensureDeferred(self._tick()))
        self._loop.clock = reactor
        self._catalog: Catalog | None = None
        self._text = ""
        self._read_at = self._asked_at = float("-inf")
        self._reading = False
        self._turns = DeferredLock()
        self._generation = 0
        self._waiting: set[Deferred[None]] = set()
        self._problem: StorageError | None = None
        self._stopped = False

    async def current(self, *, grace: bool) -> Catalog:
        """Return a catalog that is at most :data:`MAX_AGE` old.

        :param grace: while the database is not available, accept one that is at most :data:`GRACE` old.
        :raise StorageError: if there is none.
        """
        self._asked_at = self._clock()
        catalog = self._not_older_than(MAX_AGE) or (self._not_older_than(GRACE) if grace and self._problem else None)
        if catalog is None:
            await self._read_again()
            catalog = self._not_older_than(GRACE if grace and self._problem else MAX_AGE)
        if catalog is None:
            raise self._problem or Unavailable("the catalog could not be read")
        return catalog

    async def query(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        """Execute another statement on the same connection. It must be as fast as reading the catalog.

        :raise StorageError: if it failed, or if the database is not available.
        """
        await self.current(grace=False)
        result: Deferred[Rows] = Deferred()  # may be cancelled; the statement must not, because the next one follows

        def deliver(outcome: Rows | Failure) -> None:
            if not result.called:
                result.callback(outcome)

        self._execute(sql, parameters).addBoth(deliver)
        return await result

    async def stop(self) -> None:
        """Close the connection. Whoever waits gets an error."""
        self._stopped = True
        self._problem = Unavailable("stopping")
        await self._close()
        self._end_waiting()

    def _not_older_than(self, seconds: float) -> Catalog | None:
        return self._catalog if self._clock() - self._read_at <= seconds else None

    async def _read_again(self) -> None:
        """Wait until the catalog has been read, or an attempt has failed."""
        if self._stopped:
            return
        waiter: Deferred[None] = Deferred(lambda waiter: self._waiting.discard(waiter))
        self._waiting.add(waiter)
        self._start()
        try:
            await waiter.addTimeout(TIMEOUT, self._reactor)
        except defer.TimeoutError:
            raise Unavailable("the database does not respond") from None

    def _start(self) -> None:
        if self._connection is None:
            self._connection = PersistentConnection(
                self._reactor,
                self._dsn,
                writes=False,
                session=("SET application_name = 'tkserver catalog'", f"LISTEN {CHANNEL}"),
                on_connected=self._on_connected,
                on_disconnected=self._on_disconnected,
            )
            self._connection.add_notify_observer(self._on_change)
            self._connection.start()

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if self._loop.running:
            self._loop.stop()
        if connection is not None:
            await connection.stop()

    def _on_connected(self) -> None:
        if not self._loop.running and self._connection is not None:
            self._loop.start(INTERVAL)

    def _on_disconnected(self, error: StorageError) -> None:
        if self._loop.running:
            self._loop.stop()
        self._fail(error)

    def _on_change(self, _: object) -> None:
        self._generation += 1
        self._read_at = float("-inf")
        ensureDeferred(self._read())

    async def _tick(self) -> None:
        if self._clock() - self._asked_at > IDLE:
            await self._close()
        else:
            await self._read()
            await self._check_server()

    async def _check_server(self) -> None:
        """Look for another server if this one has become read-only: it is no longer the primary server."""

        async def check() -> None:
            if self._connection is not None:
                await self._connection.check(timeout=TIMEOUT)

        await self._turns.run(lambda: ensureDeferred(check()))

    async def _read(self) -> None:
        """Read the catalog; again, if something changes meanwhile."""
        if self._reading:
            return
        self._reading, generation = True, -1
        try:
            while generation != self._generation and self._connection is not None:
                generation = self._generation
                await self._read_once(generation)
        except StorageError as error:
            self._fail(error)
        finally:
            self._reading = False

    async def _read_once(self, generation: int) -> None:
        began = self._clock()
        ((summed_until, text),) = await self._execute(SELECT_CATALOG)
        if generation != self._generation:
            return
        if self._catalog is None or text != self._text:
            self._catalog, self._text = Catalog.decode(summed_until, text), text
        self._catalog.summed_until = summed_until
        self._read_at, self._problem = began, None
        self._end_waiting()

    def _execute(self, sql: str, parameters: Sequence[object] = ()) -> Deferred[Rows]:
        """Execute a statement when all earlier ones have ended."""

        def execute() -> Deferred[Rows]:
            if self._connection is None:
                raise Unavailable("stopping")
            return self._connection.query(sql, parameters, timeout=TIMEOUT)

        return self._turns.run(execute)

    def _fail(self, error: StorageError) -> None:
        self._problem = error
        self._end_waiting()

    def _end_waiting(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            waiter.callback(None)
