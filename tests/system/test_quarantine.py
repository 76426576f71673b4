"""The quarantine of a server: what is kept, the responses in each dialect, limits, erasure, and nonces."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.support.client import BOTH, DIALECTS, DOCUMENTED, SDK, App, Client, batch
from tests.support.database import Database
from tests.support.events import MISSING, make_event
from tests.support.quarantined import quarantined, usage
from tests.support.queries import until_listening
from tests.support.scrape import scrape
from tests.support.server import client_of, running_server
from tkserver.operations import erasure
from tkserver.storage.blocking import BlockingConnections

USER = "client_to_be_erased"


def count(database: Database, table: str, app: App) -> int:
    return int(database.value(f"SELECT count(*) FROM {table} WHERE app_id = %s", app.app_id))


# --- responses


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_some_events_are_invalid(client: Client, app: App, shared_database: Database, dialect: str) -> None:
    """Quarantined events are kept in every dialect, and count as accepted for the published SDK."""
    reply = await client.send(app, [make_event(), "x", make_event(), make_event(schema_version="2.0")], dialect)
    counts = {name: value for name, value in reply.json.items() if name not in ("status", "errors")}
    accepted, rejected = (4, 0) if dialect == SDK else (2, 2)
    assert reply.status == 207
    assert counts == {"accepted": accepted, "rejected": rejected, "duplicates": 0, "quarantined": 2}
    assert [(error["index"], error["error"]) for error in reply.json["errors"]] == [
        (1, "invalid_schema"),
        (3, "unsupported_schema"),
    ]
    assert (count(shared_database, "events", app), count(shared_database, "quarantine", app)) == (2, 2)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_all_events_are_invalid(client: Client, app: App, shared_database: Database, dialect: str) -> None:
    """A batch of only invalid events gets a 207 for the published SDK, otherwise a 400; the events are kept."""
    reply = await client.send(app, ["x", {}], dialect)
    if dialect == SDK:
        assert (reply.status, reply.json["status"]) == (207, "partial")
        assert (reply.json["accepted"], reply.json["rejected"], reply.json["duplicates"]) == (2, 0, 0)
    else:
        assert (reply.status, reply.code) == (400, "all_events_rejected")
    assert reply.json["quarantined"] == 2
    assert len(reply.json["errors"]) == 2
    assert [row["event"] for row in quarantined(shared_database, app)] == ['"x"', "{}"]


# --- what is kept


@pytest_twisted.ensureDeferred
async def test_every_column(client: Client, app: App, shared_database: Database) -> None:
    """A quarantined event has the source, the reason, and the text of the event."""
    event = make_event(event__type="t" * 101, event__data={"a": [1, 2.5, None, "\u2028", "💡"]})
    changes = {"X-Request-ID": "my-request", "X-SDK-Version": "telemetry-kit-rust/0.3.0"}
    await client.send(app, [make_event(), event], changes=changes)
    (row,) = quarantined(shared_database, app)
    assert json.loads(row.pop("event")) == event
    del row["id"]
    assert row.pop("received_at") == row.pop("last_received_at")
    assert row.pop("bytes") > 0
    assert row == {
        "org_id": app.org_id,
        "app_id": app.app_id,
        "key": event["event_id"],
        "event_id": event["event_id"],
        "request_id": "my-request",
        "batch_index": 1,
        "code": "invalid_schema",
        "message": "event.type: longer than 100 characters",
        "sdk": "telemetry-kit-rust",
        "sdk_version": "0.3.0",
        "user_id": "client_0123456789abcdef",
        "times": 1,
    }


@pytest_twisted.ensureDeferred
async def test_user_id_that_is_not_anonymous(client: Client, app: App, shared_database: Database) -> None:
    """A user id that is not anonymous is stored nowhere."""
    name = f"alice-{uuid.uuid4()}"
    twice = batch([make_event(event__type="")]).replace(b'"user_id"', b'"user_id": "%s", "user_id"' % name.encode())
    await client.send(app, twice)
    await client.send(app, [make_event(user_id=name), make_event(user_id=name, event__data="x" * 110_000)])
    lone = batch([make_event(user_id=name, event__data="@")]).replace(b'"@"', b'"\\ud800"')
    await client.send(app, lone)
    rows = quarantined(shared_database, app)
    assert len(rows) == 4
    assert name not in json.dumps(rows)
    assert [row["user_id"] for row in rows].count(None) == 3


@pytest_twisted.ensureDeferred
async def test_event_that_is_sent_again(client: Client, app: App, shared_database: Database) -> None:
    """Concurrent and repeated requests with the same events are counted, and each event is kept once."""
    events = [make_event(event__type=""), make_event(service__name=""), "x"]
    batches = [events if number % 2 else events[::-1] for number in range(10)]
    replies = await gatherResults([ensureDeferred(client.send(app, events, SDK)) for events in batches])
    assert [(reply.status, reply.json["quarantined"]) for reply in replies] == [(207, 3)] * 10
    assert [row["times"] for row in quarantined(shared_database, app)] == [10] * 3


@pytest_twisted.ensureDeferred
async def test_conflicts_and_constraints(client: Client, app: App, shared_database: Database) -> None:
    """Events that only the database refuses are quarantined with their original texts."""
    foreign = make_event()
    await client.send(App().install(shared_database), [foreign])
    text = json.dumps({**foreign, "unknown": "key"}).encode()
    reply = await client.send(app, b'{"events":[%s]}' % text)
    assert (reply.status, reply.json["quarantined"]) == (400, 1)
    (row,) = quarantined(shared_database, app)
    assert (row["code"], row["message"]) == ("event_id_conflict", "event_id: belongs to another application")
    assert (json.loads(row["event"]), row["user_id"]) == ({**foreign, "unknown": "key"}, foreign["user_id"])


@pytest_twisted.ensureDeferred
async def test_nothing_is_kept_if_the_quota_is_exceeded(client: Client, app: App, shared_database: Database) -> None:
    """If valid events exceed the quota, the whole request is refused temporarily, and its nonce can be used again."""
    sql = "INSERT INTO apps (org_id, app_id, name, monthly_quota) VALUES (%s, %s, %s, 1)"
    shared_database.query(sql, app.org_id, app.app_id, app.app_id)
    over = [make_event(), make_event(), "x"]
    for _ in range(2):
        assert (await client.send(app, over, SDK, nonce="again")).code == "quota_exceeded"
    assert quarantined(shared_database, app) == []
    reply = await client.send(app, over[1:], SDK, nonce="again")
    assert (reply.status, reply.json["accepted"], reply.json["quarantined"]) == (207, 2, 1)
    assert (await client.send(app, over[1:], SDK, nonce="again")).code == "nonce_reused"


@pytest_twisted.ensureDeferred
async def test_concurrent_requests_with_the_same_nonce(client: Client, app: App, shared_database: Database) -> None:
    """One of several concurrent requests with the same nonce is stored, whether they contain invalid events or not."""
    for number in range(5):
        batches: list[list[Any]] = [["x"], [make_event()], [make_event(), "y"]] * 2
        sent = [
            ensureDeferred(client.send(app, events, SDK, nonce=f"nonce {number}".replace(" ", "-")))
            for events in batches
        ]
        statuses = sorted(reply.status for reply in await gatherResults(sent))
        assert statuses[0] in (200, 207)
        assert statuses[1:] == [409] * 5


# --- limits and settings


@pytest_twisted.ensureDeferred
async def test_flood(database: Database) -> None:
    """A flood of different invalid events is limited and counted, while events of the same batches are stored."""
    async with running_server(database) as server:
        client, app = client_of(server), App().install(database)
        for number in range(11):
            events: list[Any] = [{"number": 1000 * number + index} for index in range(999)]
            assert (await client.send(app, [make_event(), *events], BOTH)).status == 207
        assert usage(database, app)[::2] == (10_000, 989)
        assert count(database, "events", app) == 11
        metrics = await scrape(server.admin_port)
    assert metrics.value("tkserver_quarantine_dropped_events_total") == 989
    assert metrics.events("quarantined", "invalid_schema") == 11 * 999
    assert metrics.balanced


@pytest_twisted.ensureDeferred
async def test_equal_events_are_one_row(client: Client, app: App, shared_database: Database) -> None:
    """A thousand empty events need one row."""
    reply = await client.send(app, [{}] * 1000, SDK)
    assert (reply.status, reply.json["accepted"], reply.json["quarantined"]) == (207, 1000, 1000)
    assert [(row["event"], row["times"]) for row in quarantined(shared_database, app)] == [("{}", 1000)]


@pytest_twisted.ensureDeferred
async def test_texts_are_not_kept(database: Database) -> None:
    """With ``TK__QUARANTINE__DAYS=0``, reasons and counts are kept, but no texts and no user ids."""
    async with running_server(database, TK__QUARANTINE__DAYS=0) as server:
        client, app = client_of(server), App().install(database)
        foreign = make_event()
        await client.send(App().install(database), [foreign])
        events = [make_event(event__type=""), make_event(event_id=MISSING), make_event(event_id=MISSING), foreign]
        reply = await client.send(app, events, SDK)
        assert (reply.status, reply.json["accepted"], reply.json["quarantined"]) == (207, 4, 4)
    rows = quarantined(database, app)
    assert sorted((row["message"], row["times"]) for row in rows) == [
        ("event.type: empty", 1),
        ("event_id: belongs to another application", 1),
        ("event_id: missing", 2),
    ]
    assert {(row["event"], row["user_id"], row["bytes"]) for row in rows} == {(None, None, 0)}


# --- erasure


def erase(database: Database) -> int:
    """Erase a user without waiting, and return the number of events that were deleted from the quarantine."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        receipt = erasure.erase(connection, USER, None, lambda: 0.0, lambda _: None)
        return receipt.deleted_from_quarantine


@pytest_twisted.ensureDeferred
async def test_erased_user(database: Database) -> None:
    """Quarantined events of an erased user are deleted, and later ones are accepted and not kept."""
    async with running_server(database) as server:
        client, app = client_of(server), App().install(database)
        await until_listening(database)
        events = [make_event(event__type="", user_id=USER), make_event(event__type=""), make_event()]
        await client.send(app, events)
        assert await deferToThread(erase, database) == 1
        assert len(quarantined(database, app)) == 1
        again = await client.send(app, events, SDK)
        while len(quarantined(database, app)) > 1:  # the server did not know about the erasure yet
            await deferToThread(erase, database)
            again = await client.send(app, events, SDK)
        assert (again.status, again.json["accepted"], again.json["quarantined"]) == (207, 3, 1)
        documented = await client.send(app, events[:1], DOCUMENTED)
        assert (documented.status, documented.json["quarantined"]) == (400, 0)
        metrics = await scrape(server.admin_port)
    assert USER not in json.dumps(quarantined(database, app))
    assert metrics.balanced
    assert metrics.events("erased") >= 2
