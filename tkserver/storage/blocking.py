"""Blocking connections, for the command line and for work in threads.

All functions raise :exc:`~tkserver.storage.errors.StorageError` if the database does not do what it is asked to. An
exception of the driver itself means that the driver was used wrongly.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any, BinaryIO, TypeVar

import psycopg2
import psycopg2.extensions
from psycopg2.extras import execute_values

from tkserver.storage.addresses import SELECT_STATE, Address, Search, State, resolve
from tkserver.storage.errors import StorageError, Unavailable, translate

Connection = psycopg2.extensions.connection

T = TypeVar("T")


def _time(text: Any, cursor: Any) -> datetime | None:
    """Return a ``timestamptz``; the first or the last possible time for one that Python cannot represent."""
    try:
        time: datetime | None = psycopg2.extensions.PYDATETIMETZ(text, cursor)
    except (ValueError, OverflowError):
        limit = datetime.min if text is not None and text.endswith(" BC") else datetime.max
        return limit.replace(tzinfo=timezone.utc)
    return time


_TIMESTAMPTZ = psycopg2.extensions.new_type((1184,), "TIMESTAMPTZ", _time)


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
    result = rows(connection, sql, *parameters)
    return result[0][0] if result else None


def binary_rows(connection: Connection, sql: str, *parameters: object) -> list[tuple[memoryview | None, ...]]:
    """Execute a query, and return the columns of its rows as PostgreSQL represents them in binary form.

    Large values of the type ``bytea`` arrive several times as fast as with :func:`rows`, which transfers text.
    """
    data = io.BytesIO()
    with translated(), connection.cursor() as cursor:
        query = cursor.mogrify(sql, parameters).decode()
        cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT binary)", data)
    return list(_binary_rows(data.getbuffer()))


# The binary format of COPY: https://www.postgresql.org/docs/current/sql-copy.html
_COPY_HEADER = struct.Struct(">11sII")
_COLUMN_COUNT, _LENGTH = struct.Struct(">h"), struct.Struct(">i")


def _binary_rows(data: memoryview) -> Iterator[tuple[memoryview | None, ...]]:
    position = _COPY_HEADER.size + _COPY_HEADER.unpack_from(data)[2]
    while (columns := _COLUMN_COUNT.unpack_from(data, position)[0]) >= 0:
        position += _COLUMN_COUNT.size
        row: list[memoryview | None] = []
        for _ in range(columns):
            (length,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size
            row.append(None if length < 0 else data[position : position + length])
            position += max(0, length)
        yield tuple(row)


def copy_in(connection: Connection, sql: str, data: BinaryIO) -> None:
    """Execute ``COPY … FROM STDIN``.

    :param data: in the format that the statement selects.
    """
    with translated(), connection.cursor() as cursor:
        cursor.copy_expert(sql, data)


def write_rows(
    connection: Connection, sql: str, values: Collection[tuple[Any, ...]], template: str | None = None
) -> None:
    """Execute a statement that contains ``VALUES %s`` with many rows.

    :param template: the placeholders of a row, if they need casts.
    """
    with translated(), connection.cursor() as cursor:
        execute_values(cursor, sql, values, template, page_size=1000)


def copy_rows(connection: Connection, table: str, columns: Sequence[str], values: Iterable[Sequence[object]]) -> None:
    """Insert many rows with ``COPY``. Values are numbers, texts, bytes or ``None``."""
    text = "".join("\t".join(map(_copied, row)) + "\n" for row in values)
    copy_in(connection, f"COPY {table} ({', '.join(columns)}) FROM STDIN", io.BytesIO(text.encode()))


def _copied(value: object) -> str:
    """Return a value in the text format of ``COPY``."""
    if isinstance(value, int):
        return str(value)
    if value is None:
        return r"\N"
    if isinstance(value, bytes):
        return rf"\\x{value.hex()}"
    return str(value).translate(_COPY_ESCAPES)


_COPY_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def chunks(
    connection: Connection, sql: str, *parameters: object, size: int, name: str
) -> Iterator[list[tuple[Any, ...]]]:
    """Execute a query within a :func:`transaction`, and yield lists of its rows; all rows need not fit into memory.

    :param size: the maximum number of rows in a list.
    :param name: the name of the cursor in the database.
    """
    with translated(), connection.cursor(name=name) as cursor:
        cursor.execute(sql, parameters or None)
        while chunk := cursor.fetchmany(size):
            yield chunk


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Execute the statements of a ``with`` block in one transaction, on a connection in autocommit mode.

    Within another such block, they are a part of its transaction.
    """
    if not connection.autocommit:
        with translated():
            yield
        return
    connection.autocommit = False
    try:
        with translated(), connection:
            yield
    finally:
        with suppress(psycopg2.Error):  # the connection may be lost
            connection.autocommit = True


def executor(connection: Connection) -> Callable[..., Awaitable[list[tuple[Any, ...]]]]:
    """Return a function for asynchronous code that executes a statement, and blocks meanwhile."""

    async def execute(sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return rows(connection, sql, *parameters)

    return execute


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that awaits nothing except functions of :func:`executor`."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("the coroutine waits")


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Undo statements if one of them fails, so that the :func:`transaction` around them can continue."""
    rows(connection, "SAVEPOINT tkserver")
    try:
        yield
    except StorageError:
        rows(connection, "ROLLBACK TO SAVEPOINT tkserver")
        raise
    finally:
        rows(connection, "RELEASE SAVEPOINT tkserver")


class BlockingConnections:
    """Opens connections for work in threads, and aborts that work when it is stopped.

    Thread-safe. It cannot be used again after :meth:`stop`.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._open: list[Connection] = []

    @property
    def stopped(self) -> bool:
        """True after :meth:`stop`."""
        return self._stopped.is_set()

    def connect(self, dsn: str) -> Connection:
        """Return a connection in autocommit mode, to a server that accepts writes if there is one.

        :raise Unavailable: after :meth:`stop`.
        """
        search = Search(addresses := resolve(dsn), writes=False)
        for address in addresses.addresses:
            try:
                connection = self._open_connection(address)
                if not search.needs_state or search.accepts(address, State(*rows(connection, SELECT_STATE)[0])):
                    return connection
                connection.close()
            except StorageError as error:
                self._check()
                search.note_failure(address, error)
        return self._open_connection(search.fallback())

    def _open_connection(self, address: Address) -> Connection:
        self._check()
        with translated():
            connection: Connection = psycopg2.connect(**address.parameters)
            connection.autocommit = True
            psycopg2.extensions.register_type(_TIMESTAMPTZ, connection)
        with self._lock:
            self._open = [*(other for other in self._open if not other.closed), connection]
        self._check()  # stop() may have been called before the connection was in the list
        return connection

    def sleep(self, seconds: float) -> None:
        """Wait, at most until :meth:`stop` is called.

        :raise Unavailable: if it was called.
        """
        if self._stopped.wait(seconds):
            raise Unavailable("stopping")

    def stop(self) -> None:
        """Make all statements that are in progress fail, even if the database does not respond.

        A connection attempt that is in progress ends after its timeout.
        """
        self._stopped.set()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            # libpq then finds the connection closed. Cancelling the statement instead would need a response.
            with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    def _check(self) -> None:
        self.sleep(0)
