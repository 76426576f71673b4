"""What holds on a TCP port holds behind TLS, on a Unix socket and behind a proxy that says for whom it forwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate as TlsCertificate
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater

from tests.support.certificates import Certificate
from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.logs import logged_failures, logged_lines
from tests.support.peer import Peer, connect
from tests.support.raw_requests import HEALTH_REQUEST, chunked_request_head, request_head
from tests.support.server import launch_server
from tkserver.server.supervisor import Supervisor
from tkserver.web.listen import certificates

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side

HEALTH_ONCE = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
READY = b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PROXY = b"PROXY TCP4 203.0.113.7 203.0.113.1 56324 443\r\n"


@dataclass
class Door:
    """A way in.

    :ivar endpoint: what the server listens on.
    :ivar way: the client's side of it, for a port.
    :ivar preamble: what a client sends first.
    """

    endpoint: str
    way: Callable[[int], IStreamClientEndpoint]
    preamble: bytes = b""
    server: Supervisor = field(init=False)

    async def connect(self) -> Peer:
        unix = self.endpoint.startswith("unix")
        peer = await connect(self.way(0 if unix else self.server.port))
        if self.preamble:
            peer.write(self.preamble)
        return peer

    @asynccontextmanager
    async def opened(self, database: Database, **settings: object) -> AsyncIterator[Door]:
        """With a server behind it."""
        failures: list[str] = []
        self.server = launch_server(database, failures, TK__SERVER__ENDPOINT=self.endpoint, **settings)
        try:
            while b" 200 " not in await self.ask(READY):
                assert not failures, failures
                await deferLater(reactor, 0.02)
            yield self
        finally:
            await self.server.stopService()

    async def ask(self, request: bytes) -> bytes:
        """All that comes back until the connection ends."""
        peer = await self.connect()
        peer.write(request)
        return await peer.end()


def tcp(port: int) -> IStreamClientEndpoint:
    return TCP4ClientEndpoint(reactor, "127.0.0.1", port)


def plain(_: Path) -> Door:
    return Door("tcp:0:interface=127.0.0.1", tcp)


def tls(directory: Path) -> Door:
    files = Certificate.make(directory, "localhost")
    trusted = TlsCertificate.loadPEM(files.authority.read_bytes())
    return Door(files.endpoint, lambda port: wrapClientTLS(optionsForClientTLS("localhost", trusted), tcp(port)))


def unix(directory: Path) -> Door:
    path = str(directory / "http")
    return Door(f"unix:{path}", lambda _: UNIXClientEndpoint(reactor, path))


def haproxy(_: Path) -> Door:
    return Door("haproxy:tcp:0:interface=127.0.0.1", tcp, PROXY)


@pytest.fixture(params=[plain, tls, unix, haproxy], ids=lambda make: make.__name__)
def closed(request: pytest.FixtureRequest, directory: Path) -> Door:
    """A door of each kind, with nobody behind it yet."""
    door: Door = request.param(directory)
    return door


@pytest_twisted.async_yield_fixture
async def door(closed: Door, database: Database) -> AsyncIterator[Door]:
    """A door of each kind, and a server with short deadlines and little room."""
    with logged_failures() as failures:
        async with closed.opened(
            database,
            TK__SERVER__HEADER_TIMEOUT=2,
            TK__SERVER__BODY_TIMEOUT=0.6,
            TK__SERVER__MAX_CONNECTIONS=3,
            TK__INGEST__MAX_BODY_BYTES=50_000,
        ):
            yield closed
    assert not failures, failures


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it did not happen")


@pytest_twisted.ensureDeferred
async def test_requests(door: Door, database: Database) -> None:
    """On one connection, without waiting: a batch, a bad signature, a batch in chunks. Answered in this order."""
    app, body = App().install(database), batch([make_event()])
    second = batch([make_event(), make_event()])
    peer = await door.connect()
    forged = request_head(app, body).replace(b"X-Signature: ", b"X-Signature: 0")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (second[:7], second[7:])) + b"0\r\n\r\n"
    chunked = chunked_request_head(app, second) + chunks
    peer.write(request_head(app, body) + body + forged + body + chunked + HEALTH_REQUEST)
    await peer.wait_for(b"healthy")
    expected = [b'"accepted":1', b'"code":"invalid_signature"', b'"accepted":2', b"healthy"]
    places = [peer.received.find(word) for word in expected]
    assert places == sorted(places)
    assert database.value("SELECT count(*) FROM events") == 3
    peer.hang_up()


@pytest_twisted.ensureDeferred
async def test_read_while_it_is_refused(door: Door) -> None:
    """A client that sends all of a long body before it reads gets to read the answer."""
    body = bytes(3_000_000)
    head = f"POST {App().path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    received = await door.ask(head + body)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.count(b"HTTP/1.1") == 1


@pytest_twisted.ensureDeferred
async def test_body_that_does_not_come(door: Door) -> None:
    """Has its deadline, and the client its answer."""
    received = await door.ask(f"POST {App().path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in received


@pytest_twisted.ensureDeferred
async def test_no_http(door: Door) -> None:
    """Is told so."""
    assert b'"code":"bad_request"' in await door.ask(b"nonsense\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_cap(door: Door) -> None:
    """One connection too many is closed, and there is room again when others end."""
    await until(lambda: not door.server.worker.components.site._channels)
    peers = [await door.connect() for _ in range(3)]
    await until(lambda: len(door.server.worker.components.site._channels) == 3)
    extra = await door.connect()
    assert await extra.end() == b""
    peers[0].hang_up()
    await until(lambda: len(door.server.worker.components.site._channels) == 2)
    again = await door.connect()
    again.write(HEALTH_REQUEST)
    await again.wait_for(b"healthy")
    for peer in (*peers[1:], again):
        peer.hang_up()


@pytest_twisted.ensureDeferred
async def test_hanging_up(door: Door, database: Database) -> None:
    """A request that is cut off is forgotten, and its connection with it."""
    app, body = App().install(database), batch([make_event()])
    for share in (0.1, 0.6, 0.99):
        peer = await door.connect()
        request = request_head(app, body) + body
        peer.write(request[: int(len(request) * share)])
        await until(lambda: any(channel._anything_received for channel in door.server.worker.components.site._channels))
        peer.hang_up()
        await until(lambda: not door.server.worker.components.site._channels)
    assert database.value("SELECT count(*) FROM events") == 0
    assert door.server.worker.components.site.bodies._free == door.server.worker.components.site.bodies._total


@pytest_twisted.ensureDeferred
async def test_stop(door: Door, database: Database) -> None:
    """Requests that arrive or are on their way are answered; a connection that is just idle ends."""
    app = App().install(database)
    await until(lambda: not door.server.worker.components.site._channels)
    arriving, idle, new = [await door.connect() for _ in range(3)]
    idle.write(HEALTH_REQUEST)
    await idle.wait_for(b"healthy")
    bodies = [batch([make_event()]) for _ in range(2)]
    requests = [request_head(app, body) + body for body in bodies]
    arriving.write(requests[0][:-20])
    await until(
        lambda: sum(channel._anything_received for channel in door.server.worker.components.site._channels) == 2
    )
    stopped = door.server.stopService()
    arriving.write(requests[0][-20:])
    new.write(requests[1])
    for peer in (arriving, new):
        received = await peer.end()
        assert b'"accepted":1' in received
        assert b"Connection: close" in received
    assert (await idle.end()).count(b"HTTP/1.1") == 1
    await stopped
    assert database.value("SELECT count(*) FROM events") == 2


STRICT = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 2}


async def refused(ask: Callable[[bytes], Awaitable[bytes]], app: App, headers: bytes = b"") -> list[bytes]:
    """The statuses of three requests with a bad signature."""
    body = batch([make_event()])
    forged = request_head(app, body).replace(b"X-Signature: ", b"X-Signature: 0")
    head = forged[:-2] + headers + b"Connection: close\r\n\r\n"
    return [(await ask(head + body))[9:12] for _ in range(3)]


def proxy_v2(address: bytes) -> bytes:
    """A header of the PROXY protocol, version 2, for a client at this IPv4 address."""
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + address + bytes([203, 0, 113, 1, 0xDC, 4, 1, 0xBB])


@pytest_twisted.ensureDeferred
async def test_proxy_protocol(database: Database, directory: Path) -> None:
    """Failures to authenticate count for the client that the proxy names, in either version of the protocol."""
    door, app = haproxy(directory), App().install(database)
    preambles = [
        b"PROXY TCP4 203.0.113.7 203.0.113.1 56324 443\r\n",
        b"PROXY TCP4 203.0.113.8 203.0.113.1 56324 443\r\n",
        b"PROXY TCP6 2001:db8::1 2001:db8:1::1 56324 443\r\n",
        proxy_v2(bytes([203, 0, 113, 9])),
    ]
    async with door.opened(database, **STRICT):
        for door.preamble in preambles:
            assert await refused(door.ask, app) == [b"401", b"401", b"429"]
        door.preamble = proxy_v2(bytes([203, 0, 113, 7]))
        assert set(await refused(door.ask, app)) == {b"429"}
        door.preamble = b""
        assert await door.ask(HEALTH_REQUEST) == b"", "who does not say for whom is not heard"


@pytest_twisted.ensureDeferred
async def test_forwarded_on_a_unix_socket(database: Database, directory: Path) -> None:
    """A proxy on a Unix socket says with a header for whom it forwards, where it is trusted."""
    door, app = unix(directory), App().install(database)
    async with door.opened(database, **STRICT, TK__SERVER__TRUSTED_PROXIES="unix"):
        for client in (b"203.0.113.7", b"203.0.113.8"):
            forwarded = b"X-Forwarded-For: " + client + b"\r\n"
            assert await refused(door.ask, app, forwarded) == [b"401", b"401", b"429"]


@pytest_twisted.ensureDeferred
async def test_nobody_shakes_hands(database: Database, directory: Path) -> None:
    """Who connects to a TLS port and speaks something else, or nothing, is let go."""
    door = tls(directory)
    with logged_failures() as failures:
        async with door.opened(database, TK__SERVER__HEADER_TIMEOUT=0.3):
            silent, other = [await connect(tcp(door.server.port)) for _ in range(2)]
            other.write(HEALTH_REQUEST)
            assert b"HTTP" not in await other.end()
            assert b"HTTP" not in await silent.end()
            await until(lambda: not door.server.worker.components.site._channels)
    assert not failures


@pytest_twisted.ensureDeferred
async def test_stop_behind_tls_waits_for_no_idle_client(database: Database, directory: Path) -> None:
    """A client that keeps its connection and does not even read is not waited for."""
    async with tls(directory).opened(database) as door:
        peer = await door.connect()
        peer.write(HEALTH_REQUEST)
        await peer.wait_for(b"healthy")
        peer.transport.pauseProducing()  # type: ignore[union-attr]
        stopped = ensureDeferred(door.server.worker.components.site.drain(60))
        await stopped.addTimeout(4, reactor)
        peer.hang_up()


@pytest_twisted.ensureDeferred
async def test_renewed_certificate(database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is served without a restart, as soon as all of it is there."""
    monkeypatch.setattr(certificates, "RENEWED_AFTER", 0.0)
    with logged_lines() as lines:
        async with tls(directory).opened(database) as door:
            key = (directory / "key.pem").read_bytes()
            renewed = tls(directory)
            renewed.server = door.server
            new_key = (directory / "key.pem").read_bytes()
            (directory / "key.pem").write_bytes(key)
            for _ in range(2):
                assert b"healthy" in await door.ask(HEALTH_ONCE)
            assert sum("the one before is used" in line for line in lines) == 1
            (directory / "key.pem").write_bytes(new_key)
            assert b"healthy" in await renewed.ask(HEALTH_ONCE)
            assert await door.ask(HEALTH_ONCE) == b"", "nobody trusts that one any more"
