"""Slow, hostile and unlucky peers: none of them costs the server more than it should."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Callable
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
from tests.support.raw_requests import HEALTH_REQUEST, chunked_request_head, request_head
from tests.support.server import start_server
from tkserver.server.supervisor import Supervisor


@pytest_twisted.async_yield_fixture
async def impatient(database: Database) -> AsyncIterator[Supervisor]:
    """A server with short deadlines and little room."""
    server = await start_server(
        database,
        TK__SERVER__HEADER_TIMEOUT=0.4,
        TK__SERVER__BODY_TIMEOUT=0.6,
        TK__SERVER__IDLE_TIMEOUT=0.5,
        TK__SERVER__MAX_CONNECTIONS=5,
        TK__INGEST__MAX_BODY_BYTES=50_000,
    )
    yield server
    await server.stopService()


async def drip(peer_write: object, text: bytes, pause: float) -> None:
    """Send byte by byte."""
    for byte in text:
        peer_write(bytes([byte]))  # type: ignore[operator]
        await deferLater(reactor, pause)


async def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it did not happen")


class TestDeadlines:
    """Absolute: each byte that comes does not begin them anew."""

    @pytest_twisted.ensureDeferred
    async def test_headers(self, impatient: Supervisor) -> None:
        """Headers that drip are answered with 408 when their time is over."""
        peer = await connect(impatient.port)
        dripping = ensureDeferred(drip(peer.write, HEALTH_REQUEST * 5, 0.02))
        received = await peer.end()
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in received
        assert b"X-Clacks-Overhead: GNU Terry Pratchett\r\n" in received
        await dripping

    @pytest_twisted.ensureDeferred
    async def test_body(self, impatient: Supervisor, database: Database) -> None:
        """A body that drips, too."""
        body = batch([make_event()])
        peer = await connect(impatient.port)
        peer.write(request_head(App().install(database), body))
        dripping = ensureDeferred(drip(peer.write, body[:60], 0.02))
        assert (await peer.end()).startswith(b"HTTP/1.1 408 ")
        await dripping

    @pytest_twisted.ensureDeferred
    async def test_silence(self, impatient: Supervisor) -> None:
        """Who says nothing gets no answer, and is not waited for."""
        peer = await connect(impatient.port)
        assert await peer.end() == b""

    @pytest_twisted.ensureDeferred
    async def test_idle(self, impatient: Supervisor) -> None:
        """A connection is kept between requests, for a while."""
        peer = await connect(impatient.port)
        for number in (1, 2):
            peer.write(HEALTH_REQUEST)
            await peer.wait_for(b"healthy", number)
        assert (await peer.end()).count(b"HTTP/1.1 200 OK") == 2

    @pytest_twisted.ensureDeferred
    async def test_room_of_a_body_that_does_not_come(self, impatient: Supervisor) -> None:
        """Is given back when the request is given up, not only when its connection ends."""
        peer = await connect(impatient.port)
        peer.write(f"POST {App().path} HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n".encode())
        await peer.wait_for(b'"code":"request_timeout"')
        assert impatient.worker.components.site.bodies._free == impatient.worker.components.site.bodies._total
        peer.hang_up()

    @pytest_twisted.ensureDeferred
    async def test_idle_after_congestion(self, impatient: Supervisor) -> None:
        """Who has read all answers, late, is idle, and is owed no answer."""
        peer = await connect(impatient.port)
        transport: Any = peer.transport
        transport.pauseProducing()
        peer.write(HEALTH_REQUEST * 20_000)
        await wait_until(lambda: any(channel._congested for channel in impatient.worker.components.site._channels))
        transport.resumeProducing()
        received = await peer.end()
        assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 OK")

    @pytest_twisted.ensureDeferred
    async def test_stop_while_a_request_arrives(self, impatient: Supervisor, database: Database) -> None:
        """A request of which a few bytes are there is taken, and is the last of its connection."""
        body = batch([make_event()])
        app = App().install(database)
        peer = await connect(impatient.port)
        peer.write(HEALTH_REQUEST)
        await peer.wait_for(b"healthy")
        whole = request_head(app, body) + body
        peer.write(whole[:40])
        await deferLater(reactor, 0.05)
        stopped = impatient.stopService()
        peer.write(whole[40:])
        received = await peer.end()
        await stopped
        assert b'"accepted":1' in received
        assert b"Connection: close" in received


class TestConnections:
    """How many there may be, and what may be sent on one."""

    @pytest_twisted.ensureDeferred
    async def test_cap(self, impatient: Supervisor) -> None:
        """One connection too many is closed, and there is room again when others end."""
        peers = [await connect(impatient.port) for _ in range(5)]
        extra = await connect(impatient.port)
        assert await extra.end() == b""
        peers[0].hang_up()
        await deferLater(reactor, 0.05)
        again = await connect(impatient.port)
        again.write(HEALTH_REQUEST)
        await again.wait_for(b"healthy")
        for peer in (*peers[1:], again):
            peer.hang_up()

    @pytest_twisted.ensureDeferred
    async def test_pipelined(self, impatient: Supervisor, database: Database) -> None:
        """Requests that are sent without waiting for answers are answered in their order."""
        app = App().install(database)
        bodies = [batch([make_event()]) for _ in range(3)]
        peer = await connect(impatient.port)
        peer.write(b"".join(request_head(app, body) + body + HEALTH_REQUEST for body in bodies))
        await peer.wait_for(b"healthy", 3)
        found = sorted(
            (place, word) for word in (b'"accepted":1', b"healthy") for place in _places(peer.received, word)
        )
        assert [word for _, word in found] == [b'"accepted":1', b"healthy"] * 3
        assert database.value("SELECT count(*) FROM events") == 3
        peer.hang_up()

    @pytest.mark.parametrize(
        "sent",
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
            b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
            b"GET /health HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_malformed(self, impatient: Supervisor, sent: bytes) -> None:
        """What is no HTTP gets a 400 in the form of every error, and the connection ends."""
        peer = await connect(impatient.port)
        peer.write(sent)
        received = await peer.end()
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
    async def test_too_much_before_the_body(self, impatient: Supervisor, headers: list[bytes], problem: bytes) -> None:
        """Headers are bounded, all together too, and the refusal says by what."""
        peer = await connect(impatient.port)
        peer.write(b"\r\n".join([b"GET /health HTTP/1.1", *headers, b"", b""]))
        received = await peer.end()
        assert received.startswith(b"HTTP/1.1 400 ")
        assert problem in received

    @pytest.mark.parametrize("path", [b"*", b"http://elsewhere/health", b"/%", b"/\xff", b"/health?a=%ff"])
    @pytest.mark.parametrize("host", [b"x", b"\xff\xfe", b"", b"xn--a"])
    @pytest_twisted.ensureDeferred
    async def test_odd_targets(self, impatient: Supervisor, path: bytes, host: bytes) -> None:
        """Odd targets and hosts are answered like any other, in JSON and without an error of ours."""
        peer = await connect(impatient.port)
        peer.write(b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        received = await peer.end()
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
    async def test_targets(self, impatient: Supervisor, target: bytes, status: int) -> None:
        """A target is a path, possibly behind a scheme and a host; what is neither is nothing."""
        peer = await connect(impatient.port)
        peer.write(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await peer.end()).startswith(b"HTTP/1.1 %d " % status)

    @pytest_twisted.ensureDeferred
    async def test_a_peer_that_does_not_read(self, impatient: Supervisor) -> None:
        """Who sends requests and never reads the answers is not read from any more, until they are read."""
        peer = await connect(impatient.port)
        transport: Any = peer.transport
        transport.pauseProducing()
        requests = HEALTH_REQUEST * 20_000
        for _ in range(40):  # far more than the buffers of both sockets hold
            peer.write(requests)
            await deferLater(reactor, 0.002)
        sent = len(requests) * 40 - sum(map(len, transport._tempDataBuffer)) - len(transport.dataBuffer)
        assert sent < len(requests) * 30, "all of it was taken"
        (channel,) = impatient.worker.components.site._channels
        assert len(channel._buffer) < 1_000_000, "it was taken to be kept"
        transport.resumeProducing()
        await peer.wait_for(b"healthy", 5000)
        peer.hang_up()


class TestBodies:
    """Refused while they arrive, and never held."""

    @pytest_twisted.ensureDeferred
    async def test_invitation_comes_first(self, impatient: Supervisor) -> None:
        """Also where the client does not wait for it, and the answer is there at once."""
        peer = await connect(impatient.port)
        head = f"POST {App().path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{{}}"
        peer.write(head.encode())
        await peer.wait_for(b'"code":"missing_signature"')
        peer.hang_up()
        assert peer.received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 ")

    @pytest_twisted.ensureDeferred
    async def test_declared_too_long(self, impatient: Supervisor) -> None:
        """A body that is said to be too long is refused before it is sent, without an invitation to send it."""
        peer = await connect(impatient.port)
        head = f"POST {App().path} HTTP/1.1\r\nHost: x\r\nContent-Length: 50001\r\nExpect: 100-continue\r\n\r\n"
        peer.write(head.encode())
        await peer.wait_for(b'"code":"payload_too_large"')
        assert peer.received.startswith(b"HTTP/1.1 413 ")
        assert b"X-Clacks-Overhead: GNU Terry Pratchett\r\n" in peer.received
        assert b"Connection: close\r\n" in peer.received
        peer.hang_up()

    @pytest_twisted.ensureDeferred
    async def test_invited(self, impatient: Supervisor, database: Database) -> None:
        """A body that fits is invited by a client that asks first."""
        app, body = App().install(database), batch([make_event()])
        peer = await connect(impatient.port)
        peer.write(request_head(app, body)[:-2] + b"Expect: 100-continue\r\n\r\n")
        await peer.wait_for(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.write(body)
        await peer.wait_for(b'"accepted":1')
        peer.hang_up()

    @pytest_twisted.ensureDeferred
    async def test_read_while_it_is_refused(self, impatient: Supervisor) -> None:
        """A client that sends all of a long body before it reads gets to read the answer."""
        peer = await connect(impatient.port)
        body = bytes(3_000_000)
        peer.write(f"POST {App().path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        received = await peer.end()
        assert received.startswith(b"HTTP/1.1 413 ")
        assert received.count(b"HTTP/1.1") == 1

    @pytest_twisted.ensureDeferred
    async def test_chunked(self, impatient: Supervisor, database: Database) -> None:
        """A chunked body is taken in."""
        app, body = App().install(database), batch([make_event(), make_event()])
        peer = await connect(impatient.port)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]))
        peer.write(chunked_request_head(app, body) + chunks + b"0\r\n\r\n")
        await peer.wait_for(b'"accepted":2')
        peer.hang_up()

    @pytest_twisted.ensureDeferred
    async def test_endless_chunks(self, impatient: Supervisor) -> None:
        """A chunked body that does not end is refused when it is too long, and its bytes are not kept."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peer = await connect(impatient.port)
        peer.write(f"POST {App().path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000))
        for _ in range(100):
            peer.write(chunk)
            await deferLater(reactor, 0.005)
            if peer.closed.called:
                break
        assert b'"code":"payload_too_large"' in peer.received
        assert peer.received.count(b"HTTP/1.1") == 1
        peer.hang_up()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 150_000  # KiB; this process is the sender as well


class TestHangingUp:
    """A client that goes away costs nothing and leaves no trace in the log."""

    @pytest_twisted.ensureDeferred
    async def test_while_its_events_are_stored(self, impatient: Supervisor, database: Database) -> None:
        """The events of a client that hangs up during the commit are stored all the same."""
        with logged_failures() as failures:
            app, body = App().install(database), batch([make_event()])
            database.query(
                "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$"
            )
            database.query("CREATE TRIGGER dawdle BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION dawdle()")
            peer = await connect(impatient.port)
            peer.write(request_head(app, body) + body)
            active = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
            )
            while not database.value(active):
                await deferLater(reactor, 0.01)
            peer.hang_up()
            await deferLater(reactor, 0.6)
            assert database.value("SELECT count(*) FROM events") == 1
        assert not failures
        client = Client(f"http://127.0.0.1:{impatient.port}")
        assert (await client.send(app, [make_event()])).status == 200

    @pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
    @pytest_twisted.ensureDeferred
    async def test_before_all_is_sent(self, impatient: Supervisor, database: Database, share: float) -> None:
        """A request that is cut off is forgotten."""
        app, body = App().install(database), batch([make_event()])
        peer = await connect(impatient.port)
        request = request_head(app, body) + body
        peer.write(request[: int(len(request) * share)])
        await deferLater(reactor, 0.02)
        peer.hang_up()
        await deferLater(reactor, 0.05)
        assert database.value("SELECT count(*) FROM events") == 0
        client = Client(f"http://127.0.0.1:{impatient.port}")
        assert (await client.request("GET", "/health")).status == 200


def _places(text: bytes, word: bytes) -> list[int]:
    places, place = [], text.find(word)
    while place >= 0:
        places.append(place)
        place = text.find(word, place + 1)
    return places
