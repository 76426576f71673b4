"""The schema is brought up to date, once, whoever else is at it."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.client import App
from tests.support.database import Database, DatabaseServer
from tests.support.stored import store
from tests.support.waiting import wait_for
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, transaction
from tkserver.storage.errors import ConnectionLost, StorageError, Unavailable

VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'events_retention_idx'::regclass"

BUILDING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
  AND query LIKE 'CREATE INDEX CONCURRENTLY%'
"""

MIGRATIONS = sorted(migrations.directory().glob("*.sql"))


def test_names() -> None:
    """Migrations are numbered without a gap, and begin with a comment."""
    assert [path.name[:5] for path in MIGRATIONS] == [f"{n:04}_" for n in range(1, len(MIGRATIONS) + 1)]
    assert all(path.read_text().startswith("-- ") for path in MIGRATIONS)


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.name)
def test_each_can_be_run_twice(database: Database, path: Path) -> None:
    """A server that was killed before it could note that a migration was applied runs it again."""
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = %s", path.stem)
    migrations.migrate(database.dsn, BlockingConnections())
    assert database.value("SELECT count(*) FROM _yoyo_migration") == len(MIGRATIONS)


def test_index_beside_writers(database: Database) -> None:
    """The index for retention is made while events are written, and made anew where that was interrupted."""
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = '0007_retention'")
    database.query("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'events_retention_idx'::regclass")
    migrations.migrate(database.dsn, BlockingConnections())
    assert database.value(VALID)
    database.query("DROP INDEX events_retention_idx")
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = '0007_retention'")
    migrating = threading.Thread(target=migrations.migrate, args=(database.dsn, BlockingConnections()))
    writer = BlockingConnections().connect(database.dsn)
    with closing(writer), transaction(writer), writer.cursor() as cursor:
        cursor.execute("LOCK TABLE events IN ROW EXCLUSIVE MODE")  # as one who has just written to it
        migrating.start()
        wait_for(lambda: database.value(BUILDING))
        store(database, App(), 3)
        assert migrating.is_alive()
    migrating.join(30)
    assert database.value(VALID)
    assert database.value("SELECT count(*) FROM _yoyo_migration") == len(MIGRATIONS)


def test_nothing_to_do_needs_no_rights(database: Database) -> None:
    """Where the schema is up to date, the server's role may be one that cannot change it."""
    role = f"reader_{database.value('SELECT current_database()')}"
    database.query(f"CREATE ROLE {role} LOGIN")
    database.query(f"GRANT SELECT ON _yoyo_migration TO {role}")
    try:
        migrations.migrate(database.dsn.replace("postgres@", f"{role}@"), BlockingConnections())
    finally:
        database.query(f"DROP OWNED BY {role}")
        database.query(f"DROP ROLE {role}")


def test_not_there() -> None:
    """A database that cannot be reached may be there later."""
    with pytest.raises(ConnectionLost):
        migrations.migrate("postgresql://nobody@127.0.0.1:1/none", BlockingConnections())


def test_one_at_a_time(database_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another server migrates, this one waits, and not for ever."""
    monkeypatch.setattr(migrations, "_LOCK_PATIENCE", 0.4)
    with database_server.empty() as database:
        with (
            migrations._alone(BlockingConnections().connect(database.dsn), time.sleep),
            pytest.raises(Unavailable, match="another server is still migrating"),
        ):
            migrations.migrate(database.dsn, BlockingConnections())
        migrations.migrate(database.dsn, BlockingConnections())


def test_too_old(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL that is too old is refused, in words."""
    monkeypatch.setattr(migrations, "OLDEST_POSTGRESQL", 99)
    with pytest.raises(migrations.IncompatibleDatabase, match=r"PostgreSQL \d+ is too old: 99 or later is needed"):
        migrations.migrate(database.dsn, BlockingConnections())


def test_stopped(database_server: DatabaseServer) -> None:
    """Who waits for another server to migrate can be told to stop."""
    with database_server.empty() as database:
        connections = BlockingConnections()
        with migrations._alone(BlockingConnections().connect(database.dsn), time.sleep):
            threading.Timer(0.3, connections.stop).start()
            with pytest.raises(Unavailable):
                migrations.migrate(database.dsn, connections)


def test_stopped_while_the_database_is_silent() -> None:
    """So can who waits for a database that has stopped to answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connections = BlockingConnections()
        threading.Timer(0.3, connections.stop).start()
        port = silent.getsockname()[1]
        with pytest.raises(StorageError):
            migrations.migrate(f"postgresql://nobody@127.0.0.1:{port}/none?connect_timeout=2", connections)
