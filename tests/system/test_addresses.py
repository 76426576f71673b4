"""Servers and commands with several database servers, names, and the environment of libpq."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.blocking_client import is_ready, post_batch
from tests.support.client import App, batch
from tests.support.cluster import NEWEST, PASSWORD, Cluster
from tests.support.command import Command
from tests.support.events import make_event
from tests.support.ports import reserved_port
from tests.support.process import Twistd
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(180)

SESSIONS = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"

FEW_SESSIONS = 60
"""A server opens about fifteen sessions when it starts, and this test a few more."""


@contextmanager
def silent_port() -> Iterator[int]:
    """Return a port on which connections are opened, but nobody responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def url(*hosts: str, parameters: str = "") -> str:
    """Return the URL of a database on several hosts."""
    return f"postgresql://postgres:{PASSWORD.replace(' ', '%20')}@{','.join(hosts)}/postgres{parameters}"


def check_server_and_command(directory: Path, cluster: Cluster, **settings: str) -> None:
    """Check that migrations, commands and the pool of a server use the same database."""
    assert Command(settings, directory)("migrate").code == 0
    app = App().install(cluster.database)
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        assert post_batch(server.url, app, batch([make_event()])) == 200
        assert server.stop() == 0
    assert cluster.database.value("SELECT count(*) FROM events") == 1


@pytest.mark.parametrize(
    ("dsn", "variables"),
    [
        (url("127.0.0.1"), {"PGPORT": "{port}"}),
        (url("127.0.0.1"), {"PGSERVICE": "events"}),
        (url("127.0.0.1", parameters="?service=events"), {}),
        (url(""), {"PGHOST": "127.0.0.1", "PGPORT": "{port}"}),
        (url("db.invalid"), {"PGHOSTADDR": "127.0.0.1", "PGPORT": "{port}"}),
        ("service=events", {"PGUSER": "postgres", "PGPASSWORD": PASSWORD, "PGDATABASE": "postgres"}),
    ],
)
def test_environment_of_libpq_applies_to_all_connections(
    directory: Path, cluster: Cluster, dsn: str, variables: dict[str, str]
) -> None:
    """Migrations, commands and the pool use the address that the URL, the environment and service files name."""
    directory.chmod(0o755)  # the server gives up root privileges, and reads the file as another user
    services = directory / "services.conf"
    services.write_text(f"[events]\nhost=127.0.0.1\nport={cluster.port}\n")
    values = {name: value.format(port=cluster.port) for name, value in variables.items()}
    check_server_and_command(directory, cluster, TK__DATABASE__URL=dsn, PGSERVICEFILE=str(services), **values)


def test_first_host_is_closed(directory: Path, cluster: Cluster) -> None:
    """If nobody listens on the first host, the second one is used, with as many sessions as the server needs."""
    with reserved_port() as closed:
        dsn = url(f"127.0.0.1:{closed}", f"127.0.0.1:{cluster.port}")
        before = cluster.database.value(SESSIONS)
        check_server_and_command(directory, cluster, TK__DATABASE__URL=dsn)
    wait_for(lambda: cluster.database.value(SESSIONS) > before)  # the statistics are written when sessions end
    assert cluster.database.value(SESSIONS) - before < FEW_SESSIONS


def test_first_host_does_not_respond(directory: Path, cluster: Cluster) -> None:
    """If the first host does not respond within its time limit, the second one is used."""
    with silent_port() as silent:
        dsn = url(f"127.0.0.1:{silent}", f"127.0.0.1:{cluster.port}", parameters="?connect_timeout=2")
        check_server_and_command(directory, cluster, TK__DATABASE__URL=dsn)


def test_name_has_several_addresses(directory: Path, cluster: Cluster) -> None:
    """All addresses of a name are tried: PostgreSQL listens on 127.0.0.1, and localhost may also mean ::1."""
    check_server_and_command(directory, cluster, TK__DATABASE__URL=url(f"localhost:{cluster.port}"))


@contextmanager
def primary_and_standby(directory: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """Run a primary server and its standby server."""
    first, second = directory / "first", directory / "second"
    for each in (first, second):
        each.mkdir(mode=0o711)
    with Cluster(NEWEST, first, synchronous_commit="remote_apply") as primary:
        standby = Cluster(NEWEST, second).create_standby(primary)
        try:
            yield primary, standby.start()
        finally:
            standby.stop("immediate")


@contextmanager
def failover_server(directory: Path) -> Iterator[tuple[Cluster, Cluster, Twistd]]:
    """Run a server with the URL of a primary server and its standby server."""
    with (
        primary_and_standby(directory) as (primary, standby),
        Twistd(directory, {"TK__DATABASE__URL": cluster_url(primary, standby)}) as server,
    ):
        server.wait_until_ready()
        yield primary, standby, server
        assert server.stop() == 0


def cluster_url(*clusters: Cluster, parameters: str = "") -> str:
    return url(*(f"127.0.0.1:{cluster.port}" for cluster in clusters), parameters=parameters)


@pytest.mark.parametrize("parameters", ["", "?target_session_attrs=read-write", "?target_session_attrs=primary"])
def test_standby_server_is_first(directory: Path, parameters: str) -> None:
    """Migrations, commands and the pool use the primary server, although the standby server is the first host."""
    with primary_and_standby(directory) as (primary, standby):
        dsn = cluster_url(standby, primary, parameters=parameters)
        check_server_and_command(directory, primary, TK__DATABASE__URL=dsn)


def test_primary_becomes_read_only(directory: Path) -> None:
    """If the primary server becomes read-only while connections stay open (SQLSTATE 25006), the new one is used.

    The server also notices changes of credentials there.
    """
    with failover_server(directory) as (primary, standby, server):
        app = App().install(primary.database)
        assert post_batch(server.url, app, batch([make_event()])) == 200
        wait_for(lambda: standby.database.value("SELECT count(*) FROM events") == 1)
        primary.set("default_transaction_read_only", "on")
        standby.promote()
        wait_for(lambda: post_batch(server.url, app, batch([make_event()])) == 200)
        assert primary.database.value("SELECT count(*) FROM events") == 1
        assert standby.database.value("SELECT count(*) FROM events") == 2
        standby.database.query("UPDATE api_tokens SET is_active = false")
        wait_for(lambda: post_batch(server.url, app, batch([make_event()])) == 401)


def test_primary_fails(directory: Path) -> None:
    """If the primary server fails, the server waits for the standby server to be promoted, and continues there."""
    with failover_server(directory) as (primary, standby, server):
        app = App().install(primary.database)
        wait_for(lambda: standby.database.value("SELECT count(*) FROM api_tokens") == 1)
        primary.kill()
        wait_for(lambda: not is_ready(server.url))
        assert post_batch(server.url, app, batch([make_event()])) == 503
        standby.promote()
        wait_for(lambda: post_batch(server.url, app, batch([make_event()])) == 200)
        assert standby.database.value("SELECT count(*) FROM events") == 1
