"""Servers delete what is too old by themselves, one of them at a time."""

from __future__ import annotations

from contextlib import closing

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.client import App
from tests.support.database import Database
from tests.support.server import start_server
from tests.support.stored import ages, store
from tkserver.server import sweeper
from tkserver.storage.adaptive_batch import FEWEST, LONGEST_PAUSE, MOST, TARGET, AdaptiveBatch
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.errors import Unavailable


@pytest_twisted.ensureDeferred
async def test_server(database: Database) -> None:
    """It begins when it starts, and stops in the middle of it when it is told to."""
    app = App().install(database)
    store(database, app, 1000, days=8)
    store(database, app, 5, days=6)
    server = await start_server(database, TK__RETENTION__DAYS=7)
    while ages(database, app) != {6: 5}:
        await deferLater(reactor, 0.05)
    await server.stopService()
    store(database, app, 50_000, days=8)
    server = await start_server(database, TK__RETENTION__DAYS=7)
    while ages(database, app)[8] == 50_000:
        await deferLater(reactor, 0.01)
    await server.stopService()
    assert 0 < ages(database, app)[8] < 50_000


@pytest_twisted.ensureDeferred
async def test_all_is_kept(database: Database) -> None:
    """Without a setting nothing is deleted."""
    app = App().install(database)
    store(database, app, 5, days=4000)
    assert sweeper.sweep(database.dsn, None, BlockingConnections()) == 0
    assert ages(database, app) == {4000: 5}


def test_one_server_at_a_time(database: Database) -> None:
    """While one holds the lock another one does nothing; when its connection is gone the next one goes on."""
    app = App().install(database)
    store(database, app, 5, days=8)
    with closing(BlockingConnections().connect(database.dsn)) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (sweeper._LOCK_KEY,))
        assert sweeper.sweep(database.dsn, 7, BlockingConnections()) == 0
    assert sweeper.sweep(database.dsn, 7, BlockingConnections()) == 5


def test_stopped(database: Database) -> None:
    connections = BlockingConnections()
    connections.stop()
    with pytest.raises(Unavailable):
        sweeper.sweep(database.dsn, 7, connections)


def test_pace() -> None:
    """A database that answers slowly gets less to do and longer pauses; one that is quick gets more to do."""
    pace = AdaptiveBatch()
    before = pace.rows
    assert pace.pause_after(2 * TARGET) == pytest.approx(8 * TARGET)
    assert pace.rows < before
    assert pace.pause_after(1000) == LONGEST_PAUSE
    for _ in range(10):
        pace.pause_after(2 * TARGET)
    assert pace.rows == FEWEST
    for _ in range(100):
        pace.pause_after(TARGET / 10)
    assert pace.rows == MOST
