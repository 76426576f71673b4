"""Aggregation: every event is counted once, whatever happens at the same time."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.client import App
from tests.support.database import Database
from tests.support.naive_statistics import RawEvent
from tests.support.raw_events import NOW, insert, random_event
from tkserver.insight import aggregation, aggregator
from tkserver.insight.dictionary import MAX_VALUES, OTHER
from tkserver.insight.stats import compute
from tkserver.operations import erasure, retention
from tkserver.operations.apps import find_app
from tkserver.storage.blocking import BlockingConnections, Connection, rows, transaction, value
from tkserver.storage.errors import StorageError


def no_sleep(_: float) -> None:
    """Wait for nothing."""


def an_event(id_: int, **changes: Any) -> RawEvent:
    """Return a valid event of 2026-03-19."""
    event = random_event(random.Random(id_), id_)
    received = NOW - timedelta(days=1)
    plain: dict[str, Any] = {"user_id": "client_a", "timestamp": received, "received_at": received, "ci": False}
    return replace(event, **{**plain, "version": "1.0.0", "data": {"command": "build", "success": True}, **changes})


def panel(connection: Connection, app: App, name: str = "overview", **parameters: str) -> dict[str, Any]:
    """Return a panel of the 30 days before ``NOW``."""
    return compute(connection, app.app_id, app.org_id, "x", name, parameters, NOW)


def events_of(connection: Connection, app: App) -> int:
    """Return the number of aggregated events."""
    return int(panel(connection, app, ci="include")["totals"]["events"])


def test_events_are_counted_once(connection: Connection, database: Database) -> None:
    """A second aggregation counts nothing again, and adds what has arrived since."""
    app = App().install(database)
    insert(connection, app, [an_event(1), an_event(2)])
    assert [aggregator.run_once(connection, no_sleep) for _ in range(2)] == [2, 0]
    insert(connection, app, [an_event(3)])
    assert aggregator.run_once(connection, no_sleep) == 1
    assert events_of(connection, app) == 3


def test_transaction_that_commits_late(connection: Connection, database: Database) -> None:
    """An event of a transaction that commits after one with a higher id is not skipped."""
    app = App().install(database)
    with closing(BlockingConnections().connect(database.dsn)) as other:
        other.autocommit = False
        insert(other, app, [an_event(1)])
        insert(connection, app, [an_event(2)])
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                other.commit()

        assert aggregator.run_once(connection, sleep) == 2
    assert len(waits) == 3
    assert events_of(connection, app) == 2


def test_only_one_process_aggregates(connection: Connection, database: Database) -> None:
    """While a process aggregates, another one does nothing."""
    app = App().install(database)
    insert(connection, app, [an_event(1)])
    with closing(BlockingConnections().connect(database.dsn)) as other:
        seen: list[int | None] = []
        assert (
            aggregator.run_once(connection, no_sleep, lambda _: seen.append(aggregator.run_once(other, no_sleep))) == 1
        )
        assert seen == [None]
        assert aggregator.run_once(other, no_sleep) == 0


@pytest.mark.parametrize("batch", [1, 7])
def test_aggregation_that_is_interrupted(
    connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """If the connection is lost at any time, the next aggregation continues where the last one has committed."""
    monkeypatch.setattr(aggregator, "BATCH", batch)
    app = App().install(database)
    insert(connection, app, [an_event(n) for n in range(1, 41)])
    interruptions = 0
    for statement in range(3, 200, 7):
        with closing(BlockingConnections().connect(database.dsn)) as victim:
            monkeypatch.setattr(aggregation, "rows", _failing(victim, statement))
            try:
                aggregator.run_once(victim, no_sleep)
                break
            except StorageError:
                interruptions += 1
            finally:
                monkeypatch.undo()
                monkeypatch.setattr(aggregator, "BATCH", batch)
    assert interruptions > 2
    aggregator.run_once(connection, no_sleep)
    assert events_of(connection, app) == 40


def _failing(victim: Connection, number: int) -> Callable[..., list[tuple[Any, ...]]]:
    """Return a function that executes statements, and terminates the connection before one of them."""
    executed = 0

    def run(connection: Connection, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        nonlocal executed
        executed += 1
        if connection is victim and executed == number:
            with closing(BlockingConnections().connect(victim.dsn)) as killer:
                rows(killer, "SELECT pg_terminate_backend(%s, 5000)", victim.get_backend_pid())
        return rows(connection, sql, *parameters)

    return run


def test_rebuild(connection: Connection, database: Database) -> None:
    """After aggregates were damaged, a rebuild restores them; new events are added meanwhile."""
    app = App().install(database)
    insert(connection, app, [an_event(n, user_id=f"client_{n % 7}") for n in range(1, 50)])
    aggregator.run_once(connection, no_sleep)
    before = panel(connection, app)
    rows(connection, "UPDATE insight_cells SET events = events + 5")
    assert panel(connection, app) != before
    aggregator.rebuild(connection, app.app_id, app.org_id)
    aggregator.run_once(connection, no_sleep)
    after = panel(connection, app)
    assert {name: after[name] for name in ("totals", "days")} == {name: before[name] for name in ("totals", "days")}


def test_new_definitions(connection: Connection, database: Database) -> None:
    """If the definitions have changed, all aggregates are computed again."""
    app = App().install(database)
    insert(connection, app, [an_event(1)])
    aggregator.run_once(connection, no_sleep)
    rows(connection, "UPDATE insight_progress SET definitions = definitions - 1")
    rows(connection, "UPDATE insight_cells SET events = 99")
    assert aggregator.run_once(connection, no_sleep) == 1
    assert events_of(connection, app) == 1


def test_erased_user_disappears_at_once(connection: Connection, database: Database) -> None:
    """An erasure removes the user from the numbers, also the events that arrive during the erasure."""
    app = App().install(database)
    insert(connection, app, [an_event(1), an_event(2, user_id="client_b")])
    aggregator.run_once(connection, no_sleep)
    erasure.record(connection, "client_a", find_app(connection, app.app_id))
    assert events_of(connection, app) == 1
    assert rows(connection, "SELECT user_id FROM insight_users") == [("client_b",)]
    insert(connection, app, [an_event(3)])  # by a server that does not know about the erasure yet
    aggregator.run_once(connection, no_sleep)
    assert events_of(connection, app) == 1
    assert rows(connection, "SELECT user_id FROM insight_users") == [("client_b",)]


def test_retention_keeps_totals_and_no_users(connection: Connection, database: Database) -> None:
    """When events are deleted, their days keep their numbers, and the data of single users is deleted."""
    app = App().install(database)
    ages = {1: "client_a", 100: "client_old", 101: "client_a"}
    now = value(connection, "SELECT now()")
    for number, (age, user) in enumerate(ages.items(), start=1):
        time = now - timedelta(days=age)
        insert(connection, app, [an_event(number, user_id=user, timestamp=time, received_at=time)])
    retention.prune(connection, 90, lambda: 0.0, no_sleep)
    assert value(connection, "SELECT count(*) FROM events") == 1
    found = compute(connection, app.app_id, app.org_id, "x", "overview", {"days": "120"}, now)
    days = [(day["events"], day["users"], day["users_7d"]) for day in found["days"] if day["events"]]
    assert days == [(1, 1, None), (1, 1, None), (1, 1, 1)]
    assert rows(connection, "SELECT user_id FROM insight_users") == [("client_a",)]
    frozen = "users IS NOT NULL OR last_times IS NOT NULL OR superseded IS NOT NULL"
    assert (
        value(connection, f"SELECT count(*) FROM insight_cells WHERE ({frozen}) AND start < now() - interval '95 days'")
        == 0
    )
    aggregator.rebuild(connection, app.app_id, app.org_id)
    aggregator.run_once(connection, no_sleep)
    assert compute(connection, app.app_id, app.org_id, "x", "overview", {"days": "120"}, now)["days"] == found["days"]


@pytest.mark.parametrize("filters", [{}, {"os": "linux"}])
def test_unused_names_of_frozen_days(connection: Connection, database: Database, filters: dict[str, str]) -> None:
    """Names that occurred only on days whose events were deleted are still listed as unused."""
    app = App().install(database)
    now = value(connection, "SELECT now()")
    for number, (age, name) in enumerate([(100, "old"), (1, "new")], start=1):
        time = now - timedelta(days=age)
        event = an_event(number, timestamp=time, received_at=time, os="linux", data={"command": name})
        insert(connection, app, [event])
    aggregator.run_once(connection, no_sleep)

    def unused() -> Any:
        parameters = {"days": "30", **filters}
        return compute(connection, app.app_id, app.org_id, "x", "commands", parameters, now)["unused"]

    before = unused()
    assert [item["name"] for item in before] == ["old"]
    retention.prune(connection, 90, lambda: 0.0, no_sleep)
    assert unused() == before


def test_thousands_of_fake_versions(connection: Connection, database: Database) -> None:
    """The most frequent versions of a batch are counted separately, and all others together."""
    app = App().install(database)
    events = [an_event(n, version=f"0.0.{n}", user_id=f"client_{n}") for n in range(1, 1001)]
    events += [an_event(1000 + n, version="1.0.0") for n in range(1, 20)]
    insert(connection, app, events)
    aggregator.run_once(connection, no_sleep)
    items = panel(connection, app, "versions")["items"]
    by_version = {item["version"]: item["events"] for item in items}
    assert len(by_version) == MAX_VALUES + 1
    assert by_version["1.0.0"] == 19
    assert by_version[OTHER] == 1001 - MAX_VALUES
    assert sum(by_version.values()) == len(events)


def test_texts_are_safe_to_print(connection: Connection, database: Database) -> None:
    """Control and bidirectional characters in names and versions are replaced."""
    app = App().install(database)
    insert(connection, app, [an_event(1, version="1\x1b[31m", data={"command": "a\u202eb\nc", "exit_code": 1})])
    aggregator.run_once(connection, no_sleep)
    assert panel(connection, app, "commands")["items"][0]["name"] == "a\ufffdb\ufffdc"
    assert panel(connection, app, "versions")["items"][0]["version"] == "1\ufffd[31m"
    with transaction(connection):
        aggregation.remove_user(connection, app.app_id, app.org_id, "client_a")
    assert value(connection, "SELECT count(*) FROM insight_cells") == 0
