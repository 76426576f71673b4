"""Requests over TCP, TLS, Unix sockets and the PROXY protocol."""

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
from tests.support.raw_requests import HEALTH_REQUEST, chunked_request_head, forged_head, request_head, signed_request
from tests.support.server import launch_server
from tests.support.waiting import until
from tkserver.server.supervisor import Supervisor
from tkserver.web.http.connections import ApiSite
from tkserver.web.listen import certificates

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side

HEALTH_AND_CLOSE = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
READY_AND_CLOSE = b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PROXY = b"PROXY TCP4 203.0.113.7 203.0.113.1 56324 443\r\n"


@dataclass
class Endpoint:
    """An endpoint of a server.

    :ivar server_endpoint: the endpoint string for the server.
    :ivar client_endpoint: returns the endpoint for clients; takes the port of the server.
    :ivar preamble: the first bytes that a client sends.
    """

    server_endpoint: str
    client_endpoint: Callable[[int], IStreamClientEndpoint]
    preamble: bytes = b""
    server: Supervisor = field(init=False)

    @property
    def site(self) -> ApiSite:
        return self.server.worker.components.site

    async def connect(self) -> Peer:
        is_unix = self.server_endpoint.startswith("unix")
        peer = await connect(self.client_endpoint(0 if is_unix else self.server.port))
        if self.preamble:
            peer.write(self.preamble)
        return peer

    @asynccontextmanager
    async def served(self, database: Database, **settings: object) -> AsyncIterator[Endpoint]:
        """Run a server on this endpoint while the context lasts."""
        failures: list[str] = []
        self.server = launch_server(database, failures, TK__SERVER__ENDPOINT=self.server_endpoint, **settings)
        try:
            await until(self._is_ready, lambda: f"the server is not ready: {failures}")
            yield self
        finally:
            await self.server.stopService()

    async def _is_ready(self) -> bool:
        return b" 200 " in await self.request(READY_AND_CLOSE)

    async def request(self, request: bytes) -> bytes:
        """Send a request, and return everything that is received until the connection is closed."""
        peer = await self.connect()
        peer.write(request)
        return await peer.read_all()


def tcp_client(port: int) -> IStreamClientEndpoint:
    return TCP4ClientEndpoint(reactor, "127.0.0.1", port)


def tcp(_: Path) -> Endpoint:
    return Endpoint("tcp:0:interface=127.0.0.1", tcp_client)


def tls(directory: Path) -> Endpoint:
    files = Certificate.make(directory, "localhost")
    trusted = TlsCertificate.loadPEM(files.authority.read_bytes())
    return Endpoint(
        files.endpoint, lambda port: wrapClientTLS(optionsForClientTLS("localhost", trusted), tcp_client(port))
    )


def unix(directory: Path) -> Endpoint:
    path = str(directory / "http")
    return Endpoint(f"unix:{path}", lambda _: UNIXClientEndpoint(reactor, path))


def haproxy(_: Path) -> Endpoint:
    return Endpoint("haproxy:tcp:0:interface=127.0.0.1", tcp_client, PROXY)


@pytest_twisted.async_yield_fixture(params=[tcp, tls, unix, haproxy], ids=lambda create: create.__name__)
async def endpoint(request: pytest.FixtureRequest, directory: Path, database: Database) -> AsyncIterator[Endpoint]:
    """An endpoint of each kind, with a server with short time limits, few connections and small bodies."""
    created: Endpoint = request.param(directory)
    with logged_failures() as failures:
        async with created.served(
            database,
            TK__SERVER__HEADER_TIMEOUT=2,
            TK__SERVER__BODY_TIMEOUT=0.6,
            TK__SERVER__MAX_CONNECTIONS=3,
            TK__INGEST__MAX_BODY_BYTES=50_000,
        ):
            yield created
    assert not failures, failures


@pytest_twisted.ensureDeferred
async def test_pipelined_requests(endpoint: Endpoint, database: Database) -> None:
    """A batch, a wrong signature and a chunked batch on one connection get their responses in this order."""
    app, body = App().install(database), batch([make_event()])
    second = batch([make_event(), make_event()])
    peer = await endpoint.connect()
    forged = request_head(app, body).replace(b"X-Signature: ", b"X-Signature: 0")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (second[:7], second[7:])) + b"0\r\n\r\n"
    peer.write(signed_request(app, body) + forged + body + chunked_request_head(app, second) + chunks + HEALTH_REQUEST)
    await peer.wait_for(b"healthy")
    expected = [b'"accepted":1', b'"code":"invalid_signature"', b'"accepted":2', b"healthy"]
    positions = [peer.received.find(text) for text in expected]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert database.value("SELECT count(*) FROM events") == 3
    peer.disconnect()


@pytest_twisted.ensureDeferred
async def test_error_can_be_read_after_sending_the_body(endpoint: Endpoint, database: Database) -> None:
    """A client that sends all of a body before it reads can read the response, even if the body was not read."""
    app, body = App().install(database), bytes(3_000_000)
    for sender, status in ((app, b"413"), (App(), b"401")):
        received = await endpoint.request(forged_head(sender, f"Content-Length: {len(body)}") + body)
        assert received.startswith(b"HTTP/1.1 %s " % status)
        assert received.count(b"HTTP/1.1") == 1


