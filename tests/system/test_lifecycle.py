"""Real ``twistd`` processes: how they start, on what, and how they stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from tests.support.client import App, batch
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.process import Twistd, environment, wait_for
from tkserver.storage.embedded import demo
from tkserver.storage.embedded.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
DEMO = App(demo.ORG_ID, demo.APP_ID, demo.TOKEN, demo.SECRET)


def get(url: str) -> tuple[int, dict[str, object]]:
    """Status and JSON of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def post(url: str, app: App, body: bytes) -> int:
    """Send a signed batch, and give the status."""
    request = urllib.request.Request(url + app.path, body, app.headers(body))
    try:
        with urllib.request.urlopen(request, timeout=15) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def ready(url: str) -> bool:
    return get(f"{url}/health/ready")[0] == 200


@pytest.fixture
def data_dir(directory: Path) -> Path:
    return directory / "data"


class TestEmbedded:
    """The server on its own PostgreSQL."""

    def test_first_start_and_restart(self, directory: Path, data_dir: Path) -> None:
        """It starts with nothing, says how to go on, takes the demo application's events, and keeps them."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        event = make_event()
        with Twistd(directory, settings) as server:
            script = server.wait_for_line(r"to send a first event: sh (\S+) (\S+)").split(" sh ")[1]
            assert str(data_dir) in server.log
            wait_for(lambda: ready(server.url))
            sent = subprocess.run(["sh", *script.split()], capture_output=True, check=True, text=True)
            assert json.loads(sent.stdout)["accepted"] == 1
            assert post(server.url, DEMO, batch([event])) == 200
            assert server.stop() == 0
        assert not (data_dir / "postmaster.pid").exists()
        with Twistd(directory, settings) as server:
            wait_for(lambda: ready(server.url))
            database = Database(EmbeddedPostgres(data_dir).dsn)
            assert database.value("SELECT count(*) FROM events") == 2
            assert server.stop() == 0

    def test_killed(self, directory: Path, data_dir: Path) -> None:
        """A server that was killed starts again on the same data, and then stops its database."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        server = Twistd(directory, settings).start()
        try:
            wait_for(lambda: ready(server.url))
            assert post(server.url, DEMO, batch([make_event()])) == 200
        finally:
            server.kill()
        with Twistd(directory, settings) as server:
            wait_for(lambda: ready(server.url))
            assert Database(EmbeddedPostgres(data_dir).dsn).value("SELECT count(*) FROM events") == 1
            assert server.stop() == 0
        assert not (data_dir / "postmaster.pid").exists()

    def test_daemon(self, directory: Path, data_dir: Path) -> None:
        """As a daemon it has a pid file and a log file, starts its database, and ends with it."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        started = Twistd(directory, settings, ("tkserver",)).launch()
        assert started.wait() == 0
        pid_file = directory / "twistd.pid"
        try:
            started.wait_for_line(r"listens on http://\S+:(\d+)")
            wait_for(lambda: ready(started.url))
            assert post(started.url, DEMO, batch([make_event()])) == 200
            assert started.log.count("listens on") == 1
        finally:
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not pid_file.exists())
        assert not (data_dir / "postmaster.pid").exists()

    def test_tac(self, directory: Path, data_dir: Path) -> None:
        """``twistd -ny tkserver.tac`` is the same server."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        with Twistd(directory, settings, ("-ny", str(ROOT / "tkserver.tac"))) as server:
            wait_for(lambda: ready(server.url))
            assert post(server.url, DEMO, batch([make_event()])) == 200
            assert server.stop() == 0

    def test_data_dir_that_is_none(self, directory: Path) -> None:
        """A directory with something else in it is left alone, and the server says so and ends."""
        (directory / "precious").mkdir()
        (directory / "precious" / "thing").touch()
        server = Twistd(directory, {"TK__DATABASE__DATA_DIR": str(directory / "precious")}).launch()
        assert server.wait() == 1
        assert "precious is not empty and holds no database: name another directory" in server.log
        assert "Traceback" not in server.log
        assert [path.name for path in (directory / "precious").iterdir()] == ["thing"]

    def test_stopped_while_it_starts(self, directory: Path, data_dir: Path) -> None:
        """A server that is told to stop at any moment of its start leaves no database running."""
        for pause in (0.1, 0.4, 0.7, 1.0):
            server = Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir)}).start()
            time.sleep(pause)
            assert server.stop() == 0
            assert "stopped" in server.log
            assert "Traceback" not in server.log
            assert not (data_dir / "postmaster.pid").exists()

    def test_died(self, directory: Path, data_dir: Path) -> None:
        """Its database is started again when it has died, and the server goes on by itself."""
        with Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir)}) as server:
            wait_for(lambda: ready(server.url))
            os.kill(int((data_dir / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
            wait_for(lambda: not ready(server.url))
            wait_for(lambda: ready(server.url))
            assert post(server.url, DEMO, batch([make_event()])) == 200

    def test_what_nobody_foresaw(self, directory: Path, data_dir: Path) -> None:
        """A start that fails in a way that nobody foresaw says so, and ends."""
        postgres = EmbeddedPostgres(data_dir)
        postgres.start()
        Database(postgres.dsn).query("CREATE TABLE api_tokens (unlike int)")
        postgres.stop()
        server = Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir)}).launch()
        server.wait_for_line("the database cannot be used yet|cannot start")
        assert server.stop() in (0, 1)
        assert not (data_dir / "postmaster.pid").exists()


