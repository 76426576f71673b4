"""The admin port: its routes, its metrics, and when it is open."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater

from tests.support.blocking_client import get_text
from tests.support.client import App, Client, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.peer import connect
from tests.support.process import Twistd
from tests.support.raw_requests import forged_head, signed_request
from tests.support.scrape import Scrape, scrape
from tests.support.server import client_of, running_server
from tests.support.waiting import until, wait_for
from tkserver.ingest.readiness import LIFETIME
from tkserver.log.formatters import format_json
from tkserver.log.observer import LineObserver, StreamSink
from tkserver.server.reactor_lag import ReactorLagMeter
from tkserver.server.supervisor import Supervisor

UNREACHABLE = "postgresql://somebody@127.0.0.1:1/none"


@pytest.fixture
def admin(shared_server: Supervisor) -> Client:
    """A client of the admin port of :func:`shared_server`."""
    return Client(f"http://127.0.0.1:{shared_server.admin_port}")


@pytest_twisted.ensureDeferred
async def test_index_lists_all_paths(admin: Client) -> None:
    """The index contains the version and the paths, and every path exists."""
    index = (await admin.request("GET", "/")).json
    assert index["version"]
    assert index.keys() == {"version", "metrics", "ready", "apps", "dashboard"}
    for name in index.keys() - {"version"}:
        assert (await admin.request("GET", index[name])).status == (401 if name == "dashboard" else 200)


@pytest_twisted.ensureDeferred
async def test_metrics_formats(admin: Client) -> None:
    """Metrics are in the Prometheus text format, or in the OpenMetrics format if the client accepts it."""
    plain = await admin.request("GET", "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    openmetrics = await admin.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=")
    assert openmetrics.body.endswith(b"# EOF\n")
    for accepted in ("application/openmetrics-text;version=x", "text/plain;version=1.\xb2", ";;="):
        assert (await admin.request("GET", "/metrics", headers={"Accept": accepted.encode("latin-1")})).status == 200
    head = await admin.request("HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")


@pytest_twisted.ensureDeferred
async def test_errors(admin: Client) -> None:
    """Unknown paths, other methods and large bodies get the same error responses as on the public port."""
    unknown = await admin.request("GET", "/v1/ingest/a/b")
    assert (unknown.status, unknown.code) == (404, "not_found")
    post = await admin.request("POST", "/metrics")
    assert (post.status, post.code, post.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")
    large = await admin.request("POST", "/metrics", body=b"x" * 100_000)
    assert large.status in (405, 413)
    assert "access-control-allow-origin" not in unknown.headers, "web pages must not read the admin port"


@pytest.mark.parametrize("path", ["/metrics", "/"])
@pytest_twisted.ensureDeferred
async def test_public_port_has_no_admin_routes(client: Client, path: str) -> None:
    """The paths of the admin port do not exist on the public port."""
    assert (await client.request("GET", path)).status == 404


@pytest_twisted.ensureDeferred
async def test_requests_are_counted(shared_server: Supervisor, client: Client, app: App) -> None:
    """Requests to the public port are counted by route, method, status and error code."""
    before = await scrape(shared_server.admin_port)
    assert (await client.send(app, [make_event()])).status == 200
    assert (await client.send(app, [make_event()], changes={"X-Signature": "0"})).status == 401
    assert (await client.request("GET", "/nothing")).status == 404
    peer = await connect(shared_server.port)
    peer.write(b"no HTTP at all\r\n\r\n")
    await peer.read_all()
    after = await scrape(shared_server.admin_port)

    def increase(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    ingest = {"route": "/v1/ingest/{org_id}/{app_id}", "method": "POST"}
    for labels in ({**ingest, "status": "200"}, {**ingest, "status": "401"}):
        assert increase("tkserver_http_requests_total", **labels) == 1
    for labels in ({"method": "GET", "status": "404"}, {"method": "other", "status": "400"}):
        assert increase("tkserver_http_requests_total", route="none", **labels) == 1
    assert increase("tkserver_http_request_duration_seconds_count", route=ingest["route"]) == 2
    for code in ("invalid_signature", "not_found", "bad_request"):
        assert increase("tkserver_http_errors_total", code=code) == 1
    assert increase("tkserver_auth_failures_total", code="invalid_signature") == 1
    assert after.sum("tkserver_http_requests_total") - before.sum("tkserver_http_requests_total") == 4
    assert increase("tkserver_commits_total", outcome="committed") == 1
    assert after.value("tkserver_last_commit_age_seconds") < 60


@pytest_twisted.ensureDeferred
async def test_rejected_connections_are_counted(database: Database) -> None:
    """Connections beyond the limit are counted, because there is no request to count."""
    async with running_server(database, TK__SERVER__MAX_CONNECTIONS=2) as server:
        peers = [await connect(server.port) for _ in range(2)]
        for _ in range(3):
            await (await connect(server.port)).read_all()
        metrics = await scrape(server.admin_port)
        assert metrics.value("tkserver_http_connections_turned_away_total") == 3
        assert metrics.value("tkserver_http_connections") == 2
        for peer in peers:
            peer.disconnect()


@pytest_twisted.ensureDeferred
async def test_labels_are_bounded(shared_server: Supervisor, client: Client, app: App) -> None:
    """No value that a client chooses becomes the value of a label."""
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
async def test_gauges_are_current(shared_server: Supervisor, app: App) -> None:
    """Gauges show the values at the time of the scrape."""
    metrics = await scrape(shared_server.admin_port)
    states = [metrics.value("tkserver_database_connections", state=state) for state in ("idle", "busy", "down")]
    assert sum(states) == 4
    assert metrics.value("tkserver_database_up") == 1
    assert metrics.value("tkserver_queue_max_events") == 100_000
    connections = metrics.value("tkserver_http_connections")
    peer = await connect(shared_server.port)
    peer.write(forged_head(app, "Content-Length: 400000") + bytes(4000))

    async def body_is_counted() -> bool:
        nonlocal metrics
        metrics = await scrape(shared_server.admin_port)
        return metrics.value("tkserver_body_memory_bytes") == 4000

    try:
        await until(body_is_counted)
        assert metrics.value("tkserver_http_connections") == connections + 1
    finally:
        peer.disconnect()


def test_reactor_lag() -> None:
    """The meter reports how late each of its timers was called."""
    clock, observed = Clock(), list[float]()
    meter = ReactorLagMeter(clock, observed.append)
    meter.start()
    for seconds in (0.25, 1.0, 0.25):
        clock.advance(seconds)
    meter.stop()
    clock.advance(10)
    assert observed == [0, 0.75, 0]
    assert not clock.getDelayedCalls()


# --- processes


def scrape_process(server: Twistd) -> Scrape:
    """Return the metrics of a server in another process."""
    return Scrape(get_text(server.wait_for_line(r"metrics on (http://\S+)").split()[-1]))


def test_open_without_database(directory: Path) -> None:
    """The admin port is open while the database is not available, and shows that it is not."""
    with Twistd(directory, {"TK__DATABASE__URL": UNREACHABLE, "TK__ADMIN__PORT": "0"}) as server:
        metrics = scrape_process(server)
        assert metrics.value("tkserver_database_up") == 0
        assert metrics.value("tkserver_build_info", **labels_of(metrics, "tkserver_build_info")) == 1
        assert server.stop() == 0


def labels_of(metrics: Scrape, name: str) -> dict[str, str]:
    """Return the labels of the first sample with this name."""
    return next(dict(labels) for sample, labels in metrics.samples if sample == name)


def test_open_during_shutdown(directory: Path, database: Database) -> None:
    """The admin port stays open while requests in progress are finished and the public port is closed."""
    app = App().install(database)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn, "TK__ADMIN__PORT": "0"}) as server:
        server.wait_until_ready()
        locker = psycopg2.connect(database.dsn)
        with locker.cursor() as cursor:
            cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(signed_request(app, batch([make_event()])))
            wait_for(lambda: scrape_process(server).waiting == 1)
            server.terminate()
            wait_for(lambda: not listens(server.port))
            assert scrape_process(server).waiting == 1
            locker.close()
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert server.wait() == 0


def listens(port: int) -> bool:
    """Return whether a server listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_empty_port_disables_it(directory: Path) -> None:
    """There is no admin port if its setting is empty."""
    with Twistd(directory, {"TK__DATABASE__URL": UNREACHABLE, "TK__ADMIN__PORT": "none"}) as server:
        server.wait_for_line("the database is not available")
        assert "metrics on" not in server.log
        assert server.stop() == 0


