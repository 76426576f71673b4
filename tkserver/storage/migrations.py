"""The schema, brought up to date: the numbered SQL files of ``schema/``, each applied once.

Everything here blocks, and is called in a thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
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
_LOCK_KEY = 0x746B736572766572  # "tkserver" in ASCII
_LOCK_PATIENCE = 60.0


class IncompatibleDatabase(Exception):
    """The database cannot be used with this version of the server, and waiting will not mend it."""

    holds_no_values = True


def migrate(dsn: str, connections: BlockingConnections) -> None:
    """Apply the migrations that are still missing, while no other server does.

    :param dsn: a libpq URL or connection string.
    :param connections: made by this, so that it can be stopped.
    :raise IncompatibleDatabase: when the database is too old, too new, or of the wrong encoding.
    :raise StorageError: when it did not work this time.
    """
    with closing(connections.connect(dsn)) as connection, _alone(connection, connections.sleep):
        _check_server(connection)
        known = read_migrations(str(directory()))
        applied = _applied(connection)
        _check_not_newer(applied, {migration.id for migration in known})
        if any(migration.id not in applied for migration in known):
            with translated():
                _apply(dsn, known, connections)


def state(connection: Connection) -> tuple[set[str], set[str]]:
    """The migrations that were applied to a database, and those that this version knows."""
    return _applied(connection), {migration.id for migration in read_migrations(str(directory()))}


def directory() -> Path:
    """Where the migrations lie: within the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / "schema", package.parent / "schema") if path.is_dir())


@contextmanager
def _alone(connection: Connection, sleep: Callable[[float], None]) -> Iterator[None]:
    """Hold the lock under which databases are migrated.

    An advisory lock, which PostgreSQL gives back by itself when its holder dies; yoyo's own would stay for ever.
    """
    for _ in range(int(_LOCK_PATIENCE / 0.2)):
        if value(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK_KEY):
            break
        sleep(0.2)
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


def _apply(dsn: str, known: Any, connections: BlockingConnections) -> None:
    class Backend(_Backend):
        def connect(self, dburi: str) -> Connection:
            return connections.connect(dburi)

    with Backend(dsn, _TABLE) as backend:
        backend.init_database()
        backend.break_lock()  # whoever left it there is dead: the advisory lock is ours
        for migration in backend.to_apply(known):
            backend.apply_one(migration)
            _log.info("applied migration {migration}", migration=migration.id, event="migrated")


class _Backend(PostgresqlBackend):  # type: ignore[misc]
    """yoyo's backend, given a connection string as it is, so that all that libpq understands works."""

    def list_tables(self, **_: object) -> list[str]:
        """The tables of the current schema: yoyo looks for its own among them."""
        return [str(row[0]) for row in self.execute(_TABLES).fetchall()]

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """What yoyo keeps in its log: not who ran it and where, which cannot be found out in every container."""
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": "",
            "hostname": "",
            "created_at_utc": datetime.now(timezone.utc).replace(tzinfo=None),
            "operation": operation,
        }
