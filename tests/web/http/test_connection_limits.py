"""The number of connections, in total and of each client: nobody can take all of them."""

from __future__ import annotations

import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint

from tests.support.database import Database
from tests.support.peer import Peer, connect
from tests.support.process import Twistd
from tests.support.raw_requests import HEALTH_REQUEST
from tests.support.scrape import scrape
from tests.support.server import launch_server, running_server
from tests.support.waiting import TIMEOUT, until
from tkserver.server.supervisor import Supervisor

OTHER = "127.0.0.2"


async def connect_from(server: Supervisor, address: str = "127.0.0.1") -> Peer:
    """Open a connection from one of the addresses of this machine."""
    return await connect(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port, bindAddress=(address, 0)))


async def open_idle(server: Supervisor, address: str = "127.0.0.1", preamble: bytes = b"") -> Peer:
    """Open a connection, send a request, and wait for its response."""
    peer = await connect_from(server, address)
    peer.write(preamble + HEALTH_REQUEST)
    await peer.wait_for(b"healthy")
    return peer


async def open_busy(server: Supervisor, address: str = "127.0.0.1", preamble: bytes = b"") -> Peer:
    """Open a connection, and send a part of a request."""
    channels = server.worker.components.site._channels
    before = set(channels)
    peer = await connect_from(server, address)
    peer.write(preamble + HEALTH_REQUEST[:20])
    await until(lambda: any(channel._has_received for channel in channels - before))
    return peer


@asynccontextmanager
async def limited_server(database: Database, **settings: object) -> AsyncIterator[Supervisor]:
    """Run a server while the context lasts, and wait until the connections of its start are closed."""
    async with running_server(database, **{f"TK__SERVER__{name}": value for name, value in settings.items()}) as server:
        await until(lambda: server.worker.components.site.connections == 0)
        yield server
        for channel in list(server.worker.components.site._channels):
            channel.abort()


@pytest_twisted.ensureDeferred
async def test_longest_idle_connection_is_closed(database: Database) -> None:
    """When connections run short, those that have been idle longest are closed first, and never a busy one."""
    async with limited_server(database, MAX_CONNECTIONS=4) as server:
        busy = await open_busy(server)
        idle = [await open_idle(server) for _ in range(3)]
        idle[0].write(HEALTH_REQUEST)  # now it has been idle for less time than the others
        await idle[0].wait_for(b"healthy", 2)
        for expected in (idle[1], idle[2], idle[0]):
            await open_busy(server, OTHER)
            assert (await expected.read_all()).endswith(b"}")
        busy.write(HEALTH_REQUEST[20:])
        await busy.wait_for(b"healthy")
        metrics = await scrape(server.admin_port)
        assert metrics.value("tkserver_http_idle_connections_closed_total") == 3
        assert metrics.value("tkserver_http_connections_turned_away_total") == 0


@pytest_twisted.ensureDeferred
async def test_no_idle_connection(database: Database) -> None:
    """If no connection is idle, a new one is rejected."""
    async with limited_server(database, MAX_CONNECTIONS=2) as server:
        for _ in range(2):
            await open_busy(server)
        rejected = await connect_from(server, OTHER)
        assert await rejected.read_all() == b""
        assert (await scrape(server.admin_port)).value("tkserver_http_connections_turned_away_total") == 1


@pytest_twisted.ensureDeferred
async def test_limit_of_an_address(database: Database) -> None:
    """An address beyond its limit loses its own longest idle connection; other addresses are not affected."""
    async with limited_server(database, MAX_CONNECTIONS_PER_ADDRESS=2) as server:
        other = await open_idle(server, OTHER)
        first, second = await open_idle(server), await open_idle(server)
        third = await open_idle(server)
        assert (await first.read_all()).endswith(b"}")
        for peer in (second, third, other):
            peer.write(HEALTH_REQUEST)
            await peer.wait_for(b"healthy", 2)


