"""Fixtures, and how tests run in parallel.

Each process that runs tests has its own PostgreSQL, its own server and its own directories. No test uses a fixed port
or a fixed path.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import pytest_twisted
from hypothesis import settings as hypothesis_settings
from twisted.internet.defer import ensureDeferred

from tests.support.client import App, Client
from tests.support.database import Database, DatabaseServer
from tests.support.server import client_of, running_server, start_server
from tests.support.shared import create_shared_directory
from tkserver.server.supervisor import Supervisor
from tkserver.storage.embedded.os_user import UNPRIVILEGED_USER
from tkserver.storage.embedded.postgres import EmbeddedPostgres

hypothesis_settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis_settings.load_profile("tests")

PROCESS_MODULES = frozenset(
    (
        *("subprocess", "bench.server", "tkserver.storage.embedded.postgres"),
        *("tests.support.cluster", "tests.support.command", "tests.support.process", "tests.support.valkey"),
    )
)
"""A test needs processes if its module uses one of these modules, or if it uses a fixture that does."""

PROCESS_EVENTS = frozenset(("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"))
"""Audit events of Python that announce a new process."""

_processes_allowed = True


def pytest_configure(config: pytest.Config) -> None:
    """Create a directory for all processes of the test run, and remove it at the end.

    Processes that tests start inherit ignored signals, such as those of a test run in the background, or with nohup.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # this process starts the others
        directory = create_shared_directory()
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes that run tests. Tests often wait, so more than one per processor is useful."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need processes, and let each process begin with some of those that may take long.

    pytest-xdist divides the tests into a block for each process.
    """
    for item in items:
        if _needs_processes(item):
            item.add_marker("processes")
    blocks = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    long = [item for item in items if item.get_closest_marker("timeout")]
    short = [item for item in items if not item.get_closest_marker("timeout")]
    size = -(-len(items) // blocks)
    items.clear()
    for number in range(blocks):
        own = long[number::blocks]
        items += own + short[: size - len(own)]
        del short[: size - len(own)]
    items += short


def _needs_processes(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    fixtures = item._fixtureinfo.name2fixturedefs  # the only way to know the functions of all fixtures
    functions = [item.function, *(fixture.func for definitions in fixtures.values() for fixture in definitions)]
    return "database_server" in fixtures or any(_uses_processes(function.__module__) for function in functions)


@cache
def _uses_processes(module: str) -> bool:
    names = vars(sys.modules[module]).values()
    used = {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in names}
    return module != __name__ and not PROCESS_MODULES.isdisjoint(used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Let only tests with the marker start processes."""
    global _processes_allowed
    _processes_allowed = item.get_closest_marker("processes") is not None
    try:
        return (yield)
    finally:
        _processes_allowed = True


def _check_process(event: str, _: object) -> None:
    if event in PROCESS_EVENTS and not _processes_allowed:
        raise AssertionError(f"{event}: mark tests that start processes with pytest.mark.processes")


sys.addaudithook(_check_process)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory with a short path, because the path of a Unix socket is limited to about 100 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="tk"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def directory(scratch: Path) -> Iterator[Path]:
    """An empty directory for one test, of the user that a server becomes if the tests run as root."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    with suppress(KeyError, PermissionError):
        account = pwd.getpwnam(UNPRIVILEGED_USER)
        os.chown(directory, account.pw_uid, account.pw_gid)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


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
