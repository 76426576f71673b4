"""The pool of database connections: a statement in, rows or one of our errors out."""

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
from tkserver.storage.errors import Collision, StorageError, Unavailable

_log = log.logger(__name__)

STATEMENT_TIMEOUT = 8.0
"""Seconds after which the database itself ends a statement, waiting for locks included."""

IDLE_TRANSACTION_TIMEOUT = 5.0
"""Seconds after which the database ends a transaction whose server says nothing more: its machine may be gone, and
others wait for what it has locked."""

ANSWER_TIMEOUT = 10.0
"""Seconds after which a database that has not answered is given up."""

ACQUIRE_TIMEOUT = 5.0
"""Seconds for which a statement waits for a connection to be free."""

COLLISION_TRIES = 6
COLLISION_PAUSE = 0.1
"""Seconds, at the most, between two tries."""

_SESSION = (
    f"SET statement_timeout = {int(STATEMENT_TIMEOUT * 1000)}",
    f"SET idle_in_transaction_session_timeout = {int(IDLE_TRANSACTION_TIMEOUT * 1000)}",
    # A statement that meets a row which another transaction has just inserted then fails and is tried again, where
    # it would otherwise collide with a row that it cannot see.
    "SET default_transaction_isolation = 'repeatable read'",
)

READ_COMMITTED = "READ COMMITTED"
"""The isolation in which each statement sees what was committed before it, and not before the transaction."""

_NO_CONNECTION = "no connection to the database"

T = TypeVar("T")


class Execute(Protocol):
    """Runs a statement and gives its rows."""

    def __call__(self, sql: str, parameters: Sequence[object] = ()) -> Awaitable[Rows]: ...


class Pool:
    """Keeps ``size`` connections open and lends them out, one statement at a time.

    :param prepare: statements that are run on each new connection before it is used.
    :param random_fraction: a number from 0 to 1, anew with each call; spreads out what collided.
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
        self._connections: list[PersistentConnection] = []
        self._available: bool | None = None
        self._tried: Deferred[None] = Deferred()
        session = [*_SESSION, *prepare]
        for number in range(size):
            up, down = partial(self._up, number), partial(self._down, number)
            self._connections.append(PersistentConnection(reactor, dsn, session=session, up=up, down=down))

    def start(self) -> Deferred[None]:
        """Begin to connect. Never fails: it goes on trying until :meth:`stop`.

        :return: fires when there is a connection, or the first attempt to make one has failed.
        """
        for connection in self._connections:
            connection.start()
        return self._tried

    async def stop(self) -> None:
        """Close every connection. What is under way fails."""
        self._available = False  # on purpose, so nothing to complain about
        await gatherResults([ensureDeferred(connection.stop()) for connection in self._connections])

    @property
    def connected(self) -> bool:
        """Whether there is a connection at all."""
        return any(connection.connected for connection in self._connections)

    def states(self) -> dict[str, int]:
        """How many connections there are that are ``idle``, ``busy`` and ``down``."""
        up = sum(connection.connected for connection in self._connections)
        return {"idle": len(self._idle), "busy": up - len(self._idle), "down": len(self._connections) - up}

    @property
    def waiting(self) -> int:
        """How many statements wait for a connection to be free."""
        return len(self._waiting)

    async def run(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        """Run one statement, which is one transaction; what collides with another one is tried again.

        :raise StorageError: when it did not work.
        """
        return await self._borrow(lambda execute: execute(sql, parameters))

    async def transaction(self, work: Callable[[Execute], Awaitable[T]], isolation: str = "REPEATABLE READ") -> T:
        """Run several statements as one transaction, from the first again when it collides with another one.

        :param work: is given what executes a statement in the transaction.
        :raise StorageError: when it did not work.
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

        return await self._borrow(in_transaction)

    async def _borrow(self, work: Callable[[Execute], Awaitable[T]]) -> T:
        for tries_left in reversed(range(COLLISION_TRIES)):
            connection = await self._acquire()
            try:
                return await work(partial(connection.query, timeout=ANSWER_TIMEOUT))
            except Collision:
                if not tries_left:
                    raise
            finally:
                self._release(connection)
            await deferLater(self._reactor, self._random_fraction() * COLLISION_PAUSE)
        raise AssertionError("the last try returns or raises")

    async def _acquire(self) -> PersistentConnection:
        """An idle connection, or the next one to be so."""
        if self._idle:
            return self._idle.pop()
        if not self.connected:
            raise Unavailable(_NO_CONNECTION)
        lent: Deferred[PersistentConnection] = Deferred(self._waiting.remove)
        self._waiting.append(lent)
        try:
            return await lent.addTimeout(ACQUIRE_TIMEOUT, self._reactor)
        except defer.TimeoutError:
            raise Unavailable("every database connection is busy") from None

    def _release(self, connection: PersistentConnection) -> None:
        if not connection.connected or connection in self._idle:
            return
        if self._waiting:
            self._waiting.popleft().callback(connection)
        else:
            self._idle.append(connection)

    def _up(self, number: int) -> None:
        if not self._available:
            self._available = True
            _log.info("connected to the database", event="database_connected")
        self._release(self._connections[number])
        self._has_tried()

    def _down(self, number: int, error: StorageError) -> None:
        self._has_tried()
        connection = self._connections[number]
        if connection in self._idle:
            self._idle.remove(connection)
        if self.connected:
            return
        while self._waiting:
            self._waiting.popleft().errback(Unavailable(_NO_CONNECTION))
        if self._available is not False:
            self._available = False
            _log.warn(
                "no connection to the database, trying until there is one: {error}", error=error, event="database_lost"
            )

    def _has_tried(self) -> None:
        if not self._tried.called:
            self._tried.callback(None)
