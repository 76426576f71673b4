"""The quarantine in the database: events are kept once, within limits, and are counted correctly."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from tests.support.client import App
from tests.support.database import Database
from tests.support.quarantined import quarantined, usage
from tkserver.storage import quarantine as module
from tkserver.storage.blocking import BlockingConnections, Connection, complete, executor, rows, transaction
from tkserver.storage.pool import JsonLiteral
from tkserver.storage.quarantine import (
    InvalidEvent,
    Received,
    delete_quarantined,
    encode_in_chunks,
    invalid_events,
    quarantine,
)
from tkserver.wire.api_errors import EventError
from tkserver.wire.batch import run_steps
from tkserver.wire.event import NIL_UUID


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        yield connection


def invalid(*texts: str, event_id: UUID | None = None, message: str = "$: no") -> dict[int, InvalidEvent]:
    """Return invalid events with these texts, which all have the same id or none."""
    errors = [EventError(index, event_id or NIL_UUID, "invalid_schema", message) for index in range(len(texts))]
    return run_steps(invalid_events(errors, [text.encode() for text in texts]))


@pytest.mark.parametrize("setting", ["on", "off"])
@pytest.mark.parametrize(
    "value", ["", "it's", "''", "\\", "\\'", "a\\\\'; SELECT 1 --", "%s %(x)s %%", "\u2028 ä💡 \x7f", "'" * 10_000]
)
def test_json_literal(connection: Connection, setting: str, value: str) -> None:
    """Any text in a JSON document reaches the database unchanged, whatever backslashes in literals mean."""
    with transaction(connection):
        rows(connection, f"SET LOCAL standard_conforming_strings = {setting}")
        document = JsonLiteral(json.dumps([value], ensure_ascii=False).encode())
        assert rows(connection, "SELECT %s::jsonb->>0, %s", document, 5) == [(value, 5)]


def put(connection: Connection, app: App, *batches: dict[int, InvalidEvent], **source: Any) -> int:
    """Quarantine the events of several requests, and return the number of dropped events."""
    received = [Received(f"request {number}", "sdk", "1.0", events) for number, events in enumerate(batches)]
    with transaction(connection):
        work = quarantine(executor(connection), UUID(app.org_id), UUID(app.app_id), received)
        return complete(work)


def test_events_with_the_same_id_are_kept_once(connection: Connection, database: Database) -> None:
    """An event that is sent again, in the same batch, request or later, is counted, and its reason is the latest."""
    app, event_id = App(), uuid.uuid4()
    put(connection, app, invalid('{"a":1}', '{"a":2}', event_id=event_id), invalid('{"a":3}', event_id=event_id))
    put(connection, app, invalid('{"b":1}', '{"a":4}', event_id=event_id, message="$: still no"))
    (row,) = quarantined(database, app)
    assert (row["times"], row["message"], row["event_id"]) == (5, "$: still no", str(event_id))
    assert row["event"] == '{"a":3}'
    assert row["received_at"] < row["last_received_at"]


def test_events_without_id_are_recognized_by_their_text(connection: Connection, database: Database) -> None:
    """Events without an id are the same event if their texts are equal."""
    app = App()
    put(connection, app, invalid("{}", "[]", "{}", "{ }", "5"))
    put(connection, app, invalid("[]"))
    assert [(row["event"], row["times"], row["event_id"]) for row in quarantined(database, app)] == [
        ("{}", 2, None),
        ("[]", 2, None),
        ("{ }", 1, None),
        ("5", 1, None),
    ]


def test_applications_are_separate(connection: Connection, database: Database) -> None:
    """The same event of two applications is kept for both, also if they differ only in their organization."""
    first, second = App(), App()
    third = App(app_id=first.app_id)
    for app in (first, second, third):
        put(connection, app, invalid("{}", event_id=uuid.UUID(int=1)))
    assert [usage(database, app) for app in (first, second, third)] == [(1, 2, 0)] * 3


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"\\u0000 \\ud800 \\\\ %s %(x)s \'; DROP TABLE quarantine; --"}',
        '["ä💡\u2028"]',
        '"' + "x" * 3_000_000 + '"',
    ],
    ids=["escapes", "unicode", "long"],
)
def test_any_text_is_kept(connection: Connection, database: Database, text: str) -> None:
    """Texts are kept unchanged, also those that ``jsonb`` would not accept."""
    app = App()
    put(connection, app, invalid(text))
    assert [row["event"] for row in quarantined(database, app)] == [text]


def test_number_of_events_is_limited(
    connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 10 000 events of an application are kept: the oldest are dropped and counted; others are not affected."""
    app, other = App(), App()
    put(connection, other, invalid("{}"))
    assert put(connection, app, *(invalid(f'{{"a":{number}}}') for number in range(10_003))) == 3
    assert put(connection, app, invalid('{"a":10002}')) == 0
    assert put(connection, app, invalid('{"b":1}', '{"b":2}', '{"a":10002}')) == 2
    rows = quarantined(database, app)
    assert (len(rows), rows[0]["event"], rows[-1]["event"]) == (10_000, '{"a":5}', '{"b":2}')
    assert usage(database, app)[2] == 5
    assert usage(database, other) == (1, 2, 0)


