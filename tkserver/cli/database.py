"""The database that the settings mean, for as long as a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from tkserver.config import load
from tkserver.database import dsn_of, embedded_by
from tkserver.storage.blocking import BlockingConnections, Connection
from tkserver.storage.migrations import migrate


@contextmanager
def reachable() -> Iterator[str]:
    """The DSN of the database, as it is. The embedded one runs for as long as this, or a server, uses it."""
    settings = load({})
    embedded = embedded_by(settings)
    if embedded is not None:
        embedded.start()
    try:
        yield dsn_of(settings, embedded)
    finally:
        if embedded is not None:
            embedded.stop()


@contextmanager
def connected() -> Iterator[Connection]:
    """A connection to the database, its schema brought up to date; each statement on it is a transaction."""
    with reachable() as dsn:
        migrate(dsn, BlockingConnections())
        with closing(BlockingConnections().connect(dsn)) as connection:
            yield connection
