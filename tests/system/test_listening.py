"""Real ``twistd`` processes: what they listen on, how one takes over from another, and how many come in."""

from __future__ import annotations

import resource
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.support.certificates import Certificate
from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.load import QueueLoad
from tests.support.process import Twistd, wait_for
from tests.system.test_lifecycle import post, ready

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def settings(database: Database, endpoint: str) -> dict[str, str]:
    return {"TK__DATABASE__URL": database.dsn, "TK__SERVER__ENDPOINT": endpoint}


def ask(where: str | tuple[str, int]) -> bytes:
    """What a health check is answered, on a Unix socket or a port."""
    with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as peer:
        peer.settimeout(10)
        peer.connect(where)
        peer.sendall(HEALTH)
        return peer.makefile("rb").read()


@contextmanager
def listening(family: socket.AddressFamily, address: str | tuple[str, int]) -> Iterator[socket.socket]:
    """A socket such as systemd holds for a service."""
    with socket.socket(family) as held:
        held.bind(address)
        held.listen(1024)
        yield held


class TestTls:
    """``ssl:…``"""

    def test_files(self, directory: Path, database: Database) -> None:
        """Served with the certificate of the files, and said so."""
        files = Certificate.make(directory, "localhost")
        with Twistd(directory, settings(database, files.endpoint)) as server:
            server.wait_for_line(rf"listens on https://127\.0\.0\.1:{server.port}")
            trusting = ssl.create_default_context(cafile=files.authority)
            url = f"https://localhost:{server.port}/health"
            with urllib.request.urlopen(url, context=trusting, timeout=10) as response:
                assert response.status == 200
            assert server.stop() == 0
        assert "Traceback" not in server.log


class TestUnixSocket:
    """``unix:…``"""

    def test_left_behind(self, directory: Path, database: Database) -> None:
        """The socket of a server that was killed does not keep the next one from starting, and an end removes it."""
        path = directory / "http.sock"
        given = settings(database, f"unix:{path}:mode=660")
        server = Twistd(directory, given).start()
        server.kill()
        assert path.is_socket()
        with Twistd(directory, given) as server:
            assert f"listens on unix:{path}" in server.log
            assert path.stat().st_mode & 0o777 == 0o660
            assert b'"healthy"' in ask(str(path))
            assert server.stop() == 0
        assert not path.exists()
        assert "Traceback" not in server.log

    def test_taken(self, directory: Path, database: Database) -> None:
        """One that another server listens on is left alone, as is a file that is no socket."""
        (directory / "file").touch()
        with listening(socket.AF_UNIX, str(directory / "http.sock")):
            for name in ("http.sock", "file"):
                server = Twistd(directory, settings(database, f"unix:{directory / name}")).launch()
                assert server.wait() == 1
                assert f"cannot listen on {directory / name}: " in server.log
                assert "Traceback" not in server.log
                assert (directory / name).exists()


class TestHandedOver:
    """``systemd:…``: the socket is older than the server, and outlives it."""

    ENDPOINT = "systemd:domain=INET:name=http"

    def test_restarts(self, directory: Path, database: Database) -> None:
        """Clients that go on sending through restarts get a 200 for each request, and each event is stored once."""
        app = App().install(database)
        with ExitStack() as stack:
            held = stack.enter_context(listening(socket.AF_INET, ("127.0.0.1", 0)))
            start = partial(Twistd, settings=settings(database, self.ENDPOINT), listening=held)
            directories = [directory / name for name in "abc"]
            for each in directories:
                each.mkdir()
            first = stack.enter_context(start(directories[0]))
            assert first.port == held.getsockname()[1]
            wait_for(lambda: ready(first.url))
            loads = [
                stack.enter_context(QueueLoad(first.port, app, clients=3, keep=keep, least=30))
                for keep in (True, False)
            ]
            assert first.stop() == 0  # as "systemctl restart" does: one after the other
            second = stack.enter_context(start(directories[1]))
            for load in loads:
                load.goes_on()
            third = stack.enter_context(start(directories[2]))  # and here both are there for a while
            assert second.stop() == 0
            for load in loads:
                load.goes_on()
            for load in loads:
                load.end()
                load.check(database)
                assert set(load.statuses) == {200}, load.statuses
            assert third.stop() == 0
        assert database.value("SELECT count(*) FROM events") == sum(len(load.accepted) for load in loads)

    def test_any_address(self, directory: Path, database: Database) -> None:
        """A socket of a mere port, which is one for IPv6 that takes IPv4, works whatever the endpoint calls it."""
        with (
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as held,
            Twistd(directory, settings(database, self.ENDPOINT), listening=held) as server,
        ):
            assert f"listens on http://[::]:{server.port}" in server.log
            wait_for(lambda: ready(server.url))

    def test_unix(self, directory: Path, database: Database) -> None:
        """The file of a Unix socket keeps its mode, and its life: whoever connects meanwhile waits."""
        path = str(directory / "http.sock")
        with listening(socket.AF_UNIX, path) as held:
            Path(path).chmod(0o600)
            given = settings(database, "systemd:domain=UNIX:index=0")
            with Twistd(directory, given, listening=held) as server:
                assert b'"healthy"' in ask(path)
                assert server.stop() == 0
            with socket.socket(socket.AF_UNIX) as waiting:
                waiting.connect(path)
                waiting.sendall(HEALTH)
                with Twistd(directory, given, listening=held):
                    assert b'"healthy"' in waiting.makefile("rb").read()
            assert Path(path).stat().st_mode & 0o777 == 0o600


class TestOpenFiles:
    """Fewer than connections are allowed."""

    def test_said_at_the_start(self, directory: Path, database: Database) -> None:
        """In one line; a flood of connections then leaves room for all else, the database above all."""
        app = App().install(database)
        given = {"TK__DATABASE__URL": database.dsn}
        with Twistd(directory, given, open_files=(64, 120)) as server, ExitStack() as stack:
            line = server.wait_for_line(r"only \d+ connections at once.*")
            assert "only 60 connections at once, and not 4096: this process may have 120 files open" in line
            assert server.log.count("connections at once") == 1
            wait_for(lambda: ready(server.url))
            for _ in range(300):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            database.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            server.wait_for_line("no connection to the database(.|\n)*connected to the database")
            assert "no open files left" not in server.log
            stack.close()
            wait_for(lambda: ready(server.url))
            assert post(server.url, app, batch([make_event()])) == 200
            assert server.stop() == 0
        assert "Traceback" not in server.log

    def test_enough(self, directory: Path, database: Database) -> None:
        """A soft limit that is too low is raised, and there is nothing to be said."""
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn}, open_files=(64, 8192)) as server:
            soft, _ = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            assert soft == 4096 + 256
        assert "connections at once" not in server.log

    def test_none_left(self, directory: Path, database: Database) -> None:
        """Connections are closed, with a line that names no address, and all goes on when there is room again."""
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server, ExitStack() as stack:
            wait_for(lambda: ready(server.url))
            opened = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (opened + 2, 4352))
            peers = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(50)]
            server.wait_for_line("connections are closed unheard: this process has no open files left")
            for peer in peers[:40]:
                peer.close()
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (4352, 4352))
            wait_for(lambda: ready(server.url))
            assert server.stop() == 0
        assert server.log.count("no open files left") == 1
        assert "EMFILE" not in server.log
        assert "Traceback" not in server.log
