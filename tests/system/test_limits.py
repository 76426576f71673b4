"""Limits over real sockets: of applications, by one server and by several, and of failures to authenticate."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from tests.support.blocking_client import is_ready
from tests.support.client import App, Client, Reply, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.logs import Lines, logged_failures, logged_lines
from tests.support.peer import connect
from tests.support.process import Twistd
from tests.support.queries import stored_ids
from tests.support.raw_requests import request_head
from tests.support.server import start_server
from tests.support.valkey import Valkey
from tests.support.waiting import wait_for
from tkserver.config import InvalidSettings

HEADERS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@asynccontextmanager
async def serving(database: Database, **settings: object) -> AsyncIterator[Client]:
    """A server with these settings."""
    server = await start_server(database, **settings)
    try:
        yield Client(f"http://127.0.0.1:{server.port}")
    finally:
        await server.stopService()


async def statuses(send: Callable[[], Awaitable[Reply]], count: int) -> list[int]:
    return [(await send()).status for _ in range(count)]


async def flood(client: Client, app: App, count: int) -> list[int]:
    """What so many valid requests are answered."""
    return await statuses(lambda: client.send(app, [make_event()]), count)


async def until(condition: Callable[[], object]) -> None:
    """Wait without stopping the servers of this process."""
    for _ in range(1000):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it did not happen")


class TestRequests:
    """Of an application, by the tier of its token."""

    @pytest_twisted.ensureDeferred
    async def test_limit(self, database: Database) -> None:
        """Requests within the limit are told where they stand; the one beyond it is a 429, and nothing is stored."""
        async with serving(database, TK__RATE_LIMIT__FREE_RPM=3) as client:
            app = App().install(database)
            replies = [await client.send(app, [make_event()]) for _ in range(3)]
            refused = await client.send(app, [make_event()])
            other = await client.send(App().install(database), [make_event()])
        assert [reply.status for reply in replies] == [200] * 3
        assert [reply.headers["x-ratelimit-remaining"] for reply in replies] == ["2", "1", "0"]
        assert {reply.headers["x-ratelimit-limit"] for reply in replies} == {"3"}
        assert (refused.status, refused.code) == (429, "rate_limited")
        assert 1 <= refused.json["retry_after"] <= 20
        assert refused.headers["retry-after"] == str(refused.json["retry_after"])
        assert refused.headers["x-ratelimit-remaining"] == "0"
        assert 40 <= int(refused.headers["x-ratelimit-reset"]) - time.time() <= 61
        assert len(stored_ids(database, app)) == 3
        assert other.status == 200

    @pytest_twisted.ensureDeferred
    async def test_its_place_among_the_checks(self, database: Database) -> None:
        """It comes after the token's scope and before do not track, and only what passes the former counts."""
        async with serving(database, TK__RATE_LIMIT__FREE_RPM=2) as client:
            app, other = App().install(database), App().install(database)
            forged = await client.send(app, [make_event()], changes={"X-Signature": "0" * 64})
            misplaced = await client.send(app, [make_event()], path=other.path)
            untracked = await client.send(app, [make_event()], changes={"DNT": "1"})
            malformed = await client.send(app, b"{}")
            refused = await client.send(app, [make_event()], changes={"DNT": "1"})
        assert [reply.status for reply in (forged, misplaced, untracked, malformed, refused)] == [
            401,
            403,
            204,
            400,
            429,
        ]
        assert not {*HEADERS} & (forged.headers.keys() | misplaced.headers.keys())
        for reply in (untracked, malformed, refused):
            assert {*HEADERS} <= reply.headers.keys()

    @pytest_twisted.ensureDeferred
    async def test_tiers(self, database: Database) -> None:
        """Each tier has its own limit, or none, and then no headers either."""
        async with serving(database, TK__RATE_LIMIT__PRO_RPM=7, TK__RATE_LIMIT__ENTERPRISE_RPM=9) as client:
            limits = {}
            for tier in ("free", "pro", "business", "enterprise"):
                app = App().install(database)
                database.query("UPDATE api_tokens SET tier = %s::token_tier WHERE token = %s", tier, app.token)
                limits[tier] = (await client.send(app, [make_event()])).headers.get("x-ratelimit-limit")
        assert limits == {"free": None, "pro": "7", "business": None, "enterprise": "9"}

    @pytest_twisted.ensureDeferred
    async def test_web_pages_can_read_it(self, client: Client, app: App) -> None:
        """The headers are exposed, and by default there are none."""
        reply = await client.send(app, [make_event()], changes={"Origin": "https://example.org"})
        exposed = reply.headers["access-control-expose-headers"].lower().split(", ")
        assert {*HEADERS, "retry-after"} <= {*exposed}
        assert not {*HEADERS} & reply.headers.keys()


