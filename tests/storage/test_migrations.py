"""Migrations of the schema, by one server at a time."""

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
from tkserver.storage.blocking import BlockingConnections, rows, transaction
from tkserver.storage.errors import ConnectionLost, StorageError, Unavailable

NEW_INDEXES = ["events_app_hour_idx", "events_timestamp_idx"]
OLD_INDEXES = ["events_app_timestamp_idx", "events_retention_idx"]

VALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'events'::regclass AND indisvalid"
INVALIDATE = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass"

BUILDING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
  AND query LIKE '%CREATE INDEX CONCURRENTLY%'
"""

DROPPING = BUILDING.replace("CREATE INDEX", "DROP INDEX")

MIGRATIONS = sorted(migrations.directory().glob("*.sql"))


def test_migrations_are_numbered_and_described() -> None:
    """Migrations are numbered without gaps, and begin with a comment."""
    assert [path.name[:5] for path in MIGRATIONS] == [f"{n:04}_" for n in range(1, len(MIGRATIONS) + 1)]
    assert all(path.read_text().startswith("-- ") for path in MIGRATIONS)


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.name)
def test_migration_can_be_applied_twice(database: Database, path: Path) -> None:
    """A server that was killed before it recorded a migration applies it again."""
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = %s", path.stem)
    migrations.migrate(database.dsn, BlockingConnections())
    assert database.value("SELECT count(*) FROM _yoyo_migration") == len(MIGRATIONS)


def test_indexes_are_replaced_while_events_are_stored(database: Database) -> None:
    """Indexes of events are built and dropped while events are stored, and rebuilt after an interruption."""
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = '0016_event_indexes'")
    for name in NEW_INDEXES:
        database.query(INVALIDATE, name)
    migrations.migrate(database.dsn, BlockingConnections())
    assert set(NEW_INDEXES) <= indexes(database)
    database.query(f"DROP INDEX {', '.join(NEW_INDEXES)}")
    for name in OLD_INDEXES:
        database.query(f"CREATE INDEX {name} ON events (app_id)")
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = '0016_event_indexes'")
    migration = threading.Thread(target=migrations.migrate, args=(database.dsn, BlockingConnections()))
    with closing(BlockingConnections().connect(database.dsn)) as writer, transaction(writer):
        rows(writer, "LOCK TABLE events IN ROW EXCLUSIVE MODE")  # the lock of a transaction that has written to it
        migration.start()
        wait_for(lambda: database.value(BUILDING))
        store(database, App(), 3)
        assert migration.is_alive()
    migration.join(30)
    assert set(NEW_INDEXES) <= indexes(database)
    assert not indexes(database) & set(OLD_INDEXES)
    assert database.value("SELECT count(*) FROM _yoyo_migration") == len(MIGRATIONS)


@pytest.mark.parametrize("reading", [False, True], ids=["writer", "reader"])
def test_old_indexes_are_dropped_without_blocking(database: Database, reading: bool) -> None:
    """A transaction that has used an old index, such as an export, delays the migration and nobody else."""
    for name in OLD_INDEXES:
        database.query(f"CREATE INDEX {name} ON events (app_id)")
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = '0016_event_indexes'")
    migration = threading.Thread(target=migrations.migrate, args=(database.dsn, BlockingConnections()))
    with closing(BlockingConnections().connect(database.dsn)) as user, transaction(user):
        rows(user, "SELECT FROM events" if reading else "LOCK TABLE events IN ROW EXCLUSIVE MODE")
        migration.start()
        wait_for(lambda: database.value(DROPPING))
        store(database, App(), 3)
        assert migration.is_alive()
    migration.join(30)
    assert not indexes(database) & set(OLD_INDEXES)


def indexes(database: Database) -> set[str]:
    """Return the names of the valid indexes of events."""
    return {name for (name,) in database.query(VALID)}


def test_current_schema_needs_no_privileges(database: Database) -> None:
    """If no migration is missing, the role of the server need not be allowed to change the schema."""
    role = f"reader_{database.value('SELECT current_database()')}"
    database.query(f"CREATE ROLE {role} LOGIN")
    database.query(f"GRANT SELECT ON _yoyo_migration TO {role}")
    try:
        migrations.migrate(database.dsn.replace("postgres@", f"{role}@"), BlockingConnections())
    finally:
        database.query(f"DROP OWNED BY {role}")
        database.query(f"DROP ROLE {role}")


def test_unreachable_database_is_a_temporary_error() -> None:
    """If the database cannot be reached, the migration can be attempted again later."""
    with pytest.raises(ConnectionLost):
        migrations.migrate("postgresql://nobody@127.0.0.1:1/none", BlockingConnections())


def test_migration_waits_for_another_server(database_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another server migrates the database, this server waits, and fails after a timeout."""
    monkeypatch.setattr(migrations, "_LOCK_TIMEOUT", 0.4)
    with database_server.empty() as database:
        with (
            migrations._migration_lock(BlockingConnections().connect(database.dsn), time.sleep),
            pytest.raises(Unavailable, match="another server is still migrating"),
        ):
            migrations.migrate(database.dsn, BlockingConnections())
        migrations.migrate(database.dsn, BlockingConnections())


