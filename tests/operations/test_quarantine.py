"""The quarantine is listed, replayed and deleted, and follows erasure and retention."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tests.support.events import MISSING, make_event
from tests.support.quarantined import put, quarantined, usage
from tests.support.stored import events_by_user
from tkserver.operations import erasure, quarantine
from tkserver.operations.apps import create_app, find_app
from tkserver.operations.exceptions import UnknownObject
from tkserver.operations.quarantine import Replay, Selection
from tkserver.operations.quota import set_quota
from tkserver.operations.retention import set_retention
from tkserver.storage.blocking import Connection, rows
from tkserver.storage.quarantine_reasons import advice
from tkserver.wire import event_validation
from tkserver.wire.event_validation import Violation

PACE = (lambda: 0.0, lambda _: None)


@pytest.fixture
def app(database: Database) -> ClientApp:
    return ClientApp().install(database)


def texts(*events: Any) -> list[str]:
    return [json.dumps(event) for event in events]


def replay(connection: Connection, selection: Selection = Selection()) -> Replay:  # noqa: B008 -- frozen
    return quarantine.replay(connection, selection, *PACE)


# --- list and select


def test_reasons_are_grouped(connection: Connection, database: Database) -> None:
    """Events of an application with the same code and message, SDK and version are one reason; times are summed up."""
    token = create_app(connection, "my-cli")
    app, other = ClientApp(org_id=str(token.org_id), app_id=str(token.app_id)), ClientApp()
    put(database, app, "{}", "[]")
    put(database, app, "{}", days=2)
    put(database, app, "1", sdk=("telemetry-kit-rust", "0.4.0"))
    put(database, app, "2", message="service.name: empty")
    put(database, other, "3")
    for size in (200_000, 300_000):
        put(database, app, "4", code="event_too_large", message=f"the event has {size} bytes")
    rows(connection, "UPDATE quarantine SET times = 5 WHERE event = '[]'")
    rows(connection, "UPDATE quarantine_usage SET dropped = 7 WHERE app_id = %s", app.app_id)
    reasons = quarantine.list_reasons(connection, find_app(connection, "my-cli"))
    found = sorted((reason.code, reason.message, reason.sdk_version, reason.events, reason.times) for reason in reasons)
    assert found == [
        ("event_too_large", "the event has 300000 bytes", "0.3.0", 2, 2),
        ("invalid_schema", "service.name: empty", "0.3.0", 1, 1),
        ("invalid_schema", "user_id: missing", "0.3.0", 3, 7),
        ("invalid_schema", "user_id: missing", "0.4.0", 1, 1),
    ]
    assert {(reason.app, reason.dropped) for reason in reasons} == {("my-cli", 7)}
    oldest = min(reason.first_received_at for reason in reasons)
    assert (max(reason.last_received_at for reason in reasons) - oldest).days == 2
    assert {reason.app for reason in quarantine.list_reasons(connection, None)} == {"my-cli", other.app_id}


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("invalid_schema", "service.name: empty", "Set service_name"),
        ("invalid_schema", "service.version: empty", "Set service_version"),
        ("invalid_schema", "environment.os: missing", "Correct environment.os"),
        ("invalid_schema", "user_id: must begin with client_ or anon_", "Send an anonymous id"),
        ("unsupported_schema", "schema_version: '2.0' is not supported", "Upgrade tkserver"),
        ("event_too_large", "the event has 200000 bytes", "Send less data"),
        ("event_id_conflict", "event_id: belongs to another application", "Create a random id"),
    ],
)
def test_advice(code: str, message: str, expected: str) -> None:
    """There is advice for each reason."""
    assert advice(code, message).startswith(expected)


def test_select(connection: Connection, database: Database, app: ClientApp) -> None:
    """An argument is an application, the number of an event, or the id of an event."""
    put(database, app, "{}", "[]")
    first, second = quarantined(database, app)
    assert quarantine.select(connection, app.app_id) == Selection(find_app(connection, app.app_id))
    assert quarantine.select(connection, str(first["id"])) == Selection(ids=(first["id"],))
    assert quarantine.select(connection, second["event_id"]) == Selection(ids=(second["id"],))
    for text in ("nothing", "9" * 30, str(uuid.uuid4()), "-1", "\u0663", ""):
        with pytest.raises(UnknownObject):
            quarantine.select(connection, text)
    events = quarantine.list_events(connection, quarantine.select(connection, str(first["id"])), 10)
    assert [(event.id, event.event) for event in events] == [(first["id"], "{}")]


def test_filters(connection: Connection, database: Database, app: ClientApp) -> None:
    """Events can be selected by code, SDK and version, and the latest come first."""
    put(database, app, "1", days=1)
    put(database, app, "2", code="event_too_large", sdk=("other", "1"))
    put(database, app, "3", sdk=("other", "2"))

    def found(**filters: str) -> list[str | None]:
        return [event.event for event in quarantine.list_events(connection, Selection(**filters), 2)]  # type: ignore[arg-type]

    assert found() == ["3", "2"]
    assert found(code="invalid_schema") == ["3", "1"]
    assert found(sdk="other", sdk_version="1") == ["2"]
    assert found(sdk="nothing") == []


def test_delete(connection: Connection, database: Database, app: ClientApp) -> None:
    """The selected events are deleted, of any number, and the size of the quarantine stays correct."""
    other = ClientApp()
    put(database, app, *map(str, range(1200)))
    put(database, app, "{}", code="event_too_large")
    put(database, other, "{}")
    selection = Selection(find_app(connection, app.app_id), code="invalid_schema")
    assert quarantine.delete(connection, selection, *PACE) == 1200
    assert (usage(database, app), usage(database, other)) == ((1, 2, 0), (1, 2, 0))
    assert quarantine.delete(connection, Selection(), *PACE) == 2
    assert quarantine.delete(connection, Selection(), *PACE) == 0


# --- replay


def test_replay(connection: Connection, database: Database, app: ClientApp) -> None:
    """Events that are valid now are stored unchanged and leave the quarantine; the others stay with their reasons."""
    valid = [make_event(event__data={"a": [1.50, "\u2028"]}, timestamp="2020-01-02T03:04:05.678901Z") for _ in range(3)]
    put(database, app, *texts(*valid, make_event(user_id=MISSING), "x"), '{"a":"\\ud800"}', "[" * 400 + "]" * 400)
    put(database, app, *texts(make_event(event__type="")), message="event.type: empty")
    assert replay(connection) == Replay(stored=3, left=5)
    stored = database.query(
        "SELECT event_id::text, event_data, timestamp::text FROM events WHERE app_id = %s", app.app_id
    )
    assert sorted(row[0] for row in stored) == sorted(event["event_id"] for event in valid)
    assert [row[1] for row in stored] == [{"a": [1.5, "\u2028"]}] * 3
    assert database.value(
        "SELECT bool_and(timestamp < '2020-01-03Z' AND received_at > now() - interval '1 h') FROM events"
    )
    assert len(quarantined(database, app)) == 5
    assert usage(database, app)[0] == 5
    assert replay(connection) == Replay(left=5)


def test_replay_of_duplicates_and_conflicts(connection: Connection, database: Database, app: ClientApp) -> None:
    """An event that is stored already leaves the quarantine; one whose id belongs to another application stays."""
    own, foreign = make_event(), make_event()
    put(database, app, *texts(own))
    put(database, ClientApp().install(database), *texts(foreign))
    assert replay(connection) == Replay(stored=2)
    put(database, app, *texts(own, foreign))
    assert replay(connection) == Replay(duplicates=1, left=1)


def test_replay_of_many_events(connection: Connection, database: Database, app: ClientApp) -> None:
    """Any number of events is replayed, in short transactions."""
    other = ClientApp().install(database)
    put(database, app, *texts(*(make_event() for _ in range(350)), "x"))
    put(database, other, *texts(*(make_event() for _ in range(5))))
    numbers: list[int] = []
    assert quarantine.replay(connection, Selection(), *PACE, numbers.append) == Replay(stored=355, left=1)
    assert max(numbers) <= quarantine.REPLAY_ROWS
    assert sum(numbers) == 356


def test_replay_after_a_rule_was_corrected(
    connection: Connection, database: Database, app: ClientApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a rule rejects the events, they stay; when the rule is corrected, they are stored."""
    put(database, app, *texts(make_event()))
    with monkeypatch.context() as wrong_rule:
        wrong_rule.setattr(event_validation, "_violation", lambda *_: Violation("invalid_schema", "$: wrong rule"))
        assert replay(connection) == Replay(left=1)
    assert replay(connection) == Replay(stored=1)


