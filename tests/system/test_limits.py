"""Rate limits over real sockets: of applications, on one server and on several, and of authentication failures."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.support.client import DIALECTS, App, Client, Reply, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.logs import Lines, logged_failures, logged_lines
from tests.support.peer import connect
from tests.support.process import Twistd
from tests.support.queries import stored_ids
from tests.support.raw_requests import forged_head, request_head
from tests.support.server import client_of, running_server, start_server
from tests.support.valkey import Valkey
from tests.support.waiting import until
from tkserver.config import InvalidSettings

HEADERS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@asynccontextmanager
async def client_of_server(database: Database, **settings: object) -> AsyncIterator[Client]:
    """Run a server with these settings while the context lasts, and return a client of it."""
    async with running_server(database, **settings) as server:
        yield client_of(server)


async def statuses(send: Callable[[], Awaitable[Reply]], count: int) -> list[int]:
    """Return the statuses of a number of requests."""
    return [(await send()).status for _ in range(count)]


async def send_batches(client: Client, app: App, count: int) -> list[int]:
    """Send a number of valid batches, and return the statuses of the responses."""
    return await statuses(lambda: client.send(app, [make_event()]), count)


class TestRequestLimit:
    """The rate limit of an application, which depends on the tier of its token."""

    @pytest_twisted.ensureDeferred
    async def test_limit(self, database: Database) -> None:
        """Responses contain the remaining requests; a request beyond the limit gets a 429, and is not stored."""
        async with client_of_server(database, TK__RATE_LIMIT__FREE_RPM=3) as client:
            app = App().install(database)
            replies = [await client.send(app, [make_event()]) for _ in range(3)]
            rejected = await client.send(app, [make_event()])
            other = await client.send(App().install(database), [make_event()])
        assert [reply.status for reply in replies] == [200] * 3
        assert [reply.headers["x-ratelimit-remaining"] for reply in replies] == ["2", "1", "0"]
        assert {reply.headers["x-ratelimit-limit"] for reply in replies} == {"3"}
        assert (rejected.status, rejected.code) == (429, "rate_limited")
        assert 1 <= rejected.json["retry_after"] <= 20
        assert rejected.headers["retry-after"] == str(rejected.json["retry_after"])
        assert rejected.headers["x-ratelimit-remaining"] == "0"
        assert 40 <= int(rejected.headers["x-ratelimit-reset"]) - time.time() <= 61
        assert len(stored_ids(database, app)) == 3
        assert other.status == 200

    @pytest_twisted.ensureDeferred
    async def test_order_of_checks(self, database: Database) -> None:
        """The limit is checked after the scope of the token and before Do Not Track, and counts authorized requests."""
        async with client_of_server(database, TK__RATE_LIMIT__FREE_RPM=2) as client:
            app, other = App().install(database), App().install(database)
            forged = await client.send(app, [make_event()], changes={"X-Signature": "0" * 64})
            mismatched = await client.send(app, [make_event()], path=other.path)
            untracked = await client.send(app, [make_event()], changes={"DNT": "1"})
            malformed = await client.send(app, b"{}")
            rejected = await client.send(app, [make_event()], changes={"DNT": "1"})
        assert [reply.status for reply in (forged, mismatched, untracked, malformed, rejected)] == [
            401,
            403,
            204,
            400,
            429,
        ]
        assert not {*HEADERS} & (forged.headers.keys() | mismatched.headers.keys())
        for reply in (untracked, malformed, rejected):
            assert {*HEADERS} <= reply.headers.keys()

    @pytest_twisted.ensureDeferred
    async def test_tiers(self, database: Database) -> None:
        """Each tier has its own limit; responses have no headers for a tier without a limit."""
        async with client_of_server(database, TK__RATE_LIMIT__PRO_RPM=7, TK__RATE_LIMIT__ENTERPRISE_RPM=9) as client:
            limits = {}
            for tier in ("free", "pro", "business", "enterprise"):
                app = App().install(database)
                database.query("UPDATE api_tokens SET tier = %s::token_tier WHERE token = %s", tier, app.token)
                limits[tier] = (await client.send(app, [make_event()])).headers.get("x-ratelimit-limit")
        assert limits == {"free": None, "pro": "7", "business": None, "enterprise": "9"}

    @pytest_twisted.ensureDeferred
    async def test_web_pages_can_read_headers(self, client: Client, app: App) -> None:
        """The headers are exposed to web pages, and are absent without a limit."""
        reply = await client.send(app, [make_event()], changes={"Origin": "https://example.org"})
        exposed = reply.headers["access-control-expose-headers"].lower().split(", ")
        assert {*HEADERS, "retry-after"} <= {*exposed}
        assert not {*HEADERS} & reply.headers.keys()


@pytest.fixture
def valkey(directory: Path) -> Iterator[Valkey]:
    """A Valkey server that requires a password."""
    with Valkey(directory, password="p4ssword") as valkey:
        yield valkey


CONNECTED = "connected to Redis: all servers share the rate limits"


def count_warnings(lines: Lines) -> int:
    """Return how often a server logged that Redis is not available."""
    return sum("Redis is not available" in line for line in lines)


class TestSharedRequestLimit:
    """The rate limit of an application on two servers that share a Valkey server."""

    @pytest_twisted.ensureDeferred
    async def test_shared_limit(self, database: Database, valkey: Valkey) -> None:
        """Two servers together accept no more concurrent requests than the limit."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 10, "TK__REDIS__URL": valkey.url()}
        with logged_lines() as lines:
            async with (
                client_of_server(database, **settings) as first,
                client_of_server(database, **settings) as second,
            ):
                await until(lambda: lines.count(CONNECTED) == 2)
                app = App().install(database)
                requests = [ensureDeferred(client.send(app, [make_event()])) for client in (first, second) * 8]
                replies = await gatherResults(requests)
        assert sorted(reply.status for reply in replies) == [200] * 10 + [429] * 6
        remaining = [int(reply.headers["x-ratelimit-remaining"]) for reply in replies if reply.status == 200]
        assert sorted(remaining) == list(range(10))
        assert not count_warnings(lines)

    @pytest_twisted.ensureDeferred
    async def test_valkey_is_restarted(self, database: Database, valkey: Valkey) -> None:
        """While Valkey is down, each server applies its own limit and logs it once; afterwards they share it again."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 3, "TK__REDIS__URL": valkey.url()}
        with logged_lines() as lines:
            async with (
                client_of_server(database, **settings) as first,
                client_of_server(database, **settings) as second,
            ):
                await until(lambda: lines.count(CONNECTED) == 2)
                valkey.kill()
                app = App().install(database)
                separate = [await send_batches(client, app, 4) for client in (first, second)]
                valkey.start()
                await until(lambda: lines.count(CONNECTED) == 4)
                app = App().install(database)
                shared = [await send_batches(client, app, 2) for client in (first, second)]
        assert separate == [[200, 200, 200, 429]] * 2
        assert shared == [[200, 200], [200, 429]]
        assert count_warnings(lines) == 2
        assert not [line for line in lines if "p4ssword" in line]

    @pytest_twisted.ensureDeferred
    async def test_valkey_is_suspended(self, database: Database, valkey: Valkey) -> None:
        """A suspended Valkey server delays requests only once, and is used again when it resumes."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 20, "TK__REDIS__URL": valkey.url()}
        with logged_lines() as lines:
            async with client_of_server(database, **settings) as client:
                await until(lambda: CONNECTED in lines)
                app = App().install(database)
                await client.send(app, [make_event()])
                valkey.freeze()
                requests = [ensureDeferred(client.send(app, [make_event()])) for _ in range(5)]
                replies = await gatherResults(requests)
                replies.append(await client.send(app, [make_event()]))
                valkey.thaw()
                await until(lambda: lines.count(CONNECTED) == 2)
        assert [reply.status for reply in replies] == [200] * 6
        assert replies[-1].headers["x-ratelimit-remaining"] == "14"
        assert count_warnings(lines) == 1

    @pytest_twisted.ensureDeferred
    async def test_valkey_never_responds(self, database: Database, valkey: Valkey) -> None:
        """Neither a request nor the stop of the server waits for a Valkey server that never responds."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 1, "TK__REDIS__URL": valkey.url()}
        valkey.freeze()
        with logged_lines() as lines:
            async with client_of_server(database, **settings) as client:
                assert await send_batches(client, App().install(database), 2) == [200, 429]
                await until(lambda: count_warnings(lines))
        assert not [line for line in lines if "p4ssword" in line]
        assert count_warnings(lines) == 1

    @pytest_twisted.ensureDeferred
    async def test_missing_extra(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server without the extra does not start with a Redis URL, and names the extra; without a URL, it starts."""
        monkeypatch.setitem(sys.modules, "txredisapi", None)
        with pytest.raises(InvalidSettings, match=r"TK__REDIS__URL: .*pip install 'tkserver\[redis\]'"):
            await start_server(database, TK__RATE_LIMIT__FREE_RPM=1, TK__REDIS__URL="redis://127.0.0.1")
        async with client_of_server(database, TK__RATE_LIMIT__FREE_RPM=1) as client:
            assert await send_batches(client, App().install(database), 2) == [200, 429]

    @pytest_twisted.ensureDeferred
    async def test_wrong_password(self, database: Database, valkey: Valkey) -> None:
        """A wrong password is logged once without the password, and requests are accepted."""
        settings = {"TK__RATE_LIMIT__FREE_RPM": 1, "TK__REDIS__URL": valkey.url(password="wr0ng")}
        with logged_lines() as lines, logged_failures() as failures:
            async with client_of_server(database, **settings) as client:
                await until(lambda: count_warnings(lines))
                app = App().install(database)
                assert await send_batches(client, app, 2) == [200, 429]
                with valkey.client() as connection:
                    await until(lambda: connection.info("stats")["acl_access_denied_auth"] >= 4)
        assert not failures
        assert count_warnings(lines) == 1
        assert "rejects the user, the password" in str(lines)
        assert "wr0ng" not in str(lines)

    def test_no_redis_server(self, directory: Path, database: Database) -> None:
        """A server whose Redis is not running starts, logs it, becomes ready and stops."""
        settings = {
            "TK__DATABASE__URL": database.dsn,
            "TK__RATE_LIMIT__FREE_RPM": "1",
            "TK__REDIS__URL": "redis://127.0.0.1:1",
        }
        with Twistd(directory, settings) as server:
            server.wait_until_ready()
            server.wait_for_line(
                "Redis is not available, each server applies its own rate limits: Connection was refused"
            )
            assert server.stop() == 0
            assert "Traceback" not in server.log
            assert "retry" not in server.log


