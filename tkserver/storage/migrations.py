"""Migrations of the database schema: the numbered SQL files in ``schema/``, each of which is applied once.

All functions block, and are called in threads.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlBackend

from tkserver import log
from tkserver.storage.blocking import BlockingConnections, Connection, rows, translated, value
from tkserver.storage.errors import Unavailable

_log = log.logger(__name__)

OLDEST_POSTGRESQL = 14

_TABLE = "_yoyo_migration"
_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema"
_COLUMNS = """
SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema
"""
_CREATED_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+) \($(.*?)^\);", re.MULTILINE | re.DOTALL)
_CREATED_COLUMN = re.compile(r"^    ([a-z]\w*) ", re.MULTILINE)
_LOCK_KEY = 0x746B736572766572  # "tkserver" in ASCII
_LOCK_TIMEOUT = 60.0
_LOCK_POLL_INTERVAL = 0.2


class IncompatibleDatabase(Exception):
    """This version of the server cannot use the database, and a later attempt would fail, too."""

    holds_no_values = True


def migrate(dsn: str, connections: BlockingConnections) -> None:
    """Apply the missing migrations, while no other server migrates the database.

    :param dsn: a libpq URL or connection string.
    :param connections: opens the connections, and stops the migration when it is stopped.
    :raise IncompatibleDatabase: if PostgreSQL is too old, the schema is too new, the encoding is wrong, or if there are
        tables of another program with the same names.
    :raise StorageError: if the migration failed. A later attempt may succeed.
    """
    with closing(connections.connect(dsn)) as connection, _migration_lock(connection, connections.sleep):
        _check_server(connection)
        known = read_migrations(str(directory()))
        applied = _applied(connection)
        _check_not_newer(applied, {migration.id for migration in known})
        missing = [migration.id for migration in known if migration.id not in applied]
        if missing:
            _check_tables(connection, missing)
            with translated():
                _apply(dsn, known, connections)


def state(connection: Connection) -> tuple[set[str], set[str]]:
    """Return the names of the migrations that were applied to a database, and of those that this version contains."""
    return _applied(connection), {migration.id for migration in read_migrations(str(directory()))}


def directory() -> Path:
    """Return the directory of the migrations: inside the package if it was installed, next to it in a checkout."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / "schema", package.parent / "schema") if path.is_dir())


@contextmanager
def _migration_lock(connection: Connection, sleep: Callable[[float], None]) -> Iterator[None]:
    """Wait for the lock of migrations, and hold it.

    It is an advisory lock, which PostgreSQL releases if the server dies. The lock of yoyo would stay forever.

    :raise Unavailable: if another server holds the lock for longer than ``_LOCK_TIMEOUT``.
    """
    for _ in range(int(_LOCK_TIMEOUT / _LOCK_POLL_INTERVAL)):
        if value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK_KEY):
            break
        sleep(_LOCK_POLL_INTERVAL)
    else:
        raise Unavailable("another server is still migrating the database")
    try:
        yield
    finally:
        value(connection, "SELECT pg_advisory_unlock(%s)", _LOCK_KEY)


def _check_server(connection: Connection) -> None:
    version = connection.server_version // 10_000
    if version < OLDEST_POSTGRESQL:
        raise IncompatibleDatabase(f"PostgreSQL {version} is too old: {OLDEST_POSTGRESQL} or later is needed")
    encoding = value(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        raise IncompatibleDatabase(f"the database's encoding is {encoding}: create it with ENCODING 'UTF8'")


def _applied(connection: Connection) -> set[str]:
    if value(connection, "SELECT to_regclass(%s)", _TABLE) is None:
        return set()
    return {str(migration_id) for (migration_id,) in rows(connection, f"SELECT migration_id FROM {_TABLE}")}


def _check_not_newer(applied: set[str], known: set[str]) -> None:
    unknown = applied - known
    if unknown:
        raise IncompatibleDatabase(
            f"the database was migrated by a newer tkserver (it has {max(unknown)}): upgrade this server"
        )


def _check_tables(connection: Connection, missing: Sequence[str]) -> None:
    """Check that there are no tables of another program with the names of those that migrations will create.

    A table that has all columns is ours, for example from a backup without the table of applied migrations.

    :param missing: the names of the migrations that will be applied.
    """
    columns = defaultdict(set)
    for table, column in rows(connection, _COLUMNS):
        columns[table].add(column)
    foreign = [
        table
        for migration in missing
        for table, needed in _created_tables((directory() / f"{migration}.sql").read_text())
        if table in columns and not needed <= columns[table]
    ]
    if foreign:
        raise IncompatibleDatabase(
            f"another program uses tables with the names {', '.join(foreign)} in this database: use another database,"
            " or a schema of its own (add options=-csearch_path%3DNAME to TK__DATABASE__URL)"
        )


def _created_tables(sql: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the tables that a migration creates, with their columns.

    Those of statistics are omitted: they have changed since, and no other program has tables with these names.
    """
    for table, body in _CREATED_TABLE.findall(sql):
        if not table.startswith("insight_"):
            yield table, set(_CREATED_COLUMN.findall(body))


def _apply(dsn: str, known: Any, connections: BlockingConnections) -> None:
    class Backend(_Backend):
        def connect(self, dburi: str) -> Connection:
            return connections.connect(dburi)

    with Backend(dsn, _TABLE) as backend:
        backend.init_database()
        backend.break_lock()  # its owner is dead, because this process holds the advisory lock
        missing = backend.to_apply(known)
        is_new = len(missing) == len(known)
        for migration in missing:
            backend.apply_one(migration)
            if is_new:
                _log.debug("applied migration {migration}", migration=migration.id, event="migrated")
            else:
                _log.info("applied migration {migration}", migration=migration.id, event="migrated")
        if is_new:
            _log.info("created the tables", event="created")


class _Backend(PostgresqlBackend):  # type: ignore[misc]
    """The backend of yoyo, for any libpq connection string: yoyo itself parses the string, and supports only URLs."""

    def list_tables(self, **_: object) -> list[str]:
        """Return the tables of the current schema, among which yoyo looks for its own."""
        return [str(row[0]) for row in self.execute(_TABLES).fetchall()]

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """Return a record for the log of yoyo, without user and host, which are unknown in some containers."""
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": "",
            "hostname": "",
            "created_at_utc": datetime.now(timezone.utc).replace(tzinfo=None),
            "operation": operation,
        }
