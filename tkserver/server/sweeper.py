"""The sweeper: deletes old events, old quarantined events and old nonces in the background."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool

from tkserver import log
from tkserver.operations import quarantine, retention
from tkserver.storage.blocking import BlockingConnections, Connection, rows, transaction, value
from tkserver.storage.errors import StorageError
from tkserver.storage.store_statement import DELETE_OLD_NONCES, RENEW_TOLERANCE

_log = log.logger(__name__)

T = TypeVar("T")

EVENTS_INTERVAL = 3600.0
"""Seconds between two deletions of old events. Their age is counted in days."""

NONCES_INTERVAL = 60.0
"""Seconds between two deletions of old nonces."""

STATEMENT_TIMEOUT = 60.0
"""Seconds after which the database cancels a statement."""

_LOCK_KEY = 0x746B72657461696E  # "tkretain" in ASCII


class Sweeper:
    """Deletes old events when the server starts and then every hour, and old nonces every minute.

    Quarantined events are deleted together with the others.

    The work is done in threads, with one connection for each deletion.

    :param default_days: the retention of applications that have none of their own; ``None`` stores events forever.
    :param tolerance: the seconds by which the timestamps of requests may differ from the clock of this server.
    :param quarantine_days: how long events stay in quarantine; 0 if only the reasons do.
    """

    def __init__(
        self, reactor: Any, dsn: str, default_days: int | None, tolerance: int, quarantine_days: int = 7
    ) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._default_days = default_days
        self._tolerance = tolerance
        self._quarantine_days = quarantine_days
        self._connections = BlockingConnections()
        self._loops = [
            (self._loop(self._sweep_events), EVENTS_INTERVAL),
            (self._loop(self._sweep_nonces), NONCES_INTERVAL),
        ]
        self._ended: list[Deferred[LoopingCall]] = []

    def start(self) -> None:
        self._connections = BlockingConnections()
        self._ended = [loop.start(interval) for loop, interval in self._loops]

    async def stop(self) -> None:
        """Stop, even during a deletion: the next server continues it."""
        self._connections.stop()
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        for ended in self._ended:
            await ended

    def _loop(self, work: Callable[[], Any]) -> LoopingCall:
        loop = LoopingCall(lambda: ensureDeferred(work()))
        loop.clock = self._reactor
        return loop

    async def _sweep_events(self) -> None:
        try:
            deleted = await self._in_thread(partial(delete_old_events, default_days=self._default_days))
            quarantined = await self._in_thread(
                partial(delete_old_quarantined_events, days=self._quarantine_days, default_retention=self._default_days)
            )
        except StorageError as error:
            if not self._connections.stopped:
                _log.warn(
                    "old events could not be deleted, next attempt in an hour: {error}",
                    error=error,
                    event="retention_failed",
                )
        except Exception:
            _log.failure("old events could not be deleted", event="retention_failed")
        else:
            if deleted or quarantined:
                _log.info(
                    "old events deleted: {events}, and from the quarantine: {quarantined}",
                    events=deleted,
                    quarantined=quarantined,
                    event="retention",
                )

    async def _sweep_nonces(self) -> None:
        try:
            await self._in_thread(partial(delete_old_nonces, tolerance=self._tolerance))
        except StorageError as error:
            if not self._connections.stopped:
                _log.debug("old nonces could not be deleted, next attempt soon: {error}", error=error, event="put_off")
        except Exception:
            _log.failure("old nonces could not be deleted", event="put_off")

    def _in_thread(self, work: Callable[[str, BlockingConnections], T]) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work, self._dsn, self._connections)


def delete_old_events(dsn: str, connections: BlockingConnections, default_days: int | None) -> int:
    """Delete old events, unless another server is deleting them. Blocks.

    :param default_days: see :class:`Sweeper`.
    :return: the number of deleted events.
    :raise StorageError: if the database is not available, or ``connections`` was stopped.
    """
    with _locked_connection(dsn, connections) as connection:
        if connection is None:
            return 0
        return sum(retention.prune(connection, default_days, time.monotonic, connections.sleep).values())


def delete_old_quarantined_events(
    dsn: str, connections: BlockingConnections, days: int, default_retention: int | None
) -> int:
    """Delete old events from the quarantine, unless another server is deleting them. Blocks.

    :param days: see :class:`Sweeper`.
    :return: the number of deleted events.
    :raise StorageError: if the database is not available, or ``connections`` was stopped.
    """
    with _locked_connection(dsn, connections) as connection:
        if connection is None:
            return 0
        return quarantine.prune(connection, days, default_retention, time.monotonic, connections.sleep)


def delete_old_nonces(dsn: str, connections: BlockingConnections, tolerance: int) -> None:
    """Delete the nonces that no server needs anymore. Blocks.

    :param tolerance: see :class:`Sweeper`. The largest one of all servers determines which nonces are needed.
    :raise StorageError: if the database is not available, or ``connections`` was stopped.
    """
    with _connection(dsn, connections) as connection, transaction(connection):
        rows(connection, RENEW_TOLERANCE, tolerance, tolerance, tolerance)
        rows(connection, DELETE_OLD_NONCES)


@contextmanager
def _locked_connection(dsn: str, connections: BlockingConnections) -> Iterator[Connection | None]:
    """Open a connection with the lock of deletions, or yield ``None`` if another server holds the lock."""
    with _connection(dsn, connections) as connection:
        if not value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK_KEY):
            yield None
            return
        try:
            yield connection
        finally:
            # If this server dies, the lock ends with the connection. PostgreSQL may notice the end only later.
            with suppress(StorageError):
                rows(connection, "SELECT pg_advisory_unlock(%s)", _LOCK_KEY)


@contextmanager
def _connection(dsn: str, connections: BlockingConnections) -> Iterator[Connection]:
    with closing(connections.connect(dsn)) as connection:
        rows(connection, f"SET statement_timeout = {int(STATEMENT_TIMEOUT * 1000)}")
        yield connection