def test_replay_of_events_that_the_database_refuses(connection: Connection, database: Database, app: ClientApp) -> None:
    """Events that violate a constraint stay, and the others are stored."""
    database.query("ALTER TABLE events ADD CONSTRAINT odd CHECK (event_type <> 'odd')")
    put(database, app, *texts(*(make_event(event__type=name) for name in ("odd", "even", "odd", "even"))))
    assert replay(connection) == Replay(stored=2, left=2)
    assert {row["message"] for row in quarantined(database, app)} == {"user_id: missing"}


def test_replay_within_quota(connection: Connection, database: Database) -> None:
    """A replay stores and counts as many events as the quota allows."""
    token = create_app(connection, "limited")
    set_quota(connection, find_app(connection, "limited"), 2, lambda _: None)
    put(
        database,
        ClientApp(org_id=str(token.org_id), app_id=str(token.app_id)),
        *texts(*(make_event() for _ in range(3))),
    )
    assert replay(connection) == Replay(stored=2, left=1)
    allowance = find_app(connection, "limited").allowance
    assert allowance is not None
    assert allowance.left == 0


def test_replay_of_a_selection(connection: Connection, database: Database, app: ClientApp) -> None:
    """Only the selected events are replayed."""
    put(database, app, *texts(make_event()), code="unsupported_schema")
    put(database, app, *texts(make_event()))
    assert replay(connection, Selection(code="unsupported_schema")) == Replay(stored=1)
    assert len(quarantined(database, app)) == 1