def test_bytes_are_limited(connection: Connection, database: Database) -> None:
    """At most 64 MiB of an application are kept."""
    app = App()
    text = "x" * (7 << 20)
    dropped = [put(connection, app, invalid(f'"{number}{text}"')) for number in range(11)]
    assert dropped == [0] * 9 + [1, 1]
    assert [row["event"][1:3] for row in quarantined(database, app)] == ["2x", *(f"{n}x" for n in range(3, 10)), "10"]
    assert usage(database, app)[::2] == (9, 2)


def test_event_that_exceeds_the_limit_alone(
    connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that is longer than the limit is dropped and counted."""
    monkeypatch.setattr(module, "_TRIM", "SELECT tkserver_trim_quarantine(%s, %s, 10, 100)")
    app = App()
    put(connection, app, invalid("1"))
    assert put(connection, app, invalid('"' + "x" * 100 + '"')) == 2
    assert usage(database, app) == (0, 0, 2)


def test_deletions_are_counted(connection: Connection, database: Database) -> None:
    """The size of the quarantine is correct after rows are deleted in any way."""
    app = App()
    of_user, other = '{"user_id":"client_1"}', '{"user_id":"client_2"}'
    events = invalid(of_user, other, "[1]", "[2]", "[3]")
    put(connection, app, events)
    with transaction(connection):
        erased = [events[0], replace(events[1], user_id="client_1"), replace(events[2], event_id=uuid.uuid4())]
        complete(delete_quarantined(executor(connection), UUID(app.org_id), UUID(app.app_id), erased))
    assert usage(database, app) == (4, len(other) + 9, 0)
    database.query("DELETE FROM quarantine WHERE user_id = 'client_2'")
    database.query("DELETE FROM quarantine WHERE event = '[1]'")
    assert usage(database, app) == (2, 6, 0)
    database.query("TRUNCATE quarantine")
    assert usage(database, app) == (0, 0, 0)


def test_events_without_text_are_counted_by_reason() -> None:
    """If texts are not kept, events without an id are distinguished only by their reasons."""
    errors = [EventError(index, NIL_UUID, "invalid_schema", f"$: {index % 2}") for index in range(4)]
    events = run_steps(invalid_events(errors, None))
    chunks = [json.loads(chunk) for chunk in encode_in_chunks([Received("request", None, None, events)])]
    assert [(row[0][2], row[5]) for row in chunks[0]] == [("$: 0", 2), ("$: 1", 2)]
    assert {(event.text, event.user_id, event.event_id) for event in events.values()} == {(None, None, None)}


def test_long_texts_are_prepared_in_steps() -> None:
    """Neither the preparation of many texts nor their statement is done in one step."""
    texts = [f'"{number}{"x" * 90_000}"'.encode() for number in range(100)]
    errors = [EventError(index, NIL_UUID, "invalid_schema", "$: no") for index in range(100)]
    steps = invalid_events(errors, texts)
    assert sum(1 for _ in steps) >= 50
    received = Received("request", None, None, run_steps(invalid_events(errors, texts)))
    chunks = list(encode_in_chunks([received]))
    assert max(map(len, chunks)) < 1.1 * (1 << 20)
    assert sum(len(json.loads(chunk)) for chunk in chunks) == 100
