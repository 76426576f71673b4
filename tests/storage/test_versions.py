"""Every PostgreSQL from 14 on that is to be found here, over TCP, with a password, and with TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import pytest_twisted

from tests.client import SDK, App, Client
from tests.cluster import Cluster, installations, speaks_tls, version
from tests.conftest import start_server
from tests.database import Database
from tests.events import make_event

INSTALLATIONS = sorted(installations(), key=version)


@pytest.mark.parametrize("programs", INSTALLATIONS, ids=version)
@pytest_twisted.ensureDeferred
async def test_version(programs: Path, directory: Path) -> None:
    """The schema is made and events are stored: new ones, known ones, and those with what jsonb refuses."""
    with Cluster(programs, directory) as cluster:
        server = await start_server(cluster.database)
        try:
            client = Client(f"http://127.0.0.1:{server.port}")
            app, event = App().install(cluster.database), make_event()
            first = await client.send(app, [event, make_event(event__data="\0")], SDK)
            assert (first.status, first.json["accepted"]) == (207, 1)
            again = await client.send(app, [event, make_event()], SDK)
            assert (again.json["accepted"], again.json["duplicates"]) == (2, 1)
            assert cluster.database.value("SELECT count(*) FROM events") == 2
        finally:
            await server.stopService()


def _certificate(directory: Path) -> tuple[str, str]:
    """A key and a certificate for 127.0.0.1, which signs itself."""
    key, certificate = directory / "server.key", directory / "server.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return key.read_text(), certificate.read_text()


@pytest.mark.parametrize("programs", [one for one in INSTALLATIONS if speaks_tls(one)][:1], ids=version)
@pytest_twisted.ensureDeferred
async def test_tls(programs: Path, directory: Path) -> None:
    """``sslmode=verify-full`` in the URL is kept to, by every connection of the server."""
    key, certificate = _certificate(directory)
    cluster = Cluster(programs, directory, ssl="on")
    cluster.create()
    (cluster.data / "server.crt").write_text(certificate)
    own_key = cluster.own_file("server.own.key", key)
    own_key.rename(cluster.data / "server.key")
    (cluster.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    cluster.start()
    try:
        dsn = cluster.dsn(f"?sslmode=verify-full&sslrootcert={directory / 'server.crt'}")
        server = await start_server(Database(dsn))
        try:
            client = Client(f"http://127.0.0.1:{server.port}")
            app = App().install(Database(dsn))
            assert (await client.send(app, [make_event()])).status == 200
            encrypted = "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            rows = Database(dsn).query(encrypted + " WHERE application_name = 'tkserver'")
            assert rows == [(True, 5)]  # four of the pool, and the one that listens
        finally:
            await server.stopService()
    finally:
        cluster.stop("immediate")
