"""The private port: what is there, for how long, and that it is nowhere else."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.task import Clock

from tests.support.client import App, Client, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.peer import connect
from tests.support.process import Twistd, wait_for
from tests.support.scrape import Scrape, scrape
from tests.support.server import start_server
from tests.system.test_lifecycle import ready
from tkserver.server.reactor_lag import ReactorLagMeter
from tkserver.server.supervisor import Supervisor

NOWHERE = "postgresql://somebody@127.0.0.1:1/none"


@pytest.fixture
def admin(shared_server: Supervisor) -> Client:
    return Client(f"http://127.0.0.1:{shared_server.admin_port}")


@pytest_twisted.ensureDeferred
async def test_index(admin: Client) -> None:
    """It lists what is there, and all of that is."""
    index = (await admin.request("GET", "/")).json
    assert index["version"]
    for path in (path for name, path in index.items() if name != "version"):
        assert (await admin.request("GET", path)).status == 200


@pytest_twisted.ensureDeferred
async def test_formats(admin: Client) -> None:
    """Prometheus' text, or OpenMetrics' for those who ask for it; the headers alone for HEAD."""
    plain = await admin.request("GET", "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    openmetrics = await admin.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=")
    assert openmetrics.body.endswith(b"# EOF\n")
    for odd in ("application/openmetrics-text;version=x", "text/plain;version=1.\xb2", ";;="):
        assert (await admin.request("GET", "/metrics", headers={"Accept": odd.encode("latin-1")})).status == 200
    head = await admin.request("HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")


@pytest_twisted.ensureDeferred
async def test_errors(admin: Client) -> None:
    """What is not there is answered in the same way as on the public port, and so is a body that nobody asked for."""
    nothing = await admin.request("GET", "/v1/ingest/a/b")
    assert (nothing.status, nothing.code) == (404, "not_found")
    wrong = await admin.request("POST", "/metrics")
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")
    large = await admin.request("POST", "/metrics", body=b"x" * 100_000)
    assert large.status in (405, 413)
    assert "access-control-allow-origin" not in nothing.headers, "no page of the web has any business here"


@pytest.mark.parametrize("path", ["/metrics", "/"])
@pytest_twisted.ensureDeferred
async def test_public_port(client: Client, path: str) -> None:
    """Strangers find nothing of it."""
    assert (await client.request("GET", path)).status == 404


@pytest_twisted.ensureDeferred
async def test_requests(shared_server: Supervisor, client: Client, app: App) -> None:
    """Requests are counted by route, method, status and error, and only those of the public port."""
    before = await scrape(shared_server.admin_port)
    assert (await client.send(app, [make_event()])).status == 200
    assert (await client.send(app, [make_event()], changes={"X-Signature": "0"})).status == 401
    assert (await client.request("GET", "/nothing")).status == 404
    peer = await connect(shared_server.port)
    peer.write(b"no HTTP at all\r\n\r\n")
    await peer.end()
    after = await scrape(shared_server.admin_port)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    ingest = {"route": "/v1/ingest/{org_id}/{app_id}", "method": "POST"}
    for labels in ({**ingest, "status": "200"}, {**ingest, "status": "401"}):
        assert grown("tkserver_http_requests_total", **labels) == 1
    for labels in ({"method": "GET", "status": "404"}, {"method": "other", "status": "400"}):
        assert grown("tkserver_http_requests_total", route="none", **labels) == 1
    assert grown("tkserver_http_request_duration_seconds_count", route=ingest["route"]) == 2
    for code in ("invalid_signature", "not_found", "bad_request"):
        assert grown("tkserver_http_errors_total", code=code) == 1
    assert grown("tkserver_auth_failures_total", code="invalid_signature") == 1
    assert after.sum("tkserver_http_requests_total") - before.sum("tkserver_http_requests_total") == 4
    assert grown("tkserver_commits_total", outcome="committed") == 1
    assert after.value("tkserver_last_commit_age_seconds") < 60


@pytest_twisted.ensureDeferred
async def test_turned_away(database: Database) -> None:
    """Connections beyond the cap are counted: of these there is no request."""
    server = await start_server(database, TK__SERVER__MAX_CONNECTIONS=2)
    try:
        there = [await connect(server.port) for _ in range(2)]
        for _ in range(3):
            await (await connect(server.port)).end()
        seen = await scrape(server.admin_port)
        assert seen.value("tkserver_http_connections_turned_away_total") == 3
        assert seen.value("tkserver_http_connections") == 2
        for peer in there:
            peer.hang_up()
    finally:
        await server.stopService()


@pytest_twisted.ensureDeferred
async def test_labels_are_bounded(shared_server: Supervisor, client: Client, app: App) -> None:
    """Nothing that a client chooses becomes a label."""
    marks = [f"mark{number}" for number in range(20)]
    for mark in marks:
        headers = dict.fromkeys(("X-Request-ID", "User-Agent", "X-SDK-Version", "Origin", "X-Forwarded-For"), mark)
        await client.request(mark.upper(), f"/{mark}?{mark}", headers=headers)
        await client.request("POST", f"/v1/ingest/{mark}/{mark}", headers={**headers, "Authorization": mark})
        events = [make_event(user_id=f"client_{mark}", event__type=mark, service__name=mark), make_event(user_id=mark)]
        assert (await client.send(app, events, changes=headers)).status == 207
    text = (await scrape(shared_server.admin_port)).text.lower()
    assert "mark" not in text
    assert app.org_id not in text
    assert app.app_id not in text


@pytest_twisted.ensureDeferred
async def test_readings(shared_server: Supervisor) -> None:
    """What can be asked for is asked for at each look."""
    seen = await scrape(shared_server.admin_port)
    states = [seen.value("tkserver_database_connections", state=state) for state in ("idle", "busy", "down")]
    assert sum(states) == 4
    assert seen.value("tkserver_database_up") == 1
    assert seen.value("tkserver_queue_max_events") == 100_000
    connections = seen.value("tkserver_http_connections")
    peer = await connect(shared_server.port)
    peer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n")
    try:
        for _ in range(200):
            seen = await scrape(shared_server.admin_port)
            if seen.value("tkserver_body_memory_bytes") == 4000:
                break
        assert seen.value("tkserver_body_memory_bytes") == 4000
        assert seen.value("tkserver_http_connections") == connections + 1
    finally:
        peer.hang_up()


def test_lag() -> None:
    """How late the reactor is, each time that it is looked at."""
    clock, seen = Clock(), list[float]()
    meter = ReactorLagMeter(clock, seen.append)
    meter.start()
    for seconds in (0.25, 1.0, 0.25):
        clock.advance(seconds)
    meter.stop()
    clock.advance(10)
    assert seen == [0, 0.75, 0]
    assert not clock.getDelayedCalls()


# --- real processes


def look(server: Twistd) -> Scrape:
    url = server.wait_for_line(r"metrics on (http://\S+)").split()[-1]
    with urllib.request.urlopen(url, timeout=10) as response:
        return Scrape(response.read().decode())


def test_without_a_database(directory: Path) -> None:
    """It is there while the database is not, and says so."""
    with Twistd(directory, {"TK__DATABASE__URL": NOWHERE, "TK__ADMIN__PORT": "0"}) as server:
        seen = look(server)
        assert seen.value("tkserver_database_up") == 0
        assert seen.value("tkserver_build_info", **labels_of(seen, "tkserver_build_info")) == 1
        assert server.stop() == 0


def labels_of(seen: Scrape, name: str) -> dict[str, str]:
    return next(dict(labels) for found, labels in seen.samples if found == name)


def test_until_the_end(directory: Path, database: Database) -> None:
    """It is there while requests in flight are finished, when the public port is closed already."""
    app = App().install(database)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn, "TK__ADMIN__PORT": "0"}) as server:
        wait_for(lambda: ready(server.url))
        holder = psycopg2.connect(database.dsn)
        with holder.cursor() as cursor:
            cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        body = batch([make_event()])
        lines = "".join(f"{name}: {value}\r\n" for name, value in app.headers(body).items())
        head = f"POST {app.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + body)
            wait_for(lambda: look(server).waiting == 1)
            server.terminate()
            wait_for(lambda: not listens(server.port))
            assert look(server).waiting == 1
            holder.close()
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert server.wait() == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_off(directory: Path) -> None:
    """An empty port is none."""
    with Twistd(directory, {"TK__DATABASE__URL": NOWHERE, "TK__ADMIN__PORT": ""}) as server:
        server.wait_for_line("cannot be used yet")
        assert "metrics on" not in server.log
        assert server.stop() == 0


def test_port_taken(directory: Path) -> None:
    """A second server on a machine is told at once how to go on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Twistd(directory, {"TK__DATABASE__URL": NOWHERE, "TK__ADMIN__PORT": str(port)}).launch()
        assert server.wait() == 1
    line = f"cannot listen on 127.0.0.1 port {port}: "
    assert line in server.log
    assert "TK__ADMIN__PORT" in server.log.partition(line)[2].partition("\n")[0]
    assert "listens on" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize(("host", "exposed"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)])
def test_exposed(directory: Path, host: str, exposed: bool) -> None:
    """A host that other machines may reach is worth a line."""
    settings = {"TK__DATABASE__URL": NOWHERE, "TK__ADMIN__PORT": "0", "TK__ADMIN__HOST": host}
    with Twistd(directory, settings) as server:
        server.wait_for_line("metrics on")
        server.wait_for_line("cannot be used yet")
        assert ("other machines may reach" in server.log) is exposed
        assert server.stop() == 0