class TestConfiguredDatabase:
    """The server on somebody else's PostgreSQL."""

    def test_no_demo(self, directory: Path, database_server: DatabaseServer) -> None:
        """An empty database gets the schema, and no credentials that everybody knows."""
        with (
            database_server.empty() as database,
            Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server,
        ):
            wait_for(lambda: ready(server.url))
            assert database.value("SELECT count(*) FROM api_tokens") == 0
            assert post(server.url, DEMO, batch([make_event()])) == 401
            assert "first event" not in server.log
            assert server.stop() == 0

    def test_two_at_once(self, directory: Path, database_server: DatabaseServer) -> None:
        """Two servers that start at the same moment on an empty database both come up."""
        directories = [directory / name for name in ("a", "b", "c")]
        for each in directories:
            each.mkdir()
        with database_server.empty() as database:
            servers = [Twistd(each, {"TK__DATABASE__URL": database.dsn}).launch() for each in directories]
            try:
                for server in servers:
                    server.wait_for_line("connected to the database")
                    wait_for(partial(ready, server.url))
            finally:
                assert [server.stop() for server in servers] == [0, 0, 0]
            applied = database.query("SELECT migration_id FROM _yoyo_migration ORDER BY 1")
        assert applied == [(path.stem,) for path in sorted((ROOT / "schema").glob("*.sql"))]

    def test_not_there_yet(self, directory: Path, data_dir: Path) -> None:
        """It waits for its database, says so, answers meanwhile, and goes on by itself."""
        postgres = EmbeddedPostgres(data_dir)
        with Twistd(directory, {"TK__DATABASE__URL": postgres.dsn}) as server:
            server.wait_for_line("the database cannot be used yet, trying until it can")
            assert get(f"{server.url}/health")[0] == 200
            assert get(f"{server.url}/health/ready") == (503, {"status": "unavailable"})
            assert post(server.url, DEMO, batch([make_event()])) == 503
            postgres.start()
            try:
                demo_comes = "INSERT INTO api_tokens (org_id, app_id, token, secret) VALUES (%s, %s, %s, %s)"
                wait_for(lambda: ready(server.url))
                Database(postgres.dsn).query(demo_comes, DEMO.org_id, DEMO.app_id, DEMO.token, DEMO.secret)
                assert post(server.url, DEMO, batch([make_event()])) == 200
                assert server.log.count("the database cannot be used yet") == 1
                assert server.stop() == 0
            finally:
                postgres.stop()

    def test_newer(self, directory: Path, database: Database) -> None:
        """A database that a newer server has migrated is refused, in words."""
        database.query(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) VALUES ('x', '9999_new', now())"
        )
        server = Twistd(directory, {"TK__DATABASE__URL": database.dsn}).launch()
        assert server.wait() == 1
        assert "migrated by a newer tkserver (it has 9999_new): upgrade this server" in server.log
        assert "Traceback" not in server.log

    def test_wrong_encoding(self, directory: Path, database_server: DatabaseServer) -> None:
        """A database that cannot hold every character is refused, in words."""
        with database_server.empty("ENCODING 'LATIN1' TEMPLATE template0") as database:
            server = Twistd(directory, {"TK__DATABASE__URL": database.dsn}).launch()
            assert server.wait() == 1
        assert "the database's encoding is LATIN1: create it with ENCODING 'UTF8'" in server.log

    def test_killed_while_migrating(self, directory: Path, database_server: DatabaseServer) -> None:
        """What a killed server left behind, its locks included, does not keep the next one from starting."""
        with database_server.empty() as database:
            database.query("CREATE TABLE yoyo_lock (locked int PRIMARY KEY, ctime timestamp, pid int NOT NULL)")
            database.query("INSERT INTO yoyo_lock VALUES (1, now(), 1)")
            for migration in sorted((ROOT / "schema").glob("*.sql"))[:2]:
                database.query(migration.read_text())
            with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
                wait_for(lambda: ready(server.url))

    def test_stopped_while_the_database_is_silent(self, directory: Path) -> None:
        """A database that takes connections and says nothing does not keep the server from stopping."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
            server = Twistd(directory, {"TK__DATABASE__URL": url}).start()
            time.sleep(0.5)
            assert server.stop() == 0
        assert "stopped" in server.log


class TestStopping:
    """SIGTERM: in order, and nothing is lost."""

    def test_requests_in_flight(self, directory: Path, database: Database) -> None:
        """Requests that arrive or are being stored are finished and answered; the port takes no new ones."""
        app = App().install(database)
        database.query(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$"
        )
        database.query("CREATE TRIGGER dawdle BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION dawdle()")
        bodies = [batch([make_event()]) for _ in range(2)]
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
            wait_for(lambda: ready(server.url))
            storing, arriving, idle = (socket.create_connection(("127.0.0.1", server.port)) for _ in range(3))
            storing.sendall(_request(app, bodies[0]) + bodies[0])
            arriving.sendall(_request(app, bodies[1]) + bodies[1][:20])
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
            sleeping = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
            )
            wait_for(lambda: database.value(sleeping))
            os.kill(server.pid, signal.SIGTERM)
            assert idle.recv(65536) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port))
            arriving.sendall(bodies[1][20:])
            for peer in (storing, arriving):
                assert b'"accepted":1' in peer.recv(65536)
                assert peer.recv(65536) == b""
                peer.close()
            idle.close()
            assert server.wait() == 0
        assert database.value("SELECT count(*) FROM events") == 2
        assert "Traceback" not in server.log

    def test_deadline(self, directory: Path, database: Database) -> None:
        """A request that does not end is not waited for any longer than the setting says."""
        app = App().install(database)
        settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__SHUTDOWN_TIMEOUT": "0.5"}
        with Twistd(directory, settings) as server, socket.socket() as peer:
            wait_for(lambda: ready(server.url))
            peer.connect(("127.0.0.1", server.port))
            peer.sendall(_request(app, b"never sent"))
            wait_for(lambda: get(f"{server.url}/health")[0] == 200)
            assert server.stop() == 0
        assert "Traceback" not in server.log


def _request(app: App, body: bytes) -> bytes:
    headers = {"Host": "x", **app.headers(body), "Content-Length": str(len(body))}
    lines = [f"POST {app.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


class TestOptionsAndSettings:
    """What can be said at the start, and what is said about what cannot."""

    def test_help(self) -> None:
        """``--help`` explains every option and names its variable."""
        shown = subprocess.run(
            [Path(sys.executable).parent / "twistd", "tkserver", "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        ).stdout
        for option in ("--host", "--port", "--endpoint", "--database-url", "--log-level"):
            assert option in shown
        for variable in ("TK__SERVER__HOST", "TK__SERVER__PORT", "TK__DATABASE__URL", "TK__SERVER__LOG_LEVEL"):
            assert variable in shown

    def test_options_win(self, directory: Path, database: Database) -> None:
        """An option wins over the environment, and that over the file; the log level is kept."""
        (directory / ".env").write_text("TK__SERVER__HOST=127.0.0.3\nTK__SERVER__LOG_LEVEL=error\nOTHER=1\n")
        settings = {
            "TK__SERVER__HOST": "127.0.0.2",
            "TK__SERVER__PORT": "1",
            "TK__DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none",
        }
        arguments = ("-n", "tkserver", "--port", "0", "--database-url", database.dsn, "--log-level", "info")
        with Twistd(directory, settings, arguments) as server:
            assert f"listens on http://127.0.0.2:{server.port}" in server.log
            wait_for(lambda: ready(f"http://127.0.0.2:{server.port}"))
        quiet = Twistd(directory, {**settings, "TK__SERVER__PORT": "0"}, arguments[:2] + arguments[4:6]).launch()
        connected = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        wait_for(lambda: database.value(connected))
        assert quiet.stop() == 0
        assert "listens on" not in quiet.log

    @pytest.mark.parametrize(
        ("settings", "arguments", "line"),
        [
            ({"TK__SERVER__PORT": "many"}, (), "TK__SERVER__PORT: Input should be a valid integer"),
            ({"TK__SERVER__PORT": "65536"}, (), "TK__SERVER__PORT: Input should be less than or equal to 65535"),
            ({}, ("--port", "x"), "TK__SERVER__PORT: Input should be a valid integer"),
            ({"TK__SERVER__LOG_LEVEL": "loud"}, (), "TK__SERVER__LOG_LEVEL: Input should be 'debug', 'info'"),
            ({"TK__SERVER__PRT": "1"}, (), "TK__SERVER__PRT: there is no such setting; did you mean TK__SERVER__PORT?"),
            ({"TK__SERVER": "1"}, (), "TK__SERVER: there is no such setting"),
            ({"TK__": "1"}, (), "TK__: there is no such setting"),
            ({"TK__SERVER__ENDPOINT": "tpc:80"}, (), "TK__SERVER__ENDPOINT: tpc:80: Unknown endpoint type: 'tpc'"),
            ({}, ("--endpoint", "tcp:x"), "TK__SERVER__ENDPOINT: tcp:x: invalid literal for int()"),
            ({}, ("--endpoint", "tcp:80:host=x"), "TK__SERVER__ENDPOINT: tcp:80:host=x: got an unexpected keyword"),
            (
                {},
                ("--endpoint", "ssl:1:privateKey=/no"),
                "TK__SERVER__ENDPOINT: ssl:1:privateKey=/no: /no: No such file",
            ),
            (
                {},
                ("--endpoint", f"ssl:1:privateKey={__file__}"),
                f"TK__SERVER__ENDPOINT: ssl:1:privateKey={__file__}: the key or the certificate cannot be used",
            ),
            (
                {},
                ("--endpoint", "haproxy:ssl:1"),
                "TK__SERVER__ENDPOINT: haproxy:ssl:1: Twisted looks for the PROXY protocol within TLS",
            ),
            (
                {},
                ("--endpoint", "systemd:domain=INET:index=0"),
                "TK__SERVER__ENDPOINT: systemd:domain=INET:index=0: no such socket was handed over",
            ),
            ({"TK__RATE_LIMIT__FREE_RPM": "0"}, (), "TK__RATE_LIMIT__FREE_RPM: Input should be greater than"),
            ({"TK__SERVER__TRUSTED_PROXIES": "10.0.0.1/8"}, (), "TK__SERVER__TRUSTED_PROXIES: neither an address, nor"),
            ({"TK__REDIS__URL": "http://u:hunter2@h"}, (), "TK__REDIS__URL: not a Redis URL such as redis://"),
            ({"TK__REDIS__URL": "redis://u:hunter2@h:port"}, (), "TK__REDIS__URL: not a Redis URL such as redis://"),
            ({"TK__INGEST__MAX_BODY_BYTES": "0"}, (), "TK__INGEST__MAX_BODY_BYTES: Input should be greater"),
            ({"TK__DATABASE__URL": "mysql://u:hunter2@h/d"}, (), "TK__DATABASE__URL: not a PostgreSQL URL such as"),
            ({"TK__DATABASE__URL": "postgresql://u:hunter2@h/d?x=y"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__URL": ""}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__URL": "postgresql://u:hunter2@h:x/d"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__URL": "postgresql://u:hun@ter2@h/d"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__URL": "postgresql://h/d?sslmode=yes"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__DATA_DIR": "~nosuchuser/x"}, (), "TK__DATABASE__DATA_DIR: there is no such user's home"),
        ],
    )
    def test_bad_settings(
        self, directory: Path, settings: dict[str, str], arguments: tuple[str, ...], line: str
    ) -> None:
        """One line on standard error that names the variable, and nothing that is secret."""
        done = subprocess.run(
            [Path(sys.executable).parent / "twistd", "-n", "tkserver", *arguments],
            cwd=directory,
            env={**environment(), **settings},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"tkserver: {line}")
        assert done.stderr.count("\n") == 1
        assert "hunter2" not in done.stdout + done.stderr

    def test_file_that_is_no_text(self, directory: Path) -> None:
        """So is a settings file that cannot be read."""
        (directory / ".env").write_bytes(b"TK__SERVER__PORT=\xff\xfe")
        server = Twistd(directory, {}).launch()
        assert server.wait() == 1
        assert server.log == "tkserver: .env: cannot be read as UTF-8\n"

    def test_tac_with_bad_settings(self, directory: Path) -> None:
        """So does the ``.tac`` file."""
        server = Twistd(directory, {"TK__SERVER__PORT": "x"}, ("-ny", str(ROOT / "tkserver.tac"))).launch()
        assert server.wait() == 1
        assert server.log.startswith("tkserver: TK__SERVER__PORT: ")
        assert server.log.count("\n") == 1

    def test_unreachable_database_keeps_its_password(self, directory: Path) -> None:
        """The password of a database that cannot be reached, or refuses it, is not in the log."""
        url = "postgresql://somebody:hunter2@127.0.0.1:1/d"
        with Twistd(directory, {"TK__DATABASE__URL": url}, ("-n", "tkserver", "--log-level", "debug")) as server:
            server.wait_for_line("cannot be used yet")
        assert "hunter2" not in server.log

    def test_port_taken(self, directory: Path, database: Database) -> None:
        """A port that somebody else has is said in a line, and is the end."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = Twistd(directory, {"TK__SERVER__PORT": str(port), "TK__DATABASE__URL": database.dsn}).launch()
            assert server.wait() == 1
        assert f"cannot listen on 127.0.0.1 port {port}: " in server.log
        assert "Traceback" not in server.log
        assert not (directory / "twistd.pid").exists()
