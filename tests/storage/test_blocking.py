"""Blocking connections, and how their work is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from tests.support.database import Database
from tests.support.waiting import wait_for
from tkserver.storage.blocking import (
    BlockingConnections,
    Connection,
    binary_rows,
    chunks,
    rows,
    transaction,
    translated,
    value,
)
from tkserver.storage.errors import ConnectionLost, DataRefused, DuplicateKey, StorageError, Unavailable

SLEEPING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND query = 'SELECT pg_sleep(60)'
"""


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        yield connection


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT 1 / 0", DataRefused),
        ("SELECT * FROM missing", Unavailable),
        ("INSERT INTO readiness VALUES (true, now()), (true, now())", DuplicateKey),
        ("SELECT pg_terminate_backend(pg_backend_pid())", ConnectionLost),
    ],
)
@pytest.mark.parametrize("execute", [rows, value])
def test_errors_of_the_database_are_translated(
    connection: Connection, execute: Callable[[Connection, str], object], sql: str, error: type[StorageError]
) -> None:
    """An error of the database is raised as an error of tkserver, without the exception of the driver."""
    with pytest.raises(StorageError) as caught:
        execute(connection, sql)
    assert type(caught.value) is error
    assert caught.value.__suppress_context__


def test_wrong_use_of_the_driver_is_not_translated() -> None:
    """An exception of the driver that the database did not cause is a bug, and is raised unchanged."""
    error = psycopg2.ProgrammingError("can't adapt type")
    with pytest.raises(psycopg2.ProgrammingError) as caught, translated():
        raise error
    assert caught.value is error


def test_rows_and_values(connection: Connection) -> None:
    """Statements without rows return an empty list, and no value."""
    assert rows(connection, "SELECT %s::int, 'a%%' UNION ALL SELECT 2, 'b'", 1) == [(1, "a%"), (2, "b")]
    assert value(connection, "SELECT 'a%'") == "a%"
    assert rows(connection, "SET statement_timeout = 1000") == []
    assert value(connection, "SELECT 1 WHERE false") is None


def test_binary_rows(connection: Connection) -> None:
    """Columns of binary rows are bytes of any length, or ``None``."""
    sql = "SELECT n::int4, repeat('x', n)::bytea, NULL FROM unnest(%s::int[]) AS n"
    expected = [(n.to_bytes(4, "big"), b"x" * n, None) for n in (0, 1, 100_000)]
    found: list[Any] = binary_rows(connection, sql, [0, 1, 100_000])
    assert found == expected
    assert binary_rows(connection, f"{sql} WHERE false", [1]) == []
    with pytest.raises(StorageError):
        binary_rows(connection, "SELECT 1 / %s", 0)


def test_chunks_contain_all_rows(connection: Connection) -> None:
    """All rows are returned in their order, in lists of limited size."""
    with transaction(connection):
        found = list(chunks(connection, "SELECT * FROM generate_series(1, %s)", 5, size=2, name="numbers"))
    assert found == [[(1,), (2,)], [(3,), (4,)], [(5,)]]


def test_error_between_chunks_is_translated(connection: Connection) -> None:
    """An error while rows are fetched is raised as an error of tkserver."""
    with transaction(connection):
        found = chunks(connection, "SELECT 1 / (2 - n) FROM generate_series(1, 2) AS n", size=1, name="quotients")
        assert next(found) == [(1,)]
        with pytest.raises(DataRefused):
            next(found)


def test_transaction_is_rolled_back_after_an_error(connection: Connection) -> None:
    """A transaction that fails changes nothing, and the connection is in autocommit mode again."""
    rows(connection, "CREATE TABLE numbers (n int)")

    def insert_and_fail() -> None:
        with transaction(connection):
            rows(connection, "INSERT INTO numbers VALUES (1)")
            rows(connection, "SELECT 1 / 0")

    with pytest.raises(DataRefused):
        insert_and_fail()
    with transaction(connection):
        rows(connection, "INSERT INTO numbers VALUES (2)")
    assert connection.autocommit
    assert rows(connection, "SELECT n FROM numbers") == [(2,)]


def test_transaction_on_a_lost_connection(connection: Connection) -> None:
    """If the connection is lost during a transaction, the error tells so."""
    with pytest.raises(ConnectionLost), transaction(connection):
        rows(connection, "SELECT pg_terminate_backend(pg_backend_pid())")


def test_error_at_commit_is_translated(connection: Connection) -> None:
    """A constraint that is violated at the end of a transaction is raised as an error of tkserver."""
    rows(connection, "CREATE TABLE numbers (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(DuplicateKey), transaction(connection):
        rows(connection, "INSERT INTO numbers VALUES (1), (1)")


def test_stop_aborts_all_statements(database: Database) -> None:
    """All statements in progress fail when the connections are stopped, also if others were closed before."""
    connections = BlockingConnections()
    first, second, third = (connections.connect(database.dsn) for _ in range(3))
    second.close()
    fourth = connections.connect(database.dsn)
    errors: list[StorageError] = []

    def sleep(connection: Connection) -> None:
        try:
            rows(connection, "SELECT pg_sleep(60)")
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=sleep, args=(connection,)) for connection in (first, third, fourth)]
    for thread in threads:
        thread.start()
    wait_for(lambda: database.value(SLEEPING) == 3)
    connections.stop()
    for thread in threads:
        thread.join(5)
    assert [type(error) for error in errors] == [ConnectionLost] * 3
    for connection in (first, third, fourth):
        connection.close()


def test_connections_cannot_be_used_after_stop(database: Database) -> None:
    """After they were stopped, connections cannot be opened, and waiting fails immediately."""
    connections = BlockingConnections()
    assert not connections.stopped
    connections.stop()
    assert connections.stopped
    with pytest.raises(Unavailable, match="stopping"):
        connections.connect(database.dsn)
    with pytest.raises(Unavailable, match="stopping"):
        connections.sleep(60)


def test_connection_opened_during_stop_is_not_returned(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connections are stopped while one is being opened, it is not returned."""
    connections = BlockingConnections()
    original = psycopg2.connect

    def connect(**parameters: object) -> Connection:
        connection: Connection = original(**parameters)  # type: ignore[call-overload]
        connections.stop()
        return connection

    monkeypatch.setattr(psycopg2, "connect", connect)
    with pytest.raises(Unavailable, match="stopping"):
        connections.connect(database.dsn)