@pytest_twisted.ensureDeferred
async def test_missing_body_gets_408(endpoint: Endpoint, database: Database) -> None:
    """A request whose body does not arrive gets a 408 after the time limit."""
    received = await endpoint.request(forged_head(App().install(database), "Content-Length: 9"))
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in received


@pytest_twisted.ensureDeferred
async def test_malformed_request(endpoint: Endpoint) -> None:
    """Input that is not HTTP gets an error."""
    assert b'"code":"bad_request"' in await endpoint.request(b"nonsense\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_maximum_number_of_connections(endpoint: Endpoint) -> None:
    """A connection beyond the maximum is closed; when another one is closed, a new one is accepted."""
    await until(lambda: endpoint.site.connections == 0)
    peers = [await endpoint.connect() for _ in range(3)]
    await until(lambda: endpoint.site.connections == 3)
    rejected = await endpoint.connect()
    assert await rejected.read_all() == b""
    peers[0].disconnect()
    await until(lambda: endpoint.site.connections == 2)
    accepted = await endpoint.connect()
    accepted.write(HEALTH_REQUEST)
    await accepted.wait_for(b"healthy")
    for peer in (*peers[1:], accepted):
        peer.disconnect()


@pytest_twisted.ensureDeferred
async def test_disconnect_during_request(endpoint: Endpoint, database: Database) -> None:
    """An incomplete request is discarded, and its connection and its memory are released."""
    app, body = App().install(database), batch([make_event()])
    request = signed_request(app, body)
    for fraction in (0.1, 0.6, 0.99):
        peer = await endpoint.connect()
        peer.write(request[: int(len(request) * fraction)])
        await until(lambda: any(channel._has_received for channel in endpoint.site._channels))
        peer.disconnect()
        await until(lambda: endpoint.site.connections == 0)
    assert database.value("SELECT count(*) FROM events") == 0
    assert endpoint.site.bodies.used == 0


@pytest_twisted.ensureDeferred
async def test_stop(endpoint: Endpoint, database: Database) -> None:
    """When the server stops, requests that are arriving or on their way are handled, and idle connections closed."""
    app = App().install(database)
    await until(lambda: endpoint.site.connections == 0)
    arriving, idle, new = [await endpoint.connect() for _ in range(3)]
    idle.write(HEALTH_REQUEST)
    await idle.wait_for(b"healthy")
    requests = [signed_request(app, batch([make_event()])) for _ in range(2)]
    arriving.write(requests[0][:-20])
    await until(lambda: sum(channel._has_received for channel in endpoint.site._channels) == 2)
    stopped = endpoint.server.stopService()
    arriving.write(requests[0][-20:])
    new.write(requests[1])
    for peer in (arriving, new):
        received = await peer.read_all()
        assert b'"accepted":1' in received
        assert b"Connection: close" in received
    assert (await idle.read_all()).count(b"HTTP/1.1") == 1
    await stopped
    assert database.value("SELECT count(*) FROM events") == 2


STRICT_LIMIT = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 2}


async def statuses_of_failures(
    send: Callable[[bytes], Awaitable[bytes]], app: App, headers: bytes = b""
) -> list[bytes]:
    """Send three requests with a wrong signature, and return the statuses."""
    body = batch([make_event()])
    head = request_head(app, body).replace(b"X-Signature: ", b"X-Signature: 0")[:-2]
    request = head + headers + b"Connection: close\r\n\r\n" + body
    return [(await send(request))[9:12] for _ in range(3)]


def proxy_v2(address: bytes) -> bytes:
    """Return a header of version 2 of the PROXY protocol for a client with this IPv4 address."""
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + address + bytes([203, 0, 113, 1, 0xDC, 4, 1, 0xBB])


@pytest_twisted.ensureDeferred
async def test_proxy_protocol(database: Database, directory: Path) -> None:
    """Failed authentications count for the client in the PROXY header, in both versions of the protocol."""
    endpoint, app = haproxy(directory), App().install(database)
    preambles = [
        b"PROXY TCP4 203.0.113.7 203.0.113.1 56324 443\r\n",
        b"PROXY TCP4 203.0.113.8 203.0.113.1 56324 443\r\n",
        b"PROXY TCP6 2001:db8::1 2001:db8:1::1 56324 443\r\n",
        proxy_v2(bytes([203, 0, 113, 9])),
    ]
    async with endpoint.served(database, **STRICT_LIMIT):
        for preamble in preambles:
            endpoint.preamble = preamble
            assert await statuses_of_failures(endpoint.request, app) == [b"401", b"401", b"429"]
        endpoint.preamble = proxy_v2(bytes([203, 0, 113, 7]))
        assert set(await statuses_of_failures(endpoint.request, app)) == {b"429"}
        endpoint.preamble = b""
        assert await endpoint.request(HEALTH_REQUEST) == b"", "a connection without a PROXY header is closed"


