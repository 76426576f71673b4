"""Slow, malicious and disconnecting clients. None of them costs the server more than it should."""

from __future__ import annotations

import re
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater

from tests.support.client import App, Client, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.logs import logged_failures
from tests.support.peer import connect
from tests.support.raw_requests import HEALTH_REQUEST, chunked_request_head, forged_head, request_head, signed_request
from tests.support.server import start_server
from tests.support.waiting import until
from tkserver.server.supervisor import Supervisor
from tkserver.web.http.connections import ApiSite

MAX_BODY_BYTES = 50_000

SETTINGS = {
    "TK__SERVER__HEADER_TIMEOUT": 0.4,
    "TK__SERVER__BODY_TIMEOUT": 0.6,
    "TK__SERVER__IDLE_TIMEOUT": 0.5,
    "TK__SERVER__MAX_CONNECTIONS": 5,
    "TK__INGEST__MAX_BODY_BYTES": MAX_BODY_BYTES,
}


@pytest_twisted.async_yield_fixture
async def strict_server(database: Database) -> AsyncIterator[Supervisor]:
    """A server with short time limits, few connections and small bodies."""
    server = await start_server(database, **SETTINGS)
    yield server
    await server.stopService()


@pytest.fixture(scope="module")
def strict_port(shared_database: Database) -> Iterator[int]:
    """The port of such a server, which all tests of this module share. They must close their connections."""
    server = pytest_twisted.blockon(ensureDeferred(start_server(shared_database, **SETTINGS)))
    yield server.port
    pytest_twisted.blockon(server.stopService())


@pytest.fixture
def known_app(shared_database: Database) -> App:
    """An application of that server."""
    return App().install(shared_database)


@pytest.fixture
def site(strict_server: Supervisor) -> ApiSite:
    return strict_server.worker.components.site


async def send_slowly(write: Callable[[bytes], None], data: bytes, pause: float) -> None:
    """Send bytes one by one."""
    for byte in data:
        write(bytes([byte]))
        await deferLater(reactor, pause)


class TestTimeouts:
    """Time limits are absolute: received bytes do not restart them."""

    @pytest_twisted.ensureDeferred
    async def test_slow_headers_get_408(self, strict_server: Supervisor) -> None:
        """A request whose headers arrive slowly gets a 408 after the time limit."""
        peer = await connect(strict_server.port)
        sending = ensureDeferred(send_slowly(peer.write, HEALTH_REQUEST * 5, 0.02))
        received = await peer.read_all()
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in received
        assert b"X-Clacks-Overhead: GNU Terry Pratchett\r\n" in received
        await sending

    @pytest_twisted.ensureDeferred
    async def test_slow_body_gets_408(self, strict_server: Supervisor, database: Database) -> None:
        """A request whose body arrives slowly gets a 408 after the time limit."""
        body = batch([make_event()])
        peer = await connect(strict_server.port)
        peer.write(request_head(App().install(database), body))
        sending = ensureDeferred(send_slowly(peer.write, body[:60], 0.02))
        assert (await peer.read_all()).startswith(b"HTTP/1.1 408 ")
        await sending

    @pytest_twisted.ensureDeferred
    async def test_silent_connection_is_closed(self, strict_server: Supervisor) -> None:
        """A connection on which nothing is received is closed without a response."""
        peer = await connect(strict_server.port)
        assert await peer.read_all() == b""

    @pytest_twisted.ensureDeferred
    async def test_idle_connection_is_closed(self, strict_server: Supervisor) -> None:
        """A connection stays open between requests until the time limit."""
        peer = await connect(strict_server.port)
        for number in (1, 2):
            peer.write(HEALTH_REQUEST)
            await peer.wait_for(b"healthy", number)
        assert (await peer.read_all()).count(b"HTTP/1.1 200 OK") == 2

    @pytest_twisted.ensureDeferred
    async def test_timeout_releases_memory_of_body(
        self, strict_server: Supervisor, site: ApiSite, database: Database
    ) -> None:
        """The memory of a body is released when the request times out, before its connection is closed."""
        peer = await connect(strict_server.port)
        peer.write(forged_head(App().install(database), f"Content-Length: {MAX_BODY_BYTES}") + b"{")
        await until(lambda: site.bodies.used == 1)
        await peer.wait_for(b'"code":"request_timeout"')
        assert site.bodies.used == 0
        peer.disconnect()

    @pytest_twisted.ensureDeferred
    async def test_idle_after_slow_reading(self, strict_server: Supervisor, site: ApiSite) -> None:
        """A client that has read all responses, but slowly, is idle and gets no error."""
        peer = await connect(strict_server.port)
        transport: Any = peer.transport
        transport.pauseProducing()
        peer.write(HEALTH_REQUEST * 20_000)
        await until(lambda: any(channel._write_paused for channel in site._channels))
        transport.resumeProducing()
        received = await peer.read_all()
        assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 OK")

    @pytest_twisted.ensureDeferred
    async def test_stop_during_a_request(self, strict_server: Supervisor, site: ApiSite, database: Database) -> None:
        """When the server stops, an incomplete request is handled, and is the last one of its connection."""
        body = batch([make_event()])
        app = App().install(database)
        peer = await connect(strict_server.port)
        peer.write(HEALTH_REQUEST)
        await peer.wait_for(b"healthy")
        request = signed_request(app, body)
        peer.write(request[:40])
        await until(lambda: any(channel._buffer for channel in site._channels))
        stopped = strict_server.stopService()
        peer.write(request[40:])
        received = await peer.read_all()
        await stopped
        assert b'"accepted":1' in received
        assert b"Connection: close" in received


