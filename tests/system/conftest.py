"""Fixtures of tests that interfere with the database server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import NEWEST, Cluster


@pytest.fixture
def cluster(directory: Path) -> Iterator[Cluster]:
    """A database server for one test."""
    with Cluster(NEWEST, directory) as cluster:
        yield cluster