GUESSER, HONEST = "203.0.113.9", "198.51.100.7"
STRICT = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 3}


class TestAuthFailureLimit:
    """The limit of authentication failures of an address."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"Authorization": "Bearer guessed"},
            {"X-Signature": "0" * 64},
            {"X-Signature": None},
            {"X-Timestamp": None},
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_limit(self, database: Database, changes: dict[str, str | None]) -> None:
        """After too many failures, an address gets a 429 for each request whose headers are valid otherwise."""
        async with client_of_server(database, **STRICT) as client:
            app = App().install(database)
            failed = await statuses(lambda: client.send(app, [make_event()], changes=changes), 3)
            rejected = await client.send(app, [make_event()], changes={"X-Signature": "0" * 64})
            valid = await client.send(app, [make_event()])
            empty = await client.request("POST", app.path)
            health = await client.request("GET", "/health")
            unknown = await client.request("POST", "/unknown", body=b"x")
        assert failed == [401] * 3
        assert (rejected.status, rejected.code) == (429, "rate_limited")
        assert rejected.headers["retry-after"] == str(rejected.json["retry_after"]) == "60"
        assert [reply.status for reply in (valid, empty, health, unknown)] == [429, 401, 200, 404]
        assert not stored_ids(database, app)

    @pytest_twisted.ensureDeferred
    async def test_limited_address_causes_no_queries(self, database: Database) -> None:
        """A limited address cannot make the server search for tokens and applications that it invents."""
        async with client_of_server(database, **STRICT) as client:
            app = App().install(database)
            await statuses(lambda: client.request("POST", app.path), 3)
            guesses = [await client.send(App(), [make_event()], dialect) for dialect in DIALECTS]
        assert [reply.code for reply in guesses] == ["rate_limited"] * 3

    @pytest_twisted.ensureDeferred
    async def test_which_errors_count(self, database: Database) -> None:
        """A 403 counts as an authentication failure, and a 400 does not."""
        async with client_of_server(database, **STRICT) as client:
            app, other = App().install(database), App().install(database)
            malformed = await statuses(lambda: client.send(app, b"{}"), 5)
            outdated = await client.send(app, [make_event()], timestamp=1)
            mismatched = await statuses(lambda: client.send(app, [make_event()], path=other.path), 2)
            limited = await client.send(app, [make_event()])
        assert malformed == [400] * 5
        assert (outdated.status, mismatched, limited.status) == (403, [403, 403], 429)

    @pytest_twisted.ensureDeferred
    async def test_trusted_proxy(self, database: Database) -> None:
        """Behind a trusted proxy, only the address that fails to authenticate is limited, and no address is logged."""
        settings = {**STRICT, "TK__SERVER__TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1"}
        with logged_lines() as lines:
            async with client_of_server(database, **settings) as client:
                app = App().install(database)
                guesses = {"X-Forwarded-For": f"{HONEST}, {GUESSER}, 10.0.0.1", "X-Signature": "0" * 64}
                failed = await statuses(lambda: client.send(app, [make_event()], changes=guesses), 4)
                honest = await client.send(app, [make_event()], changes={"X-Forwarded-For": HONEST})
        assert failed == [401, 401, 401, 429]
        assert honest.status == 200
        assert sum("failed to authenticate too often" in line for line in lines) == 1
        assert not [line for line in lines if GUESSER in line or HONEST in line]

    @pytest.mark.parametrize(
        "forwarded", ["x", "", ",", "x, y", GUESSER, f"{GUESSER}:80", "[::1]:80", "fe80::1%eth0", "1" * 9000]
    )
    @pytest_twisted.ensureDeferred
    async def test_unknown_proxy(self, database: Database, forwarded: str) -> None:
        """Whatever a private address that is not a trusted proxy sends, it is limited; the log says what to do."""
        with logged_lines() as lines:
            async with client_of_server(database, **STRICT) as client:
                app = App().install(database)
                guesses = {"X-Forwarded-For": forwarded, "X-Signature": "0" * 64}
                failed = await statuses(lambda: client.send(app, [make_event()], changes=guesses), 5)
                direct = await client.send(app, [make_event()])
        assert failed == [401, 401, 401, 429, 429]
        assert direct.status == 429
        assert sum("all clients of the proxy are limited together" in line for line in lines) == 1
        assert not [line for line in lines if GUESSER in line]

    @pytest_twisted.ensureDeferred
    async def test_malformed_header_of_trusted_proxy(self, database: Database) -> None:
        """If a trusted proxy sends no valid address, its requests count as its own."""
        async with client_of_server(database, **STRICT, TK__SERVER__TRUSTED_PROXIES="127.0.0.1") as client:
            app = App().install(database)
            guesses = [
                await client.send(app, [make_event()], changes={"X-Forwarded-For": text, "X-Signature": "0" * 64})
                for text in ("x", f"{GUESSER}, y", "", "z")
            ]
            honest = await client.send(app, [make_event()], changes={"X-Forwarded-For": HONEST})
        assert [reply.status for reply in guesses] == [401, 401, 401, 429]
        assert honest.status == 200

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest_twisted.ensureDeferred
    async def test_known_credential(self, database: Database, dialect: str) -> None:
        """After 100 failures from its address, a credential that succeeded before is not limited; others are."""
        limits = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 100}
        with logged_lines() as lines:
            async with client_of_server(database, **limits) as client:
                app, unknown = App().install(database), App().install(database)
                assert (await client.send(app, [make_event()], dialect)).status == 200
                guesses = await statuses(lambda: client.send(App(), [make_event()], dialect), 101)
                valid = await statuses(lambda: client.send(app, [make_event()], dialect), 60)
                other_app = await client.send(unknown, [make_event()], dialect)
                forged = await client.send(app, [make_event()], dialect, changes={"X-Signature": "0" * 64})
        assert guesses[:100] == [401] * 100
        assert guesses[-1] == 429
        assert valid == [200] * 60
        assert other_app.status == 429
        assert forged.status == 401
        assert not [line for line in lines if app.token in line or app.secret in line or app.app_id in line]

    @pytest_twisted.ensureDeferred
    async def test_known_credential_at_another_address(self, database: Database) -> None:
        """A credential that succeeded from one address is limited at another one that fails too often."""
        settings = {**STRICT, "TK__SERVER__TRUSTED_PROXIES": "127.0.0.1"}
        async with client_of_server(database, **settings) as client:
            app = App().install(database)
            at_home, at_guesser = {"X-Forwarded-For": HONEST}, {"X-Forwarded-For": GUESSER}
            assert (await client.send(app, [make_event()], changes=at_home)).status == 200
            forged = {**at_guesser, "X-Signature": "0" * 64}
            failed = await statuses(lambda: client.send(app, [make_event()], changes=forged), 4)
            stolen = await client.send(app, [make_event()], changes=at_guesser)
            honest = await client.send(app, [make_event()], changes=at_home)
        assert failed == [401, 401, 401, 429]
        assert (stolen.status, honest.status) == (429, 200)

    @pytest_twisted.ensureDeferred
    async def test_body_is_not_read(self, database: Database) -> None:
        """A limited address gets the response before it sends the body, and no 100 Continue."""
        async with client_of_server(database, **STRICT) as client:
            app, body = App().install(database), batch([make_event()])
            await statuses(lambda: client.request("POST", app.path), 3)
            peer = await connect(int(client.url.rpartition(":")[2]))
            peer.write(forged_head(app, f"Content-Length: {len(body)}", "Expect: 100-continue"))
            await peer.wait_for(b'"code":"rate_limited"')
            assert peer.received.startswith(b"HTTP/1.1 429 ")
            peer.disconnect()

    @pytest_twisted.ensureDeferred
    async def test_concurrent_requests(self, database: Database) -> None:
        """The limit also applies to requests whose headers were received before the first failure."""
        async with running_server(database, **STRICT) as server:
            app, body = App().install(database), batch([make_event()])
            peers = [await connect(server.port) for _ in range(6)]
            for peer in peers:
                head = request_head(app, body).replace(b"X-Signature: ", b"X-Signature: 0") + body[:5]
                peer.write(head)
            bodies = server.worker.components.site.bodies
            await until(lambda: bodies.used == len(peers) * 5)  # the server has received all headers
            for peer in peers:
                peer.write(body[5:])
                await peer.wait_for(b'"code"')
                peer.disconnect()
        assert [peer.received[9:12] for peer in peers] == [b"401"] * 3 + [b"429"] * 3

    @pytest_twisted.ensureDeferred
    async def test_default_limit(self, database: Database) -> None:
        """By default, 100 failures are allowed, and soon afterwards the limit applies."""
        async with client_of_server(
            database, TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE=60, TK__RATE_LIMIT__AUTH_FAILURES_BURST=100
        ) as client:
            path = App().path
            received = await statuses(lambda: client.request("POST", path), 130)
            limited = await client.send(App().install(database), [make_event()])
        assert received == [401] * 130
        assert limited.status == 429