@pytest.fixture
def valkey(directory: Path) -> Iterator[Valkey]:
    """A Valkey that wants a password."""
    with Valkey(directory, password="p4ssword") as valkey:
        yield valkey


CONNECTED = "connected to Redis: all servers share the rate limits"


def complaints(lines: Lines) -> int:
    return sum("Redis is not available" in line for line in lines)


class TestSharedRequests:
    """Of an application, by two servers that have one Valkey."""

    @pytest_twisted.ensureDeferred
    async def test_one_limit(self, database: Database, valkey: Valkey) -> None:
        """However its requests are spread, also at the same time, no more pass than the limit."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 10, "TK__REDIS__URL": valkey.url()}
        with logged_lines() as lines:
            async with serving(database, **settings) as one, serving(database, **settings) as two:
                await until(lambda: lines.count(CONNECTED) == 2)
                app = App().install(database)
                sent = [ensureDeferred(client.send(app, [make_event()])) for client in (one, two) * 8]
                replies = await gatherResults(sent)
        assert sorted(reply.status for reply in replies) == [200] * 10 + [429] * 6
        passed = [int(reply.headers["x-ratelimit-remaining"]) for reply in replies if reply.status == 200]
        assert sorted(passed) == list(range(10))
        assert not complaints(lines)

    @pytest_twisted.ensureDeferred
    async def test_killed_and_started_again(self, database: Database, valkey: Valkey) -> None:
        """Without it each server limits by itself and says so once; when it is back they limit together again."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 3, "TK__REDIS__URL": valkey.url()}
        with logged_lines() as lines:
            async with serving(database, **settings) as one, serving(database, **settings) as two:
                await until(lambda: lines.count(CONNECTED) == 2)
                valkey.kill()
                app = App().install(database)
                alone = [await flood(client, app, 4) for client in (one, two)]
                valkey.start()
                await until(lambda: lines.count(CONNECTED) == 4)
                app = App().install(database)
                together = [await flood(client, app, 2) for client in (one, two)]
        assert alone == [[200, 200, 200, 429]] * 2
        assert together == [[200, 200], [200, 429]]
        assert complaints(lines) == 2
        assert not [line for line in lines if "p4ssword" in line]

    @pytest_twisted.ensureDeferred
    async def test_silent(self, database: Database, valkey: Valkey) -> None:
        """One that says nothing any more holds up requests once, for a moment, and is used again when it speaks."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 20, "TK__REDIS__URL": valkey.url()}
        with logged_lines() as lines:
            async with serving(database, **settings) as client:
                await until(lambda: CONNECTED in lines)
                app = App().install(database)
                await client.send(app, [make_event()])
                valkey.freeze()
                sent = [ensureDeferred(client.send(app, [make_event()])) for _ in range(5)]
                replies = await gatherResults(sent)
                replies.append(await client.send(app, [make_event()]))
                valkey.thaw()
                await until(lambda: lines.count(CONNECTED) == 2)
        assert [reply.status for reply in replies] == [200] * 6
        assert replies[-1].headers["x-ratelimit-remaining"] == "14"
        assert complaints(lines) == 1

    @pytest_twisted.ensureDeferred
    async def test_silent_from_the_start(self, database: Database, valkey: Valkey) -> None:
        """One that takes connections and says nothing on them is waited for by no request, nor by a stop."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 1, "TK__REDIS__URL": valkey.url()}
        valkey.freeze()
        with logged_lines() as lines:
            async with serving(database, **settings) as client:
                assert await flood(client, App().install(database), 2) == [200, 429]
                await until(lambda: complaints(lines))
        assert not [line for line in lines if "p4ssword" in line]
        assert complaints(lines) == 1

    @pytest_twisted.ensureDeferred
    async def test_not_installed(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the extra, the start ends with a line that says how to get it; who has no Redis needs none."""
        monkeypatch.setitem(sys.modules, "txredisapi", None)
        with pytest.raises(InvalidSettings, match=r"TK__REDIS__URL: .*pip install 'tkserver\[redis\]'"):
            await start_server(database, TK__RATE_LIMIT__FREE_RPM=1, TK__REDIS__URL="redis://127.0.0.1")
        async with serving(database, TK__RATE_LIMIT__FREE_RPM=1) as client:
            assert await flood(client, App().install(database), 2) == [200, 429]

    @pytest_twisted.ensureDeferred
    async def test_refused(self, database: Database, valkey: Valkey) -> None:
        """A password that is wrong is said without the password, and requests are taken all the same."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 1, "TK__REDIS__URL": valkey.url(password="wr0ng")}
        with logged_lines() as lines, logged_failures() as failures:
            async with serving(database, **settings) as client:
                await until(lambda: complaints(lines))
                app = App().install(database)
                assert await flood(client, app, 2) == [200, 429]
                await deferLater(reactor, 1.5)  # it is tried again meanwhile
        assert not failures
        assert complaints(lines) == 1
        assert "refuses the user, the password" in str(lines)
        assert "wr0ng" not in str(lines)

    def test_not_there(self, directory: Path, database: Database) -> None:
        """A process whose Redis is not there starts, serves, says so in a line, and stops."""
        settings = {
            "TK__DATABASE__URL": database.dsn,
            "TK__RATE_LIMIT__FREE_RPM": "1",
            "TK__REDIS__URL": "redis://127.0.0.1:1",
        }
        with Twistd(directory, settings) as server:
            wait_for(lambda: is_ready(server.url))
            server.wait_for_line("Redis is not available, each server applies its own rate limits: Connection was refused")
            assert server.stop() == 0
            assert "Traceback" not in server.log
            assert "retry" not in server.log


GUESSER, HONEST = "203.0.113.9", "198.51.100.7"
STRICT = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 3}


