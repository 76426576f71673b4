"""The configured database, and connections to it for operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from tkserver.config import Settings
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, Connection
from tkserver.storage.embedded.postgres import EmbeddedPostgres, default_data_dir, ignore_client_variables


@dataclass(frozen=True)
class ConfiguredDatabase:
    """The database that the settings select.

    :ivar dsn: a libpq URL or connection string, which may contain a password.
    :ivar embedded: the embedded PostgreSQL, not started; ``None`` if a URL selects another database.
    """

    dsn: str = field(repr=False)
    embedded: EmbeddedPostgres | None

    @classmethod
    def from_settings(cls, settings: Settings) -> ConfiguredDatabase:
        """Return the database, without starting or connecting to it.

        If it is the embedded one, this process ignores the environment variables of PostgreSQL from now on.

        :raise EmbeddedError: if the embedded database is selected but not installed.
        """
        if settings.database.url is not None:
            return cls(settings.database.url.get_secret_value(), None)
        ignore_client_variables(os.environ)
        embedded = EmbeddedPostgres(settings.database.data_dir or default_data_dir(), settings.server.user)
        return cls(embedded.dsn, embedded)


@contextmanager
def running_database(settings: Settings) -> Iterator[str]:
    """Return the DSN of the database; the embedded one runs for as long as this context or a server uses it."""
    database = ConfiguredDatabase.from_settings(settings)
    if database.embedded is not None:
        database.embedded.start()
    try:
        yield database.dsn
    finally:
        if database.embedded is not None:
            database.embedded.stop()


@contextmanager
def open_database(settings: Settings) -> Iterator[Connection]:
    """Return a connection in autocommit mode to the database, whose schema is migrated first."""
    with running_database(settings) as dsn:
        migrations.migrate(dsn, BlockingConnections())
        with closing(BlockingConnections().connect(dsn)) as connection:
            yield connection


def migrate_database(settings: Settings) -> str:
    """Migrate the schema of the database, unless it is up to date.

    :return: the name of the newest migration.
    """
    with open_database(settings) as connection:
        applied, _ = migrations.state(connection)
        return max(applied)
