"""All installed versions of PostgreSQL from 14 on, over TCP, with a password, and with TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.certificates import Certificate
from tests.support.client import SDK, App
from tests.support.cluster import Cluster, installations, supports_tls, version
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.logs import logged_lines
from tests.support.server import client_of, launch_server, start_server
from tests.support.waiting import until

INSTALLATIONS = sorted(installations(), key=version)

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tkserver'"


@pytest.mark.parametrize("programs", INSTALLATIONS, ids=version)
@pytest_twisted.ensureDeferred
async def test_server_works_with_version(programs: Path, directory: Path) -> None:
    """The schema is created, new events are stored, duplicates are not, and what ``jsonb`` rejects is quarantined."""
    with Cluster(programs, directory) as cluster:
        server = await start_server(cluster.database)
        try:
            client = client_of(server)
            app, event = App().install(cluster.database), make_event()
            first = await client.send(app, [event, make_event(event__data="\0")], SDK)
            assert (first.status, first.json["accepted"], first.json["quarantined"]) == (207, 2, 1)
            again = await client.send(app, [event, make_event()], SDK)
            assert (again.json["accepted"], again.json["duplicates"]) == (2, 1)
            assert cluster.database.value("SELECT count(*) FROM events") == 2
            assert cluster.database.value("SELECT count(*) FROM quarantine") == 1
        finally:
            await server.stopService()


@pytest.fixture
def tls_cluster(directory: Path) -> Iterator[Cluster]:
    """A server that accepts only connections with TLS. Its certificate is for localhost, in ``directory / "tls"``."""
    programs = next(filter(supports_tls, INSTALLATIONS), None)
    if programs is None:
        pytest.skip("needs a PostgreSQL with TLS, which the embedded one does not support")
    cluster = Cluster(programs, directory, ssl="on").create()
    files = Certificate.make(directory / "tls", "localhost")
    for name, file in (("server.key", files.key), ("server.crt", files.certificate)):
        cluster.create_private_file(f"private.{name}", file.read_text()).rename(cluster.data / name)
    (cluster.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    try:
        yield cluster.start()
    finally:
        cluster.stop("immediate")


@pytest_twisted.ensureDeferred
async def test_all_connections_use_tls(tls_cluster: Cluster, directory: Path) -> None:
    """All connections of the server comply with ``sslmode=verify-full`` in the URL."""
    dsn = tls_cluster.dsn(f"?sslmode=verify-full&sslrootcert={directory}/tls/ca.pem").replace("127.0.0.1", "localhost")
    server = await start_server(Database(dsn))
    try:
        client = client_of(server)
        app = App().install(Database(dsn))
        assert (await client.send(app, [make_event()])).status == 200
        encrypted = "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        encrypted += " WHERE application_name = 'tkserver'"
        await until(lambda: Database(dsn).value(CONNECTIONS) == 5)  # without those of the sweeper at the start
        assert Database(dsn).query(encrypted) == [(True, 5)]  # four of the pool, and the one that listens
    finally:
        await server.stopService()


@pytest.mark.parametrize(
    ("host", "authority", "problem"),
    [
        ("localhost", "elsewhere/ca.pem", "certificate verify failed"),
        ("127.0.0.1", "tls/ca.pem", 'does not match host name "127.0.0.1"'),
        ("localhost", "none.pem", "none.pem"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_untrusted_certificate_is_rejected(
    tls_cluster: Cluster, directory: Path, host: str, authority: str, problem: str
) -> None:
    """A certificate from another authority or for another host is logged once, and the server is not ready."""
    Certificate.make(directory / "elsewhere", "localhost")
    dsn = tls_cluster.dsn(f"?sslmode=verify-full&sslrootcert={directory / authority}").replace("127.0.0.1", host)
    failures: list[str] = []
    with logged_lines() as lines:
        server = launch_server(Database(dsn), failures)
        try:
            client = client_of(server)
            for _ in range(3):
                assert (await client.request("GET", "/health/ready")).status == 503
                assert (await client.send(App(), [make_event()])).status == 503
                await deferLater(reactor, 0.5)
        finally:
            await server.stopService()
    (line,) = (line for line in lines if "the database is not available, retrying" in line)
    assert problem in line
    assert "\n" not in line
    assert not failures