@pytest_twisted.ensureDeferred
async def test_busy_connections_of_an_address(database: Database) -> None:
    """If none of its connections is idle, a new one of the address is rejected until another one is closed."""
    async with limited_server(database, MAX_CONNECTIONS_PER_ADDRESS=2) as server:
        busy = [await open_busy(server) for _ in range(2)]
        rejected = await connect_from(server)
        assert await rejected.read_all() == b""
        await open_idle(server, OTHER)
        site = server.worker.components.site
        busy[0].disconnect()
        await until(lambda: site.connections == 2)
        await open_idle(server)


@pytest_twisted.ensureDeferred
async def test_no_limit_of_an_address(database: Database) -> None:
    """0 disables the limit, and it does not apply to trusted proxies."""
    for setting in (
        {"MAX_CONNECTIONS_PER_ADDRESS": 0},
        {"MAX_CONNECTIONS_PER_ADDRESS": 1, "TRUSTED_PROXIES": "127.0.0.1"},
    ):
        async with limited_server(database, **setting) as server:
            for _ in range(3):
                await open_busy(server)
            assert server.worker.components.site.connections == 3


@asynccontextmanager
async def server_on(database: Database, endpoint: str, **settings: object) -> AsyncIterator[Supervisor]:
    """Run a server on an endpoint while the context lasts."""
    failures: list[str] = []
    server = launch_server(database, failures, TK__SERVER__ENDPOINT=endpoint, **settings)
    try:
        await until(lambda: server.worker.database_connected)
        yield server
    finally:
        for channel in list(server.worker.components.site._channels):
            channel.abort()
        await server.stopService()


@pytest_twisted.ensureDeferred
async def test_unix_socket(database: Database, directory: Path) -> None:
    """The limit does not apply to Unix sockets."""
    path = str(directory / "http")
    async with server_on(database, f"unix:{path}", TK__SERVER__MAX_CONNECTIONS_PER_ADDRESS=1) as server:
        peers = [await connect(UNIXClientEndpoint(reactor, path)) for _ in range(3)]
        for peer in peers:
            peer.write(HEALTH_REQUEST)
            await peer.wait_for(b"healthy")
        assert server.worker.components.site.connections == 3


@pytest_twisted.ensureDeferred
async def test_address_in_proxy_header(database: Database) -> None:
    """Behind a proxy, the address in the PROXY header counts; an IPv6 client counts by its /64 network."""

    def header(address: str) -> bytes:
        version, local = ("TCP6", "::1") if ":" in address else ("TCP4", "127.0.0.1")
        return f"PROXY {version} {address} {local} 1 2\r\n".encode()

    endpoint = "haproxy:tcp:0:interface=127.0.0.1"
    async with server_on(database, endpoint, TK__SERVER__MAX_CONNECTIONS_PER_ADDRESS=2) as server:
        for clients in (["203.0.113.1"] * 3, ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:1"]):
            peers = [await open_busy(server, preamble=header(client)) for client in clients[:2]]
            rejected = await connect_from(server)
            rejected.write(header(clients[2]) + HEALTH_REQUEST)
            assert await rejected.read_all() == b""
            peers[0].write(HEALTH_REQUEST[20:])
            await peers[0].wait_for(b"healthy")
            await open_idle(server, preamble=header(clients[2]))
            assert (await peers[0].read_all()).endswith(b"}")
        await open_idle(server, preamble=header("203.0.113.2"))
        await open_idle(server, preamble=header("2001:db8:0:1::1"))


@contextmanager
def open_files(number: int) -> Iterator[None]:
    """Let this process open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"needs {number} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("per_address", ["1024", "0"])
def test_address_that_opens_4200_connections(directory: Path, database: Database, per_address: str) -> None:
    """An address that opens 4200 connections and stays idle does not prevent another one from being served."""
    settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__MAX_CONNECTIONS_PER_ADDRESS": per_address}
    with open_files(4200 + 256), ExitStack() as stack:
        server = stack.enter_context(Twistd(directory, settings))
        server.wait_until_ready()
        for _ in range(4200):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT))
            peer.sendall(HEALTH_REQUEST)
            assert b"healthy" in peer.recv(65536)
        honest = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT, (OTHER, 0)))
            for _ in range(20)
        ]
        for peer in honest:
            peer.sendall(HEALTH_REQUEST)
            assert b"healthy" in peer.recv(65536)
        assert server.stop() == 0
    assert "Traceback" not in server.log
