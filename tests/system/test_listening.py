"""``twistd`` processes: endpoints, restarts without lost requests, and the limit of open files."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.support.blocking_client import is_ready, post_batch
from tests.support.certificates import Certificate
from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.load import LoadGenerator
from tests.support.process import Twistd
from tests.support.queries import client_backends
from tests.support.waiting import TIMEOUT, wait_for
from tkserver.storage.embedded.os_user import DatabaseUser

HEALTH_REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def settings(database: Database, endpoint: str) -> dict[str, str]:
    """Return the settings of a server with this endpoint."""
    return {"TK__DATABASE__URL": database.dsn, "TK__SERVER__ENDPOINT": endpoint}


def request_health(path: str) -> bytes:
    """Return the response to a health check on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(path)
        client.sendall(HEALTH_REQUEST)
        return client.makefile("rb").read()


def limit_open_files(pid: int, soft: int) -> None:
    """Change the limit of a process, as its user: root in a container may not change those of other users."""
    code = f"import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE, ({soft}, 4352))"
    options = DatabaseUser.for_this_process().subprocess_options
    subprocess.run(["/usr/bin/env", "python3", "-c", code], check=True, cwd="/", **options)


def accepts_events(url: str) -> bool:
    """Return whether a server accepts connections and is ready to store events."""
    try:
        return is_ready(url)
    except OSError:
        return False


@contextmanager
def listening(family: socket.AddressFamily, address: str | tuple[str, int]) -> Iterator[socket.socket]:
    """Listen on a socket, as systemd does for a service."""
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(1024)
        yield listener


class TestTls:
    """Endpoints that begin with ``ssl:``."""

    def test_certificate_files(self, directory: Path, database: Database) -> None:
        """The server uses the certificate and the key in the files, and logs an ``https`` URL."""
        files = Certificate.make(directory, "localhost")
        with Twistd(directory, settings(database, files.endpoint)) as server:
            server.wait_for_line(rf"listens on https://127\.0\.0\.1:{server.port}")
            context = ssl.create_default_context(cafile=files.authority)
            url = f"https://localhost:{server.port}/health"
            with urllib.request.urlopen(url, context=context, timeout=TIMEOUT) as response:
                assert response.status == 200
            assert server.stop() == 0
        assert "Traceback" not in server.log


class TestUnixSocket:
    """Endpoints that begin with ``unix:``."""

    def test_stale_socket(self, directory: Path, database: Database) -> None:
        """A server replaces the socket of a server that was killed, and removes its own socket when it stops."""
        path = directory / "http.sock"
        unix_settings = settings(database, f"unix:{path}:mode=660")
        server = Twistd(directory, unix_settings).start()
        server.kill()
        assert path.is_socket()
        with Twistd(directory, unix_settings) as server:
            assert f"listens on unix:{path}" in server.log
            assert path.stat().st_mode & 0o777 == 0o660
            assert b'"healthy"' in request_health(str(path))
            assert server.stop() == 0
        assert not path.exists()
        assert "Traceback" not in server.log

    def test_path_in_use(self, directory: Path, database: Database) -> None:
        """A server does not replace a socket on which another server listens, nor a file that is not a socket."""
        (directory / "file").touch()
        with listening(socket.AF_UNIX, str(directory / "http.sock")):
            for name in ("http.sock", "file"):
                server = Twistd(directory, settings(database, f"unix:{directory / name}")).launch()
                assert server.wait() == 1
                assert f"cannot listen on {directory / name}: " in server.log
                assert "Traceback" not in server.log
                assert (directory / name).exists()