def test_port_in_use(directory: Path) -> None:
    """A server whose admin port is in use ends immediately, and its log names the setting to change."""
    with socket.create_server(("127.0.0.1", 0)) as other_server:
        port = other_server.getsockname()[1]
        server = Twistd(directory, {"TK__DATABASE__URL": UNREACHABLE, "TK__ADMIN__PORT": str(port)}).launch()
        assert server.wait() == 1
    line = f"cannot listen on 127.0.0.1 port {port}: "
    assert line in server.log
    assert "TK__ADMIN__PORT" in server.log.partition(line)[2].partition("\n")[0]
    assert "listens on" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize(("host", "exposed"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)])
def test_warning_if_exposed(directory: Path, host: str, exposed: bool) -> None:
    """The log contains a warning if other machines can reach the admin port."""
    settings = {"TK__DATABASE__URL": UNREACHABLE, "TK__ADMIN__PORT": "0", "TK__ADMIN__HOST": host}
    with Twistd(directory, settings) as server:
        server.wait_for_line("metrics on")
        server.wait_for_line("the database is not available")
        assert ("other machines can reach" in server.log) is exposed
        assert server.stop() == 0


@pytest_twisted.ensureDeferred
async def test_cause_of_unavailability(database: Database) -> None:
    """While the database refuses to store events, the log, a metric and the admin port say why, and clients do not."""
    app = App().install(database)
    async with running_server(database) as server:
        log = io.BytesIO()
        observer = LineObserver(format_json, StreamSink(log), reactor)
        server.worker.components.access_log.write_to(observer.write_request)
        admin, client = Client(f"http://127.0.0.1:{server.admin_port}"), client_of(server)
        assert (await admin.request("GET", "/health/ready")).json == {"status": "ready"}
        database.query("DROP TABLE readiness, events CASCADE")
        refused = await client.send(app, [make_event()])
        assert (refused.status, refused.code) == (503, "storage_unavailable")
        assert b"42P01" not in refused.body
        await until(lambda: b"42P01" in log.getvalue())
        await deferLater(reactor, 2 * LIFETIME)
        ready = await admin.request("GET", "/health/ready")
        assert (ready.status, ready.json["cause"]) == (503, "42P01")
        assert "undefined table" in ready.json["message"]
        assert (await client.request("GET", "/health/ready")).json == {"status": "unavailable"}
        assert (await scrape(server.admin_port)).sum("tkserver_storage_errors_total", cause="42P01") == 1
    assert json.loads(log.getvalue().splitlines()[-1])["cause"] == "42P01"
