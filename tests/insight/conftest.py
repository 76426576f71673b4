"""Fixtures of the tests of statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.database import Database
from tkserver.storage.blocking import BlockingConnections, Connection


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """A connection to an empty database."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        yield connection