@pytest_twisted.ensureDeferred
async def test_proxy_header_in_parts(database: Database, directory: Path) -> None:
    """A PROXY header can arrive byte by byte."""
    endpoint = haproxy(directory)
    async with endpoint.served(database):
        for header in (PROXY, proxy_v2(bytes([203, 0, 113, 9])), b"PROXY UNKNOWN\r\n"):
            peer = await connect(tcp_client(endpoint.server.port))
            peer.transport.setTcpNoDelay(True)  # type: ignore[union-attr]
            await send_in_parts(peer, header + HEALTH_AND_CLOSE)
            assert b"healthy" in await peer.read_all()


async def send_in_parts(peer: Peer, data: bytes) -> None:
    """Send bytes one by one."""
    for byte in data:
        peer.write(bytes([byte]))
        await deferLater(reactor, 0)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 203.0.113.7 203.0.113.1 port 443\r\n",
        b"PROXY TCP4 \xff 203.0.113.1 56324 443\r\n",
        b"PROXY TCP4 203.0.113.7 203.0.113.1 56324\r\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        b"\r\n\r\n\0\r\nQUIT\n\x21\x13\0\x0c" + bytes(12),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x0c" + bytes(12),
    ],
)
@pytest_twisted.ensureDeferred
async def test_malformed_proxy_header(database: Database, directory: Path, header: bytes) -> None:
    """A connection with a malformed PROXY header is closed. The log has one line about it, and no traceback."""
    endpoint = haproxy(directory)
    async with endpoint.served(database):
        with logged_lines() as lines, logged_failures() as failures:
            endpoint.preamble = header
            for _ in range(3):
                assert await endpoint.request(HEALTH_REQUEST) == b""
            endpoint.preamble = PROXY
            assert b"healthy" in await endpoint.request(HEALTH_AND_CLOSE)
    assert not failures
    assert sum("as the PROXY protocol requires" in line for line in lines) == 1
    assert not [line for line in lines if "203.0.113" in line]


@pytest_twisted.ensureDeferred
async def test_x_forwarded_for_on_unix_socket(database: Database, directory: Path) -> None:
    """If ``unix`` is trusted, failed authentications on a Unix socket count for the client in the header."""
    endpoint, app = unix(directory), App().install(database)
    async with endpoint.served(database, **STRICT_LIMIT, TK__SERVER__TRUSTED_PROXIES="unix"):
        for client in (b"203.0.113.7", b"203.0.113.8"):
            header = b"X-Forwarded-For: " + client + b"\r\n"
            assert await statuses_of_failures(endpoint.request, app, header) == [b"401", b"401", b"429"]


@pytest_twisted.ensureDeferred
async def test_clients_without_tls_handshake_are_disconnected(database: Database, directory: Path) -> None:
    """A client that sends something else than TLS to a TLS port, or nothing, is disconnected."""
    endpoint = tls(directory)
    with logged_failures() as failures:
        async with endpoint.served(database, TK__SERVER__HEADER_TIMEOUT=0.3):
            silent, plain = [await connect(tcp_client(endpoint.server.port)) for _ in range(2)]
            plain.write(HEALTH_REQUEST)
            assert b"HTTP" not in await plain.read_all()
            assert b"HTTP" not in await silent.read_all()
            await until(lambda: endpoint.site.connections == 0)
    assert not failures


@pytest_twisted.ensureDeferred
async def test_stop_does_not_wait_for_idle_tls_clients(database: Database, directory: Path) -> None:
    """The server stops without waiting for an idle TLS client that does not read."""
    async with tls(directory).served(database) as endpoint:
        peer = await endpoint.connect()
        peer.write(HEALTH_REQUEST)
        await peer.wait_for(b"healthy")
        peer.transport.pauseProducing()  # type: ignore[union-attr]
        drained = ensureDeferred(endpoint.site.drain(60))
        await drained.addTimeout(4, reactor)
        peer.disconnect()


@pytest_twisted.ensureDeferred
async def test_renewed_certificate(database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewed certificate is used without a restart, as soon as both the certificate and its key are replaced."""
    monkeypatch.setattr(certificates, "RELOAD_INTERVAL", 0.0)
    with logged_lines() as lines:
        async with tls(directory).served(database) as endpoint:
            old_key = (directory / "key.pem").read_bytes()
            renewed = tls(directory)
            renewed.server = endpoint.server
            new_key = (directory / "key.pem").read_bytes()
            (directory / "key.pem").write_bytes(old_key)
            for _ in range(2):
                assert b"healthy" in await endpoint.request(HEALTH_AND_CLOSE)
            assert sum("the previous one is used" in line for line in lines) == 1
            (directory / "key.pem").write_bytes(new_key)
            assert b"healthy" in await renewed.request(HEALTH_AND_CLOSE)
            assert await endpoint.request(HEALTH_AND_CLOSE) == b"", "the old certificate is not used any longer"
