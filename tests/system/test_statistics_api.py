"""Statistics over HTTP: their numbers, their paths, their entity tags, and their limits."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted
import requests
from twisted.internet.defer import Deferred, ensureDeferred

from tests.support.client import App, Client, Reply
from tests.support.cluster import Cluster, installations, version
from tests.support.command import Command
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.peer import connect
from tests.support.process import Twistd
from tests.support.sample_statistics import aggregate, install_named, store_recent
from tests.support.scrape import Scrape, scrape
from tests.support.server import client_of, running_server
from tests.support.waiting import until, wait_for
from tkserver.operations import erasure
from tkserver.operations.apps import find_app
from tkserver.operations.statistics import PANEL_NAMES
from tkserver.server.supervisor import Supervisor
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, rows

OVERVIEW = "/api/v1/apps/my-cli/overview"

CONNECTIONS = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"

NEWEST = max(installations(), key=version)


@pytest.fixture(scope="module")
def module_database(database_server: DatabaseServer) -> Iterator[Database]:
    """A database with statistics, for tests that do not change it."""
    with database_server.migrated() as database:
        store_recent(database, install_named(database, "my-cli"), range(1, 401))
        aggregate(database)
        yield database


@pytest.fixture
def my_cli(database: Database) -> App:
    """An application with statistics, in an own database."""
    app = install_named(database, "my-cli")
    store_recent(database, app, range(1, 41))
    aggregate(database)
    return app


def admin_of(server: Supervisor) -> Client:
    """Return a client of the admin port."""
    return Client(f"http://127.0.0.1:{server.admin_port}")


@pytest_twisted.async_yield_fixture
async def admin(database: Database, my_cli: App) -> AsyncIterator[Client]:
    """A client of the admin port of a server on :func:`database`."""
    async with running_server(database) as server:
        yield admin_of(server)


async def get(client: Client, path: str, etag: str | None = None, token: str | None = None) -> Reply:
    """Request a path."""
    headers = {"If-None-Match": etag, "Authorization": token and f"Bearer {token}"}
    return await client.request("GET", path, headers={name: value for name, value in headers.items() if value})


# --- the numbers


@dataclass(frozen=True)
class Installation:
    """A server in another process, and the command on the same database."""

    url: str
    command: Command


@pytest.fixture(scope="module")
def installation(module_database: Database, scratch: Path) -> Iterator[Installation]:
    """A server on :func:`module_database`."""
    directory = Path(tempfile.mkdtemp(dir=scratch))  # a worker can set this up twice
    directory.chmod(0o755)
    with Twistd(directory, {"TK__DATABASE__URL": module_database.dsn, "TK__ADMIN__PORT": "0"}) as server:
        server.wait_until_ready()
        url = server.wait_for_line(r"metrics on (http://\S+)/metrics").split()[-1].removesuffix("/metrics")
        yield Installation(url, Command.on(module_database, directory))


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, in which no key occurs twice."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("options", [{}, {"days": "7", "ci": "include"}, {"from": "2026-01-01"}], ids=str)
@pytest.mark.parametrize("panel", PANEL_NAMES)
def test_same_as_command(installation: Installation, panel: str, options: dict[str, str]) -> None:
    """The JSON is that of ``tkserver stats``, except for the times of computation and aggregation."""
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    printed = installation.command("stats", "my-cli", panel, "--json", *arguments, code=0).json
    response = requests.get(f"{installation.url}/api/v1/apps/my-cli/{panel}", options, timeout=30)
    assert response.status_code == 200
    served = response.json(object_pairs_hook=without_duplicates)
    for name in ("generated_at", "summed_until"):
        assert served.pop(name)
        assert printed.pop(name)
    assert served == printed


@pytest_twisted.ensureDeferred
async def test_headers(admin: Client) -> None:
    """A response may be kept by the client only, and is never guessed to be HTML; ``HEAD`` has the same headers."""
    reply, head = await get(admin, OVERVIEW), await admin.request("HEAD", OVERVIEW)
    assert reply.headers["cache-control"] == "private, no-cache"
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert reply.headers["x-summed-until"] == reply.json["summed_until"]
    assert "access-control-allow-origin" not in reply.headers
    assert (head.status, head.body) == (200, b"")
    assert head.headers["etag"] == reply.headers["etag"]


# --- paths and parameters


@pytest_twisted.ensureDeferred
async def test_paths(database: Database) -> None:
    """An application is found by id, name, slug, and these after the organization; slashes in names are encoded."""
    app = install_named(database, "a b/ü", org="A/B & C")
    database.query("UPDATE apps SET slug = 'ab'")
    names = ["a b/ü", "ab", app.app_id, "A/B & C/ab", "A/B & C/a b/ü", f"{app.org_id}/{app.app_id}", f"{app.org_id}/ab"]
    paths = [quote(name, safe="") for name in names]
    paths += [f"{quote(org, safe='')}/{quote(own, safe='')}" for org in ("A/B & C", app.org_id) for own in names[:3]]
    async with running_server(database) as server:
        admin = admin_of(server)
        for path in paths:
            reply = await get(admin, f"/api/v1/apps/{path}/overview")
            assert (reply.status, reply.json.get("app")) == (200, "A/B & C/a b/ü"), path
        listed = (await get(admin, "/api/v1/apps")).json["apps"]
        assert [(entry["app"], entry["name"], entry["org"]) for entry in listed] == [
            ("A/B & C/a b/ü", "a b/ü", "A/B & C")
        ]
        assert (listed[0]["app_id"], listed[0]["org_id"], listed[0]["timezone"]) == (app.app_id, app.org_id, "UTC")
        for path in ("nothing", "a%20b", "A/B%20&%20C/ab", "ab%00", "", app.org_id):
            reply = await get(admin, f"/api/v1/apps/{path}/overview")
            assert (reply.status, reply.code) == (404, "not_found"), path


@pytest_twisted.ensureDeferred
async def test_ambiguous_names(database: Database) -> None:
    """If several applications have a name, the error says how to select one."""
    for org in ("a", "b"):
        install_named(database, "my-cli", org)
    async with running_server(database) as server:
        admin = admin_of(server)
        reply = await get(admin, OVERVIEW)
        assert (reply.status, "the organization and the name" in reply.json["error"]["message"]) == (404, True)
        assert (await get(admin, "/api/v1/apps/a/my-cli/overview")).json["app"] == "a/my-cli"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{OVERVIEW}?day=7", "unknown parameter 'day': use days, from, to, ci, version, os, arch, name"),
        ("/api/v1/apps/my-cli/quality?os=linux", "unknown parameter 'os': use days, from, to, ci"),
        (f"{OVERVIEW}?ci=no", "ci='no': use exclude, include, only"),
        (f"{OVERVIEW}?days=0", "days='0': use a number from 1 to 3660"),
        (f"{OVERVIEW}?days=3661", "days='3661': use a number from 1 to 3660"),
        (f"{OVERVIEW}?days=000000001999999", "use a number from 1 to 3660"),
        (f"{OVERVIEW}?days=", "days='': use a number from 1 to 3660"),
        (f"{OVERVIEW}?days=30&days=30", "a parameter is repeated"),
        (f"{OVERVIEW}?from=yesterday", "from='yesterday': use a day such as 2026-01-31"),
        (f"{OVERVIEW}?from=0001-01-01&to=0001-01-01", "from 1990 to 2999"),
        (f"{OVERVIEW}?from=20260101", "from='20260101': use a day such as 2026-01-31"),
        (f"{OVERVIEW}?to=2026-01-01", "use either days, or from with or without to"),
        (f"{OVERVIEW}?from=2026-01-02&to=2026-01-01", "from must not be later than to"),
        (f"{OVERVIEW}?name=%ff", "the query string is not UTF-8"),
        (f"{OVERVIEW}?{'&'.join(f'x{n}' for n in range(30))}", "more than 20 parameters"),
        ("/api/v1/apps?days=7", "unknown parameter 'days': there are none"),
    ],
)
def test_invalid_parameters(installation: Installation, path: str, message: str) -> None:
    """The error names what is allowed."""
    response = requests.get(installation.url + path, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_parameter")
    assert message in response.json()["error"]["message"]


def test_unknown_panel(installation: Installation) -> None:
    """The error names the panels."""
    response = requests.get(f"{installation.url}/api/v1/apps/my-cli/users", timeout=30)
    assert response.status_code == 404
    assert "use overview, commands, versions" in response.json()["error"]["message"]


# --- entity tags


@pytest_twisted.ensureDeferred
async def test_unchanged_numbers_get_a_304(admin: Client) -> None:
    """A client that has the numbers gets no body; other parameters have other tags, and equal queries equal ones."""
    first = await get(admin, OVERVIEW)
    etag = first.headers["etag"]
    for sent in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        reply = await get(admin, OVERVIEW, sent)
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag), sent
        assert reply.headers["cache-control"] == "private, no-cache"
    assert (await get(admin, OVERVIEW, '"x"')).status == 200
    same = f"?from={first.json['from']}&to={first.json['to']}&ci=exclude"
    assert (await get(admin, OVERVIEW + same, etag)).status == 304
    for query in ("?days=29", "?ci=include", "?os=linux", "?version=1.4.0"):
        assert (await get(admin, OVERVIEW + query, etag)).status == 200, query
    assert (await get(admin, "/api/v1/apps/my-cli/commands", etag)).status == 200
    apps = await get(admin, "/api/v1/apps")
    assert (await get(admin, "/api/v1/apps", apps.headers["etag"])).status == 304


async def changed(client: Client, etag: str) -> Reply:
    """Wait until the overview is not the one with this tag anymore, and return it."""
    reply = await get(client, OVERVIEW, etag)

    async def is_new() -> bool:
        nonlocal reply
        reply = await get(client, OVERVIEW, etag)
        return reply.status == 200

    await until(is_new)
    assert reply.headers["etag"] != etag
    return reply


@pytest_twisted.ensureDeferred
async def test_changes_have_new_tags(admin: Client, database: Database, my_cli: App) -> None:
    """The tag changes with new events, an erasure, the deletion of old events, a name and a time zone."""
    first = await get(admin, OVERVIEW)
    store_recent(database, my_cli, range(41, 51))
    aggregate(database)
    second = await changed(admin, first.headers["etag"])
    assert second.json["totals"]["events"] == first.json["totals"]["events"] + 10
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        erasure.record(connection, "client_1", find_app(connection, "my-cli"))
    third = await changed(admin, second.headers["etag"])
    assert third.json["totals"]["users"] == second.json["totals"]["users"] - 1
    database.query("UPDATE insight_apps SET frozen_before = '2020-01-01'")
    fourth = await changed(admin, third.headers["etag"])
    database.query("UPDATE apps SET timezone = 'Asia/Tokyo'")
    aggregate(database)
    fifth = await changed(admin, fourth.headers["etag"])
    assert fifth.json["timezone"] == "Asia/Tokyo"
    database.query("UPDATE apps SET name = 'other', slug = 'my-cli'")
    assert (await changed(admin, fifth.headers["etag"])).json["app"] == "other"


@pytest_twisted.ensureDeferred
async def test_other_applications_do_not_change_the_tag(admin: Client, database: Database) -> None:
    """Events of another application change only the time up to which events are aggregated."""
    first = await get(admin, OVERVIEW)
    other = install_named(database, "other")
    store_recent(database, other, range(1001, 1011))
    aggregate(database)
    await until(lambda: has_events(admin, "other"))
    reply = await get(admin, OVERVIEW, first.headers["etag"])
    assert reply.status == 304
    until_now = database.value("SELECT to_char(summed_until AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM"
                               " insight_progress")  # fmt: skip
    assert reply.headers["x-summed-until"] == until_now
    again = (await get(admin, OVERVIEW)).json
    assert again["summed_until"] == until_now
    assert {**again, "summed_until": None} == {**first.json, "summed_until": None}, "from the cache"


async def has_events(admin: Client, name: str) -> bool:
    """Return true if an application has events in its statistics."""
    reply = await get(admin, f"/api/v1/apps/{name}/overview")
    return reply.status == 200 and reply.json["totals"]["events"] > 0


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_304_without_database(directory: Path) -> None:
    """While the database is not running, a client still gets a 304; a computation gets a 503, not a 500."""
    with Cluster(NEWEST, directory) as cluster:
        database = cluster.database
        migrations.migrate(database.dsn, BlockingConnections())
        store_recent(database, install_named(database, "my-cli"), range(1, 11))
        aggregate(database)
        async with running_server(database) as server:
            admin = admin_of(server)
            etag = (await get(admin, OVERVIEW)).headers["etag"]
            cluster.stop("immediate")
            assert (await get(admin, OVERVIEW, etag)).status == 304
            assert (await get(admin, OVERVIEW)).status == 200, "from the cache"
            reply = await get(admin, f"{OVERVIEW}?days=8")
            assert (reply.status, reply.code) == (503, "storage_unavailable")
            assert int(reply.headers["retry-after"]) > 0
            cluster.start()
            await until(lambda: has_events(admin, "my-cli"))
            await until(lambda: responds(admin, f"{OVERVIEW}?days=8", 200))


async def responds(client: Client, path: str, status: int) -> bool:
    """Return true if a response has this status."""
    return (await get(client, path)).status == status


@pytest_twisted.ensureDeferred
async def test_equal_requests_are_computed_once(database: Database, my_cli: App) -> None:
    """Computed statistics are kept, unless there is no memory for them."""
    for size, expected in (("1000000", 1), ("0", 3)):
        async with running_server(database, TK__INSIGHT__CACHE_BYTES=size) as server:
            replies = [await get(admin_of(server), OVERVIEW) for _ in range(3)]
            assert [reply.status for reply in replies] == [200] * 3
            metrics = await scrape(server.admin_port)
        assert metrics.value("tkserver_insight_queries_total", outcome="computed") == expected
        assert 0 <= metrics.value("tkserver_insight_cache_bytes") <= float(size)
        assert metrics.value("tkserver_insight_requests_total", panel="overview", status="200") == 3
        assert metrics.value("tkserver_insight_query_duration_seconds_count") == expected


# --- limits


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Let every computation of statistics wait while the context lasts."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        connection.autocommit = False
        rows(connection, "LOCK TABLE insight_cells IN ACCESS EXCLUSIVE MODE")
        yield


def connections(database: Database) -> list[str]:
    """Return the application names of all connections."""
    return [name for (name,) in database.query(CONNECTIONS)]


async def metric(server: Supervisor, name: str) -> float:
    """Return a metric of the statistics."""
    return (await scrape(server.admin_port)).value(f"tkserver_insight_queries_{name}")


async def until_metric(server: Supervisor, name: str, value: int) -> None:
    """Wait until a metric of the statistics has a value."""

    async def has_value() -> bool:
        return await metric(server, name) == value

    await until(has_value)


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_queue(database: Database, my_cli: App) -> None:
    """While all connections are busy, requests wait in their order, further ones get a 503, and ingest continues."""
    settings = {"TK__INSIGHT__CONNECTIONS": 1, "TK__INSIGHT__MAX_WAITING": 3, "TK__DATABASE__MAX_CONNECTIONS": 1}
    async with running_server(database, **settings) as server:
        admin, finished = admin_of(server), list[int]()
        pending: list[Deferred[Any]] = []

        async def request(days: int) -> None:
            reply = await get(admin, f"{OVERVIEW}?days={days}")
            assert reply.status == 200
            finished.append(days)

        with locked(database):
            pending.append(ensureDeferred(request(1)))
            await until(lambda: connections(database).count("tkserver statistics") == 1)
            for number in (1, 2, 3):
                pending.append(ensureDeferred(request(9 - number)))
                await until_metric(server, "waiting", number)
            rejected = await get(admin, f"{OVERVIEW}?days=20")
            assert (rejected.status, rejected.code) == (503, "overloaded")
            assert int(rejected.headers["retry-after"]) == rejected.json["retry_after"] > 0
            for _ in range(3):
                assert (await client_of(server).send(my_cli, [make_event()])).status == 200
            assert not finished
            assert connections(database).count("tkserver statistics") == 1
        for deferred in pending:
            await deferred
        assert finished == [1, 8, 7, 6]
        metrics = await scrape(server.admin_port)
        assert metrics.value("tkserver_insight_queries_total", outcome="rejected") == 1
        assert metrics.value("tkserver_insight_requests_total", panel="overview", status="503") == 1


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_clients_that_disconnect_do_not_wait(database: Database, my_cli: App) -> None:
    """A request whose client has disconnected leaves the queue; the result of one that is computed is kept."""
    async with running_server(database, TK__INSIGHT__CONNECTIONS=1) as server:
        with locked(database):
            peers = []
            for days, name in ((1, "running"), (2, "waiting")):
                peers.append(await connect(server.admin_port))
                peers[-1].write(f"GET {OVERVIEW}?days={days} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                await until_metric(server, name, 1)
            for peer in peers:
                peer.disconnect()
            await until_metric(server, "waiting", 0)
            assert await metric(server, "running") == 1
        await until_metric(server, "running", 0)
        assert (await get(admin_of(server), f"{OVERVIEW}?days=1")).status == 200
        assert (await scrape(server.admin_port)).value("tkserver_insight_queries_total", outcome="computed") == 1


def took_too_long(metrics: Scrape) -> float:
    """Return the number of computations that took too long."""
    return metrics.value("tkserver_insight_queries_total", outcome="timed_out")


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_time_limit(database: Database, my_cli: App) -> None:
    """A statement that takes too long is cancelled, the request gets a 503, and the next one works."""
    async with running_server(database, TK__INSIGHT__QUERY_TIMEOUT=0.3) as server:
        with locked(database):
            reply = await get(admin_of(server), OVERVIEW)
        assert (reply.status, reply.code) == (503, "overloaded")
        assert "took longer than 0.3 s" in reply.json["error"]["message"]
        assert took_too_long(await scrape(server.admin_port)) == 1
        await until(lambda: responds(admin_of(server), OVERVIEW, 200))


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_process_that_does_not_respond(database: Database, my_cli: App) -> None:
    """A process that takes too long is killed, even if it does not wait for the database."""
    async with running_server(database, TK__INSIGHT__QUERY_TIMEOUT=0.3, TK__INSIGHT__CACHE_BYTES=0) as server:
        assert (await get(admin_of(server), OVERVIEW)).status == 200
        (process,) = query_processes()
        os.kill(process, signal.SIGSTOP)
        reply = await get(admin_of(server), OVERVIEW)
        assert (reply.status, reply.code) == (503, "overloaded")
        assert took_too_long(await scrape(server.admin_port)) == 1
        await until(lambda: process not in query_processes())
        await until(lambda: responds(admin_of(server), OVERVIEW, 200))


@pytest_twisted.ensureDeferred
async def test_processes_exist_only_while_they_are_used(database: Database, my_cli: App) -> None:
    """There are no processes and no connections before the first request, and none after the server has stopped."""
    own = {"tkserver statistics", "tkserver catalog"}
    async with running_server(database) as server:
        assert (await admin_of(server).request("GET", "/metrics")).status == 200
        assert not query_processes()
        assert own.isdisjoint(connections(database))
        assert (await get(admin_of(server), OVERVIEW)).status == 200
        assert len(query_processes()) == 1
        assert own <= {*connections(database)}
    assert not query_processes()
    await until(lambda: own.isdisjoint(connections(database)))


@pytest_twisted.ensureDeferred
async def test_lost_connections_are_replaced(database: Database, my_cli: App) -> None:
    """If the database ends the connections, for example because it is restarted, the next request works."""
    async with running_server(database, TK__INSIGHT__CACHE_BYTES=0) as server:
        for _ in range(3):
            assert (await get(admin_of(server), OVERVIEW)).status == 200
            database.query(f"{CONNECTIONS.replace('application_name', 'pg_terminate_backend(pid)')}"
                           " AND application_name LIKE 'tkserver %'")  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_stop_while_statistics_are_computed(database: Database, my_cli: App) -> None:
    """A server stops without waiting for statistics, and the requests get an error."""
    async with running_server(database, TK__INSIGHT__CONNECTIONS=1) as server:
        with locked(database):
            pending = [ensureDeferred(get(admin_of(server), f"{OVERVIEW}?days={days}")) for days in (1, 2)]
            await until_metric(server, "waiting", 1)
            await server.stopService()
            assert sorted([(await deferred).status for deferred in pending]) == [500, 503]
    assert not query_processes()


def query_processes() -> list[int]:
    """Return the ids of the processes that compute statistics for servers in this process."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"query_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# --- revocation


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_revocation(database: Database, my_cli: App, directory: Path) -> None:
    """Every server rejects a revoked token within two seconds, and accepts a new one within the same time."""
    command = Command.on(database, directory)
    settings = {"TK__INSIGHT__REQUIRE_TOKEN": "true"}
    async with running_server(database, **settings) as one, running_server(database, **settings) as other:
        created = [command("tokens", "create", "my-cli", "--read", "--json", code=0).json for _ in range(2)]
        for number, token in enumerate(created):
            for server in (one, other):
                await until(lambda: status_is(server, token["token"], 200), within=2)  # noqa: B023
            if number == 0:
                command("tokens", "revoke", token["id"], code=0)
                for server in (one, other):
                    await until(lambda: status_is(server, token["token"], 401), within=2)  # noqa: B023


async def status_is(server: Supervisor, token: str, status: int) -> bool:
    """Return true if a request with a token gets this status."""
    return (await get(admin_of(server), OVERVIEW, token=token)).status == status


# --- processes of the server


def test_killed_server_leaves_no_processes(database: Database, my_cli: App, directory: Path) -> None:
    """If the server is killed, the processes that compute statistics end by themselves."""
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn, "TK__ADMIN__PORT": "0"}) as server:
        server.wait_until_ready()
        url = server.wait_for_line(r"metrics on (http://\S+)/metrics").split()[-1].removesuffix("/metrics")
        assert json.loads(requests.get(url + OVERVIEW, timeout=30).text)["totals"]["events"] == 40
        assert "tkserver statistics" in connections(database)
        server.kill()
    wait_for(lambda: "tkserver statistics" not in connections(database))
