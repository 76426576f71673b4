"""Operations use the database that the settings select."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.database import Database, DatabaseServer
from tkserver.config import load
from tkserver.operations.apps import list_apps
from tkserver.operations.database import ConfiguredDatabase, migrate_database, open_database, running_database
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, value
from tkserver.storage.errors import ConnectionLost


def test_open_database_migrates(database_server: DatabaseServer) -> None:
    """Operations work on an empty database, because it is migrated first."""
    with database_server.empty() as database, open_database(load({"TK__DATABASE__URL": database.dsn})) as connection:
        assert list_apps(connection) == []


def test_migrate_database(database_server: DatabaseServer) -> None:
    """A migration returns the newest version of the schema; a second one changes nothing."""
    with database_server.empty() as database:
        settings = load({"TK__DATABASE__URL": database.dsn})
        newest = migrate_database(settings)
        assert newest == max(path.stem for path in migrations.directory().glob("*.sql"))
        assert migrate_database(settings) == newest


@pytest.mark.processes
def test_embedded_database_runs_while_it_is_used(directory: Path) -> None:
    """The embedded database is started for an operation and stopped afterwards."""
    settings = load({"TK__DATABASE__DATA_DIR": str(directory / "data")})
    with running_database(settings) as dsn, running_database(settings):
        pass
    with pytest.raises(ConnectionLost):
        BlockingConnections().connect(dsn)
    with open_database(settings) as connection:
        assert value(connection, "SELECT 1") == 1
    assert not (directory / "data" / "postmaster.pid").exists()


def test_representation_contains_no_password(database: Database) -> None:
    """The DSN, which may contain a password, does not appear in logs by accident."""
    configured = ConfiguredDatabase.from_settings(load({"TK__DATABASE__URL": database.dsn}))
    assert configured.dsn == database.dsn
    assert database.dsn not in repr(configured)
