"""Databases for tests, in a PostgreSQL server that the tests start."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2

from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.embedded.postgres import EmbeddedPostgres


@dataclass(frozen=True)
class Database:
    """A database."""

    dsn: str

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Execute a statement in autocommit mode on a new connection, and return its rows."""
        connection = psycopg2.connect(self.dsn)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def value(self, sql: str, *parameters: object) -> Any:
        """Execute a statement, and return the first column of its first row."""
        return self.query(sql, *parameters)[0][0]


@dataclass(frozen=True)
class DatabaseServer:
    """A PostgreSQL server in which tests create databases."""

    server: EmbeddedPostgres

    TEMPLATE = "tkserver_template"

    def named(self, name: str) -> Database:
        """Return the database with a name."""
        return Database(self.server.dsn.replace("/postgres?", f"/{name}?"))

    def prepare(self) -> None:
        """Create the template that :meth:`migrated` copies."""
        self._run(f"CREATE DATABASE {self.TEMPLATE}")
        migrations.migrate(self.named(self.TEMPLATE).dsn, BlockingConnections())

    @contextmanager
    def empty(self, options: str = "") -> Iterator[Database]:
        """Create an empty database, and drop it when the context ends.

        :param options: of the statement ``CREATE DATABASE``.
        """
        name = f"test_{uuid.uuid4().hex}"
        self._run(f"CREATE DATABASE {name} {options}")
        try:
            yield self.named(name)
        finally:
            self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def migrated(self) -> AbstractContextManager[Database]:
        """Create a database with the schema of tkserver, and drop it when the context ends."""
        return self.empty(f"TEMPLATE {self.TEMPLATE}")

    def _run(self, sql: str) -> None:
        self.named("postgres").query(sql)
