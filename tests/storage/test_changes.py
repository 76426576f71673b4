"""Notifications of changes, which invalidate caches."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.support.database import Database
from tests.support.waiting import until
from tkserver.storage.changes import ChangeListener

LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest_twisted.ensureDeferred
async def test_notifications_invalidate_the_subscribers_of_their_channel(database: Database) -> None:
    """Each subscriber is called when listening begins and after each NOTIFY on its channel, and no other."""
    calls: list[str] = []
    listener = ChangeListener(reactor, database.dsn)
    listener.subscribe("first", lambda: calls.append("a"))
    listener.subscribe("first", lambda: calls.append("b"))
    listener.subscribe("second", lambda: calls.append("c"))
    assert not listener.listening
    listener.start()
    await until(lambda: listener.listening)
    assert calls == ["a", "b", "c"]
    calls.clear()
    database.query("NOTIFY first")
    await until(lambda: calls == ["a", "b"])
    database.query("NOTIFY second")
    await until(lambda: calls == ["a", "b", "c"])
    await listener.stop()
    assert not listener.listening


@pytest_twisted.ensureDeferred
async def test_subscribers_are_called_after_the_connection_was_lost(database: Database) -> None:
    """While the connection is lost, nothing is listened to; afterwards, all subscribers are called."""
    calls: list[bool] = []
    listener = ChangeListener(reactor, database.dsn)
    listener.subscribe("first", lambda: calls.append(listener.listening))
    listener.start()
    await until(lambda: listener.listening)
    database.query(f"SELECT pg_terminate_backend(pid) {LISTENERS}")
    await until(lambda: len(calls) == 2)
    assert calls == [False, False]
    await until(lambda: listener.listening)
    await listener.stop()


@pytest_twisted.ensureDeferred
async def test_subscribing_after_the_start_is_a_bug(database: Database) -> None:
    """A subscriber cannot be added when the connection exists, because it does not listen on the channel."""
    listener = ChangeListener(reactor, database.dsn)
    listener.start()
    with pytest.raises(AssertionError):
        listener.subscribe("first", lambda: None)
    await listener.stop()
