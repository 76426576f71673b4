"""Public pages: exist only for published applications, and show only totals."""

from __future__ import annotations

import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater

from tests.support.client import App, Client
from tests.support.database import Database
from tests.support.raw_events import insert, random_event
from tests.support.sample_statistics import install_named
from tests.support.scrape import scrape
from tests.support.server import client_of, running_server
from tests.support.waiting import until
from tkserver.insight import public_pages
from tkserver.operations.apps import find_app
from tkserver.operations.publishing import publish, unpublish
from tkserver.server.supervisor import Supervisor
from tkserver.storage.blocking import BlockingConnections, Connection, rows, transaction

VERSIONS = {"2.0.0": 4, "1.1.0": 25, "1.0.0": 31}
"""The versions of the users, of whom those with the first one are too few."""

PATHS = ("/public/my-cli", "/public/my-cli.json", "/public/my-cli/badge/users.svg", "/public/my-cli/badge/runs.json")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW")


def store_users(connection: Connection, app: App) -> None:
    """Store an event of yesterday for each of 60 users, and one of today for 40 others."""
    today = datetime.now(timezone.utc)
    users = [version for version, count in VERSIONS.items() for _ in range(count)]
    events = [
        replace(
            random_event(random.Random(number), number + 1),
            user_id=f"user_{number}",
            timestamp=today - timedelta(days=1 if number < 60 else 0),
            received_at=today - timedelta(days=1 if number < 60 else 0),
            ci=False,
            version=(*users, *["3.0.0"] * 40)[number],
            os="linux" if number % 12 else "plan9",
            data={"command": "build" if number % 7 else "rare" if number < 50 else "test"},
        )
        for number in range(100)
    ]
    insert(connection, app, events)
    rows(connection, "SELECT setval('events_id_seq', 1000)")


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A connection to the database, which has an application with users."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        store_users(connection, install_named(database, "my-cli"))
        yield connection


@pytest_twisted.async_yield_fixture
async def server(connection: Connection, database: Database) -> AsyncIterator[Supervisor]:
    """A server with the database."""
    async with running_server(database, TK__PUBLIC__EMBED_ORIGINS="https://example.org") as running:
        await until(lambda: running.worker.components.changes.listening)
        yield running


@pytest.fixture
def client(server: Supervisor) -> Client:
    return client_of(server)


def publish_now(connection: Connection, slug: str | None = None) -> None:
    publish(connection, find_app(connection, "my-cli"), slug, datetime.now(timezone.utc), time.sleep)


