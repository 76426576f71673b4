"""Every panel is equal to a naive computation from the events."""

from __future__ import annotations

import random

import pytest

from tests.support.client import App
from tests.support.database import Database
from tests.support.naive_statistics import RawEvent
from tests.support.panels import check_panels
from tests.support.raw_events import NOW, insert, random_event
from tkserver.insight import aggregation, detail_store, stats
from tkserver.insight.aggregator import run_once
from tkserver.insight.panels import PANELS
from tkserver.storage.blocking import Connection, rows, transaction


def check(
    connection: Connection, app: App, events: list[RawEvent], parameters: dict[str, str], zone: str = "UTC"
) -> None:
    """Compare all panels with the naive computation."""
    check_panels(connection, app, events, parameters, NOW, zone)


QUERIES: list[dict[str, str]] = [
    {},
    {"days": "90"},
    {"ci": "include", "days": "60"},
    {"ci": "only"},
    {"os": "linux", "days": "45"},
    {"version": "1.1.0", "ci": "include"},
    {"name": "remote add"},
    {"name": "build", "os": "macos", "arch": "x86_64", "days": "100"},
    {"from": "2026-01-05", "to": "2026-01-25"},
    {"from": "2026-01-07", "to": "2026-01-07", "arch": "aarch64"},
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "zone"), [(0, "UTC"), (1, "Asia/Kathmandu"), (2, "America/New_York")])
def test_panels_are_exact(connection: Connection, database: Database, seed: int, zone: str) -> None:
    """All panels are exact with any filters, after late events, several aggregations and an erasure."""
    random_ = random.Random(seed)
    app = App().install(database)
    database.query(
        "INSERT INTO apps (org_id, app_id, name, timezone) VALUES (%s, %s, %s, %s)", app.org_id, app.app_id, "x", zone
    )
    events = [random_event(random_, n) for n in range(1, 300)]
    for part in range(0, len(events), 100):
        insert(connection, app, events[part : part + 100])
        run_once(connection, lambda _: None)
    for query in QUERIES:
        check(connection, app, events, query, zone)
    user = "client_3"
    with transaction(connection):
        aggregation.remove_user(connection, app.app_id, app.org_id, user)
    rows(connection, "DELETE FROM events WHERE user_id = %s", user)
    events = [event for event in events if event.user_id != user]
    for query in QUERIES[:6]:
        check(connection, app, events, query, zone)


@pytest.mark.timeout(300)
def test_details_in_several_parts(connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels with filters are exact if the details of days and weeks consist of several parts."""
    monkeypatch.setattr(detail_store, "SMALL_PART", 0)
    random_ = random.Random(11)
    app = App().install(database)
    events = [random_event(random_, n) for n in range(1, 260)]
    for first, end in ((0, 200), (200, 240), (240, 250), (250, 255), (255, 259)):
        insert(connection, app, events[first:end])
        run_once(connection, lambda _: None)
    parts = "SELECT max(n) FROM (SELECT count(*) AS n FROM insight_details GROUP BY topic, period, start) AS counts"
    assert rows(connection, parts)[0][0] >= 2
    for query in QUERIES:
        check(connection, app, events, query)
    with transaction(connection):
        aggregation.remove_user(connection, app.app_id, app.org_id, "client_3")
    rows(connection, "DELETE FROM events WHERE user_id = %s", "client_3")
    check(connection, app, [event for event in events if event.user_id != "client_3"], QUERIES[4])


def test_change_of_timezone(connection: Connection, database: Database) -> None:
    """After a change of the time zone, events count on the days of the new zone."""
    random_ = random.Random(5)
    app = App().install(database)
    database.query("INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, %s)", app.org_id, app.app_id, "x")
    events = [random_event(random_, n) for n in range(1, 200)]
    insert(connection, app, events)
    run_once(connection, lambda _: None)
    check(connection, app, events, {"days": "90"})
    database.query("UPDATE apps SET timezone = 'Pacific/Auckland'")
    run_once(connection, lambda _: None)
    check(connection, app, events, {"days": "90"}, "Pacific/Auckland")


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_states_whether_ci_counts(connection: Connection, panel: str) -> None:
    """The parameter ``ci`` is in each panel; among the filters if the panel has a list with this name."""
    actual = stats.compute(connection, App().app_id, App().org_id, "x", panel, {"ci": "include"}, NOW)
    if panel == "environment":
        assert actual["ci"] == []
        assert actual["filters"] == {"ci": "include"}
    else:
        assert actual["ci"] == "include"
        assert actual["filters"] == {}
