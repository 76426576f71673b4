"""The connection pool: it reconnects, and raises the errors of the driver as errors of tkserver."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg2
import pytest
import pytest_twisted
from psycopg2 import errorcodes
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.support.database import Database
from tests.support.waiting import until
from tkserver.storage import errors
from tkserver.storage import pool as pool_module
from tkserver.storage.errors import (
    Collision,
    ConnectionLost,
    DataRefused,
    DuplicateKey,
    ReadOnly,
    StorageError,
    Unavailable,
)
from tkserver.storage.pool import Execute, Pool

SIZE = 3

CONNECTIONS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
SLEEPING = f"SELECT count(*) {CONNECTIONS} AND query LIKE 'SELECT pg_sleep%'"


@pytest_twisted.async_yield_fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    """A pool whose connections are all idle."""
    pool = Pool(reactor, database.dsn, SIZE)
    pool.start()
    await until(lambda: pool.states()["idle"] == SIZE)
    yield pool
    await pool.stop()


@pytest_twisted.ensureDeferred
async def test_statements_wait_for_a_connection(pool: Pool) -> None:
    """If there are more statements than connections, the others wait until a connection is idle."""
    statements = [ensureDeferred(pool.run("SELECT %s::int, pg_sleep(0.01)", (n,))) for n in range(20)]
    assert pool.waiting == 20 - SIZE
    assert pool.states() == {"idle": 0, "busy": SIZE, "down": 0}
    assert [rows[0][0] for rows in await gatherResults(statements)] == list(range(20))
    assert pool.states() == {"idle": SIZE, "busy": 0, "down": 0}


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_connection_times_out(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all connections stay busy, a statement fails after a timeout, and later statements succeed."""
    monkeypatch.setattr(pool_module, "ACQUIRE_TIMEOUT", 0.1)
    busy = [ensureDeferred(pool.run("SELECT pg_sleep(0.5)")) for _ in range(SIZE)]
    with pytest.raises(Unavailable, match="busy"):
        await pool.run("SELECT 1")
    await gatherResults(busy)
    assert await pool.run("SELECT 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_lost_connections_are_replaced(pool: Pool, database: Database) -> None:
    """If the database closes all connections, idle or busy, a statement in progress fails, and later ones succeed."""
    busy = ensureDeferred(pool.run("SELECT pg_sleep(60)"))
    await until(lambda: database.value(SLEEPING))
    database.query(f"SELECT pg_terminate_backend(pid) {CONNECTIONS}")
    with pytest.raises(ConnectionLost):
        await busy
    await until(lambda: database.value(f"SELECT count(*) {CONNECTIONS}") == SIZE, within=5)
    await until(lambda: pool.states()["down"] == 0, within=5)
    assert await gatherResults([ensureDeferred(pool.run("SELECT 1")) for _ in range(6)]) == [[(1,)]] * 6


@pytest_twisted.ensureDeferred
async def test_connection_is_closed_if_database_does_not_respond(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database does not respond to a statement, its connection is closed, and later statements succeed."""
    monkeypatch.setattr(pool_module, "RESPONSE_TIMEOUT", 0.2)
    with pytest.raises(ConnectionLost):
        await pool.run("SELECT pg_sleep(60)")
    assert await pool.run("SELECT 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_statement_timeout_is_unavailable(pool: Pool) -> None:
    """A statement that exceeds the statement timeout fails with ``Unavailable``, not with ``CancelledError``."""

    async def exceed_timeout(execute: Execute) -> None:
        await execute("SET LOCAL statement_timeout = 50")
        await execute("SELECT pg_sleep(60)")

    with pytest.raises(Unavailable, match="statement timeout"):
        await pool.transaction(exceed_timeout)
    assert await pool.run("SHOW statement_timeout") == [("8s",)]


@pytest_twisted.ensureDeferred
async def test_transaction_is_atomic_and_repeated_after_collisions(pool: Pool, database: Database) -> None:
    """A transaction that fails changes nothing; one that collides is repeated from its first statement."""
    await pool.run("CREATE TABLE counter (n int)")
    await pool.run("INSERT INTO counter VALUES (0)")

    async def increment(execute: Execute) -> None:
        ((n,),) = await execute("SELECT n FROM counter")
        await execute("UPDATE counter SET n = %s", (n + 1,))

    async def fail(execute: Execute) -> None:
        await increment(execute)
        raise ValueError

    await gatherResults([ensureDeferred(pool.transaction(increment)) for _ in range(3)])
    with pytest.raises(ValueError):
        await pool.transaction(fail)
    assert database.value("SELECT n FROM counter") == 3


@pytest_twisted.ensureDeferred
async def test_error_contains_no_values(pool: Pool) -> None:
    """The text of an error contains the name of the condition, and no value that was sent."""
    with pytest.raises(DataRefused) as caught:
        await pool.run("SELECT %s::int", ("client_somebody",))
    assert str(caught.value) == "invalid text representation (22P02)"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


class DriverError(psycopg2.OperationalError):
    """An exception of the driver with a given SQLSTATE."""

    def __init__(self, state: str | None) -> None:
        super().__init__("text")
        self.state = state

    @property
    def pgcode(self) -> str | None:  # type: ignore[override]
        return self.state


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (errorcodes.SERIALIZATION_FAILURE, Collision),
        (errorcodes.DEADLOCK_DETECTED, Collision),
        (errorcodes.UNTRANSLATABLE_CHARACTER, DataRefused),
        (errorcodes.CHECK_VIOLATION, DataRefused),
        (errorcodes.UNIQUE_VIOLATION, DuplicateKey),
        (errorcodes.STATEMENT_TOO_COMPLEX, DataRefused),
        (errorcodes.ADMIN_SHUTDOWN, ConnectionLost),
        (errorcodes.CONNECTION_FAILURE, ConnectionLost),
        (None, ConnectionLost),
        (errorcodes.LOCK_NOT_AVAILABLE, Unavailable),
        (errorcodes.DISK_FULL, Unavailable),
        (errorcodes.READ_ONLY_SQL_TRANSACTION, ReadOnly),
        (errorcodes.UNDEFINED_TABLE, Unavailable),
        ("XX999", Unavailable),
    ],
)
def test_exceptions_of_the_driver_are_translated(state: str | None, kind: type[StorageError]) -> None:
    """The class of the error tells whether a later attempt may succeed, and whether the connection is lost."""
    assert type(errors.translate(DriverError(state))) is kind


def test_other_exceptions_are_not_translated() -> None:
    """An exception that the database did not cause is not translated."""
    assert errors.translate(ValueError()) is None
    assert errors.translate(psycopg2.ProgrammingError("can't adapt type")) is None
