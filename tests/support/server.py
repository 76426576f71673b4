"""A server in the process of the tests, on real sockets and a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor as global_reactor

from tests.support.client import Client
from tests.support.database import Database
from tests.support.waiting import until
from tkserver.config import load
from tkserver.server.supervisor import Supervisor


def launch_server(
    database: Database, failures: list[str], *, reactor: Any = global_reactor, **overrides: object
) -> Supervisor:
    """Start a server, and return immediately.

    :param failures: the server appends a message if it cannot continue.
    :param reactor: may have another clock than the reactor of the process.
    :param overrides: settings, by the names of their variables.
    """
    values = {
        "TK__SERVER__PORT": 0,
        "TK__ADMIN__PORT": 0,
        "TK__DATABASE__URL": database.dsn,
        "TK__DATABASE__MAX_CONNECTIONS": 4,
        "TK__INSIGHT__ENABLED": False,  # it needs a process, and only a few tests need it
        "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 0,  # all tests share one address, and many fail to authenticate
    }
    server = Supervisor(load({**values, **overrides}), reactor, failures.append)
    server.privilegedStartService()
    server.startService()
    return server


async def start_server(database: Database, *, reactor: Any = global_reactor, **overrides: object) -> Supervisor:
    """Start a server, and return when it is ready."""
    failures: list[str] = []
    server = launch_server(database, failures, reactor=reactor, **overrides)
    await until_ready(server, failures)
    return server


async def until_ready(server: Supervisor, failures: list[str]) -> None:
    """Wait until a server can store events.

    :param failures: see :func:`launch_server`.
    """
    client = client_of(server)

    async def is_ready() -> bool:
        assert not failures, failures
        return (await client.request("GET", "/health/ready")).status == 200

    await until(is_ready)


@asynccontextmanager
async def running_server(
    database: Database, *, reactor: Any = global_reactor, **overrides: object
) -> AsyncIterator[Supervisor]:
    """Run a server while the context lasts."""
    server = await start_server(database, reactor=reactor, **overrides)
    try:
        yield server
    finally:
        await server.stopService()


def client_of(server: Supervisor) -> Client:
    """Return a client of the public port of a server."""
    return Client(f"http://127.0.0.1:{server.port}")
