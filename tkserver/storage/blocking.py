"""Blocking connections, for the command line and for work in threads.

All functions raise :exc:`~tkserver.storage.errors.StorageError`, never an exception of the driver.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import psycopg2.extensions

from tkserver.storage.errors import Unavailable, translate

Connection = psycopg2.extensions.connection

DEFAULTS: dict[str, object] = {
    "fallback_application_name": "tkserver",
    # Seconds. A silent peer is detected within about 11.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""libpq parameters for every connection, unless the DSN sets them."""

_CONNECT_TIMEOUT = 5


@contextmanager
def translated() -> Iterator[None]:
    """Raise exceptions of the driver as :exc:`StorageError`."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error) or error from None


def rows(connection: Connection, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Execute a statement and return its rows; an empty list if it returns none."""
    with translated(), connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []


def value(connection: Connection, sql: str, *parameters: object) -> Any:
    """Execute a statement and return the first column of its first row; ``None`` if it returns no rows."""
    found = rows(connection, sql, *parameters)
    return found[0][0] if found else None


def chunks(
    connection: Connection, sql: str, *parameters: object, size: int, name: str
) -> Iterator[list[tuple[Any, ...]]]:
    """Execute a query and yield its rows in lists, within a :func:`transaction`.

    :param size: the maximum number of rows in a list.
    :param name: of the server-side cursor.
    """
    with translated(), connection.cursor(name=name) as cursor:
        cursor.execute(sql, parameters or None)
        while chunk := cursor.fetchmany(size):
            yield chunk


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Execute several statements in one transaction, on a connection in autocommit mode."""
    connection.autocommit = False
    try:
        with translated(), connection:
            yield
    finally:
        with suppress(psycopg2.Error):  # of a connection that was lost
            connection.autocommit = True


class BlockingConnections:
    """Opens connections, and closes them all when it is stopped."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._opened: list[Connection] = []

    @property
    def stopped(self) -> bool:
        """True after :meth:`stop`."""
        return self._stopped.is_set()

    def connect(self, dsn: str) -> Connection:
        """Return a connection in autocommit mode.

        :raise Unavailable: after :meth:`stop`.
        """
        self.sleep(0)
        with translated():
            given = psycopg2.extensions.parse_dsn(dsn)
            connection: Connection = psycopg2.connect(**{"connect_timeout": _CONNECT_TIMEOUT, **DEFAULTS, **given})
            connection.autocommit = True
        self._opened = [opened for opened in self._opened if not opened.closed]
        self._opened.append(connection)
        self.sleep(0)
        return connection

    def sleep(self, seconds: float) -> None:
        """Wait.

        :raise Unavailable: when :meth:`stop` is called.
        """
        if self._stopped.wait(seconds):
            raise Unavailable("stopping")

    def stop(self) -> None:
        """Abort everything that is in progress. Thread-safe; works even if the database does not respond."""
        self._stopped.set()
        for connection in self._opened:
            # libpq finds that its peer has gone. To cancel a statement would mean to wait for the database.
            with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as peer:
                peer.shutdown(socket.SHUT_RDWR)
