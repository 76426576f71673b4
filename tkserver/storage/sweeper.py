"""What deletes events that are too old, again and again, on one server at a time."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import psycopg2
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool

from tkserver import log
from tkserver.storage import retention
from tkserver.storage.blocking import BlockingConnections, Connection
from tkserver.storage.errors import StorageError, translate

_log = log.logger(__name__)

INTERVAL = 3600.0
"""Seconds. Ages are in days."""

STATEMENT_TIMEOUT = 60.0
"""Seconds."""

_LOCK_KEY = 0x746B72657461696E  # "tkretain" in ASCII


class Sweeper:
    """Deletes what is too old when the server starts, and every hour; in a thread, on a connection of its own.

    :param default_days: for applications that have no number of their own; ``None`` for ever.
    """

    def __init__(self, reactor: Any, dsn: str, default_days: int | None) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._default_days = default_days
        self._connections = BlockingConnections()
        self._loop = LoopingCall(lambda: ensureDeferred(self._sweep()))
        self._loop.clock = reactor
        self._ended: Deferred[LoopingCall] | None = None

    def start(self) -> None:
        self._ended = self._loop.start(INTERVAL)

    async def stop(self) -> None:
        """End, also amid the work: the next server goes on where this one was."""
        self._connections.stop()
        if self._loop.running:
            self._loop.stop()
        if self._ended is not None:
            await self._ended

    async def _sweep(self) -> None:
        self._connections = BlockingConnections()
        threads = self._reactor.getThreadPool()
        try:
            gone = await deferToThreadPool(
                self._reactor, threads, sweep, self._dsn, self._default_days, self._connections
            )
        except StorageError as error:
            if self._loop.running:
                _log.warn(
                    "old events could not be deleted, the next try is in an hour: {error}",
                    error=error,
                    event="retention_failed",
                )
        except Exception:
            _log.failure("old events could not be deleted", event="retention_failed")
        else:
            if gone:
                _log.info("deleted {events} events that were too old", events=gone, event="retention")


def sweep(dsn: str, default_days: int | None, connections: BlockingConnections) -> int:
    """Delete what is too old, unless another server is at it. Blocks.

    :return: how many events.
    :raise StorageError: when it did not work this time, or was told to stop.
    """
    try:
        with closing(connections.connect(dsn)) as connection:
            return _sweep_alone(connection, default_days, connections)
    except psycopg2.Error as error:
        raise translate(error) or error from None


def _sweep_alone(connection: Connection, default_days: int | None, connections: BlockingConnections) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SET statement_timeout = {int(STATEMENT_TIMEOUT * 1000)}")
        # Held as long as the connection: when this server dies in the middle, another one may go on.
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK_KEY,))
        if cursor.fetchone() != (True,):
            return 0
    return sum(
        retention.prune(connection, limit, time.monotonic, connections.sleep, lambda _: None)
        for limit in retention.limits(connection, default_days)
    )
