"""The watch of the catalog: how old a catalog may be, and when there is a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, ensureDeferred

from tests.support.database import Database, DatabaseServer
from tests.support.sample_statistics import install_named
from tests.support.waiting import until
from tkserver.insight.catalog_watch import GRACE, IDLE, MAX_AGE, CatalogWatch
from tkserver.storage.errors import StorageError

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tkserver catalog'"


class Time:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def watching(database: Database, clock: Time) -> AsyncIterator[CatalogWatch]:
    """Run a watch while the context lasts."""
    watch = CatalogWatch(reactor, database.dsn, clock)
    try:
        yield watch
    finally:
        await watch.stop()


@asynccontextmanager
async def unavailable(database_server: DatabaseServer, database: Database) -> AsyncIterator[None]:
    """Let nobody connect to a database while the context lasts."""
    name = database.value("SELECT current_database()")
    administrator = database_server.named("postgres")
    administrator.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    administrator.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
    try:
        yield
    finally:
        administrator.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest_twisted.ensureDeferred
async def test_catalog_is_not_older_than_allowed(database: Database) -> None:
    """A catalog that is too old is not used: it is read again."""
    clock = Time()
    async with watching(database, clock) as watch:
        assert (await watch.current(grace=False)).apps == []
        install_named(database, "my-cli")
        clock.now += MAX_AGE + 0.1
        assert [app.name for app in (await watch.current(grace=False)).apps] == ["my-cli"]


@pytest_twisted.ensureDeferred
async def test_time_of_a_read_is_its_beginning(database: Database) -> None:
    """The age of a catalog counts from before the query, because a change may follow immediately."""
    clock = Time()

    def tick() -> float:
        clock.now += MAX_AGE / 3
        return clock.now

    watch = CatalogWatch(reactor, database.dsn, tick)
    try:
        first = await watch.current(grace=False)
        install_named(database, "my-cli")
        names: list[str | None] = []

        async def has_changed() -> bool:
            names[:] = [app.name for app in (await watch.current(grace=False)).apps]
            return names == ["my-cli"]

        await until(has_changed)
        assert first.apps == []
    finally:
        await watch.stop()


@pytest_twisted.ensureDeferred
async def test_grace_without_database(database_server: DatabaseServer, database: Database) -> None:
    """While the database is not available, a catalog is used for some time, but not to check tokens."""
    clock = Time()
    async with watching(database, clock) as watch:
        install_named(database, "my-cli")
        clock.now += MAX_AGE + 0.1
        known = await watch.current(grace=True)
        async with unavailable(database_server, database):
            clock.now += MAX_AGE + 0.1
            assert (await watch.current(grace=True)).apps == known.apps
            with pytest.raises(StorageError):
                await watch.current(grace=False)
            clock.now += GRACE
            with pytest.raises(StorageError):
                await watch.current(grace=True)
        await until(lambda: responds(watch))


@pytest_twisted.ensureDeferred
async def test_statements_take_turns(database: Database) -> None:
    """Statements at the same time are executed one after the other, also while the catalog is read."""
    async with watching(database, Time()) as watch:
        queries = [ensureDeferred(watch.query("SELECT pg_sleep(0.01), %s", (number,))) for number in range(20)]
        install_named(database, "my-cli")  # lets the watch read the catalog
        assert [(await query)[0][1] for query in queries] == list(range(20))
        assert len((await watch.current(grace=False)).apps) == 1


@pytest_twisted.ensureDeferred
async def test_statement_continues_without_its_client(database: Database) -> None:
    """If the client disconnects, its statement is executed nevertheless, and so are the next ones."""
    async with watching(database, Time()) as watch:
        await watch.query("SELECT 1")
        cancelled = ensureDeferred(watch.query("INSERT INTO orgs (org_id, name) SELECT gen_random_uuid(), 'a'"))
        cancelled.addErrback(lambda failure: failure.trap(CancelledError))
        cancelled.cancel()
        assert await watch.query("SELECT name FROM orgs") == [("a",)]


@pytest_twisted.ensureDeferred
async def test_failed_statement(database: Database) -> None:
    """An error of a statement does not affect the next one."""
    async with watching(database, Time()) as watch:
        with pytest.raises(StorageError):
            await watch.query("SELECT 1 / 0")
        assert await watch.query("SELECT 1") == [(1,)]


async def responds(watch: CatalogWatch) -> bool:
    """Return true if there is a catalog."""
    try:
        await watch.current(grace=False)
    except StorageError:
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_connection_is_closed_when_nobody_asks(database_server: DatabaseServer, database: Database) -> None:
    """The connection is opened by the first request, closed after some time without one, and opened again."""
    clock, everything = Time(), database_server.named("postgres")
    before = everything.value(CONNECTIONS)
    async with watching(database, clock) as watch:
        assert everything.value(CONNECTIONS) == before
        for _ in range(2):
            assert (await watch.current(grace=False)).apps == []
            assert everything.value(CONNECTIONS) == before + 1
            clock.now += IDLE + 1
            await until(lambda: everything.value(CONNECTIONS) == before)


@pytest_twisted.ensureDeferred
async def test_stop_ends_the_wait(database_server: DatabaseServer, database: Database) -> None:
    """Whoever waits for a catalog when the server stops gets an error."""
    watch = CatalogWatch(reactor, database.dsn, Time())
    waiting = ensureDeferred(watch.current(grace=True))
    await watch.stop()
    with pytest.raises(StorageError):
        await waiting
    with pytest.raises(StorageError):
        await watch.current(grace=True)
