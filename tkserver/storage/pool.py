"""The pool of database connections, for the reactor."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from tkserver import log
from tkserver.storage.connection import PersistentConnection, Rows
from tkserver.storage.errors import Collision, ReadOnly, StorageError, Unavailable

_log = log.logger(__name__)

STATEMENT_TIMEOUT = 8.0
"""Seconds after which the database cancels a statement. The time that it waits for locks counts."""

IDLE_TRANSACTION_TIMEOUT = 5.0
"""Seconds after which the database ends a session that is idle in a transaction: its server may be dead, and others
wait for its locks."""

RESPONSE_TIMEOUT = 10.0
"""Seconds after which a connection is closed because the database does not respond. Longer than the timeouts above."""

ACQUIRE_TIMEOUT = 5.0
"""Seconds for which a statement waits for an idle connection."""

MAX_ATTEMPTS = 6
"""How often a transaction is attempted that collides with others."""

MAX_RETRY_DELAY = 0.1
"""Seconds between two attempts, at most. The delay is random, so that transactions do not collide again."""

_SESSION = (
    f"SET statement_timeout = {int(STATEMENT_TIMEOUT * 1000)}",
    f"SET idle_in_transaction_session_timeout = {int(IDLE_TRANSACTION_TIMEOUT * 1000)}",
    # If another transaction has just inserted a row with the same key, the statement fails and is retried. Under READ
    # COMMITTED, it would report a conflict with a row that it cannot see.
    "SET default_transaction_isolation = 'repeatable read'",
)

READ_COMMITTED = "READ COMMITTED"
"""The isolation level in which each statement sees everything that was committed before the statement."""

_NO_CONNECTION = "no connection to the database"

T = TypeVar("T")


class Execute(Protocol):
    """Executes a statement and returns its rows."""

    def __call__(self, sql: str, parameters: Sequence[object] = ()) -> Awaitable[Rows]: ...


class JsonLiteral:
    """A JSON document as a parameter of a statement.

    psycopg2 needs several milliseconds to quote a megabyte of text. JSON contains no zero bytes, and can therefore be
    quoted much faster.

    :ivar text: UTF-8.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._has_standard_strings = False

    def __conform__(self, _: object) -> JsonLiteral:
        """Return the adapter of this object (see "Adapting new types" in the manual of psycopg2)."""
        return self

    def prepare(self, connection: Any) -> None:
        self._has_standard_strings = connection.get_parameter_status("standard_conforming_strings") == "on"

    def getquoted(self) -> bytes:
        """Return an SQL literal."""
        quoted = self.text.replace(b"'", b"''")
        if self._has_standard_strings or b"\\" not in quoted:
            return b"'%b'" % quoted
        return b"E'%b'" % quoted.replace(b"\\", b"\\\\")


class Pool:
    """Maintains ``size`` connections, each for one statement or transaction at a time.

    :param prepare: statements that are executed on each new connection before it is used.
    :param random_fraction: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        reactor: Any,
        dsn: str,
        size: int,
        *,
        prepare: Sequence[str] = (),
        random_fraction: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._random_fraction = random_fraction
        self._idle: list[PersistentConnection] = []
        self._waiting: deque[Deferred[PersistentConnection]] = deque()
        self._available: bool | None = None
        self._first_attempt: Deferred[None] = Deferred()
        self._connections = [
            PersistentConnection(
                reactor,
                dsn,
                session=[*_SESSION, *prepare],
                on_connected=partial(self._on_connected, index),
                on_disconnected=partial(self._on_disconnected, index),
            )
            for index in range(size)
        ]

    def start(self) -> Deferred[None]:
        """Connect in the background, and retry until :meth:`stop` is called.

        :return: fires when there is a connection, or when the first attempt to connect has failed. It never fails.
        """
        for connection in self._connections:
            connection.start()
        return self._first_attempt

    async def stop(self) -> None:
        """Close all connections. Statements in progress fail."""
        self._available = False  # so that the loss of the connections is not logged
        await gatherResults([ensureDeferred(connection.stop()) for connection in self._connections])

    @property
    def connected(self) -> bool:
        """True if there is at least one connection."""
        return any(connection.connected for connection in self._connections)

    def states(self) -> dict[str, int]:
        """Return the number of connections that are ``idle``, ``busy`` and ``down``."""
        connected = sum(connection.connected for connection in self._connections)
        idle = len(self._idle)
        return {"idle": idle, "busy": connected - idle, "down": len(self._connections) - connected}

    @property
    def waiting(self) -> int:
        """The number of statements and transactions that wait for an idle connection."""
        return len(self._waiting)

    async def run(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        """Execute one statement in a transaction of its own; retry it if it collides with another transaction.

        :raise StorageError: if it failed.
        """
        return await self._with_connection(lambda execute: execute(sql, parameters))

    async def transaction(self, work: Callable[[Execute], Awaitable[T]], isolation: str = "REPEATABLE READ") -> T:
        """Run a transaction; repeat it from its first statement if it collides with another transaction.

        :param work: receives the function that executes a statement in the transaction.
        :raise StorageError: if it failed.
        """

        async def in_transaction(execute: Execute) -> T:
            await execute(f"BEGIN ISOLATION LEVEL {isolation}")
            try:
                result = await work(execute)
                await execute("COMMIT")
            except BaseException:
                with suppress(StorageError):
                    await execute("ROLLBACK")
                raise
            return result

        return await self._with_connection(in_transaction)

    async def _with_connection(self, work: Callable[[Execute], Awaitable[T]]) -> T:
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            connection = await self._acquire()
            try:
                return await work(partial(connection.query, timeout=RESPONSE_TIMEOUT))
            except Collision:
                if not attempts_left:
                    raise
            except ReadOnly:
                self._look_for_primary(connection)
                raise
            finally:
                self._release(connection)
            await deferLater(self._reactor, self._random_fraction() * MAX_RETRY_DELAY)
        raise AssertionError("the last attempt returns or raises")

    async def _acquire(self) -> PersistentConnection:
        """Return an idle connection, as soon as there is one."""
        if self._idle:
            return self._idle.pop()
        if not self.connected:
            raise Unavailable(_NO_CONNECTION)
        acquired: Deferred[PersistentConnection] = Deferred(self._waiting.remove)
        self._waiting.append(acquired)
        try:
            return await acquired.addTimeout(ACQUIRE_TIMEOUT, self._reactor)
        except defer.TimeoutError:
            raise Unavailable("all database connections are busy") from None

    def _release(self, connection: PersistentConnection) -> None:
        if not connection.connected or connection in self._idle:
            return
        if self._waiting:
            self._waiting.popleft().callback(connection)
        else:
            self._idle.append(connection)

    def _look_for_primary(self, connection: PersistentConnection) -> None:
        """Open all connections again, because the server accepts no writes anymore, and another one may."""
        for other in (connection, *self._idle):
            other.drop()

    def _on_connected(self, index: int) -> None:
        if not self._available:
            self._available = True
            _log.info("connected to the database", event="database_connected")
        self._release(self._connections[index])
        self._end_first_attempt()

    def _on_disconnected(self, index: int, error: StorageError) -> None:
        self._end_first_attempt()
        connection = self._connections[index]
        if connection in self._idle:
            self._idle.remove(connection)
        if self.connected:
            return
        while self._waiting:
            self._waiting.popleft().errback(Unavailable(_NO_CONNECTION))
        if self._available is not False:
            self._available = False
            _log.warn("no connection to the database, retrying: {error}", error=error, event="database_lost")

    def _end_first_attempt(self) -> None:
        if not self._first_attempt.called:
            self._first_attempt.callback(None)
