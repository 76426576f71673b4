"""``twistd`` processes: how they start, which settings they accept, and how they stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from tests.support.aggregation import ENABLED, wait_until_aggregated
from tests.support.blocking_client import get_json, is_ready, post_batch
from tests.support.client import App, batch
from tests.support.command import Command
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.process import Twistd, environment
from tests.support.queries import client_backends
from tests.support.raw_requests import HEALTH_REQUEST, request_head, signed_request
from tests.support.source import ROOT
from tests.support.waiting import TIMEOUT, wait_for
from tkserver.storage.embedded import demo
from tkserver.storage.embedded.postgres import EmbeddedPostgres

DEMO = App(demo.ORG_ID, demo.APP_ID, demo.TOKEN, demo.SECRET)


def cors_headers(port: int, method: str, path: str) -> list[str]:
    """Return the names of the CORS headers of a response to a web page."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    connection.close()
    return [name for name in response.headers if name.lower().startswith("access-control-")]


@pytest.fixture
def data_dir(directory: Path) -> Path:
    """The data directory of an embedded database."""
    return directory / "data"


class TestEmbedded:
    """The server with the embedded database."""

    def test_first_start_and_restart(self, directory: Path, data_dir: Path) -> None:
        """The first start creates the database and the demo application; the next one finds the stored events."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        event = make_event()
        with Twistd(directory, settings) as server:
            script = server.wait_for_line(r"to send a first event, run: sh (\S+) (\S+)").split(" sh ")[1]
            assert str(data_dir) in server.log
            server.wait_until_ready()
            sent = subprocess.run(["sh", *script.split()], capture_output=True, check=True, text=True)
            assert json.loads(sent.stdout)["accepted"] == 1
            assert post_batch(server.url, DEMO, batch([event])) == 200
            assert server.stop() == 0
        assert not (data_dir / "postmaster.pid").exists()
        with Twistd(directory, settings) as server:
            server.wait_until_ready()
            database = Database(EmbeddedPostgres(data_dir).dsn)
            assert database.value("SELECT count(*) FROM events") == 2
            assert server.stop() == 0

    def test_start_after_kill(self, directory: Path, data_dir: Path) -> None:
        """After a SIGKILL the server starts again with the same data, and stops the database when it is stopped."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        server = Twistd(directory, settings).start()
        try:
            server.wait_until_ready()
            assert post_batch(server.url, DEMO, batch([make_event()])) == 200
        finally:
            server.kill()
        with Twistd(directory, settings) as server:
            server.wait_until_ready()
            assert Database(EmbeddedPostgres(data_dir).dsn).value("SELECT count(*) FROM events") == 1
            assert server.stop() == 0
        assert not (data_dir / "postmaster.pid").exists()

    def test_daemon(self, directory: Path, data_dir: Path) -> None:
        """A daemon has a pid file and a log file, and starts and stops the embedded database."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        daemon = Twistd(directory, settings, ("tkserver",)).launch()
        assert daemon.wait() == 0
        pid_file = directory / "twistd.pid"
        try:
            daemon.wait_for_line(r"listens on http://\S+:(\d+)")
            daemon.wait_until_ready()
            assert post_batch(daemon.url, DEMO, batch([make_event()])) == 200
            assert daemon.log.count("listens on") == 1
        finally:
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not pid_file.exists())
        assert not (data_dir / "postmaster.pid").exists()

    def test_tac(self, directory: Path, data_dir: Path) -> None:
        """``twistd -ny tkserver.tac`` runs the same server."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        with Twistd(directory, settings, ("-ny", str(ROOT / "tkserver.tac"))) as server:
            server.wait_until_ready()
            assert post_batch(server.url, DEMO, batch([make_event()])) == 200
            assert server.stop() == 0

    def test_data_dir_with_other_files(self, directory: Path) -> None:
        """The server does not touch a directory that contains other files, and ends with an error message."""
        (directory / "precious").mkdir()
        (directory / "precious" / "file").touch()
        server = Twistd(directory, {"TK__DATABASE__DATA_DIR": str(directory / "precious")}).launch()
        assert server.wait() == 1
        assert "precious is not empty and contains no database: choose another directory" in server.log
        assert "Traceback" not in server.log
        assert [path.name for path in (directory / "precious").iterdir()] == ["file"]

    def test_demo_application_exists_only_on_loopback(self, directory: Path, data_dir: Path) -> None:
        """While other machines may reach the server, the demo application is suspended, and the log says what to do."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        exposed = {**settings, "TK__SERVER__HOST": "0.0.0.0"}
        for current, status in ((exposed, 401), (settings, 200), (exposed, 401), (settings, 200)):
            with Twistd(directory, current) as server:
                server.wait_until_ready()
                assert post_batch(server.url, DEMO, batch([make_event()])) == status
                assert ("to send a first event" in server.log) is (status == 200)
                assert server.log.count("create one with: tkserver apps create NAME") == (status == 401)
                assert server.stop() == 0

    def test_revoked_demo_application(self, directory: Path, data_dir: Path) -> None:
        """If an operator has revoked the token of the demo application, it stays revoked."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        for host, status in (("127.0.0.1", 200), ("0.0.0.0", 401), ("127.0.0.1", 401)):
            with Twistd(directory, {**settings, "TK__SERVER__HOST": host}) as server:
                server.wait_until_ready()
                assert post_batch(server.url, DEMO, batch([make_event()])) == status
                Database(EmbeddedPostgres(data_dir).dsn).query("UPDATE api_tokens SET is_active = false")
                assert server.stop() == 0
        assert "to send a first event" not in server.log

    @pytest.mark.parametrize(
        "settings",
        [
            {"TK__SERVER__ENDPOINT": "unix:http.sock"},
            {"TK__SERVER__ENDPOINT": "tcp:0:interface=0.0.0.0"},
            {"TK__SERVER__ENDPOINT": "haproxy:tcp:0:interface=127.0.0.1"},
            {"TK__SERVER__TRUSTED_PROXIES": "127.0.0.1"},
        ],
        ids=lambda settings: next(iter(settings.values())),
    )
    def test_no_demo_application(self, directory: Path, data_dir: Path, settings: dict[str, str]) -> None:
        """There is no demo application if strangers may reach the server through a proxy or another address."""
        with Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir), **settings}) as server:
            server.wait_for_line("create one with: tkserver apps create NAME")
            assert Database(EmbeddedPostgres(data_dir).dsn).value("SELECT count(*) FROM api_tokens") == 0
            assert server.stop() == 0
        assert "to send a first event" not in server.log

    def test_web_pages_cannot_use_the_demo_application(self, directory: Path, data_dir: Path) -> None:
        """Responses of the demo application have no CORS headers, unless the setting says otherwise."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        paths = [DEMO.path, DEMO.path.upper().replace("/V1/INGEST", "/v1/ingest"), DEMO.path.replace("-", "")]
        for origins, allowed in ((None, False), ("*", True)):
            current = settings if origins is None else {**settings, "TK__SERVER__CORS_ORIGINS": origins}
            with Twistd(directory, current) as server:
                server.wait_until_ready()
                for path in paths:
                    for method in ("OPTIONS", "POST"):
                        assert bool(cors_headers(server.port, method, path)) is allowed
                assert cors_headers(server.port, "OPTIONS", App().path)
                assert cors_headers(server.port, "POST", App().path)
                assert server.stop() == 0

    @pytest.mark.parametrize("file", [None, "PG_VERSION", "postmaster.pid", "postmaster.opts"])
    def test_stop_during_start(self, directory: Path, data_dir: Path, file: str | None) -> None:
        """A server that is stopped at any time of its start, of the first or of a later one, stops the database.

        :param file: exists from a certain time of the first start.
        """
        for _ in ("first start", "second start"):
            server = Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir)}).start()
            wait_for(lambda: file is None or (data_dir / file).exists())
            assert server.stop() == 0
            assert "stopped" in server.log
            assert "Traceback" not in server.log
            assert not (data_dir / "postmaster.pid").exists()

    def test_stop_while_the_reactor_starts(self, directory: Path, data_dir: Path) -> None:
        """A signal that arrives after the reactor has installed its handler, and before the server has, stops both."""
        tac = directory / "tkserver.tac"
        trigger = 'reactor.addSystemEventTrigger("during", "startup", os.kill, os.getpid(), signal.SIGTERM)'
        imports = "import os\nimport signal\nfrom twisted.internet import reactor\n"
        tac.write_text(f"{(ROOT / 'tkserver.tac').read_text()}{imports}{trigger}\n")
        server = Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir)}, ("-ny", str(tac))).launch()
        assert server.wait() == 0
        assert "stopped" in server.log
        assert "Traceback" not in server.log

    def test_hangup(self, directory: Path, data_dir: Path) -> None:
        """A server whose terminal is closed (SIGHUP) stops, together with the database; with nohup, it continues."""
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir)}
        with Twistd(directory, settings) as server:
            server.wait_until_ready()
            assert server.stop(signal.SIGHUP) == 0
        assert not (data_dir / "postmaster.pid").exists()
        server = Twistd(directory, settings)
        server._command = ["nohup", *server._command]
        with server:
            server.wait_until_ready()
            os.kill(server.pid, signal.SIGHUP)
            assert post_batch(server.url, DEMO, batch([make_event()])) == 200
            assert server.stop() == 0

    def test_socket_is_deleted(self, directory: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The socket of a data directory with a space does not depend on TMPDIR, and is created again if necessary."""
        data = data_dir.with_name("data with spaces")
        settings = {"TK__DATABASE__DATA_DIR": str(data)}
        with Twistd(directory, settings) as server:
            server.wait_until_ready()
            command = Command({**settings, "TMPDIR": str(directory)}, directory)
            assert command("psql", "-At", "-c", "SELECT 1", code=0).out == "1\n"
            monkeypatch.setenv("TMPDIR", str(directory))
            (Path(EmbeddedPostgres(data)._socket_dir) / ".s.PGSQL.5432").unlink()
            database_pid = int((data / "postmaster.pid").read_text().split()[0])
            for process in psutil.Process(database_pid).children():
                if "[local]" in " ".join(process.cmdline()):  # a connection: the server must open it again
                    process.terminate()
            wait_for(lambda: not is_ready(server.url))
            server.wait_until_ready()
            assert server.stop() == 0

    def test_variables_of_postgresql_are_ignored(self, directory: Path, data_dir: Path) -> None:
        """Variables that are meant for another database do not keep the embedded one from starting."""
        variables = {
            "PGPORT": "1",
            "PGSERVICE": "none",
            "PGHOST": "192.0.2.1",
            "PGHOSTADDR": "192.0.2.1",
            "PGGSSENCMODE": "require",
            "PGSSLMODE": "require",
            "PGREQUIREAUTH": "scram-sha-256",
            "PGCHANNELBINDING": "require",
            "PGTARGETSESSIONATTRS": "standby",
            "PGOPTIONS": "-c statement_timeout=1",
            "PGUSER": "nobody",
            "PGDATABASE": "nothing",
            "PGCLIENTENCODING": "LATIN1",
            "PGDATA": "/nowhere",
        }
        settings = {"TK__DATABASE__DATA_DIR": str(data_dir), **ENABLED}
        with Twistd(directory, {**settings, **variables}) as server:
            server.wait_until_ready()
            assert post_batch(server.url, DEMO, batch([make_event()])) == 200
            wait_until_aggregated(Database(EmbeddedPostgres(data_dir).dsn), server)
            command = Command({**settings, **variables}, directory)
            assert command("stats", DEMO.app_id, "--json", code=0).json["totals"]["events"] == 1
            assert command("psql", "-At", "-c", "SELECT count(*) FROM events", code=0).out == "1\n"
            assert server.stop() == 0

    def test_database_is_restarted(self, directory: Path, data_dir: Path) -> None:
        """The server starts the embedded database again if it has died, and becomes ready again."""
        with Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir)}) as server:
            server.wait_until_ready()
            os.kill(int((data_dir / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
            wait_for(lambda: not is_ready(server.url))
            server.wait_until_ready()
            assert post_batch(server.url, DEMO, batch([make_event()])) == 200

    def test_unexpected_failure(self, directory: Path, data_dir: Path) -> None:
        """An unexpected failure of the start is logged, and the database is stopped."""
        postgres = EmbeddedPostgres(data_dir)
        postgres.start()
        Database(postgres.dsn).query("CREATE SEQUENCE api_tokens")
        postgres.stop()
        server = Twistd(directory, {"TK__DATABASE__DATA_DIR": str(data_dir)}).launch()
        server.wait_for_line("the database is not available|cannot start")
        assert server.stop() in (0, 1)
        assert not (data_dir / "postmaster.pid").exists()


class TestConfiguredDatabase:
    """The server with a configured PostgreSQL."""

    def test_no_demo_application(self, directory: Path, database_server: DatabaseServer) -> None:
        """An empty database gets the schema, but not the demo credential, which is public."""
        with database_server.empty() as database:
            settings = {"TK__DATABASE__URL": database.dsn}
            with Twistd(directory, settings) as server:
                server.wait_until_ready()
                assert database.value("SELECT count(*) FROM api_tokens") == 0
                assert post_batch(server.url, DEMO, batch([make_event()])) == 401
                assert server.stop() == 0
            assert "first event" not in server.log
            assert "create one with: tkserver apps create NAME" in server.log
            App().install(database)
            with Twistd(directory, settings) as server:
                server.wait_until_ready()
                assert server.stop() == 0
            assert "create one with" not in server.log

    def test_concurrent_starts(self, directory: Path, database_server: DatabaseServer) -> None:
        """Several servers that start at the same time with an empty database all become ready."""
        directories = [directory / name for name in ("a", "b", "c")]
        for path in directories:
            path.mkdir()
        with database_server.empty() as database:
            servers = [Twistd(path, {"TK__DATABASE__URL": database.dsn}).launch() for path in directories]
            try:
                for server in servers:
                    server.wait_for_line("connected to the database")
                    server.wait_until_ready()
            finally:
                assert [server.stop() for server in servers] == [0, 0, 0]
            applied = database.query("SELECT migration_id FROM _yoyo_migration ORDER BY 1")
        assert applied == [(path.stem,) for path in sorted((ROOT / "schema").glob("*.sql"))]

    def test_database_is_not_available(self, directory: Path, data_dir: Path) -> None:
        """The server logs once that it waits for the database, responds with 503, and then continues by itself."""
        postgres = EmbeddedPostgres(data_dir)
        with Twistd(directory, {"TK__DATABASE__URL": postgres.dsn}) as server:
            server.wait_for_line("the database is not available, retrying")
            assert get_json(f"{server.url}/health")[0] == 200
            assert get_json(f"{server.url}/health/ready") == (503, {"status": "unavailable"})
            assert post_batch(server.url, DEMO, batch([make_event()])) == 503
            postgres.start()
            try:
                insert = "INSERT INTO api_tokens (org_id, app_id, token, secret) VALUES (%s, %s, %s, %s)"
                server.wait_until_ready()
                Database(postgres.dsn).query(insert, DEMO.org_id, DEMO.app_id, DEMO.token, DEMO.secret)
                assert post_batch(server.url, DEMO, batch([make_event()])) == 200
                assert server.log.count("the database is not available") == 1
                assert server.stop() == 0
            finally:
                postgres.stop()

    def test_newer_schema(self, directory: Path, database: Database) -> None:
        """The server does not start if a newer version has migrated the database, and its log says what to do."""
        database.query(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) VALUES ('x', '9999_new', now())"
        )
        server = Twistd(directory, {"TK__DATABASE__URL": database.dsn}).launch()
        assert server.wait() == 1
        assert "migrated by a newer tkserver (it has 9999_new): upgrade this server" in server.log
        assert "Traceback" not in server.log

    def test_wrong_encoding(self, directory: Path, database_server: DatabaseServer) -> None:
        """The server does not start if the encoding of the database is not UTF-8, and its log says what to do."""
        with database_server.empty("ENCODING 'LATIN1' TEMPLATE template0") as database:
            server = Twistd(directory, {"TK__DATABASE__URL": database.dsn}).launch()
            assert server.wait() == 1
        assert "the database's encoding is LATIN1: create it with ENCODING 'UTF8'" in server.log

    def test_start_after_kill_during_migration(self, directory: Path, database_server: DatabaseServer) -> None:
        """The server starts although another one was killed during a migration and left its lock in the database."""
        with database_server.empty() as database:
            database.query("CREATE TABLE yoyo_lock (locked int PRIMARY KEY, ctime timestamp, pid int NOT NULL)")
            database.query("INSERT INTO yoyo_lock VALUES (1, now(), 1)")
            for migration in sorted((ROOT / "schema").glob("*.sql"))[:2]:
                database.query(migration.read_text())
            with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
                server.wait_until_ready()

    def test_stop_while_database_is_silent(self, directory: Path) -> None:
        """A server stops although its database accepts connections and does not respond."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
            server = Twistd(directory, {"TK__DATABASE__URL": url}).start()
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1)  # the server waits for the response to this
                assert server.stop() == 0
        assert "stopped" in server.log


class TestStopping:
    """SIGTERM: requests in progress are finished, and no event is lost."""

    def test_requests_in_progress(self, directory: Path, database: Database) -> None:
        """Requests that are being received or stored are finished, and the port is closed."""
        app = App().install(database)
        database.query(
            "CREATE FUNCTION wait_before_insert() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$"
        )
        database.query("CREATE TRIGGER wait BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION wait_before_insert()")
        bodies = [batch([make_event()]) for _ in range(2)]
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
            server.wait_until_ready()
            storing, arriving, idle = (socket.create_connection(("127.0.0.1", server.port)) for _ in range(3))
            storing.sendall(signed_request(app, bodies[0]))
            arriving.sendall(request_head(app, bodies[1]) + bodies[1][:20])
            idle.sendall(HEALTH_REQUEST)
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

    def test_shutdown_timeout(self, directory: Path, database: Database) -> None:
        """The server does not wait longer than the setting for an incomplete request."""
        app = App().install(database)
        settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__SHUTDOWN_TIMEOUT": "0.5"}
        with Twistd(directory, settings) as server, socket.socket() as peer:
            server.wait_until_ready()
            peer.connect(("127.0.0.1", server.port))
            peer.sendall(request_head(app, b"never sent"))
            wait_for(lambda: get_json(f"{server.url}/health")[0] == 200)
            assert server.stop() == 0
        assert "Traceback" not in server.log


class TestOptionsAndSettings:
    """Command-line options, environment variables and the ``.env`` file."""

    def test_help(self) -> None:
        """``--help`` lists every option with the name of its variable."""
        output = subprocess.run(
            [Path(sys.executable).parent / "twistd", "tkserver", "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        ).stdout
        for option in ("--host", "--port", "--endpoint", "--database-url", "--log-level"):
            assert option in output
        for variable in ("TK__SERVER__HOST", "TK__SERVER__PORT", "TK__DATABASE__URL", "TK__SERVER__LOG_LEVEL"):
            assert variable in output

    def test_precedence(self, directory: Path, database: Database) -> None:
        """Options take precedence over environment variables, and those over the ``.env`` file."""
        (directory / ".env").write_text("TK__SERVER__HOST=127.0.0.3\nTK__SERVER__LOG_LEVEL=error\nOTHER=1\n")
        settings = {
            "TK__SERVER__HOST": "127.0.0.2",
            "TK__SERVER__PORT": "1",
            "TK__DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none",
        }
        arguments = ("-n", "tkserver", "--port", "0", "--database-url", database.dsn, "--log-level", "info")
        with Twistd(directory, settings, arguments) as server:
            assert f"listens on http://127.0.0.2:{server.port}" in server.log
            wait_for(lambda: is_ready(f"http://127.0.0.2:{server.port}"))
        of_first = client_backends(database)  # some may not have ended yet
        quiet = Twistd(directory, {**settings, "TK__SERVER__PORT": "0"}, arguments[:2] + arguments[4:6]).launch()
        wait_for(lambda: client_backends(database) - of_first)
        assert quiet.stop() == 0
        assert "listens on" not in quiet.log

    @pytest.mark.parametrize(
        ("settings", "arguments", "line"),
        [
            ({"TK__SERVER__PORT": "many"}, (), "TK__SERVER__PORT: Input should be a valid integer"),
            ({"TK__SERVER__PORT": "65536"}, (), "TK__SERVER__PORT: Input should be less than or equal to 65535"),
            ({}, ("--port", "x"), "TK__SERVER__PORT: Input should be a valid integer"),
            ({"TK__SERVER__LOG_LEVEL": "loud"}, (), "TK__SERVER__LOG_LEVEL: Input should be 'debug', 'info'"),
            ({"TK__SERVER__PRT": "1"}, (), "TK__SERVER__PRT: unknown setting; did you mean TK__SERVER__PORT?"),
            ({"TK__SERVER": "1"}, (), "TK__SERVER: unknown setting"),
            ({"TK__": "1"}, (), "TK__: unknown setting"),
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
                "TK__SERVER__ENDPOINT: haproxy:ssl:1: Twisted expects the PROXY header inside TLS",
            ),
            (
                {},
                ("--endpoint", "systemd:domain=INET:index=0"),
                "TK__SERVER__ENDPOINT: systemd:domain=INET:index=0: there is no such inherited socket",
            ),
            ({"TK__RATE_LIMIT__FREE_RPM": "0"}, (), "TK__RATE_LIMIT__FREE_RPM: Input should be greater than"),
            (
                {"TK__SERVER__TRUSTED_PROXIES": "10.0.0.1/8"},
                (),
                "TK__SERVER__TRUSTED_PROXIES: must be IP addresses, networks",
            ),
            ({"TK__ADMIN__ALLOWED_HOSTS": "http://hunter2"}, (), "TK__ADMIN__ALLOWED_HOSTS: must be host names or"),
            ({"TK__REDIS__URL": "http://u:hunter2@h"}, (), "TK__REDIS__URL: not a Redis URL such as redis://"),
            ({"TK__REDIS__URL": "redis://u:hunter2@h:port"}, (), "TK__REDIS__URL: not a Redis URL such as redis://"),
            ({"TK__INGEST__MAX_BODY_BYTES": "0"}, (), "TK__INGEST__MAX_BODY_BYTES: Input should be greater"),
            ({"TK__DATABASE__URL": "mysql://u:hunter2@h/d"}, (), "TK__DATABASE__URL: not a PostgreSQL URL such as"),
            ({"TK__DATABASE__URL": "postgresql://u:hunter2@h/d?x=y"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__URL": "postgresql://u:hunter2@h:x/d"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__URL": "postgresql://u:hun@ter2@h/d"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            ({"TK__DATABASE__URL": "postgresql://h/d?sslmode=yes"}, (), "TK__DATABASE__URL: not a PostgreSQL URL"),
            (
                {"TK__DATABASE__DATA_DIR": "~nosuchuser/x"},
                (),
                "TK__DATABASE__DATA_DIR: the home directory of this user",
            ),
        ],
    )
    def test_invalid_settings(
        self, directory: Path, settings: dict[str, str], arguments: tuple[str, ...], line: str
    ) -> None:
        """The server ends with one line on standard error that names the variable but not its value."""
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

    def test_unreadable_env_file(self, directory: Path) -> None:
        """The server ends with one line if the ``.env`` file is not text."""
        (directory / ".env").write_bytes(b"TK__SERVER__PORT=\xff\xfe")
        server = Twistd(directory, {}).launch()
        assert server.wait() == 1
        assert server.log == "tkserver: .env: cannot be read as UTF-8\n"

    def test_invalid_settings_with_tac(self, directory: Path) -> None:
        """The server ends with one line on an invalid setting if it was started from the ``.tac`` file."""
        server = Twistd(directory, {"TK__SERVER__PORT": "x"}, ("-ny", str(ROOT / "tkserver.tac"))).launch()
        assert server.wait() == 1
        assert server.log.startswith("tkserver: TK__SERVER__PORT: ")
        assert server.log.count("\n") == 1

    def test_password_is_not_logged(self, directory: Path) -> None:
        """The log does not contain the password of a database that cannot be reached."""
        url = "postgresql://somebody:hunter2@127.0.0.1:1/d"
        with Twistd(directory, {"TK__DATABASE__URL": url}, ("-n", "tkserver", "--log-level", "debug")) as server:
            server.wait_for_line("is not available")
        assert "hunter2" not in server.log

    def test_port_in_use(self, directory: Path, database: Database) -> None:
        """The server ends with an error message if its port is in use."""
        with socket.create_server(("127.0.0.1", 0)) as other_server:
            port = other_server.getsockname()[1]
            server = Twistd(directory, {"TK__SERVER__PORT": str(port), "TK__DATABASE__URL": database.dsn}).launch()
            assert server.wait() == 1
        assert f"cannot listen on 127.0.0.1 port {port}: " in server.log
        assert "Traceback" not in server.log
        assert not (directory / "twistd.pid").exists()
