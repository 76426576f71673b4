"""Whatever fails under load: every event that was answered as accepted is stored once, and all goes on by itself."""

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
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from bench.flood import flood
from tests.support.client import App
from tests.support.cluster import Cluster, installations, version
from tests.support.load import QueueLoad
from tests.support.process import Twistd, wait_for
from tests.system.test_lifecycle import get, ready

NEWEST = max(installations(), key=version)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def cluster(directory: Path) -> Iterator[Cluster]:
    with Cluster(NEWEST, directory) as cluster:
        yield cluster


def free_port() -> int:
    """A port that nobody has now; a server that is to come back must know its own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def serving(directory: Path, cluster: Cluster, dsn: str | None = None, **settings: str) -> Iterator[tuple[Twistd, App]]:
    """A server on the cluster, with an application."""
    given = {
        "TK__DATABASE__URL": dsn or cluster.dsn(),
        "TK__SERVER__PORT": str(free_port()),
        "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": "0",  # a flood is to be seen to the end
        **settings,
    }
    with Twistd(directory, given) as server:
        wait_for(lambda: ready(server.url))
        yield server, App().install(cluster.database)
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


@contextmanager
def under_load(
    directory: Path, cluster: Cluster, dsn: str | None = None, **settings: str
) -> Iterator[tuple[Twistd, QueueLoad]]:
    """A server with clients that keep sending; in the end all must go on, and nothing be lost."""
    with serving(directory, cluster, dsn, **settings) as (server, app):
        with QueueLoad(server.port, app) as load:
            yield server, load
            load.goes_on()
        load.check(cluster.database)


def test_server_killed(directory: Path, cluster: Cluster) -> None:
    """SIGKILL in the middle of commits, ten times over."""
    port = free_port()
    settings = {"TK__DATABASE__URL": cluster.dsn(), "TK__SERVER__PORT": str(port)}
    server = Twistd(directory, settings).start()
    try:
        wait_for(lambda: ready(server.url))
        app = App().install(cluster.database)
        with QueueLoad(port, app) as load:
            for _ in range(10):
                time.sleep(0.2)
                server.kill()
                server.start()
                load.goes_on()
    finally:
        server.stop()
    load.check(cluster.database)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_database_restarted(directory: Path, cluster: Cluster, mode: str) -> None:
    """The database crashes, or is restarted as it should be."""
    with under_load(directory, cluster) as (server, load):
        for _ in range(2):
            cluster.stop(mode)
            assert get(f"{server.url}/health")[0] == 200
            wait_for(lambda: not ready(server.url))
            cluster.start()
            load.goes_on()


def test_backends_terminated(directory: Path, cluster: Cluster) -> None:
    """All connections of the server are ended, again and again."""
    with under_load(directory, cluster) as (_, load):
        for _ in range(5):
            cluster.database.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tkserver'"
            )
            load.goes_on()


def test_database_hangs(directory: Path, cluster: Cluster) -> None:
    """The database is stopped for 30 s: requests are answered all the same, and it goes on when that does."""
    with under_load(directory, cluster) as (server, load):
        pids = cluster.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                assert get(f"{server.url}/health")[0] == 200
                time.sleep(0.5)
            assert load.statuses.get(503)
            assert peak_memory(server.pid) < 400_000
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def becomes(url: str, state: bool) -> bool:
    """Whether the server is ready, or is not."""
    return ready(url) is state


def peak_memory(pid: int) -> int:
    """The most resident memory that a process has had, in KiB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def test_flood(directory: Path, cluster: Cluster) -> None:
    """Many clients send the largest body at once: each is answered, memory stays bounded, and all goes on."""
    with serving(directory, cluster) as (server, app):
        outcomes = flood(server.port, 300)
        assert set(outcomes) <= {"401", "503"}, outcomes
        assert peak_memory(server.pid) < 400_000
        with QueueLoad(server.port, app) as load:
            load.goes_on()
        load.check(cluster.database)


def test_table_locked(directory: Path, cluster: Cluster) -> None:
    """Somebody holds a lock on the table for longer than anyone waits."""
    with under_load(directory, cluster) as (_, load):
        holder = psycopg2.connect(cluster.dsn())
        try:
            with holder.cursor() as cursor:
                cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            wait_for(lambda: load.statuses.get(503))
        finally:
            holder.close()


def test_read_only(directory: Path, cluster: Cluster) -> None:
    """The database takes no writes for a while, and the server is not ready meanwhile."""
    with under_load(directory, cluster) as (server, load):
        for setting, state in (("on", False), ("off", True)):
            cluster.database.query(f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
            cluster.database.query("SELECT pg_reload_conf()")
            wait_for(partial(becomes, server.url, state))
            if not state:
                wait_for(lambda: load.statuses.get(503))


def test_no_connection_left(directory: Path) -> None:
    """Others have taken all connections when the server loses its own."""
    with (
        Cluster(NEWEST, directory, max_connections="20", superuser_reserved_connections="0") as cluster,
        under_load(directory, cluster, TK__DATABASE__MAX_CONNECTIONS="3") as (_, load),
    ):
        others: list[Any] = []
        greedy = psycopg2.connect(cluster.dsn())
        greedy.autocommit = True
        with greedy.cursor() as cursor:
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
        for other in (*others, greedy):
            other.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_disk_full(directory: Path) -> None:
    """The database's disk is full for a while."""
    disk = directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no disk can be mounted here")
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
                cluster.start()  # where the full disk has brought it down
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class Proxy:
    """A TCP path that can go silent: connections stay open, and nothing gets through."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.open = threading.Event()
        self.open.set()
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
                self.open.wait()
                sink.sendall(data)

    def close(self) -> None:
        self._listener.close()
        self.open.set()


def test_silent_path(directory: Path, cluster: Cluster) -> None:
    """The path to the database goes silent, both ways: 503 within 15 s, and it heals when it forwards again."""
    proxy = Proxy(cluster.port)
    try:
        dsn = cluster.dsn().replace(f":{cluster.port}/", f":{proxy.port}/")
        with under_load(directory, cluster, dsn) as (server, load):
            proxy.open.clear()
            wait_for(lambda: load.statuses.get(503))
            assert get(f"{server.url}/health")[0] == 200
            wait_for(lambda: not ready(server.url))
            proxy.open.set()
            load.goes_on()
    finally:
        proxy.close()


def test_sigterm_under_load(directory: Path, cluster: Cluster) -> None:
    """Every request in flight is answered, or its connection closed before the answer; nothing accepted is lost."""
    port = free_port()
    settings = {"TK__DATABASE__URL": cluster.dsn(), "TK__SERVER__PORT": str(port)}
    server = Twistd(directory, settings).start()
    try:
        wait_for(lambda: ready(server.url))
        app = App().install(cluster.database)
        with QueueLoad(port, app, clients=12) as load:
            for _ in range(3):
                assert server.stop() == 0
                assert "Traceback" not in server.log
                server.start()
                load.goes_on()
    finally:
        server.stop()
    load.check(cluster.database)
