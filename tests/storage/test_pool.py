"""The pool heals itself, and what goes wrong comes out as one of our errors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import psycopg2
import pytest
import pytest_twisted
from psycopg2 import errorcodes
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from tests.support.database import Database
from tkserver.storage import errors, pool
from tkserver.storage.connection import _connection_parameters
from tkserver.storage.errors import Collision, ConnectionLost, DataRefused, StorageError, Unavailable
from tkserver.storage.pool import Execute, Pool

OURS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def until_connected(connections: Pool) -> None:
    deadline = time.monotonic() + 5
    while not connections.connected:
        assert time.monotonic() < deadline
        await deferLater(reactor, 0.01)


@pytest_twisted.async_yield_fixture
async def connections(database: Database) -> AsyncIterator[Pool]:
    connections = Pool(reactor, database.dsn, 3)
    connections.start()
    await until_connected(connections)
    yield connections
    await connections.stop()


@pytest_twisted.ensureDeferred
async def test_more_work_than_connections(connections: Pool) -> None:
    """Statements wait for a connection, and all get one."""
    work = [ensureDeferred(connections.run("SELECT %s::int, pg_sleep(0.01)", (n,))) for n in range(20)]
    assert [rows[0][0] for rows in await gatherResults(work)] == list(range(20))


@pytest_twisted.ensureDeferred
async def test_every_connection_is_busy(connections: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a connection for ever."""
    monkeypatch.setattr(pool, "ACQUIRE_TIMEOUT", 0.1)
    busy = [ensureDeferred(connections.run("SELECT pg_sleep(0.5)")) for _ in range(3)]
    await deferLater(reactor, 0.1)
    with pytest.raises(Unavailable, match="busy"):
        await connections.run("SELECT 1")
    await gatherResults(busy)
    assert await connections.run("SELECT 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_lost_while_idle_and_while_working(connections: Pool, database: Database) -> None:
    """Connections that the server ends are made again; the work on them fails, and the rest does not."""
    working = ensureDeferred(connections.run("SELECT pg_sleep(60)"))
    await deferLater(reactor, 0.1)
    database.query(f"SELECT pg_terminate_backend(pid) {OURS}")
    with pytest.raises(ConnectionLost):
        await working
    deadline = time.monotonic() + 5
    while database.value(f"SELECT count(*) {OURS}") < 3:
        assert time.monotonic() < deadline, "not healed"
        await deferLater(reactor, 0.02)
    assert await gatherResults([ensureDeferred(connections.run("SELECT 1")) for _ in range(6)]) == [[(1,)]] * 6


@pytest_twisted.ensureDeferred
async def test_a_silent_database(connections: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that is not answered is given up with its connection."""
    monkeypatch.setattr(pool, "ANSWER_TIMEOUT", 0.2)
    with pytest.raises(ConnectionLost):
        await connections.run("SELECT pg_sleep(60)")
    assert await connections.run("SELECT 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_statement_timeout(connections: Pool) -> None:
    """The database's own timeout is told from a client that was cancelled."""
    with pytest.raises(Unavailable, match="statement timeout"):
        await connections.transaction(_slow)
    assert await connections.run("SHOW statement_timeout") == [("8s",)]


async def _slow(execute: Execute) -> None:
    await execute("SET LOCAL statement_timeout = 50")
    await execute("SELECT pg_sleep(60)")


@pytest_twisted.ensureDeferred
async def test_transaction(connections: Pool, database: Database) -> None:
    """All of a transaction, or nothing of it; what collides is tried again from its first statement."""
    await connections.run("CREATE TABLE counter (n int)")
    await connections.run("INSERT INTO counter VALUES (0)")

    async def increment(execute: Execute) -> None:
        ((n,),) = await execute("SELECT n FROM counter")
        await execute("UPDATE counter SET n = %s", (n + 1,))

    async def fail(execute: Execute) -> None:
        await increment(execute)
        raise ValueError

    await gatherResults([ensureDeferred(connections.transaction(increment)) for _ in range(3)])
    with pytest.raises(ValueError):
        await connections.transaction(fail)
    assert database.value("SELECT n FROM counter") == 3


@pytest_twisted.ensureDeferred
async def test_no_values_in_errors(connections: Pool) -> None:
    """The text of an error names the condition, and nothing that was sent."""
    with pytest.raises(DataRefused) as caught:
        await connections.run("SELECT %s::int", ("client_somebody",))
    assert str(caught.value) == "invalid text representation (22P02)"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


class _Driver(psycopg2.OperationalError):
    """A driver's error with the state that is asked for."""

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
        (errorcodes.STATEMENT_TOO_COMPLEX, DataRefused),
        (errorcodes.ADMIN_SHUTDOWN, ConnectionLost),
        (errorcodes.CONNECTION_FAILURE, ConnectionLost),
        (None, ConnectionLost),
        (errorcodes.LOCK_NOT_AVAILABLE, Unavailable),
        (errorcodes.DISK_FULL, Unavailable),
        (errorcodes.READ_ONLY_SQL_TRANSACTION, Unavailable),
        (errorcodes.UNDEFINED_TABLE, Unavailable),
        ("XX999", Unavailable),
    ],
)
def test_translation(state: str | None, kind: type[StorageError]) -> None:
    """What may pass next time is told from what never will, and both from a connection that is lost."""
    assert type(errors.translate(_Driver(state))) is kind


def test_what_is_no_database_error() -> None:
    """Other errors are left to whoever knows them."""
    assert errors.translate(ValueError()) is None
    assert errors.translate(psycopg2.ProgrammingError("can't adapt type")) is None


@pytest.mark.parametrize(
    ("dsn", "host", "address", "port"),
    [
        ("postgresql://localhost:1/x", "localhost", {"127.0.0.1", "::1"}, "1"),
        ("postgresql://127.0.0.1/x", "127.0.0.1", {"127.0.0.1"}, ""),
        ("postgresql:///x?host=/tmp", "/tmp", {""}, ""),
        ("postgresql://127.0.0.1:1,127.0.0.2:2/x", "127.0.0.1,127.0.0.2", {"127.0.0.1", "127.0.0.2"}, "1,2"),
    ],
)
def test_names_are_resolved_beforehand(dsn: str, host: str, address: set[str], port: str) -> None:
    """libpq is given addresses, and so never blocks on a name; the name stays, for certificates."""
    parameters = {name: str(value) for name, value in _connection_parameters(dsn).items()}
    addresses = parameters["hostaddr"].split(",")
    assert set(addresses) <= address
    assert set(parameters["host"].split(",")) == set(host.split(","))
    assert set(parameters["port"].split(",")) == set(port.split(","))


def test_a_name_that_is_none() -> None:
    """It may be one tomorrow."""
    with pytest.raises(Unavailable, match="cannot be resolved"):
        _connection_parameters("postgresql://no-such-host.invalid/x")
