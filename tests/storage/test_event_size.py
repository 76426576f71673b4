"""The space that events take in the database."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timezone

from tests.support.database import Database
from tkserver.demo import Parameters, Population, seeded
from tkserver.operations.demo import DirectStorage, find_or_create_app
from tkserver.storage.blocking import BlockingConnections

EVENTS = 200_000
MAX_BYTES = 500
"""Bytes of an event, with its part of the indexes."""


def test_bytes_per_event(database: Database) -> None:
    """Events of a realistic population take little space together with their indexes."""
    parameters = Parameters(events=EVENTS, days=90, users=4000, versions=20, commands=40)
    population = Population(parameters, datetime(2026, 6, 1, tzinfo=timezone.utc), seeded(parameters, 1))
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        app = find_or_create_app(connection)
        assert DirectStorage(connection, app).store(population.events()) == EVENTS
    database.query("VACUUM events")
    assert database.value("SELECT pg_total_relation_size('events')") / EVENTS <= MAX_BYTES
