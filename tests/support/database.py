"""Databases for tests, on a real PostgreSQL that the tests start."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2

from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.embedded.postgres import EmbeddedPostgres


@dataclass(frozen=True)
class Database:
    """A database of its own."""

    dsn: str

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of one statement, which is one transaction."""
        connection = psycopg2.connect(self.dsn)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def value(self, sql: str, *parameters: object) -> Any:
        """The first column of the first row."""
        return self.query(sql, *parameters)[0][0]


@dataclass(frozen=True)
class DatabaseServer:
    """A PostgreSQL on which databases can be made."""

    server: EmbeddedPostgres

    TEMPLATE = "tkserver_template"

    def named(self, name: str) -> Database:
        return Database(self.server.dsn.replace("/postgres?", f"/{name}?"))

    def prepare(self) -> None:
        """Make the template from which :meth:`migrated` copies."""
        self._run(f"CREATE DATABASE {self.TEMPLATE}")
        migrations.migrate(self.named(self.TEMPLATE).dsn, BlockingConnections())

    @contextmanager
    def empty(self, options: str = "") -> Iterator[Database]:
        """A new database with nothing in it, for as long as the context lasts."""
        name = f"test_{uuid.uuid4().hex}"
        self._run(f"CREATE DATABASE {name} {options}")
        try:
            yield self.named(name)
        finally:
            self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def migrated(self) -> Any:
        """A new database with the server's schema."""
        return self.empty(f"TEMPLATE {self.TEMPLATE}")

    def _run(self, sql: str) -> None:
        self.named("postgres").query(sql)
