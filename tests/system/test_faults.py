"""Failures under load: every accepted event is stored exactly once, and the server recovers by itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from bench.flood import flood
from tests.support.blocking_client import get_json, is_ready
from tests.support.client import App
from tests.support.cluster import NEWEST, Cluster
from tests.support.load import LoadGenerator
from tests.support.ports import reserved_port
from tests.support.process import Twistd
from tests.support.waiting import wait_for

pytestmark = pytest.mark.timeout(180)

HANG_SECONDS = 30
"""How long the database hangs: longer than every timeout of the server."""


@contextmanager
def running(directory: Path, cluster: Cluster, dsn: str | None = None, **settings: str) -> Iterator[tuple[Twistd, App]]:
    """Run a server and create an application."""
    all_settings = {
        "TK__DATABASE__URL": dsn or cluster.dsn(),
        "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": "0",  # the flood fails to authenticate
        **settings,
    }
    with Twistd(directory, all_settings) as server:
        server.wait_until_ready()
        yield server, App().install(cluster.database)
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


@contextmanager
def under_load(
    directory: Path, cluster: Cluster, dsn: str | None = None, **settings: str
) -> Iterator[tuple[Twistd, LoadGenerator]]:
    """Run a server under load. At the end, it must accept events again, and must not have lost any."""
    with running(directory, cluster, dsn, **settings) as (server, app):
        with LoadGenerator(server.port, app) as load:
            yield server, load
            load.wait_for_progress()
        load.check(cluster.database)


@contextmanager
def restartable(directory: Path, cluster: Cluster, clients: int) -> Iterator[tuple[Twistd, LoadGenerator]]:
    """Run a server under load on a port that stays reserved while the test restarts the server."""
    with reserved_port() as port:
        settings = {"TK__DATABASE__URL": cluster.dsn(), "TK__SERVER__PORT": str(port)}
        server = Twistd(directory, settings).start()
        try:
            server.wait_until_ready()
            with LoadGenerator(port, App().install(cluster.database), clients) as load:
                yield server, load
        finally:
            server.stop()
    load.check(cluster.database)


@pytest.mark.timeout(300)
def test_database_crashes_harm_no_client(directory: Path, cluster: Cluster) -> None:
    """Thirty crashes of the database, while each request uses a connection of its own: no 500, and no lost response.

    libpq closes the socket of a dead connection, and the kernel gives the number of its descriptor to a client.
    """
    with running(directory, cluster) as (server, app):
        with LoadGenerator(server.port, app, clients=24, keep_alive=False) as load:
            for _ in range(30):
                cluster.kill()
                load.wait_for_responses(24)
                cluster.start()
                load.wait_for_progress()
        assert set(load.statuses) <= {200, 503}, load.statuses
        load.check(cluster.database)


def test_server_is_killed(directory: Path, cluster: Cluster) -> None:
    """A SIGKILL during commits, ten times, loses no accepted event."""
    with restartable(directory, cluster, clients=6) as (server, load):
        for _ in range(10):
            load.wait_for_progress()
            server.kill()
            server.start()
        load.wait_for_progress()


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_database_is_restarted(directory: Path, cluster: Cluster, mode: str) -> None:
    """The server continues after the database has crashed, or was restarted."""
    with under_load(directory, cluster) as (server, load):
        for _ in range(2):
            cluster.stop(mode)
            assert get_json(f"{server.url}/health")[0] == 200
            wait_for(lambda: not is_ready(server.url))
            cluster.start()
            load.wait_for_progress()


def test_backends_are_terminated(directory: Path, cluster: Cluster) -> None:
    """The server continues after all of its database connections were terminated, several times."""
    with under_load(directory, cluster) as (_, load):
        for _ in range(5):
            cluster.database.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tkserver'"
            )
            load.wait_for_progress()


def test_database_hangs(directory: Path, cluster: Cluster) -> None:
    """A server responds to requests while the database hangs for 30 s, and continues afterwards."""
    with under_load(directory, cluster) as (server, load):
        pids = cluster.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            end = time.monotonic() + HANG_SECONDS
            while time.monotonic() < end:
                assert get_json(f"{server.url}/health")[0] == 200
                time.sleep(0.5)
            assert load.statuses.get(503)
            assert peak_memory(server.pid) < 400_000
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def peak_memory(pid: int) -> int:
    """Return the peak resident memory of a process in KiB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def test_flood(directory: Path, cluster: Cluster) -> None:
    """Many clients send bodies of the largest size at the same time: all get a response, and memory stays bounded."""
    with running(directory, cluster) as (server, app):
        outcomes = flood(server.port, 300)
        assert set(outcomes) <= {"401", "503"}, outcomes
        assert peak_memory(server.pid) < 400_000
        with LoadGenerator(server.port, app) as load:
            load.wait_for_progress()
        load.check(cluster.database)


