"""Plain connections that block, for what is done in a thread at the start; and a way to end it from outside."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import psycopg2.extensions

from tkserver.storage.errors import Unavailable

Connection = psycopg2.extensions.connection

DEFAULTS: dict[str, object] = {
    "fallback_application_name": "tkserver",
    # Seconds: a peer that has gone silent is noticed within some 11.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""libpq's parameters for every connection of this server, where the DSN does not name them."""

_CONNECT_TIMEOUT = 5


def rows(connection: Connection, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a statement, and give its rows: none for one that gives none."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []


def value(connection: Connection, sql: str, *parameters: object) -> Any:
    """The first column of a statement's first row; ``None`` where there is none."""
    found = rows(connection, sql, *parameters)
    return found[0][0] if found else None


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Several statements as one, on a connection on which each is one otherwise."""
    connection.autocommit = False
    try:
        with connection:
            yield
    finally:
        connection.autocommit = True


class BlockingConnections:
    """Makes connections, and cuts them all when it is told to stop."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._made: list[Connection] = []

    def connect(self, dsn: str) -> Connection:
        """A connection on which each statement is a transaction.

        :raise Unavailable: after :meth:`stop`.
        """
        self.sleep(0)
        given = psycopg2.extensions.parse_dsn(dsn)
        connection: Connection = psycopg2.connect(**{"connect_timeout": _CONNECT_TIMEOUT, **DEFAULTS, **given})
        connection.autocommit = True
        self._made.append(connection)
        self.sleep(0)
        return connection

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until :meth:`stop`.

        :raise Unavailable: then.
        """
        if self._stopped.wait(seconds):
            raise Unavailable("stopping")

    def stop(self) -> None:
        """End whatever is under way, from any thread, also where the database does not answer."""
        self._stopped.set()
        for connection in self._made:
            # libpq then finds that its peer is gone. To ask the database to cancel would mean to wait for it.
            with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as peer:
                peer.shutdown(socket.SHUT_RDWR)