class TestConnections:
    """The number of connections, and what clients send on them."""

    @pytest_twisted.ensureDeferred
    async def test_maximum_number_of_connections(self, strict_server: Supervisor, site: ApiSite) -> None:
        """A connection beyond the maximum is closed; when another one is closed, a new one is accepted."""
        peers = [await connect(strict_server.port) for _ in range(5)]
        rejected = await connect(strict_server.port)
        assert await rejected.read_all() == b""
        peers[0].disconnect()
        await until(lambda: site.connections < 5)
        accepted = await connect(strict_server.port)
        accepted.write(HEALTH_REQUEST)
        await accepted.wait_for(b"healthy")
        for peer in (*peers[1:], accepted):
            peer.disconnect()

    @pytest_twisted.ensureDeferred
    async def test_pipelined_requests_are_answered_in_order(
        self, strict_server: Supervisor, database: Database
    ) -> None:
        """Responses to pipelined requests are sent in the order of the requests."""
        app = App().install(database)
        bodies = [batch([make_event()]) for _ in range(3)]
        peer = await connect(strict_server.port)
        peer.write(b"".join(signed_request(app, body) + HEALTH_REQUEST for body in bodies))
        await peer.wait_for(b"healthy", 3)
        responses = [match.group() for match in re.finditer(rb'"accepted":1|healthy', peer.received)]
        assert responses == [b'"accepted":1', b"healthy"] * 3
        assert database.value("SELECT count(*) FROM events") == 3
        peer.disconnect()

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"nonsense\r\n\r\n",
            b"GET\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /health HTTP/1.1\r\nBad Name: x\r\n\r\n",
            b"POST /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /health HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            b"POST /health HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /health HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST /health HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
            b"GET /health HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_malformed_request_gets_400(self, strict_port: int, request_bytes: bytes) -> None:
        """Input that is not HTTP gets one 400 in the format of all errors, and the connection is closed."""
        peer = await connect(strict_port)
        peer.write(request_bytes)
        received = await peer.read_all()
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1 400 ") == 1
        assert b"X-Clacks-Overhead: GNU Terry Pratchett" in head
        assert b"Content-Length: %d" % len(body) in head
        assert b'"code":"bad_request"' in body

    @pytest.mark.parametrize(
        ("headers", "problem"),
        [
            ([b"X-%d: " % n + b"y" * 1000 for n in range(17)], b"the headers are longer than 16384 bytes"),
            ([b"X: " + b"y" * 17_000], b"longer than 16384 bytes"),
            ([b"X-%d: y" % n for n in range(101)], b"there are more than 100 headers"),
            ([b"X: y", *(b" y" * 500 for _ in range(17))], b"the headers are longer than 16384 bytes"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_too_many_headers_get_400(self, strict_port: int, headers: list[bytes], problem: bytes) -> None:
        """The number of headers, their lengths and their total length are limited, and the error names the limit."""
        peer = await connect(strict_port)
        peer.write(b"\r\n".join([b"GET /health HTTP/1.1", *headers, b"", b""]))
        received = await peer.read_all()
        assert received.startswith(b"HTTP/1.1 400 ")
        assert problem in received

    @pytest.mark.parametrize("path", [b"*", b"http://elsewhere/health", b"/%", b"/\xff", b"/health?a=%ff"])
    @pytest.mark.parametrize("host", [b"x", b"\xff\xfe", b"", b"xn--a"])
    @pytest_twisted.ensureDeferred
    async def test_unusual_targets_and_hosts(self, strict_port: int, path: bytes, host: bytes) -> None:
        """Unusual request targets and host names get a normal response in JSON."""
        peer = await connect(strict_port)
        peer.write(b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        received = await peer.read_all()
        assert received[:13] in (b"HTTP/1.1 200 ", b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")
        assert b"Content-Type: application/json\r\n" in received

    @pytest.mark.parametrize(
        ("target", "status"),
        [
            (b"/health", 200),
            (b"http://elsewhere/health", 200),
            (b"HTTPS://elsewhere:1/health?a=b", 200),
            (b"xhealth", 404),
            (b"//health", 404),
            (b"http://elsewhere", 404),
            (b"*", 404),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_target_with_scheme_and_host(self, strict_port: int, target: bytes, status: int) -> None:
        """A request target is a path, possibly after a scheme and a host; any other gets a 404."""
        peer = await connect(strict_port)
        peer.write(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await peer.read_all()).startswith(b"HTTP/1.1 %d " % status)

    @pytest_twisted.ensureDeferred
    async def test_client_that_does_not_read_is_not_read_from(self, strict_server: Supervisor, site: ApiSite) -> None:
        """The server stops reading from a client that does not read its responses, and continues when it does."""
        peer = await connect(strict_server.port)
        transport: Any = peer.transport
        transport.pauseProducing()
        requests = HEALTH_REQUEST * 20_000
        for _ in range(40):  # far more than the buffers of both sockets can contain
            peer.write(requests)
            await deferLater(reactor, 0.002)
        sent = len(requests) * 40 - sum(map(len, transport._tempDataBuffer)) - len(transport.dataBuffer)
        assert sent < len(requests) * 30, "the server has read everything"
        (channel,) = site._channels
        assert len(channel._buffer) < 1_000_000, "the server stores what it reads"
        transport.resumeProducing()
        await peer.wait_for(b"healthy", 5000)
        peer.disconnect()


class TestBodies:
    """Bodies that are too long are rejected while they arrive, and are not stored in memory."""

    @pytest_twisted.ensureDeferred
    async def test_100_continue_precedes_the_response(self, strict_port: int, known_app: App) -> None:
        """``100 Continue`` is sent first, even if the client does not wait for it and the response is ready."""
        peer = await connect(strict_port)
        peer.write(forged_head(known_app, "Content-Length: 2", "Expect: 100-continue") + b"{}")
        await peer.wait_for(b'"code":"invalid_signature"')
        peer.disconnect()
        assert peer.received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 ")

    @pytest_twisted.ensureDeferred
    async def test_too_large_content_length_gets_413(self, strict_port: int, known_app: App) -> None:
        """A body with a too large ``Content-Length`` is rejected before it is sent, without ``100 Continue``."""
        peer = await connect(strict_port)
        peer.write(forged_head(known_app, f"Content-Length: {MAX_BODY_BYTES + 1}", "Expect: 100-continue"))
        await peer.wait_for(b'"code":"payload_too_large"')
        assert peer.received.startswith(b"HTTP/1.1 413 ")
        assert b"X-Clacks-Overhead: GNU Terry Pratchett\r\n" in peer.received
        assert b"Connection: close\r\n" in peer.received
        peer.disconnect()

    @pytest_twisted.ensureDeferred
    async def test_100_continue(self, strict_server: Supervisor, database: Database) -> None:
        """A client that waits for ``100 Continue`` gets it, and can then send the body."""
        app, body = App().install(database), batch([make_event()])
        peer = await connect(strict_server.port)
        peer.write(request_head(app, body)[:-2] + b"Expect: 100-continue\r\n\r\n")
        await peer.wait_for(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.write(body)
        await peer.wait_for(b'"accepted":1')
        peer.disconnect()

    @pytest_twisted.ensureDeferred
    async def test_413_can_be_read_after_sending_the_body(self, strict_port: int, known_app: App) -> None:
        """A client that sends all of a long body before it reads can read the response."""
        peer = await connect(strict_port)
        body = bytes(3_000_000)
        peer.write(forged_head(known_app, f"Content-Length: {len(body)}") + body)
        received = await peer.read_all()
        assert received.startswith(b"HTTP/1.1 413 ")
        assert received.count(b"HTTP/1.1") == 1

    @pytest_twisted.ensureDeferred
    async def test_chunked_body_is_accepted(self, strict_server: Supervisor, database: Database) -> None:
        """The events of a chunked body are stored."""
        app, body = App().install(database), batch([make_event(), make_event()])
        peer = await connect(strict_server.port)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]))
        peer.write(chunked_request_head(app, body) + chunks + b"0\r\n\r\n")
        await peer.wait_for(b'"accepted":2')
        peer.disconnect()

    @pytest_twisted.ensureDeferred
    async def test_endless_chunked_body_gets_413(self, strict_server: Supervisor, database: Database) -> None:
        """A chunked body without end is rejected when it is too long, and takes no more memory."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peer = await connect(strict_server.port)
        peer.write(forged_head(App().install(database), "Transfer-Encoding: chunked"))
        chunk = b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000))
        for _ in range(100):
            peer.write(chunk)
            await deferLater(reactor, 0.005)
            if peer.closed.called:
                break
        assert b'"code":"payload_too_large"' in peer.received
        assert peer.received.count(b"HTTP/1.1") == 1
        peer.disconnect()
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert growth < 150_000  # KiB; this process contains the client as well


class TestDisconnectingClients:
    """Clients that disconnect cause no errors in the log, and lose no events that are being stored."""

    @pytest_twisted.ensureDeferred
    async def test_disconnect_during_commit(self, strict_server: Supervisor, database: Database) -> None:
        """The events of a client that disconnects during the commit are stored."""
        client = Client(f"http://127.0.0.1:{strict_server.port}")
        app, body = App().install(database), batch([make_event()])
        with logged_failures() as failures:
            database.query(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$"
            )
            database.query("CREATE TRIGGER wait BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION wait()")
            peer = await connect(strict_server.port)
            peer.write(signed_request(app, body))
            sleeping = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
            )
            await until(lambda: database.value(sleeping))
            peer.disconnect()
            await until(lambda: database.value("SELECT count(*) FROM events") == 1)
            assert (await client.send(app, [make_event()])).status == 200
        assert not failures

    @pytest.mark.parametrize("fraction", [0.1, 0.6, 0.99])
    @pytest_twisted.ensureDeferred
    async def test_disconnect_during_request(
        self, strict_server: Supervisor, site: ApiSite, database: Database, fraction: float
    ) -> None:
        """The events of an incomplete request are not stored."""
        app, body = App().install(database), batch([make_event()])
        peer = await connect(strict_server.port)
        request = signed_request(app, body)
        peer.write(request[: int(len(request) * fraction)])
        await until(lambda: any(channel._has_received for channel in site._channels))
        peer.disconnect()
        await until(lambda: site.connections == 0)
        assert database.value("SELECT count(*) FROM events") == 0
        client = Client(f"http://127.0.0.1:{strict_server.port}")
        assert (await client.request("GET", "/health")).status == 200
