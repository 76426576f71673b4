"""What tests share: one PostgreSQL, one server on it, and applications that are new to each test."""

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
from tests.support.server import start_server
from tkserver.server.supervisor import Supervisor
from tkserver.storage.embedded.postgres import EmbeddedPostgres

hypothesis_settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis_settings.load_profile("tests")


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory with a short name, for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="tk"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def directory(scratch: Path) -> Path:
    """A directory of this test's own."""
    return Path(tempfile.mkdtemp(dir=scratch))


@pytest.fixture(scope="session")
def database_server(scratch: Path) -> Iterator[DatabaseServer]:
    """A real PostgreSQL."""
    server = EmbeddedPostgres(scratch / "pg")
    server.start()
    try:
        databases = DatabaseServer(server)
        databases.prepare()
        yield databases
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_database(database_server: DatabaseServer) -> Iterator[Database]:
    """The database of :func:`shared_server`."""
    with database_server.migrated() as database:
        yield database


@pytest.fixture
def database(database_server: DatabaseServer) -> Iterator[Database]:
    """A database of this test's own, with the server's schema."""
    with database_server.migrated() as database:
        yield database


@pytest.fixture(scope="session")
def shared_server(shared_database: Database) -> Iterator[Supervisor]:
    """A server for all tests that leave it as it was."""
    server = pytest_twisted.blockon(ensureDeferred(start_server(shared_database)))
    yield server
    pytest_twisted.blockon(server.stopService())


@pytest.fixture
def client(shared_server: Supervisor) -> Client:
    return Client(f"http://127.0.0.1:{shared_server.port}")


@pytest_twisted.async_yield_fixture
async def server(database: Database) -> AsyncIterator[Supervisor]:
    """A server of this test's own."""
    server = await start_server(database)
    yield server
    await server.stopService()


@pytest.fixture
def own_client(server: Supervisor) -> Client:
    """Of that server."""
    return Client(f"http://127.0.0.1:{server.port}")


@pytest.fixture
def app(shared_database: Database) -> App:
    """An application that no other test knows."""
    return App().install(shared_database)
