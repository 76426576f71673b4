"""The recent activity of applications, from the aggregates."""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import UUID

from tests.support.client import App
from tests.support.database import Database
from tests.support.naive_statistics import RawEvent
from tests.support.raw_events import NOW, insert, random_event
from tkserver.insight import aggregator
from tkserver.insight.activity import NO_EVENTS, Activity, read_activity
from tkserver.insight.stats import compute
from tkserver.operations import retention
from tkserver.storage.blocking import Connection, rows, transaction


def activity(connection: Connection, app: App) -> Activity:
    """Return the activity of an application."""
    return read_activity(connection, NOW).of(UUID(app.app_id), UUID(app.org_id))


def aggregate(connection: Connection) -> None:
    """Bring the aggregates up to date."""
    aggregator.run_once(connection, lambda _: None)


def some_events() -> list[RawEvent]:
    """Return events of 200 days that are not in the future."""
    random_ = random.Random(1)
    events = [random_event(random_, id_) for id_ in range(1, 401)]
    return [event for event in events if event.timestamp <= event.received_at]


def test_numbers_are_those_of_the_overview(connection: Connection, database: Database) -> None:
    """Events and users are those of 30 days without CI; the last event can be one of CI."""
    app, other = App().install(database), App().install(database)
    events = some_events()
    with transaction(connection):
        insert(connection, app, events)
    aggregate(connection)
    totals = compute(connection, app.app_id, app.org_id, "x", "overview", {}, NOW)["totals"]
    last = max(event.happened for event in events)
    assert activity(connection, app) == Activity(totals["events"], totals["users"], last)
    assert 0 < totals["users"] < totals["events"]
    assert activity(connection, other) == NO_EVENTS
    database.query("UPDATE events SET ci = true")
    rows(connection, "UPDATE insight_progress SET definitions = 0")
    aggregate(connection)
    assert activity(connection, app) == Activity(0, 0, last)


def test_unknown_numbers(connection: Connection, database: Database) -> None:
    """Before the first aggregation and during a rebuild, nothing is known, instead of 0."""
    app = App().install(database)
    with transaction(connection):
        insert(connection, app, some_events())
    assert activity(connection, app) == Activity(None, None, None)
    aggregate(connection)
    assert activity(connection, app).events
    aggregator.rebuild(connection, app.app_id, app.org_id)
    assert activity(connection, app) == Activity(None, None, None)


def test_deleted_events(connection: Connection, database: Database) -> None:
    """When the events of some days were deleted, their number is known, and the number of users is not."""
    app = App().install(database)
    with transaction(connection):
        insert(connection, app, some_events())
    aggregate(connection)
    before = activity(connection, app)
    retention.prune(connection, 1, lambda: 0.0, lambda _: None)
    assert database.value("SELECT count(*) FROM events") == 0
    assert activity(connection, app) == Activity(before.events, None, None)
    later = NOW + timedelta(days=400)
    assert read_activity(connection, later).of(UUID(app.app_id), UUID(app.org_id)) == NO_EVENTS
