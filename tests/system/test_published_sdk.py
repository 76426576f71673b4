"""The published SDK: it delivers all events that can be stored, resends nothing, and shows the reason of an error."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.support.client import App, Client
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.published_sdk import PublishedSdk, SyncError
from tests.support.server import client_of, running_server

QUARANTINED = (
    "SELECT event_id::text, code, message, sdk, sdk_version, times FROM quarantine WHERE app_id = %s ORDER BY id"
)


def ids_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["event_id"] for event in events]


def stored_ids(database: Database, app: App) -> list[str]:
    return [
        row[0] for row in database.query("SELECT event_id::text FROM events WHERE app_id = %s ORDER BY id", app.app_id)
    ]


@pytest_twisted.ensureDeferred
async def test_invalid_events_do_not_block_later_ones(client: Client, app: App, shared_database: Database) -> None:
    """A hundred invalid events before five valid ones: all are delivered once, and the invalid ones are quarantined."""
    sdk = PublishedSdk(client, app)
    invalid = [make_event(event__type="t" * 101) for _ in range(100)]
    valid = [make_event() for _ in range(5)]
    sdk.track(invalid)
    sdk.track(valid)
    for _ in range(3):
        await sdk.sync()
    assert [(reply.status, reply.json["accepted"]) for reply in sdk.replies] == [(207, 100), (200, 5)]
    assert sdk.unsynced == []
    assert sorted(stored_ids(shared_database, app)) == sorted(ids_of(valid))
    reason = ("invalid_schema", "event.type: longer than 100 characters", "telemetry-kit-rust", "0.3.0", 1)
    assert shared_database.query(QUARANTINED, app.app_id) == [(event_id, *reason) for event_id in ids_of(invalid)]


@pytest_twisted.ensureDeferred
async def test_bad_event_among_good_ones(client: Client, app: App, shared_database: Database) -> None:
    """A batch with good and bad events is delivered once, also if only the database finds the bad ones."""
    foreign = make_event()
    await client.send(App().install(shared_database), [foreign])
    good = [make_event() for _ in range(3)]
    sdk = PublishedSdk(client, app)
    sdk.track([good[0], make_event(service__version=""), good[1], foreign, good[2]])
    await sdk.sync()
    (reply,) = sdk.replies
    counts = {name: value for name, value in reply.json.items() if name != "errors"}
    assert counts == {"status": "partial", "accepted": 5, "rejected": 0, "duplicates": 0, "quarantined": 2}
    assert [(error["index"], error["error"]) for error in reply.json["errors"]] == [
        (1, "invalid_schema"),
        (3, "event_id_conflict"),
    ]
    assert sdk.unsynced == []
    assert len(stored_ids(shared_database, app)) == 3


@pytest_twisted.ensureDeferred
async def test_only_conflicts(client: Client, app: App, shared_database: Database) -> None:
    """A batch of which the database accepts nothing is quarantined, so that it is not resent forever."""
    foreign = [make_event() for _ in range(3)]
    await client.send(App().install(shared_database), foreign)
    sdk = PublishedSdk(client, app)
    sdk.track(foreign)
    await sdk.sync()
    assert (sdk.replies[0].status, sdk.replies[0].json["accepted"], sdk.replies[0].json["quarantined"]) == (207, 3, 3)
    assert sdk.unsynced == []


@pytest_twisted.ensureDeferred
async def test_largest_default_batch(database: Database) -> None:
    """A hundred events of 90 KB are stored."""
    async with running_server(database, TK__INGEST__MAX_BODY_BYTES=12_582_912) as server:
        sdk = PublishedSdk(client_of(server), App().install(database))
        sdk.track([make_event(event__data={"text": "x" * 90_000}) for _ in range(100)])
        await sdk.sync()
        assert sdk.unsynced == []
        assert database.value("SELECT count(*) FROM events WHERE length(event_data::text) > 90000") == 100


@pytest_twisted.ensureDeferred
async def test_empty_service(client: Client, app: App, shared_database: Database) -> None:
    """Events of a program without a name and a version are quarantined with a reason that names the field."""
    sdk = PublishedSdk(client, app)
    sdk.track([make_event(service__name="", service__version="") for _ in range(3)])
    await sdk.sync()
    assert sdk.unsynced == []
    rows = shared_database.query(QUARANTINED, app.app_id)
    assert [(code, message) for _, code, message, *_ in rows] == [("invalid_schema", "service.name: empty")] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secret": "wrong"}, "Server error (401): invalid_signature: the signature is wrong"),
        ({"app_id": "12345678-1234-4234-8234-123456789012"}, "Server error (401): invalid_token: "),
    ],
)
@pytest_twisted.ensureDeferred
async def test_sdk_shows_the_reason(client: Client, app: App, changes: dict[str, str], message: str) -> None:
    """The user of the SDK sees the code and the message of an error, and the events stay in the buffer."""
    sdk = PublishedSdk(client, App(**{"org_id": app.org_id, "app_id": app.app_id, "secret": app.secret, **changes}))
    sdk.track([make_event()])
    with pytest.raises(SyncError) as caught:
        await sdk.sync()
    assert str(caught.value).startswith(message)
    assert len(sdk.unsynced) == 1


@pytest_twisted.ensureDeferred
async def test_events_survive_an_unavailable_database(database: Database) -> None:
    """While invalid events cannot be quarantined, the SDK gets a 503 and keeps them; later they are delivered once."""
    async with running_server(database) as server:
        app = App().install(database)
        sdk = PublishedSdk(client_of(server), app, max_retries=1)
        sdk.track([make_event(user_id="bob"), make_event()])
        database.query("ALTER TABLE quarantine RENAME TO hidden")
        with pytest.raises(SyncError, match=r"Server error \(503\)"):
            await sdk.sync()
        assert [reply.status for reply in sdk.replies] == [503, 503]
        assert len(sdk.unsynced) == 2
        assert stored_ids(database, app) == []
        database.query("ALTER TABLE hidden RENAME TO quarantine")
        await sdk.sync()
        assert sdk.unsynced == []
        assert (len(stored_ids(database, app)), len(database.query(QUARANTINED, app.app_id))) == (1, 1)
