"""Sample events are stored without a server, each once."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.support.database import Database
from tkserver.demo import Parameters, Population, SampleEvent, seeded
from tkserver.operations import erasure
from tkserver.operations.apps import create_app, find_app, list_apps
from tkserver.operations.demo import (
    APP_NAME,
    CHUNK,
    DirectStorage,
    as_json,
    check_age,
    check_parameters,
    find_or_create_app,
)
from tkserver.operations.exceptions import InvalidArgument
from tkserver.operations.models import App
from tkserver.operations.tokens import list_tokens
from tkserver.storage.blocking import Connection

UNTIL = datetime(2026, 6, 30, 9, 30, tzinfo=timezone.utc)
SMALL = Parameters(2_000, 200)


def population(parameters: Parameters = SMALL, until: datetime = UNTIL) -> Population:
    """Return a population with the usual seed."""
    return Population(parameters, until, seeded(parameters, 1))


@pytest.fixture
def app(connection: Connection) -> App:
    """The application for sample data."""
    return find_or_create_app(connection)


COLUMNS = """
SELECT jsonb_build_object(
    'schema_version', schema_version, 'event_id', event_id, 'user_id', user_id, 'session_id', session_id,
    'service', jsonb_build_object('name', service_name, 'version', service_version, 'language', service_language,
        'language_version', service_language_version),
    'environment', jsonb_build_object('os', os, 'arch', arch, 'ci', ci, 'shell', shell),
    'event', jsonb_build_object('type', event_type, 'category', event_category, 'data', event_data),
    'metadata', jsonb_build_object('sdk_version', sdk_version, 'batch_size', batch_size, 'retry_count', retry_count)
), timestamp, transmission_timestamp, received_at FROM events WHERE app_id = %s AND org_id = %s ORDER BY id
"""


def expected_row(event: SampleEvent) -> tuple[Any, ...]:
    """Return the row of ``COLUMNS`` for an event."""
    sent = as_json(event)
    sent["event"] = {**sent["event"], "data": json.loads(event.data)}
    del sent["timestamp"], sent["metadata"]["transmission_timestamp"]
    return {**sent, "event_id": str(sent["event_id"])}, event.happened, event.received, event.received


def test_app_is_created_once(connection: Connection) -> None:
    """The application is created with a token; if it exists, it is used as it is."""
    created = find_or_create_app(connection)
    assert created.name == APP_NAME
    assert find_or_create_app(connection) == created
    assert len(list_apps(connection)) == len(list_tokens(connection, created)) == 1


def test_every_event_is_stored_as_it_would_be_sent(connection: Connection, database: Database, app: App) -> None:
    """COPY stores the same values as a server, in the order of arrival."""
    assert DirectStorage(connection, app).store(population().events()) == SMALL.events
    assert database.query(COLUMNS, *app.key) == [expected_row(event) for event in population().events()]


def test_nothing_is_stored_twice(connection: Connection, database: Database, app: App) -> None:
    """Events that are stored already are skipped, and missing ones are added."""
    DirectStorage(connection, app).store(population().events())
    assert DirectStorage(connection, app).store(population().events()) == 0
    database.query("DELETE FROM events WHERE id % 4 = 0")
    assert DirectStorage(connection, app).store(population().events()) == SMALL.events // 4
    assert database.value("SELECT count(*) FROM events") == SMALL.events


def test_many_events_are_stored_in_parts(connection: Connection, database: Database, app: App) -> None:
    """Several transactions store all events, also after a part that was stored before; progress adds up."""
    sizes = Parameters(2 * CHUNK + 500, 1_000, days=400, versions=40, commands=60)
    progress: list[int] = []
    first_part = (event for _, event in zip(range(CHUNK), population(sizes).events(), strict=False))
    assert DirectStorage(connection, app).store(first_part) == CHUNK
    assert DirectStorage(connection, app).store(population(sizes).events(), progress.append) == CHUNK + 500
    assert progress == [CHUNK, CHUNK, 500]
    assert database.query("SELECT count(*), count(DISTINCT user_id), count(DISTINCT service_version) FROM events") == [
        (sizes.events, sizes.users, sizes.versions)
    ]


@pytest.mark.parametrize("everywhere", [True, False])
def test_erased_users_are_not_stored(connection: Connection, database: Database, app: App, everywhere: bool) -> None:
    """The events of a user who was erased, from this application or from all, are skipped."""
    events = list(population().events())
    user_id = events[-1].origin.user_id
    erasure.record(connection, user_id, None if everywhere else app)
    others = sum(event.origin.user_id != user_id for event in events)
    assert DirectStorage(connection, app).store(events) == others < len(events)
    assert database.value("SELECT count(*) FROM events WHERE user_id = %s", user_id) == 0


def test_other_erasures_do_not_matter(connection: Connection, app: App) -> None:
    """A user who was erased from another application is stored."""
    create_app(connection, "other")
    events = list(population().events())
    erasure.record(connection, events[-1].origin.user_id, find_app(connection, "other"))
    assert DirectStorage(connection, app).store(events) == len(events)


def test_too_few_events() -> None:
    """Each user needs an event."""
    check_parameters(Parameters(10, 10))
    with pytest.raises(InvalidArgument, match="11 users"):
        check_parameters(Parameters(10, 11))


@pytest.mark.parametrize("hour", range(24))
def test_ninety_days_can_be_sent(hour: int) -> None:
    """At any time of the day, a period of 90 days that ends now can be sent, and a longer one cannot."""
    now = UNTIL.replace(hour=hour)
    check_age(population(Parameters(10, 10, days=90), now), now)
    with pytest.raises(InvalidArgument, match="--direct"):
        check_age(population(Parameters(10, 10, days=91), now), now)


def test_period_that_cannot_be_sent() -> None:
    """A period that ended too long ago, or that ends in the future, cannot be sent."""
    sizes = Parameters(10, 10, days=30)
    check_age(population(sizes, UNTIL - timedelta(days=59)), UNTIL)
    with pytest.raises(InvalidArgument, match="--direct"):
        check_age(population(sizes, UNTIL - timedelta(days=61)), UNTIL)
    with pytest.raises(InvalidArgument, match="--until"):
        check_age(population(sizes, UNTIL + timedelta(seconds=1)), UNTIL)
