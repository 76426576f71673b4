"""Requests that announce bodies and do not send them, or send them slowly, delay nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import LoopingCall

from tests.support.client import SDK, App, Client, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.peer import Peer, connect
from tests.support.queries import stored_ids
from tests.support.raw_requests import HEALTH_REQUEST, chunked_request_head, forged_head, signed_request
from tests.support.server import client_of, running_server
from tests.support.waiting import until
from tkserver.server.supervisor import Supervisor
from tkserver.web.http.body_budget import BodyBudget
from tkserver.web.http.connections import Phase

MIB = 1_048_576

OTHER_ADDRESS = "127.0.0.2"


@asynccontextmanager
async def peers(port: int, requests: list[bytes], address: str = "127.0.0.1") -> AsyncIterator[list[Peer]]:
    """Send requests over connections of their own, which stay open while the context lasts."""
    connected = []
    for request in requests:
        peer = await connect(TCP4ClientEndpoint(reactor, "127.0.0.1", port, bindAddress=(address, 0)))
        peer.write(request)
        connected.append(peer)
    try:
        yield connected
    finally:
        for peer in connected:
            peer.disconnect()


def write_to_all(connected: list[Peer], data: bytes) -> None:
    for peer in connected:
        peer.write(data)


def large_batch(size: int) -> list[dict[str, Any]]:
    """Return events whose batch has at least this many bytes."""
    events = [make_event() for _ in range(size // 90_000 + 1)]
    for event in events:
        event["event"]["data"] = {"text": "x" * 90_000}
    return events


async def assert_served(client: Client, app: App, database: Database) -> None:
    """Check that small and large batches are stored immediately, and that their order is the one of the requests."""
    small = [make_event() for _ in range(10)]
    statuses = [(await client.send(app, [event])).status for event in small]
    statuses += [(await client.send(app, large_batch(size))).status for size in (MIB, 8 * MIB)]
    assert statuses == [200] * 12
    assert {str(event["event_id"]) for event in small} <= set(stored_ids(database, app))


def bodies_of(server: Supervisor) -> BodyBudget:
    return server.worker.components.site.bodies


def unknown_path(_: App, length: int) -> bytes:
    return b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length


def no_signature(app: App, length: int) -> bytes:
    return f"POST {app.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def unknown_app(_: App, length: int) -> bytes:
    return forged_head(App(), f"Content-Length: {length}")


def unknown_token(app: App, length: int) -> bytes:
    return forged_head(app, "Authorization: Bearer guessed", f"Content-Length: {length}")


def health(_: App, length: int) -> bytes:
    return b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length


@pytest.mark.parametrize(
    ("head", "status"),
    [(unknown_path, 404), (no_signature, 401), (unknown_app, 401), (unknown_token, 401), (health, 200)],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest_twisted.ensureDeferred
async def test_response_precedes_the_body(database: Database, head: Callable[[App, int], bytes], status: int) -> None:
    """Requests whose headers decide get their response before they send a body, and take nothing from others."""
    async with running_server(database) as server:
        app, client = App().install(database), client_of(server)
        heads = [head(app, 5_242_880) for _ in range(12)] + [head(app, 4 * MIB)]
        async with peers(server.port, heads) as strangers:
            await assert_served(client, app, database)
            for stranger in strangers:
                await stranger.wait_for(b"HTTP/1.1 %d " % status)
                assert b"\r\nConnection: close\r\n" in stranger.received
            assert bodies_of(server).used == 0


@pytest.mark.parametrize("length", [1000, 5_242_880])
@pytest_twisted.ensureDeferred
async def test_announced_bodies_take_nothing(database: Database, length: int) -> None:
    """Requests of a known application that send no body, or a few bytes of it, take nothing from others."""
    async with running_server(database) as server:
        app, client = App().install(database), client_of(server)
        heads = [forged_head(app, f"Content-Length: {length}") for _ in range(12)]
        heads.append(forged_head(app, "Transfer-Encoding: chunked"))
        async with peers(server.port, heads) as strangers:
            site = server.worker.components.site
            await until(lambda: sum(channel.phase is Phase.BODY for channel in site._channels) == 13)
            await assert_served(client, app, database)
            assert bodies_of(server).used == 0
            drip = LoopingCall(write_to_all, strangers, b"1\r\nx\r\n")
            drip.start(0.05)
            await until(lambda: bodies_of(server).used > 100)
            await assert_served(client, app, database)
            drip.stop()


@pytest_twisted.ensureDeferred
async def test_address_that_fills_its_share(database: Database) -> None:
    """An address that sends large parts of many bodies holds no more than a quarter of the memory; others are served.

    Small bodies of the same address are served as well.
    """
    async with running_server(database, TK__INGEST__MAX_BODY_MEMORY=64 * MIB) as server:
        app, client, bodies = App().install(database), client_of(server), bodies_of(server)
        part = forged_head(app, f"Content-Length: {5 * MIB}") + bytes(4 * MIB)
        async with peers(server.port, [part] * 20, OTHER_ADDRESS):
            await until(lambda: bodies.waiting >= 10)
            assert 0 < bodies.used <= bodies.total / 4 + MIB
            await assert_served(client, app, database)
        async with peers(server.port, [part] * 20):
            await until(lambda: bodies.waiting >= 10)
            statuses = [(await client.send(app, [make_event()])).status for _ in range(10)]
            assert statuses == [200] * 10
        await until(lambda: bodies.used == 0)


@pytest_twisted.ensureDeferred
async def test_memory_of_many_addresses(database: Database) -> None:
    """If many addresses fill all memory with incomplete bodies, they lose them as soon as others need memory."""
    async with running_server(database, TK__INGEST__MAX_BODY_MEMORY=16 * MIB) as server:
        app, client, bodies = App().install(database), client_of(server), bodies_of(server)
        part = forged_head(app, f"Content-Length: {2 * MIB}") + bytes(2 * MIB - 1)
        async with AsyncExitStack() as stack:
            for number in range(2, 12):
                await stack.enter_async_context(peers(server.port, [part] * 2, f"127.0.0.{number}"))
            await until(lambda: bodies.used > 10 * MIB)
            replies = [await client.send(app, large_batch(size)) for size in (1000, MIB, 100)]
            assert [reply.status for reply in replies] == [200] * 3


class TestWaiting:
    """The phases between headers and body."""

    @pytest.mark.parametrize("is_chunked", [False, True])
    @pytest_twisted.ensureDeferred
    async def test_body_arrives_before_the_credential(self, database: Database, is_chunked: bool) -> None:
        """A body that arrives while the credential is looked up is read afterwards, and then the next request."""
        async with running_server(database) as server:
            app, body = App().install(database), batch(large_batch(MIB))
            request = signed_request(app, body)
            if is_chunked:
                request = chunked_request_head(app, body) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            async with peers(server.port, [request + HEALTH_REQUEST]) as (peer,):
                await peer.wait_for(b"healthy")
                assert peer.received.startswith(b"HTTP/1.1 200 ")
                assert peer.received.count(b"HTTP/1.1 ") == 2

    @pytest_twisted.ensureDeferred
    async def test_100_continue_after_the_checks(self, database: Database) -> None:
        """A client that waits for ``100 Continue`` gets it only if the headers are valid."""
        async with running_server(database) as server:
            app = App().install(database)
            expect = ("Content-Length: 2", "Expect: 100-continue")
            heads = [forged_head(app, *expect), forged_head(App(), *expect)]
            async with peers(server.port, heads) as (known, unknown):
                await known.wait_for(b"HTTP/1.1 100 Continue\r\n\r\n")
                await unknown.wait_for(b"HTTP/1.1 401 ")
                assert unknown.received.startswith(b"HTTP/1.1 401 ")
                known.write(b"{}")
                await known.wait_for(b"invalid_signature")


class TestHalfClosedConnections:
    """Clients that close their side of the connection after the request."""

    @pytest_twisted.ensureDeferred
    async def test_response_is_sent(self, database: Database) -> None:
        """A client that ends its output after complete requests gets all responses, and then the connection closes."""
        async with running_server(database) as server:
            app = App().install(database)
            first, second = batch([make_event()]), batch([make_event(), make_event()])
            chunked = chunked_request_head(app, second) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(second), second)
            async with peers(server.port, [signed_request(app, first) + chunked + HEALTH_REQUEST]) as (peer,):
                peer.transport.loseWriteConnection()  # type: ignore[union-attr]
                received = await peer.read_all()
            assert [received.count(part) for part in (b'"accepted":1', b'"accepted":2', b"healthy")] == [1, 1, 1]

    @pytest_twisted.ensureDeferred
    async def test_request_is_being_handled(self, database: Database) -> None:
        """A client that ends its output while its events are committed gets the response."""
        database.query(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END $$"
        )
        database.query("CREATE TRIGGER wait BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION wait()")
        async with running_server(database) as server:
            app = App().install(database)
            async with peers(server.port, [signed_request(app, batch([make_event()]))]) as (peer,):
                site = server.worker.components.site
                await until(lambda: any(channel.phase is Phase.HANDLING for channel in site._channels))
                peer.transport.loseWriteConnection()  # type: ignore[union-attr]
                assert b'"accepted":1' in await peer.read_all()

    @pytest.mark.parametrize("length", [0, 40, 400, 100_000])
    @pytest_twisted.ensureDeferred
    async def test_incomplete_request(self, database: Database, length: int) -> None:
        """A client that ends its output in the middle of a request gets no response, and its memory is released."""
        async with running_server(database) as server:
            app, body = App().install(database), batch(large_batch(200_000))
            async with peers(server.port, [signed_request(app, body)[:length]]) as (peer,):
                peer.transport.loseWriteConnection()  # type: ignore[union-attr]
                assert await peer.read_all() == b""
            await until(lambda: server.worker.components.site.connections == 0)
            assert bodies_of(server).used == 0
            assert not stored_ids(database, app)

    @pytest_twisted.ensureDeferred
    async def test_early_response(self, database: Database) -> None:
        """A client whose request is rejected before its body can read the response, and the connection closes."""
        async with running_server(database) as server:
            app = App()
            async with peers(server.port, [forged_head(app, "Content-Length: 100000") + bytes(50_000)]) as (peer,):
                peer.transport.loseWriteConnection()  # type: ignore[union-attr]
                received = await peer.read_all()
            assert received.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"0" * 17, 400),
        (b"xyz\r\n", 400),
        (b"1\r\nab\r\n", 400),
        (b"0\r\nno trailer\r\n", 400),
        (b"ffffffffff\r\n" + bytes(60_000), 413),
    ],
    ids=["digits", "no number", "too long", "trailer", "too large"],
)
@pytest_twisted.ensureDeferred
async def test_invalid_chunks(database: Database, chunks: bytes, status: int) -> None:
    """A chunked body that cannot become valid is rejected immediately, without waiting for more of it."""
    async with running_server(database, TK__INGEST__MAX_BODY_BYTES=50_000) as server:
        app = App().install(database)
        async with peers(server.port, [forged_head(app, "Transfer-Encoding: chunked") + chunks]) as (peer,):
            await peer.wait_for(b'"code"')
            assert peer.received.startswith(b"HTTP/1.1 %d " % status)
            assert bodies_of(server).used == 0
        assert (await client_of(server).send(app, [make_event()], SDK)).status == 200