async def comparable(client: Client, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """Return a response without what is different in each response."""
    reply = await client.request(method, path)
    headers = {name: value for name, value in reply.headers.items() if name not in ("date", "x-request-id")}
    return reply.status, headers, re.sub(rb'"request_id":"[^"]*"', b"", reply.body)


@pytest_twisted.ensureDeferred
async def test_nothing_is_public_by_default(client: Client, server: Supervisor) -> None:
    """No method and no path reveals that there could be public pages, and neither does a metric."""
    for method in METHODS:
        expected = await comparable(client, method, "/nothing")
        assert expected[0] == 404
        for path in (*PATHS, "/public", "/public/", "/public/my-cli/badge", "/public/a%2Fb"):
            assert await comparable(client, method, path) == expected, (method, path)
    assert (await scrape(server.admin_port)).sum("tkserver_http_requests_total", path="/public/{name}") == 0


@pytest_twisted.ensureDeferred
async def test_published_application(client: Client, connection: Connection) -> None:
    """A published application has a page, JSON and badges, with the totals up to yesterday, rounded down."""
    publish_now(connection)
    content = (await client.request("GET", "/public/my-cli.json")).json
    yesterday = datetime.now(timezone.utc).date() - timedelta(1)
    assert (content["name"], content["slug"], content["last_day"]) == ("my-cli", "my-cli", str(yesterday))
    for period in ("30d", "90d", "365d"):
        numbers = {category: own[period] for category, own in content["analytics"].items()}
        assert numbers == {
            "users": 60,
            "runs": 60,
            "versions": {"1.1.0": 20, "1.0.0": 30},
            "systems": {"linux": 50},
            "commands": {"build": 50},
            "features": {},
        }
    page = (await client.request("GET", "/public/my-cli")).body.decode()
    assert ">60+<" in page
    assert re.findall(r'<th scope="row">(.*?)</th>.*?<td>(\d+) %', page) == [
        ("1.1.0", "33"),
        ("1.0.0", "50"),
        ("linux", "83"),
        ("build", "83"),
    ]
    assert not {"2.0.0", "plan9", "rare", "3.0.0"} & set(re.findall(r"[\w.]+", page))
    assert ">1.1.0<" in (await client.request("GET", "/public/my-cli/badge/version.svg")).body.decode()
    badge = (await client.request("GET", "/public/my-cli/badge/users.json")).json
    assert badge["message"] == "60+ / 30 days"


@pytest_twisted.ensureDeferred
async def test_only_reading(client: Client, connection: Connection) -> None:
    """Other methods get a 405, other badges a 404, and other slugs the response of a path that does not exist."""
    publish_now(connection)
    for method in METHODS:
        for path in PATHS:
            reply = await client.request(method, path)
            assert reply.status == (200 if method in ("GET", "HEAD") else 405)
            assert reply.status == 200 or reply.headers["allow"] == "GET, HEAD"
    for path in ("/public/my-cli/badge/users", "/public/my-cli/badge/stars.svg", "/public/my-cli/badge/users.png"):
        assert (await client.request("GET", path)).status == 404
    expected = await comparable(client, "GET", "/nothing")
    for path in ("/public/MY-CLI", "/public/other", "/public/other.json", "/public/my-cli/"):
        assert await comparable(client, "GET", path) == expected


@pytest_twisted.ensureDeferred
async def test_headers(client: Client, connection: Connection) -> None:
    """Responses may be cached, contain nothing active, and can be embedded by the configured origin only."""
    publish_now(connection)
    replies = {path: await client.request("GET", path) for path in PATHS}
    for reply in replies.values():
        assert reply.headers["cache-control"] == "public, max-age=3600"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
        assert reply.headers["etag"].startswith('W/"')
    policy = replies["/public/my-cli"].headers["content-security-policy"]
    assert "frame-ancestors https://example.org" in policy
    assert "unsafe" not in policy
    assert "script" not in policy
    assert "x-frame-options" not in replies["/public/my-cli"].headers
    assert [reply.headers["content-type"] for reply in replies.values()] == [
        "text/html; charset=utf-8",
        "application/json",
        "image/svg+xml",
        "application/json",
    ]


@pytest_twisted.ensureDeferred
async def test_no_embedding_by_default(connection: Connection, database: Database) -> None:
    """Without the setting, no page may embed public pages."""
    publish_now(connection)
    async with running_server(database) as server:
        headers = (await client_of(server).request("GET", "/public/my-cli")).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"


@pytest_twisted.ensureDeferred
async def test_repeated_requests(client: Client, connection: Connection) -> None:
    """A client that has a response gets a 304, until the page changes. Languages have their own pages."""
    publish_now(connection)
    for path in PATHS:
        first = await client.request("GET", path)
        again = await client.request("GET", path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    rows(connection, "UPDATE public_pages SET numbers = replace(numbers::text, '60', '12340')::json")
    await until(partial(shows, client, b">12,340+<", "en"))
    assert await shows(client, b">12.340+<", "de")


async def shows(client: Client, text: bytes, language: str) -> bool:
    reply = await client.request("GET", PATHS[0], headers={"Accept-Language": language})
    return text in reply.body


@pytest_twisted.ensureDeferred
async def test_views_do_not_reach_the_database(client: Client, connection: Connection) -> None:
    """Views are served while nobody can read the table, and it is not known which slugs exist."""
    publish_now(connection)
    assert (await client.request("GET", PATHS[0])).status == 200
    with transaction(connection):
        rows(connection, "LOCK TABLE public_pages IN ACCESS EXCLUSIVE MODE")
        for number in range(20):
            assert [(await client.request("GET", path)).status for path in PATHS] == [200] * 4
            assert (await client.request("GET", f"/public/invented-{number}")).status == 404


@pytest_twisted.ensureDeferred
async def test_changes_are_effective_immediately(client: Client, connection: Connection) -> None:
    """A page has only its new slug after it has been changed, and none after the application has been withdrawn."""
    publish_now(connection)
    assert (await client.request("GET", "/public/my-cli")).status == 200
    publish_now(connection, "other")
    await until(partial(is_missing, client, "/public/my-cli"))
    assert (await client.request("GET", "/public/other")).status == 200
    unpublish(connection, find_app(connection, "my-cli"))
    await until(partial(is_missing, client, "/public/other"))


async def is_missing(client: Client, path: str) -> bool:
    return (await client.request("GET", path)).status == 404


@pytest_twisted.ensureDeferred
async def test_numbers_are_computed_once_a_day(connection: Connection, database: Database) -> None:
    """On the next day, in the time zone of the application, the numbers contain one more day. They do not change before
    that, unless a user is erased."""
    now = datetime.now(timezone.utc)
    publish_now(connection)
    assert public_pages.update_due(connection, now) == 0
    assert public_pages.update_due(connection, now + timedelta(days=1)) == 1
    users, day = database.query("SELECT numbers->'users'->>'30d', last_day FROM public_pages")[0]
    assert (users, day) == ("100", now.date())
    assert public_pages.update_due(connection, now + timedelta(days=1)) == 0
    rows(connection, "INSERT INTO erasures (user_hash, erased_at) VALUES (sha256(''), %s)", now + timedelta(days=1))
    assert public_pages.update_due(connection, now + timedelta(days=1, seconds=29)) == 0
    assert public_pages.update_due(connection, now + timedelta(days=1, seconds=31)) == 1
    assert public_pages.update_due(connection, now + timedelta(days=1, seconds=32)) == 0


@pytest_twisted.ensureDeferred
async def test_changes_while_pages_are_read(client: Client, connection: Connection, database: Database) -> None:
    """A request that waits for pages while they change finds those that were published before it."""
    publish_now(connection)
    with transaction(connection):
        rows(connection, "LOCK TABLE public_pages IN ACCESS EXCLUSIVE MODE")
        reading = ensureDeferred(client.request("GET", PATHS[0]))
        await until(lambda: bool(database.query("SELECT pid FROM pg_locks WHERE NOT granted")))
        database.query("NOTIFY tkserver_public_pages")
        await deferLater(reactor, 0.3)  # until the server has been notified
    assert (await reading).status == 200
