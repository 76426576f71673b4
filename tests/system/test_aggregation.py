"""Aggregation in the background by real servers: processes that die, several servers, backlogs and outages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.aggregation import ENABLED, aggregating_process, has_ended, plain_event, wait_until_aggregated
from tests.support.blocking_client import get_text, post_batch
from tests.support.client import App, batch
from tests.support.cluster import Cluster, installations, version
from tests.support.command import Command
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.json_log import lines_of_event, parse_json_log
from tests.support.ports import reserved_port
from tests.support.process import Twistd
from tests.support.raw_events import insert
from tests.support.scrape import Scrape
from tests.support.waiting import wait_for
from tkserver.insight import aggregation, aggregator
from tkserver.insight.stats import compute
from tkserver.storage.blocking import BlockingConnections, Connection, value

NEWEST = max(installations(), key=version)

LOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@contextmanager
def running(directory: Path, dsn: str, admin_port: int | str = "none", **settings: str) -> Iterator[Twistd]:
    """Run a server that aggregates. Unless the test has killed it, it must stop normally."""
    admin = {"TK__ADMIN__PORT": str(admin_port)}
    with Twistd(directory, {"TK__DATABASE__URL": dsn, **ENABLED, **admin, **settings}) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() in (0, -signal.SIGKILL)
    assert "Traceback (most recent call last)" not in server.log


@pytest.fixture
def other_directory(directory: Path) -> Path:
    """The working directory of a second server."""
    other = directory / "other"
    other.mkdir()
    other.chmod(0o777)
    return other


@pytest.fixture
def admin_port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture
def other_admin_port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@contextmanager
def connected(database: Database) -> Iterator[Connection]:
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        yield connection


@contextmanager
def locked_aggregates(database: Database) -> Iterator[None]:
    """Keep every aggregation waiting in the middle of its transaction."""
    with connected(database) as connection:
        connection.autocommit = False
        aggregation.lock_progress(connection)
        yield


def send(server: Twistd, app: App, events: int, **overrides: object) -> None:
    """Send a batch, which must be stored."""
    assert post_batch(server.url, app, batch([make_event(**overrides) for _ in range(events)])) == 200


def aggregated_events(database: Database, app: App, days: int = 300) -> int:
    """Return the number of aggregated events."""
    with connected(database) as connection:
        now, parameters = value(connection, "SELECT now()"), {"days": str(days), "ci": "include"}
        panel = compute(connection, app.app_id, app.org_id, "x", "overview", parameters, now)
    return int(panel["totals"]["events"])


def metric(port: int, name: str) -> float:
    """Return a metric of the aggregation."""
    return Scrape(get_text(f"http://127.0.0.1:{port}/metrics")).value(f"tkserver_aggregation_{name}")


def store(database: Database, app: App, events: int) -> None:
    """Insert many equal events of today into an empty table."""
    with connected(database) as connection:
        now = value(connection, "SELECT now()")
        insert(connection, app, [plain_event(1, timestamp=now, received_at=now)])
    columns = database.value(
        "SELECT string_agg(column_name, ', ') FROM information_schema.columns"
        " WHERE table_name = 'events' AND column_name NOT IN ('id', 'event_id')"
    )
    database.query(
        f"INSERT INTO events (id, event_id, {columns}) SELECT n, gen_random_uuid(), {columns}"
        " FROM events, generate_series(2, %s) AS n",
        events,
    )
    database.query("SELECT setval(pg_get_serial_sequence('events', 'id'), %s)", events)


def test_server_aggregates(directory: Path, database: Database, admin_port: int) -> None:
    """Events that a server stores appear in the statistics, and in the metrics of the aggregation."""
    app = App().install(database)
    with running(directory, database.dsn, admin_port) as server:
        send(server, app, 7)
        wait_until_aggregated(database, server)
        wait_for(lambda: metric(admin_port, "events_sum") == 7)
        wait_for(lambda: metric(admin_port, "lag_events") == metric(admin_port, "lag_seconds") == 0)
        assert metric(admin_port, "active") == 1
        assert metric(admin_port, "duration_seconds_count") == metric(admin_port, "events_count") >= 1
        assert metric(admin_port, "failures_total") == 0
    assert server.log.count("this server aggregates events for statistics") == 1
    assert aggregated_events(database, app) == 7


def test_disabled(directory: Path, database: Database, admin_port: int) -> None:
    """A server that does not aggregate has no process and no lag, and ``tkserver stats`` works."""
    app = App().install(database)
    with running(directory, database.dsn, admin_port, TK__INSIGHT__ENABLED="false") as server:
        send(server, app, 2)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
        text = get_text(f"http://127.0.0.1:{admin_port}/metrics")
        assert ("tkserver_aggregation_lag_seconds", frozenset()) not in Scrape(text).samples
        command = Command.on(database, directory, TK__INSIGHT__ENABLED="false")
        assert command("stats", app.app_id, "--json", code=0).json["totals"]["events"] == 2
    assert children == ""


def test_process_has_low_priority_and_no_secrets(directory: Path, database: Database) -> None:
    """The process has a low priority, the user of the server, and no DSN in its arguments and environment."""
    with running(directory, f"{database.dsn}&password=hunter2") as server:
        server.wait_for_line("this server aggregates")
        process, parent = Path(f"/proc/{aggregating_process(server)}"), Path(f"/proc/{server.pid}")
        assert os.getpriority(os.PRIO_PROCESS, int(process.name)) > os.getpriority(os.PRIO_PROCESS, server.pid)
        assert ids(process) == ids(parent)
        for name in ("cmdline", "environ"):
            assert b"hunter2" not in (process / name).read_bytes()
    assert "hunter2" not in server.log


def ids(process: Path) -> list[str]:
    """Return the lines with the users and groups of a process."""
    lines = (process / "status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Uid", "Gid", "Groups"))]


def test_modules_of_the_working_directory_are_not_imported(directory: Path, database: Database) -> None:
    """A file in the working directory does not replace a module of the process."""
    for name in ("json", "msgspec", "psycopg2", "tkserver"):
        (directory / f"{name}.py").write_text("raise SystemExit('imported')")
    with running(directory, database.dsn) as server:
        server.wait_for_line("this server aggregates")
    assert "imported" not in server.log


def test_server_is_killed(directory: Path, database: Database) -> None:
    """The process ends when its server is killed, also in the middle of a transaction."""
    app = App().install(database)
    with locked_aggregates(database), running(directory, database.dsn) as server:
        send(server, app, 1)
        wait_for(lambda: database.value(LOCKED))
        pid = aggregating_process(server)
        server.kill()
        wait_for(lambda: has_ended(pid))
        wait_for(lambda: not database.value(LOCKED))  # the transaction does not wait for its turn


def test_process_is_killed(directory: Path, database: Database, admin_port: int) -> None:
    """A process that dies is started again, and nothing is counted twice or skipped."""
    app = App().install(database)
    with running(directory, database.dsn, admin_port) as server:
        for deaths in range(1, 4):
            send(server, app, 5)
            os.kill(aggregating_process(server), signal.SIGKILL)
            wait_for(lambda number=deaths: metric(admin_port, "failures_total") == number)  # type: ignore[misc]
            send(server, app, 1)
        wait_until_aggregated(database, server)
    assert server.log.count("the aggregating process has ended (signal 9)") == 3
    assert aggregated_events(database, app) == 18


def test_process_ignores_signals_to_the_group(directory: Path, database: Database) -> None:
    """Signals that a terminal or systemd also sends to the process do not end it before its server."""
    with running(directory, database.dsn) as server:
        server.wait_for_line("this server aggregates")
        pid = aggregating_process(server)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        app = App().install(database)
        send(server, app, 1)
        wait_until_aggregated(database, server)
        assert aggregating_process(server) == pid
    assert has_ended(pid)
    assert "has ended" not in server.log


def test_unexpected_error(directory: Path, database: Database, admin_port: int) -> None:
    """An error in the process is logged with its traceback and without data, and the process is started again."""
    app = App().install(database)
    with running(directory, database.dsn, admin_port, TK__SERVER__LOG_FORMAT="json") as server:
        send(server, app, 1, user_id="client_hunter2")
        wait_until_aggregated(database, server)
        database.query("UPDATE insight_first_days SET users = 'hunter2'")
        send(server, app, 1, user_id="client_hunter2b")
        wait_for(lambda: metric(admin_port, "failures_total") >= 2)
        lines = parse_json_log(server.log)
    crash, ended = (lines_of_event(name, lines)[0] for name in ("aggregation_crashed", "aggregation_ended"))
    assert (crash["level"], crash["error"]) == ("critical", "builtins.ValueError")
    assert "aggregation.py" in crash["traceback_text"]
    assert ended["reason"] == "exit status 1"
    assert "hunter2" not in server.log


def test_stop_during_an_aggregation(directory: Path, other_directory: Path, database: Database) -> None:
    """A server stops although its process is in a transaction. The next server continues, and counts nothing twice."""
    app = App().install(database)
    with locked_aggregates(database), running(directory, database.dsn) as server:
        send(server, app, 3)
        wait_for(lambda: database.value(LOCKED))
        pid = aggregating_process(server)
        assert server.stop() == 0
        assert has_ended(pid)
        assert "has ended" not in server.log
    with running(other_directory, database.dsn) as server:
        wait_until_aggregated(database, server)
    assert aggregated_events(database, app) == 3


def test_two_servers(
    directory: Path, other_directory: Path, database: Database, admin_port: int, other_admin_port: int
) -> None:
    """Two servers report the lag, and one of them aggregates. When it is killed, the other one continues."""
    app = App().install(database)
    with running(directory, database.dsn, admin_port) as first:
        first.wait_for_line("this server aggregates")
        with running(other_directory, database.dsn, other_admin_port) as second:
            with locked_aggregates(database):
                send(second, app, 4)
                for port in (admin_port, other_admin_port):
                    wait_for(partial(has_lag, port))
            wait_until_aggregated(database)
            assert (metric(admin_port, "active"), metric(other_admin_port, "active")) == (1, 0)
            wait_for(lambda: metric(other_admin_port, "lag_events") == 0)
            first.kill()
            send(second, app, 2)
            second.wait_for_line("this server aggregates")
            wait_until_aggregated(database, second)
            assert metric(other_admin_port, "active") == 1
    assert aggregated_events(database, app) == 6


def has_lag(port: int) -> bool:
    return metric(port, "lag_events") == 4 and metric(port, "lag_seconds") > 0


def test_erased_user_disappears_on_every_server(directory: Path, other_directory: Path, database: Database) -> None:
    """A user whom a command erases disappears from all numbers, while both servers receive events of the user."""
    app = App().install(database)
    with running(directory, database.dsn) as first, running(other_directory, database.dsn) as second:
        for server in (first, second):
            send(server, app, 3, user_id="client_erased")
            send(server, app, 2, user_id="client_other")
        wait_until_aggregated(database)
        assert aggregated_events(database, app) == 10
        Command.on(database, directory)("erase", "--user", "client_erased", code=0)
        for server in (first, second):
            send(server, app, 3, user_id="client_erased")
            send(server, app, 1, user_id="client_other")
        wait_until_aggregated(database)
        assert aggregated_events(database, app) == 6
        assert database.query("SELECT user_id FROM insight_users") == [("client_other",)]


def test_first_start_with_many_events(directory: Path, database: Database, admin_port: int) -> None:
    """A server aggregates the events that it finds in the background, and reports its progress."""
    app = App().install(database)
    store(database, app, 50_000)
    with running(directory, database.dsn, admin_port) as server:
        server.wait_for_line(r"events aggregated: 0; about 50000 remain")
        send(server, app, 1)
        server.wait_for_line(r"events aggregated: 5000\d; none remain")
        wait_until_aggregated(database, server)
    assert aggregated_events(database, app) == 50_001


def test_new_definitions(directory: Path, database: Database) -> None:
    """A server with new definitions computes everything again, and says so."""
    app = App().install(database)
    with running(directory, database.dsn) as server:
        send(server, app, 3)
        wait_until_aggregated(database, server)
    database.query("UPDATE insight_progress SET definitions = definitions - 1")
    database.query("UPDATE insight_cells SET events = 99")
    with running(directory, database.dsn) as server:
        server.wait_for_line("the definitions of statistics have changed")
        wait_for(lambda: aggregated_events(database, app) == 3)


def test_older_server_leaves_newer_aggregates_alone(directory: Path, database: Database) -> None:
    """A server does not change aggregates that a newer version has computed, and says so."""
    app = App().install(database)
    database.query("UPDATE insight_progress SET definitions = 1000000")
    with running(directory, database.dsn) as server:
        send(server, app, 1)
        server.wait_for_line("a newer version of tkserver has computed the statistics")
        command = Command.on(database, directory)
        assert "Not included yet: about 1 event." in command("stats", app.app_id, code=0).errors
        assert "use that version" in command("stats", "rebuild", app.app_id, code=2).errors
    assert database.query("SELECT watermark, definitions FROM insight_progress") == [(0, 1000000)]


def test_commands_while_another_process_aggregates(directory: Path, database: Database) -> None:
    """``tkserver stats`` uses what is there, and says how much is missing; a rebuild waits until it is complete."""
    app = App().install(database)
    command = Command.on(database, directory)
    with running(directory, database.dsn) as server:
        send(server, app, 2)
        wait_until_aggregated(database, server)
        with connected(database) as connection:
            value(connection, "SELECT pg_advisory_lock(%s)", aggregator._LOCK_KEY)
            send(server, app, 3)
            done = command("stats", app.app_id, "--json", code=0)
            assert done.json["totals"]["events"] == 2
            assert done.errors == "Another process is aggregating. Not included yet: about 3 events.\n"
        database.query("UPDATE insight_cells SET events = 99")
        command("stats", "rebuild", app.app_id, code=0)
        assert aggregated_events(database, app) == 5


@pytest.mark.timeout(180)
def test_database_outage(directory: Path, admin_port: int) -> None:
    """The aggregation continues after the database was away, and the log says both once."""
    with Cluster(NEWEST, directory) as cluster:
        with running(directory, cluster.dsn(), admin_port) as server:
            app = App().install(cluster.database)
            send(server, app, 1)
            wait_until_aggregated(cluster.database, server)
            pid = aggregating_process(server)
            cluster.stop("immediate")
            wait_for(lambda: metric(admin_port, "failures_total") >= 3)
            assert metric(admin_port, "active") == 0
            cluster.start()
            server.wait_for_line("aggregation continues")
            server.wait_until_ready()
            send(server, app, 1)
            wait_until_aggregated(cluster.database, server)
            assert aggregating_process(server) == pid
        assert server.log.count("aggregation waits for the database") == 1
        assert aggregated_events(cluster.database, app) == 2
