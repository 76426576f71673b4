"""The quality panel: what happened to events that are not in the other panels, and space."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support.client import App
from tests.support.database import Database
from tests.support.quarantined import put
from tests.support.raw_events import NOW, insert, random_event
from tkserver.insight.aggregator import run_once
from tkserver.insight.stats import compute
from tkserver.operations import retention
from tkserver.storage.blocking import Connection, transaction

DAY = {"from": "2026-03-10", "to": "2026-03-10"}


def quality(connection: Connection, app: App, **parameters: str) -> dict[str, Any]:
    """Return the panel."""
    return compute(connection, app.app_id, app.org_id, "x", "quality", parameters, NOW)


@pytest.fixture
def app(connection: Connection, database: Database) -> App:
    """An application with 200 aggregated events."""
    app = App().install(database)
    store(connection, app, range(1, 201))
    return app


def store(connection: Connection, app: App, ids: range) -> None:
    """Store random events, and aggregate them."""
    random_ = random.Random(1)
    with transaction(connection):
        insert(connection, app, [random_event(random_, id_) for id_ in ids])
    run_once(connection, lambda _: None)


def test_duplicates_of_the_period(connection: Connection, database: Database, app: App) -> None:
    """Duplicates of all days of the period are added up, whatever ``ci``."""
    other = App().install(database)
    for owner, day, events in ((app, 9, 1), (app, 10, 20), (app, 11, 300), (other, 10, 4000)):
        database.query(
            "INSERT INTO insight_duplicates VALUES (%s, %s, %s, %s)",
            owner.org_id, owner.app_id, f"2026-03-{day:02}", events,
        )  # fmt: skip
    assert quality(connection, app, **DAY)["duplicates"] == 20
    assert quality(connection, app, ci="only", **{**DAY, "to": "2026-03-11"})["duplicates"] == 320
    assert quality(connection, app, **{"from": "2026-03-01", "to": "2026-03-08"})["duplicates"] == 0


@pytest.mark.parametrize("has_events", [True, False])
def test_quarantine_of_the_period(connection: Connection, database: Database, app: App, has_events: bool) -> None:
    """Quarantined events count by code, on the day on which they were received, even if no event is valid."""
    owner = app if has_events else App().install(database)
    database.query(
        "INSERT INTO apps (org_id, app_id, name, timezone) VALUES (%s, %s, 'x', 'Asia/Tokyo')",
        owner.org_id,
        owner.app_id,
    )
    run_once(connection, lambda _: None)
    put(database, owner, "1", "2", code="invalid_schema")
    put(database, owner, "3", "4", "5", code="event_too_large")
    put(database, App().install(database), "6")
    times = ["2026-03-09 15:00", "2026-03-10 14:59:59", "2026-03-10 15:00", "2026-03-09 14:59:59", "2026-03-10 00:00"]
    for event, time in enumerate(times, start=1):
        database.query(
            "UPDATE quarantine SET received_at = %s::timestamp AT TIME ZONE 'UTC' WHERE event = %s", time, str(event)
        )
    assert quality(connection, owner, **DAY)["quarantined"] == {"event_too_large": 1, "invalid_schema": 2}
    assert quality(connection, owner, **{"from": "2026-03-11", "to": "2026-03-11"})["quarantined"] == {
        "event_too_large": 1
    }


def test_space_is_shared(connection: Connection, database: Database, app: App) -> None:
    """The space of the table and its indexes is divided among the applications by their numbers of rows."""
    other = App().install(database)
    store(connection, other, range(201, 801))
    size = database.value("SELECT pg_total_relation_size('events')")
    panels = [quality(connection, owner, **DAY, ci="only") for owner in (app, other)]
    assert [panel["rows"] for panel in panels] == [200, 600]
    assert [panel["bytes"] for panel in panels] == [pytest.approx(size / 4, abs=1), pytest.approx(size * 3 / 4, abs=1)]
    nothing = quality(connection, App())
    assert (nothing["rows"], nothing["bytes"], nothing["quarantined"], nothing["duplicates"]) == (0, 0, {}, 0)


def test_deleted_events_take_no_space(connection: Connection, database: Database, app: App) -> None:
    """Events of frozen days, most of which are deleted, do not count as rows."""
    retention.prune(connection, 1, lambda: 0.0, lambda _: None)
    assert database.value("SELECT count(*) FROM events") == 0
    panel = quality(connection, app, days="300", ci="include")
    assert (panel["rows"], panel["bytes"]) == (0, 0)
    assert panel["received"] > 0