class TestInheritedSocket:
    """Endpoints that begin with ``systemd:``: the socket exists before the server and after it."""

    ENDPOINT = "systemd:domain=INET:name=http"

    def test_restarts(self, directory: Path, database: Database) -> None:
        """While servers are restarted, every request gets a 200, and every event is stored once."""
        app = App().install(database)
        with ExitStack() as stack:
            listener = stack.enter_context(listening(socket.AF_INET, ("127.0.0.1", 0)))
            start = partial(Twistd, settings=settings(database, self.ENDPOINT), listening=listener)
            directories = [directory / name for name in "abc"]
            for path in directories:
                path.mkdir()
            first = stack.enter_context(start(directories[0]))
            assert first.port == listener.getsockname()[1]
            first.wait_until_ready()
            loads = [
                stack.enter_context(LoadGenerator(first.port, app, clients=3, keep_alive=keep_alive, warm_up=30))
                for keep_alive in (True, False)
            ]
            assert first.stop() == 0  # like "systemctl restart": the next server starts when this one has ended
            second = stack.enter_context(start(directories[1]))
            for load in loads:
                load.wait_for_progress()
            third = stack.enter_context(start(directories[2]))  # here two servers run at the same time
            assert second.stop() == 0
            for load in loads:
                load.wait_for_progress()
            for load in loads:
                load.stop()
                load.check(database)
                assert set(load.statuses) == {200}, load.statuses
            assert third.stop() == 0
        assert database.value("SELECT count(*) FROM events") == sum(len(load.accepted) for load in loads)

    def test_socket_without_address(self, directory: Path, database: Database) -> None:
        """A dual-stack IPv6 socket works with an endpoint of the domain INET."""
        with (
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
            Twistd(directory, settings(database, self.ENDPOINT), listening=listener) as server,
        ):
            assert f"listens on http://[::]:{server.port}" in server.log
            server.wait_until_ready()

    def test_unix_socket(self, directory: Path, database: Database) -> None:
        """A Unix socket keeps its mode, and clients that connect between two servers wait for the second one."""
        path = str(directory / "http.sock")
        with listening(socket.AF_UNIX, path) as listener:
            Path(path).chmod(0o600)
            unix_settings = settings(database, "systemd:domain=UNIX:index=0")
            with Twistd(directory, unix_settings, listening=listener) as server:
                assert b'"healthy"' in request_health(path)
                assert server.stop() == 0
            with socket.socket(socket.AF_UNIX) as waiting:
                waiting.connect(path)
                waiting.sendall(HEALTH_REQUEST)
                with Twistd(directory, unix_settings, listening=listener):
                    assert b'"healthy"' in waiting.makefile("rb").read()
            assert Path(path).stat().st_mode & 0o777 == 0o600


class TestOpenFiles:
    """The limit of open files."""

    def test_low_limit(self, directory: Path, database: Database) -> None:
        """A server logs that it accepts fewer connections, and a flood of them does not use the files it needs."""
        app = App().install(database)
        with (
            Twistd(directory, {"TK__DATABASE__URL": database.dsn}, open_files=(64, 120)) as server,
            ExitStack() as stack,
        ):
            line = server.wait_for_line(r"only \d+ connections are possible.*")
            assert "only 60 connections are possible instead of 4096: the limit of open files is 120" in line
            assert server.log.count("connections are possible") == 1
            server.wait_until_ready()
            wait_for(lambda: len(client_backends(database)) == 10 + 1)  # the pool, and the listener
            for _ in range(300):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            ended = client_backends(database)
            database.query("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [list(ended)])
            wait_for(lambda: len(client_backends(database) - ended) == 10 + 1)
            assert "reached its limit of open files" not in server.log
            stack.close()
            wait_for(lambda: accepts_events(server.url))
            assert post_batch(server.url, app, batch([make_event()])) == 200
            assert server.stop() == 0
        assert "Traceback" not in server.log

    def test_low_soft_limit(self, directory: Path, database: Database) -> None:
        """A server raises a low soft limit without a message if the hard limit allows it."""
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn}, open_files=(64, 8192)) as server:
            limits = Path(f"/proc/{server.pid}/limits").read_text()
            assert re.search(r"Max open files +(\d+)", limits)[1] == str(4096 + 256)  # type: ignore[index]
        assert "connections are possible" not in server.log

    def test_no_files_left(self, directory: Path, database: Database) -> None:
        """A server without free file descriptors closes new connections, logs it once, and recovers."""
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server, ExitStack() as stack:
            server.wait_until_ready()
            opened = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
            limit_open_files(server.pid, opened + 2)
            peers = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(50)]
            server.wait_for_line("connections cannot be accepted: this process has reached its limit of open files")
            for peer in peers[:40]:
                peer.close()
            limit_open_files(server.pid, 4352)
            wait_for(lambda: accepts_events(server.url))
            assert server.stop() == 0
        assert server.log.count("reached its limit of open files") == 1
        assert "EMFILE" not in server.log
        assert "Traceback" not in server.log
