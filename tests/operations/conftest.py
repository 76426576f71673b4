"""Fixtures for operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.database import Database
from tkserver.storage.blocking import BlockingConnections, Connection


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A connection to :func:`database`, as operations take it."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        yield connection
