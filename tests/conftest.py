"""Fixtures: one PostgreSQL and one server for each process that runs tests, and a new application for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import settings as hypothesis_settings
from twisted.internet.defer import ensureDeferred

from tests.support.client import App, Client
from tests.support.database import Database, DatabaseServer
from tests.support.server import client_of, running_server, start_server
from tkserver.server.supervisor import Supervisor
from tkserver.storage.embedded.postgres import EmbeddedPostgres

hypothesis_settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis_settings.load_profile("tests")


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory with a short path, because the path of a Unix socket is limited to about 100 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="tk"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def directory(scratch: Path) -> Path:
    """An empty directory for one test."""
    return Path(tempfile.mkdtemp(dir=scratch))


@pytest.fixture(scope="session")
def database_server(scratch: Path) -> Iterator[DatabaseServer]:
    """A running PostgreSQL."""
    server = EmbeddedPostgres(scratch / "pg")
    server.start()
    try:
        database_server = DatabaseServer(server)
        database_server.prepare()
        yield database_server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_database(database_server: DatabaseServer) -> Iterator[Database]:
    """The database of :func:`shared_server`."""
    with database_server.migrated() as database:
        yield database


@pytest.fixture
def database(database_server: DatabaseServer) -> Iterator[Database]:
    """A migrated database for one test."""
    with database_server.migrated() as database:
        yield database


@pytest.fixture(scope="session")
def shared_server(shared_database: Database) -> Iterator[Supervisor]:
    """A server for all tests that do not change its state."""
    server = pytest_twisted.blockon(ensureDeferred(start_server(shared_database)))
    yield server
    pytest_twisted.blockon(server.stopService())


@pytest.fixture
def client(shared_server: Supervisor) -> Client:
    """A client of :func:`shared_server`."""
    return client_of(shared_server)


@pytest_twisted.async_yield_fixture
async def server(database: Database) -> AsyncIterator[Supervisor]:
    """A server for one test, on :func:`database`."""
    async with running_server(database) as server:
        yield server


@pytest.fixture
def own_client(server: Supervisor) -> Client:
    """A client of :func:`server`."""
    return client_of(server)


@pytest.fixture
def app(shared_database: Database) -> App:
    """A new application in :func:`shared_database`."""
    return App().install(shared_database)
