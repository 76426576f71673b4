"""A server in the process of the tests, on real sockets and a real database."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.client import Client
from tests.support.database import Database
from tkserver.config import load
from tkserver.server.supervisor import Supervisor


def launch_server(database: Database, failures: list[str], **overrides: object) -> Supervisor:
    """Start a server, and return immediately.

    :param failures: the server appends a message if it cannot continue.
    :param overrides: settings, by the names of their variables.
    """
    values = {
        "TK__SERVER__PORT": 0,
        "TK__ADMIN__PORT": 0,
        "TK__DATABASE__URL": database.dsn,
        "TK__DATABASE__MAX_CONNECTIONS": 4,
        "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 0,  # all tests share one address, and many fail to authenticate
    }
    server = Supervisor(load({**values, **overrides}), reactor, failures.append)
    server.privilegedStartService()
    server.startService()
    return server


async def start_server(database: Database, **overrides: object) -> Supervisor:
    """Start a server, and return when it is ready."""
    failures: list[str] = []
    server = launch_server(database, failures, **overrides)
    client = Client(f"http://127.0.0.1:{server.port}")
    while (await client.request("GET", "/health/ready")).status != 200:
        assert not failures, failures
        await deferLater(reactor, 0.02)
    return server
