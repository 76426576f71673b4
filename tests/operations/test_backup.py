"""Backups: what docs/operating.md says about them works, and the server continues with a restored database."""

from __future__ import annotations

import subprocess
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import pytest
import pytest_twisted

from tests.support.client import SDK, App, Client
from tests.support.command import InProcessCommand
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.sample_statistics import aggregate, install_named
from tests.support.server import client_of, running_server
from tests.support.stored import events_by_user
from tkserver.operations import erasure, publishing
from tkserver.operations.apps import find_app
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.embedded.postgres import wheel_programs

ERASED = "client_erased"
STORED = make_event(user_id="client_kept")
NONCE = "0b7c8a3e-6b0f-4a52-8f4e-000000000001"
IGNORED = {"insight_apps": "changed_at"}
"""Columns that differ in a restored database."""


async def use(database: Database, app: App) -> None:
    """Use an installation, so that all its tables that matter have rows."""
    tkserver = InProcessCommand({"TK__DATABASE__URL": database.dsn})
    tkserver("apps", "set-quota", "my-cli", "1000")
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        erasure.record(connection, ERASED, None)
        publishing.publish(connection, find_app(connection, "my-cli"), None, datetime.now(timezone.utc), time.sleep)
    tkserver("shares", "create", "my-cli", "--name", "Board", "--url", "https://stats.example.org")
    tkserver("dashboard", "--no-browser", "--url", "https://stats.example.org")
    async with running_server(database) as server:
        client = client_of(server)
        assert (await client.send(app, [STORED], SDK, nonce=NONCE)).status == 200
        assert (await client.send(app, [make_event(), {**make_event(), "timestamp": "yesterday"}])).status == 207
    aggregate(database)


def contents(database: Database) -> dict[str, str]:
    """Return a digest of the rows of each table."""
    tables = database.query("SELECT relname FROM pg_stat_user_tables WHERE relname !~ 'yoyo|readiness' ORDER BY 1")
    digest = "SELECT md5(coalesce(string_agg(r, E'\\n' ORDER BY r), '')) FROM (SELECT {} AS r FROM {} AS t) AS rows"
    return {
        name: database.value(digest.format(f"(to_jsonb(t) - '{IGNORED.get(name, '')}')::text", name))
        for (name,) in tables
    }


def run(program: str, *arguments: str | Path) -> None:
    """Run a program of PostgreSQL."""
    subprocess.run([wheel_programs() / program, *arguments], check=True, stdout=subprocess.DEVNULL)


async def check_restored(database: Database, app: App) -> None:
    """Check that a server continues with a restored database as it would have with the original one."""
    async with running_server(database) as server:
        client: Client = client_of(server)
        assert (await client.send(app, [make_event()], SDK, nonce=NONCE)).code == "nonce_reused"
        repeated = await client.send(app, [STORED])
        assert (repeated.status, repeated.json["duplicates"]) == (200, 1)
        assert (await client.send(app, [make_event(user_id=ERASED), make_event(user_id="client_new")])).status == 200
        assert (await client.request("GET", "/public/my-cli")).status == 200
    users = events_by_user(database, app)
    assert (users["client_kept"], users["client_new"], ERASED in users) == (1, 1, False)
    aggregate(database)
    stats = InProcessCommand({"TK__DATABASE__URL": database.dsn})("stats", "my-cli", "--json").json
    assert stats["totals"]["events"] == sum(users.values())


@pytest_twisted.ensureDeferred
async def test_complete_backup(database: Database, database_server: DatabaseServer, directory: Path) -> None:
    """A complete backup, restored into an empty database, contains everything."""
    app, dump = install_named(database, "my-cli"), directory / "tkserver.dump"
    await use(database, app)
    run("pg_dump", "-Fc", "-f", dump, database.dsn)
    with database_server.empty() as restored:
        run("pg_restore", "--exit-on-error", "--no-owner", "-d", restored.dsn, dump)
        assert contents(restored) == contents(database)
        await check_restored(restored, app)


@pytest_twisted.ensureDeferred
async def test_backup_of_the_data(database: Database, database_server: DatabaseServer, directory: Path) -> None:
    """A backup of the data alone can be restored into a new installation, without an error."""
    app, dump = install_named(database, "my-cli"), directory / "tkserver.sql"
    await use(database, app)
    run("pg_dump", "--data-only", "-f", dump, database.dsn)
    with database_server.migrated() as restored:
        run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, restored.dsn)
        assert contents(restored) == contents(database)
        await check_restored(restored, app)


@pytest.mark.parametrize("table", ["erasure_key", "insight_progress", "nonce_window"])
def test_rows_in_use_are_not_replaced(database: Database, table: str) -> None:
    """A row that is in use already is not replaced: erasures would have no effect, or events would count twice."""
    database.query("INSERT INTO erasures (user_hash) VALUES (sha256(''))")
    database.query("UPDATE insight_progress SET watermark = 7")
    database.query("UPDATE nonce_window SET deleted_until = now()")
    before = database.value(f"SELECT {table}::text FROM {table}")
    with pytest.raises(Exception, match="duplicate key"):
        database.query(f"INSERT INTO {table} SELECT * FROM {table}")
    assert database.value(f"SELECT {table}::text FROM {table}") == before