def test_events_without_text_are_left(connection: Connection, database: Database, app: ClientApp) -> None:
    """An event whose text was not kept cannot be replayed."""
    put(database, app, "{}")
    database.query("UPDATE quarantine SET event = NULL, bytes = 0")
    assert replay(connection) == Replay(left=1)


# --- erasure and retention


def test_erasure(connection: Connection, database: Database, app: ClientApp) -> None:
    """The quarantined events of a user are deleted in all applications or in one, and no others."""
    other = ClientApp().install(database)
    for owner in (app, other):
        put(database, owner, "1", user="client_a")
        put(database, owner, "2", user="client_b")
        put(database, owner, "3")
    one = erasure.erase(connection, "client_a", find_app(connection, app.app_id), *PACE)
    assert (one.deleted_from_quarantine, one.deleted) == (1, 0)
    assert [len(quarantined(database, owner)) for owner in (app, other)] == [2, 3]
    everywhere = erasure.erase(connection, "client_b", None, *PACE)
    assert everywhere.deleted_from_quarantine == 2
    assert [usage(database, owner) for owner in (app, other)] == [(1, 1, 0), (2, 2, 0)]


def test_replay_during_erasure(connection: Connection, database: Database, app: ClientApp) -> None:
    """Events that are replayed while their user is being erased are deleted, too."""
    put(database, app, *texts(make_event(user_id="client_a"), make_event(user_id="client_b")), user="client_a")
    replays: list[Replay] = []

    def sleep(_: float) -> None:
        if not replays:
            replays.append(replay(connection))

    receipt = erasure.erase(connection, "client_a", None, lambda: 0.0, sleep)
    assert replays == [Replay(stored=2)]
    assert (receipt.deleted, receipt.deleted_from_quarantine) == (1, 0)
    assert events_by_user(database, app) == {"client_b": 1}


def ages(database: Database, app: ClientApp) -> list[int]:
    """Return the ages of the quarantined events in days, oldest first."""
    sql = "SELECT (now()::date - received_at::date) FROM quarantine WHERE app_id = %s ORDER BY received_at"
    return [age for (age,) in database.query(sql, app.app_id)]


def put_events_of_many_ages(database: Database, app: ClientApp) -> None:
    for days in (0, 2, 4, 6, 8, 10):
        put(database, app, f'{{"days":{days}}}', days=days, user="client_a")


def test_prune(connection: Connection, database: Database, app: ClientApp) -> None:
    """Events are deleted after the days of the setting, or after the retention if that is shorter."""
    token = create_app(connection, "short")
    short = ClientApp(org_id=str(token.org_id), app_id=str(token.app_id))
    set_retention(connection, find_app(connection, "short"), 3)
    for owner in (app, short):
        put_events_of_many_ages(database, owner)
    assert quarantine.prune(connection, 7, None, *PACE) == 2 + 4
    assert (ages(database, app), ages(database, short)) == ([6, 4, 2, 0], [2, 0])
    assert quarantine.prune(connection, 7, 5, *PACE) == 1
    assert quarantine.prune(connection, 1, 5, *PACE) == 3
    assert (usage(database, app)[0], usage(database, short)[0]) == (1, 1)


def test_prune_without_texts(connection: Connection, database: Database, app: ClientApp) -> None:
    """With 0 days, texts and user ids are deleted immediately, and the reasons after seven days."""
    put_events_of_many_ages(database, app)
    assert quarantine.prune(connection, 0, None, *PACE) == 2
    assert ages(database, app) == [6, 4, 2, 0]
    assert {(row["event"], row["user_id"]) for row in quarantined(database, app)} == {(None, None)}
    assert usage(database, app) == (4, 0, 0)