def test_table_is_locked(directory: Path, cluster: Cluster) -> None:
    """The server continues after the table was locked for longer than the commit timeout."""
    with under_load(directory, cluster) as (_, load):
        locker = psycopg2.connect(cluster.dsn())
        try:
            with locker.cursor() as cursor:
                cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            wait_for(lambda: load.statuses.get(503))
        finally:
            locker.close()


def test_database_is_read_only(directory: Path, cluster: Cluster) -> None:
    """The server is not ready while the database accepts no writes, and continues afterwards."""
    with under_load(directory, cluster) as (server, load):
        cluster.set("default_transaction_read_only", "on")
        wait_for(lambda: not is_ready(server.url))
        wait_for(lambda: load.statuses.get(503))
        server.wait_for_line(r"503 [\d.]+ms storage_unavailable \((25006|read_only)\)")
        cluster.set("default_transaction_read_only", "off")
        wait_for(lambda: is_ready(server.url))


def test_no_database_connection_left(directory: Path) -> None:
    """The server continues after it lost its connections and other clients used all that the database allows."""
    with (
        Cluster(NEWEST, directory, max_connections="20", superuser_reserved_connections="0") as cluster,
        under_load(directory, cluster, TK__DATABASE__MAX_CONNECTIONS="3") as (_, load),
    ):
        others: list[Any] = []
        terminator = psycopg2.connect(cluster.dsn())
        terminator.autocommit = True
        with terminator.cursor() as cursor:
            while len(others) < 25:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tkserver'"
                )
                with suppress(psycopg2.OperationalError):
                    others.append(psycopg2.connect(cluster.dsn()))
                    continue
                if len(others) >= 18:
                    break
        wait_for(lambda: load.statuses.get(503))
        for other in (*others, terminator):
            other.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_disk_is_full(directory: Path) -> None:
    """The server continues after the disk of the database was full."""
    disk = directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a disk is not possible")
    try:
        with (
            Cluster(NEWEST, disk, max_wal_size="48MB", min_wal_size="32MB", wal_recycle="off") as cluster,
            under_load(directory, cluster) as (_, load),
        ):
            ballast = disk / "ballast"
            with ballast.open("wb") as file, suppress(OSError):
                while True:
                    file.write(bytes(65536))
                    file.flush()
            wait_for(lambda: load.statuses.get(503))
            ballast.unlink()
            with suppress(AssertionError):
                cluster.start()  # in case it was stopped by the full disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class Proxy:
    """A TCP proxy that can stop forwarding without closing its connections.

    :ivar forwarding: set while the proxy forwards.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.forwarding = threading.Event()
        self.forwarding.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(65536):
                self.forwarding.wait()
                sink.sendall(data)

    def close(self) -> None:
        self._listener.close()
        self.forwarding.set()


def test_database_becomes_unreachable(directory: Path, cluster: Cluster) -> None:
    """Clients get a 503 while no packets pass between server and database, and the server continues afterwards."""
    proxy = Proxy(cluster.port)
    try:
        dsn = cluster.dsn().replace(f":{cluster.port}/", f":{proxy.port}/")
        with under_load(directory, cluster, dsn) as (server, load):
            proxy.forwarding.clear()
            wait_for(lambda: load.statuses.get(503))
            assert get_json(f"{server.url}/health")[0] == 200
            wait_for(lambda: not is_ready(server.url))
            proxy.forwarding.set()
            load.wait_for_progress()
    finally:
        proxy.close()


def test_sigterm_under_load(directory: Path, cluster: Cluster) -> None:
    """A SIGTERM loses no accepted event: requests get a response, or their connection is closed before it."""
    with restartable(directory, cluster, clients=12) as (server, load):
        for _ in range(3):
            assert server.stop() == 0
            assert "Traceback" not in server.log
            server.start()
            load.wait_for_progress()