class TestAuthFailures:
    """Of an address."""

    @pytest.mark.parametrize(
        "changes",
        [{"Authorization": "Bearer guessed"}, {"X-Signature": "0" * 64}, {"X-Signature": None}, {"X-Timestamp": "1"}],
    )
    @pytest_twisted.ensureDeferred
    async def test_limit(self, database: Database, changes: dict[str, str | None]) -> None:
        """After so many failures an address gets 429 for all that is to be stored, but still hears of health."""
        async with serving(database, **STRICT) as client:
            app = App().install(database)
            failed = await statuses(lambda: client.send(app, [make_event()], changes=changes), 3)
            refused = await client.send(app, [make_event()], changes=changes)
            valid = await client.send(app, [make_event()])
            empty = await client.request("POST", app.path)
            health = await client.request("GET", "/health")
            nowhere = await client.request("POST", "/nowhere", body=b"x")
        assert failed == [401] * 3
        assert (refused.status, refused.code) == (429, "rate_limited")
        assert refused.headers["retry-after"] == str(refused.json["retry_after"]) == "60"
        assert [reply.status for reply in (valid, empty, health, nowhere)] == [429, 429, 200, 404]
        assert not stored_ids(database, app)

    @pytest_twisted.ensureDeferred
    async def test_clock_and_scope(self, database: Database) -> None:
        """A 403 is a failure to authenticate as well; other refusals are none."""
        async with serving(database, **STRICT) as client:
            app, other = App().install(database), App().install(database)
            fine = await statuses(lambda: client.send(app, b"{}"), 5)
            late = await client.send(app, [make_event()], timestamp=1)
            misplaced = await statuses(lambda: client.send(app, [make_event()], path=other.path), 3)
        assert fine == [400] * 5
        assert (late.status, misplaced) == (403, [403, 403, 429])

    @pytest_twisted.ensureDeferred
    async def test_others_are_not_touched(self, database: Database) -> None:
        """Behind a proxy that is named, who guesses locks out nobody else, and the log names nobody."""
        proxied = {**STRICT, "TK__SERVER__TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1"}
        with logged_lines() as lines:
            async with serving(database, **proxied) as client:
                app = App().install(database)
                guesses = {"X-Forwarded-For": f"{HONEST}, {GUESSER}, 10.0.0.1", "X-Signature": "0" * 64}
                failed = await statuses(lambda: client.send(app, [make_event()], changes=guesses), 4)
                honest = await client.send(app, [make_event()], changes={"X-Forwarded-For": HONEST})
        assert failed == [401, 401, 401, 429]
        assert honest.status == 200
        assert sum("failed to authenticate too often" in line for line in lines) == 1
        assert not [line for line in lines if GUESSER in line or HONEST in line]

    @pytest_twisted.ensureDeferred
    async def test_proxy_that_nobody_named(self, database: Database) -> None:
        """What comes through one is not limited, for it would be all or nobody; the log says so."""
        with logged_lines() as lines:
            async with serving(database, **STRICT) as client:
                app = App().install(database)
                guesses = {"X-Forwarded-For": GUESSER, "X-Signature": "0" * 64}
                failed = await statuses(lambda: client.send(app, [make_event()], changes=guesses), 5)
        assert failed == [401] * 5
        assert sum("TK__SERVER__TRUSTED_PROXIES" in line for line in lines) == 1

    @pytest_twisted.ensureDeferred
    async def test_the_body_is_not_read(self, database: Database) -> None:
        """The answer comes before the body is sent, without an invitation to send it."""
        async with serving(database, **STRICT) as client:
            app, body = App().install(database), batch([make_event()])
            await statuses(lambda: client.request("POST", app.path), 3)
            peer = await connect(int(client.url.rpartition(":")[2]))
            head = f"POST {app.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
            peer.write(head.encode())
            await peer.wait_for(b'"code":"rate_limited"')
            assert peer.received.startswith(b"HTTP/1.1 429 ")
            peer.disconnect()

    @pytest_twisted.ensureDeferred
    async def test_many_at_once(self, database: Database) -> None:
        """Requests whose headers came before the first failure are refused as well, when their bodies come."""
        async with serving(database, **STRICT) as client:
            app, body = App().install(database), batch([make_event()])
            peers = [await connect(int(client.url.rpartition(":")[2])) for _ in range(6)]
            for peer in peers:
                head = request_head(app, body).replace(b"X-Signature: ", b"X-Signature: 0") + body[:5]
                peer.write(head)
            await deferLater(reactor, 0.1)
            for peer in peers:
                peer.write(body[5:])
                await peer.wait_for(b'"code"')
                peer.disconnect()
        assert [peer.received[9:12] for peer in peers] == [b"401"] * 3 + [b"429"] * 3

    @pytest_twisted.ensureDeferred
    async def test_default(self, database: Database) -> None:
        """It is on, and generous."""
        async with serving(
            database, TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE=60, TK__RATE_LIMIT__AUTH_FAILURES_BURST=100
        ) as client:
            path = App().path
            seen = await statuses(lambda: client.request("POST", path), 130)
        assert seen[:100] == [401] * 100
        assert 429 in seen
