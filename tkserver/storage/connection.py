"""A connection to the database for the reactor, which reconnects when it is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg2
from psycopg2.extensions import Notify
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from txpostgres import txpostgres

from tkserver import log
from tkserver.storage.addresses import SELECT_STATE, Address, Search, State, resolve
from tkserver.storage.errors import ConnectionLost, StorageError, Unavailable, translate

_log = log.logger(__name__)

Rows = list[tuple[Any, ...]]

STABLE = 5.0
"""Seconds after which a lost connection is opened again immediately. Otherwise there is a pause, as after a failure."""


class PersistentConnection:
    """A connection that is opened again whenever it is lost.

    Of several servers, it uses one that accepts writes.

    :param dsn: a libpq URL or connection string.
    :param writes: whether the connection is of no use unless its session can write.
    :param session: statements that are executed on each new connection before it is used.
    :param on_connected: called each time that the connection is ready for use.
    :param on_disconnected: called with the error each time that the connection is lost or an attempt to connect fails.
    :ivar connected: true if the connection is ready for use.
    """

    def __init__(
        self,
        reactor: Any,
        dsn: str,
        *,
        writes: bool = True,
        session: Sequence[str] = (),
        on_connected: Callable[[], None],
        on_disconnected: Callable[[StorageError], None],
    ) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._writes = writes
        self._session = "; ".join(session)
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._observers: list[Callable[[Notify], None]] = []
        self._backoff = backoffPolicy(initialDelay=0.1, maxDelay=1.5, factor=1.5)
        self._connection: _Connection | None = None
        self._read_only = False
        self._stopping = False
        self._retry_delay: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None
        self.connected = False

    def start(self) -> None:
        """Connect in the background, and retry until :meth:`stop` is called."""
        self._ended = ensureDeferred(self._stay_connected())

    async def stop(self) -> None:
        """Close the connection permanently. A query in progress fails with :exc:`ConnectionLost`."""
        self._stopping = True
        if self._connection is not None:
            self._connection.close()
        if self._retry_delay is not None:
            self._retry_delay.cancel()
        if self._ended is not None:
            await self._ended

    def add_notify_observer(self, observer: Callable[[Notify], None]) -> None:
        """Call a function with each NOTIFY that arrives on the next connection and on all later ones."""
        self._observers.append(observer)

    def query(self, sql: str, parameters: Sequence[object] = (), *, timeout: float) -> Deferred[Rows]:
        """Execute one statement; outside a transaction block, it is a transaction of its own.

        :param timeout: seconds after which the connection is closed because the database does not respond. The
            ``statement_timeout`` of the session should be shorter, so that it normally comes first.
        :return: the rows; an empty list if the statement returns none.
        :raise StorageError: if the statement failed.
        """
        return ensureDeferred(self._query(sql, parameters, timeout))

    async def check(self, *, timeout: float) -> None:
        """Check the connection, and close it if it does not respond or if its server has become read-only.

        :param timeout: in seconds.
        """
        with suppress(StorageError):
            ((read_only,),) = await self.query("SHOW transaction_read_only", timeout=timeout)
            if (read_only == "on") != self._read_only:
                self.drop()

    def drop(self) -> None:
        """Close the connection, and open another one: there may be a better server now."""
        if self._connection is not None:
            self._connection.close()

    async def _query(self, sql: str, parameters: Sequence[object], timeout: float) -> Rows:
        connection = self._connection
        if connection is None or not self.connected:
            raise ConnectionLost("not connected")
        timer = self._reactor.callLater(timeout, connection.close)
        try:
            cursor = connection.cursor()
            await cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []
        except CancelledError:
            raise Unavailable("statement timeout") from None
        except Exception as error:
            storage_error = translate(error)
            if storage_error is not None and not connection.closed:
                raise storage_error from None
            if not connection.closed:
                _log.failure("a query failed unexpectedly", event="query_failed")
            connection.close()
            raise ConnectionLost("the connection was lost") from None
        finally:
            if timer.active():
                timer.cancel()

    async def _stay_connected(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                connection = await self._connect()
            except StorageError as error:
                self._on_disconnected(error)
                await self._sleep(self._backoff(failures))
                failures += 1
                continue
            began = self._reactor.seconds()
            self.connected = True
            self._on_connected()
            await connection.ended
            connection.close()
            self.connected = False
            self._on_disconnected(ConnectionLost("the connection was lost"))
            if self._reactor.seconds() - began >= STABLE:
                failures = 0
            else:
                await self._sleep(self._backoff(failures))
                failures += 1

    async def _connect(self) -> _Connection:
        """Connect to the first address whose session is suitable."""
        threads = self._reactor.getThreadPool()
        addresses = await deferToThreadPool(self._reactor, threads, resolve, self._dsn)
        search = Search(addresses, writes=self._writes)
        for address in addresses.addresses:
            try:
                connection, state = await self._open(address)
            except StorageError as error:
                search.note_failure(address, error)
                continue
            if search.accepts(address, state):
                break
            connection.close()
        else:
            connection, state = await self._open(search.fallback())
        self._read_only = state.read_only
        for observer in self._observers:
            connection.addNotifyObserver(observer)
        return connection

    async def _open(self, address: Address) -> tuple[_Connection, State]:
        if self._stopping:
            raise Unavailable("stopping")
        connection = self._connection = _Connection(self._reactor)
        timer = self._reactor.callLater(address.timeout, connection.close)
        try:
            await connection.connect(**address.parameters)
            ((read_only, standby),) = await connection.runQuery(SELECT_STATE)
            if self._session and not (self._writes and read_only):
                await connection.runOperation(self._session)
        except Exception as error:
            connection.close()
            raise translate(error) or ConnectionLost("the database did not respond to the attempt to connect") from None
        finally:
            if timer.active():
                timer.cancel()
        return connection, State(read_only, standby)

    async def _sleep(self, seconds: float) -> None:
        self._retry_delay = deferLater(self._reactor, seconds)
        with suppress(CancelledError):
            await self._retry_delay
        self._retry_delay = None


class _PollMixin:
    """Returns errors of polling to the reactor instead of raising them.

    The reactor logs a traceback of an exception that is raised. If it is returned, the reactor only closes the
    connection.
    """

    def doRead(self) -> Exception | None:
        return self._error_of(super().doRead)  # type: ignore[misc]

    def doWrite(self) -> Exception | None:
        return self._error_of(super().doWrite)  # type: ignore[misc]

    @staticmethod
    def _error_of(poll: Callable[[], None]) -> Exception | None:
        try:
            poll()
        except psycopg2.Error as error:
            return error
        return None


class _Cursor(_PollMixin, txpostgres.Cursor):  # type: ignore[misc]
    """The cursor of txpostgres, which watches the descriptor of its connection."""

    def fileno(self) -> int:
        return int(self._connection.fileno())


class _Connection(_PollMixin, txpostgres.Connection):  # type: ignore[misc]
    """The connection of txpostgres, with a descriptor of its own and a Deferred for its end.

    libpq closes its socket as soon as it finds it broken, which can happen in any call. The kernel may then give the
    number of the descriptor to a new connection of a client, and the reactor would take one for the other. Therefore
    the reactor watches a duplicate, which only this class closes.

    :ivar ended: fires when the connection is lost or closed.
    """

    cursorFactory = _Cursor

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.ended: Deferred[None] = Deferred()
        self._duplicate = -1
        self._original: tuple[int, int] | None = None
        self._established = False

    def connect(self, **parameters: object) -> Deferred[_Connection]:
        connecting: Deferred[_Connection] = super().connect(**parameters)
        return connecting.addCallback(self._set_established)

    def fileno(self) -> int:
        """Return the duplicate; -1 after :meth:`close`."""
        if not self._established:
            self._follow_socket()
        return self._duplicate

    def connectionLost(self, reason: Failure) -> None:
        with suppress(psycopg2.Error):
            super().connectionLost(reason)
        if not self.ended.called:
            self.ended.callback(None)

    def close(self) -> None:
        if self.pollable() is not None:
            super().close()
        self._established = True  # there is nothing to follow anymore
        self._close_duplicate()

    def _set_established(self, _: _Connection) -> _Connection:
        self._established = True
        return self

    def _follow_socket(self) -> None:
        """Duplicate the socket of libpq again if it is another one: libpq may try again without encryption."""
        try:
            descriptor = self.pollable().fileno()
            status = os.fstat(descriptor)
        except (psycopg2.Error, OSError):  # it is closed
            return
        if self._original != (status.st_dev, status.st_ino):
            self._close_duplicate()  # txpostgres has removed it from the reactor, and adds it again
            self._original = (status.st_dev, status.st_ino)
            self._duplicate = os.dup(descriptor)

    def _close_duplicate(self) -> None:
        if self._duplicate != -1:
            os.close(self._duplicate)
            self._duplicate = -1
