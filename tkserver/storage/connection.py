"""One database connection that is always there again: made, watched, and made anew when it is lost."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg2
from psycopg2.extensions import Notify, parse_dsn
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from txpostgres import txpostgres

from tkserver.storage.blocking import DEFAULTS
from tkserver.storage.errors import ConnectionLost, StorageError, Unavailable, translate

Rows = list[tuple[Any, ...]]

CONNECT_TIMEOUT = 5.0
"""Seconds for one attempt to connect."""

_DEFAULTS = {
    **DEFAULTS,
    "client_encoding": "UTF8",
    "tcp_user_timeout": 10_000,  # milliseconds: the same where something was sent and is not acknowledged
}


class PersistentConnection:
    """A connection that heals itself.

    :param dsn: a libpq URL or connection string.
    :param session: statements that are run on each new connection before it is used.
    :param up: called each time that the connection is ready to be used.
    :param down: called each time that it is lost, or could not be made, with the reason.
    """

    def __init__(
        self,
        reactor: Any,
        dsn: str,
        *,
        session: Sequence[str] = (),
        up: Callable[[], None],
        down: Callable[[StorageError], None],
    ) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._session = "; ".join(session)
        self._up = up
        self._down = down
        self._observers: list[Callable[[Notify], None]] = []
        self._backoff = backoffPolicy(initialDelay=0.1, maxDelay=1.5, factor=1.5)
        self._connection: _Connection | None = None
        self._stopping = False
        self._pause: Deferred[None] | None = None
        self._loop: Deferred[None] | None = None
        self.connected = False

    def start(self) -> None:
        """Begin to connect. Returns at once; it goes on trying until :meth:`stop`."""
        self._loop = ensureDeferred(self._stay_connected())

    async def stop(self) -> None:
        """Close the connection for good. What is under way on it fails with :exc:`ConnectionLost`."""
        self._stopping = True
        self.drop()
        if self._pause is not None:
            self._pause.cancel()
        if self._loop is not None:
            await self._loop

    def drop(self) -> None:
        """Close the connection, to be made anew: it does not answer, or its state is unknown."""
        if self._connection is not None:
            self._connection.close()

    def on_notify(self, observer: Callable[[Notify], None]) -> None:
        """Have ``observer`` called with each NOTIFY that arrives, on this and on every later connection."""
        self._observers.append(observer)

    def query(self, sql: str, parameters: Sequence[object] = (), *, timeout: float) -> Deferred[Rows]:
        """Run one statement, which is one transaction.

        :param timeout: seconds after which the connection is given up, whatever the database is doing. The
            session's own ``statement_timeout`` should be shorter, and normally comes first.
        :return: the rows; none for a statement that gives none.
        :raise StorageError: when it did not work.
        """
        return ensureDeferred(self._query(sql, parameters, timeout))

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
            if connection.closed or isinstance(error, ValueError):
                connection.close()
                raise ConnectionLost("the connection was lost") from None
            raise translate(error) or error from None
        finally:
            if timer.active():
                timer.cancel()

    async def _stay_connected(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                connection = await self._connect()
            except StorageError as error:
                self._down(error)
                await self._sleep(self._backoff(failures))
                failures += 1
                continue
            failures = 0
            self.connected = True
            self._up()
            await connection.ended
            connection.close()
            self.connected = False
            self._down(ConnectionLost("the connection was lost"))

    async def _connect(self) -> _Connection:
        threads = self._reactor.getThreadPool()
        parameters = await deferToThreadPool(self._reactor, threads, _connection_parameters, self._dsn)
        if self._stopping:
            raise Unavailable("stopping")
        connection = self._connection = _Connection(self._reactor)
        timer = self._reactor.callLater(CONNECT_TIMEOUT, connection.close)
        try:
            await connection.connect(**parameters)
            if self._session:
                await connection.runOperation(self._session)
        except Exception as error:
            connection.close()
            raise translate(error) or ConnectionLost("no answer to the attempt to connect") from None
        finally:
            if timer.active():
                timer.cancel()
        for observer in self._observers:
            connection.addNotifyObserver(observer)
        return connection

    async def _sleep(self, seconds: float) -> None:
        self._pause = deferLater(self._reactor, seconds)
        with suppress(CancelledError):
            await self._pause
        self._pause = None


class _Polling:
    """What polls a socket, and says that it is broken instead of raising.

    The reactor logs a traceback of what is raised to it, and takes what is returned quietly. When libpq has closed a
    socket by itself, the driver may not have noticed yet, and epoll refuses the descriptor with a ValueError.
    """

    def doRead(self) -> Exception | None:
        return self._quietly(super().doRead)  # type: ignore[misc]

    def doWrite(self) -> Exception | None:
        return self._quietly(super().doWrite)  # type: ignore[misc]

    @staticmethod
    def _quietly(poll: Callable[[], None]) -> Exception | None:
        try:
            poll()
        except (psycopg2.Error, ValueError) as error:
            return error
        return None


class _Cursor(_Polling, txpostgres.Cursor):  # type: ignore[misc]
    """txpostgres' cursor, on a socket that may be gone."""

    def connectionLost(self, reason: Failure) -> None:
        try:
            super().connectionLost(reason)
        except ValueError:
            self._connection.close()


class _Connection(_Polling, txpostgres.Connection):  # type: ignore[misc]
    """txpostgres' connection, which also says when it has ended.

    :ivar ended: fires when the connection is lost or closed.
    """

    cursorFactory = _Cursor

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.ended: Deferred[None] = Deferred()

    def cursorFinished(self, cursor: _Cursor) -> None:
        try:
            super().cursorFinished(cursor)
        except ValueError:
            self.close()

    def connectionLost(self, reason: Failure) -> None:
        with suppress(psycopg2.Error, ValueError):
            super().connectionLost(reason)
        if not self.ended.called:
            self.ended.callback(None)

    def close(self) -> None:
        if self.pollable() is not None:
            super().close()


def _connection_parameters(dsn: str) -> dict[str, object]:
    """The parts of a DSN, with every host name resolved.

    libpq resolves names itself, and blocks while it does; so this is called in a thread.
    """
    given = parse_dsn(dsn)
    if given.get("host") and "hostaddr" not in given:
        given.update(_resolved(given["host"].split(","), given.get("port", "").split(",")))
    return {**_DEFAULTS, **given}


def _resolved(hosts: list[str], ports: list[str]) -> dict[str, str]:
    if len(ports) == 1:
        ports *= len(hosts)
    found: list[tuple[str, str, str]] = []
    for host, port in zip(hosts, ports, strict=True):
        found += [(host, address, port) for address in _addresses(host)]
    names, addresses, all_ports = zip(*found, strict=True)
    return {"host": ",".join(names), "hostaddr": ",".join(addresses), "port": ",".join(all_ports)}


def _addresses(host: str) -> list[str]:
    """The addresses of a host, as libpq's ``hostaddr`` takes them: none for a socket directory."""
    if not host or host.startswith(("/", "@")):
        return [""]
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        raise Unavailable("the database's host name cannot be resolved") from None
    return list(dict.fromkeys(str(address[4][0]) for address in found))
