"""The deletion of old events and nonces in the background, by one server at a time."""

from __future__ import annotations

import time
import uuid
from contextlib import closing

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.support.client import App
from tests.support.database import Database
from tests.support.logs import logged_failures, logged_lines
from tests.support.quarantined import put, quarantined
from tests.support.queries import blocked_backends
from tests.support.server import running_server, start_server
from tests.support.stored import ages, store
from tests.support.waiting import until
from tkserver.server import sweeper as sweeper_module
from tkserver.server.sweeper import (
    Sweeper,
    delete_old_events,
    delete_old_nonces,
    delete_old_quarantined_events,
)
from tkserver.storage.blocking import BlockingConnections, rows, transaction
from tkserver.storage.errors import Unavailable


def insert_nonce(database: Database, nonce: str, age: str) -> None:
    """Insert a nonce of a request that was sent some time ago."""
    sql = "INSERT INTO nonces (org_id, app_id, nonce, sent_at) VALUES (%s, %s, %s, now() - %s::interval)"
    database.query(sql, str(uuid.uuid4()), str(uuid.uuid4()), nonce, age)


def nonces(database: Database) -> list[str]:
    return [nonce for (nonce,) in database.query("SELECT nonce FROM nonces ORDER BY nonce")]


@pytest_twisted.ensureDeferred
async def test_server_deletes_old_events(database: Database) -> None:
    """A server deletes old events when it starts, and stops during the deletion when it is stopped."""
    app = App().install(database)
    store(database, app, 1000, days=8)
    store(database, app, 5, days=6)
    async with running_server(database, TK__RETENTION__DAYS=7):
        await until(lambda: ages(database, app) == {6: 5})
    store(database, app, 50_000, days=8)
    server = await start_server(database, TK__RETENTION__DAYS=7)
    await until(lambda: ages(database, app)[8] < 50_000)
    await server.stopService()
    assert 0 < ages(database, app)[8] < 50_000


@pytest_twisted.ensureDeferred
async def test_server_deletes_old_nonces(database: Database) -> None:
    """A server deletes the nonces whose timestamps are no longer valid, and no others."""
    insert_nonce(database, "old", "1062 seconds")
    insert_nonce(database, "recent", "900 seconds")
    async with running_server(database, TK__INGEST__TIMESTAMP_TOLERANCE=1000):
        await until(lambda: nonces(database) == ["recent"])


@pytest_twisted.ensureDeferred
async def test_server_deletes_old_quarantined_events(database: Database) -> None:
    """A server deletes old events from the quarantine when it starts, according to its setting."""
    app = App().install(database)
    put(database, app, "1", days=3)
    put(database, app, "2", days=1)
    async with running_server(database, TK__QUARANTINE__DAYS=2):
        await until(lambda: [row["event"] for row in quarantined(database, app)] == ["2"])
    async with running_server(database, TK__QUARANTINE__DAYS=0):
        await until(lambda: [row["event"] for row in quarantined(database, app)] == [None])


def test_one_server_at_a_time_deletes_quarantined_events(database: Database) -> None:
    """While a server holds the lock, others delete nothing."""
    put(database, App().install(database), "1", days=8)
    with closing(BlockingConnections().connect(database.dsn)) as other:
        rows(other, "SELECT pg_advisory_lock(%s)", sweeper_module._LOCK_KEY)
        assert delete_old_quarantined_events(database.dsn, BlockingConnections(), 7, None) == 0
    assert delete_old_quarantined_events(database.dsn, BlockingConnections(), 7, None) == 1


def test_events_are_not_deleted_without_retention(database: Database) -> None:
    """If no retention is set, no event is deleted."""
    app = App().install(database)
    store(database, app, 5, days=4000)
    assert delete_old_events(database.dsn, BlockingConnections(), None) == 0
    assert ages(database, app) == {4000: 5}


def test_one_server_at_a_time_deletes_events(database: Database) -> None:
    """While a server holds the lock, others delete nothing; when its connection is closed, another one continues."""
    app = App().install(database)
    store(database, app, 5, days=8)
    with closing(BlockingConnections().connect(database.dsn)) as other:
        rows(other, "SELECT pg_advisory_lock(%s)", sweeper_module._LOCK_KEY)
        assert delete_old_events(database.dsn, BlockingConnections(), 7) == 0
    assert delete_old_events(database.dsn, BlockingConnections(), 7) == 5


def test_deletion_fails_when_stopped(database: Database) -> None:
    """Nothing is deleted after the connections were stopped."""
    connections = BlockingConnections()
    connections.stop()
    with pytest.raises(Unavailable):
        delete_old_events(database.dsn, connections, 7)
    with pytest.raises(Unavailable):
        delete_old_nonces(database.dsn, connections, 600)


@pytest_twisted.ensureDeferred
async def test_sweeper_stops_while_both_deletions_wait_for_locks(database: Database) -> None:
    """The sweeper stops immediately and silently, even while both of its connections wait for a lock."""
    app = App().install(database)
    store(database, app, 5, days=8)
    insert_nonce(database, "old", "21 minutes")
    sweeper = Sweeper(reactor, database.dsn, 7, 600)
    with closing(BlockingConnections().connect(database.dsn)) as other, transaction(other):
        rows(other, "LOCK TABLE events, nonces IN ACCESS EXCLUSIVE MODE")
        with logged_lines() as lines:
            sweeper.start()
            await until(lambda: len(blocked_backends(database)) == 2)
            started = time.monotonic()
            await sweeper.stop()
    assert time.monotonic() - started < 2
    assert lines == []
    assert ages(database, app) == {8: 5}


@pytest_twisted.ensureDeferred
async def test_sweeper_can_be_started_again(database: Database) -> None:
    """A sweeper that was stopped and is started again deletes old events and nonces."""
    app = App().install(database)
    sweeper = Sweeper(reactor, database.dsn, 7, 600)
    sweeper.start()
    await sweeper.stop()
    store(database, app, 5, days=8)
    insert_nonce(database, "old", "21 minutes")
    sweeper.start()
    await until(lambda: ages(database, app) == {} and nonces(database) == [])
    await sweeper.stop()


@pytest_twisted.ensureDeferred
async def test_sweeper_continues_after_errors(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a database error or a bug in one deletion, it is attempted again after the interval."""
    monkeypatch.setattr(sweeper_module, "EVENTS_INTERVAL", 0.05)
    monkeypatch.setattr(sweeper_module, "NONCES_INTERVAL", 0.05)
    store(database, App().install(database), 5, days=8)
    calls: list[str] = []

    def fail_with(name: str, error: Exception) -> None:
        def delete(*_: object, **__: object) -> None:
            calls.append(name)
            raise error

        monkeypatch.setattr(sweeper_module, name, delete)

    for error, failures_expected in ((Unavailable("away"), False), (ValueError("a bug"), True)):
        calls.clear()
        fail_with("delete_old_events", error)
        fail_with("delete_old_nonces", error)
        sweeper = Sweeper(reactor, database.dsn, 7, 600)
        with logged_failures() as failures:
            sweeper.start()
            await until(lambda: calls.count("delete_old_events") > 1 and calls.count("delete_old_nonces") > 1)
            await sweeper.stop()
        assert bool(failures) == failures_expected