def test_old_postgresql_is_rejected(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """If PostgreSQL is too old, the error tells which version is needed."""
    monkeypatch.setattr(migrations, "OLDEST_POSTGRESQL", 99)
    with pytest.raises(migrations.IncompatibleDatabase, match=r"PostgreSQL \d+ is too old: 99 or later is needed"):
        migrations.migrate(database.dsn, BlockingConnections())


def test_waiting_migration_can_be_stopped(database_server: DatabaseServer) -> None:
    """A server that waits for another one to migrate the database can be stopped."""
    with database_server.empty() as database:
        connections = BlockingConnections()
        with migrations._migration_lock(BlockingConnections().connect(database.dsn), time.sleep):
            threading.Timer(0.3, connections.stop).start()
            with pytest.raises(Unavailable):
                migrations.migrate(database.dsn, connections)


def test_migration_can_be_stopped_while_database_does_not_respond() -> None:
    """A server that waits for a database that does not respond can be stopped."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connections = BlockingConnections()
        threading.Timer(0.3, connections.stop).start()
        port = silent.getsockname()[1]
        with pytest.raises(StorageError):
            migrations.migrate(f"postgresql://nobody@127.0.0.1:{port}/none?connect_timeout=2", connections)


@pytest.mark.parametrize("table", ["events", "apps", "nonces"])
def test_tables_of_another_program(database_server: DatabaseServer, table: str) -> None:
    """A table of another program is named before anything is changed, and a schema of its own solves the problem."""
    with database_server.empty() as database:
        database.query(f"CREATE TABLE {table} (id int, name text)")
        with pytest.raises(migrations.IncompatibleDatabase, match=f"the names {table} in this database"):
            migrations.migrate(database.dsn, BlockingConnections())
        assert database.query("SELECT relname FROM pg_stat_user_tables") == [(table,)]
        database.query("CREATE SCHEMA telemetry")
        migrations.migrate(f"{database.dsn}&options=-csearch_path%3Dtelemetry", BlockingConnections())
        assert database.query(f"SELECT * FROM public.{table}") == []


def test_columns_of_created_tables(database: Database) -> None:
    """The check knows all tables of the schema, and their columns except those that later migrations have added."""
    known: dict[str, set[str]] = {}
    for path in MIGRATIONS:
        known |= dict(migrations._created_tables(path.read_text()))
    columns = "SELECT array_agg(column_name::text) FROM information_schema.columns WHERE table_name = %s"
    existing = {name for (name,) in database.query("SELECT relname FROM pg_stat_user_tables")}
    assert {name for name in existing if "yoyo" not in name and not name.startswith("insight_")} <= set(known)
    assert all(needed <= set(database.value(columns, name)) for name, needed in known.items() if name in existing)
    assert {"event_id", "event_data", "received_at"} <= known["events"]
