"""Servers stop storing events of a user soon after the user is erased."""

from __future__ import annotations

from contextlib import closing

import pytest_twisted

from tests.support.client import App, Client, Reply
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.queries import terminate_listeners, until_listening
from tests.support.stored import events_by_user
from tests.support.waiting import until
from tkserver.operations import erasure
from tkserver.storage.blocking import BlockingConnections

USER = "client_to_be_erased"


def record_erasure(database: Database) -> None:
    """Store the erasure of the user without deleting events: the first step of ``tkserver erase``."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        erasure.record(connection, USER, None)


def counts(reply: Reply) -> tuple[int, int, int]:
    """Return the status and the numbers of accepted and rejected events."""
    return reply.status, reply.json["accepted"], reply.json["rejected"]


async def until_not_stored(client: Client, database: Database, app: App, within: float) -> None:
    """Send events of the user until one is accepted and not stored.

    :param within: seconds.
    """

    async def is_not_stored() -> bool:
        before = events_by_user(database, app)
        assert counts(await client.send(app, [make_event(user_id=USER)])) == (200, 1, 0)
        return events_by_user(database, app) == before

    await until(is_not_stored, within=within)


@pytest_twisted.ensureDeferred
async def test_erasure_applies_within_two_seconds(own_client: Client, database: Database) -> None:
    """A server that listens for changes stores no events of the user after two seconds."""
    app = App().install(database)
    await until_listening(database)
    assert (await own_client.send(app, [make_event(user_id=USER)])).status == 200
    record_erasure(database)
    await until_not_stored(own_client, database, app, within=2)


@pytest_twisted.ensureDeferred
async def test_erasure_applies_without_notifications(own_client: Client, database: Database) -> None:
    """A server that has lost its listening connection queries the table, so that an erasure applies all the same."""
    app = App().install(database)
    await until_listening(database)
    assert (await own_client.send(app, [make_event(user_id=USER)])).status == 200
    terminate_listeners(database)
    record_erasure(database)
    await until_not_stored(own_client, database, app, within=2)
    await until_listening(database)
    stored = events_by_user(database, app)
    for _ in range(5):
        assert counts(await own_client.send(app, [make_event(user_id=USER)])) == (200, 1, 0)
        terminate_listeners(database)
    assert events_by_user(database, app) == stored


@pytest_twisted.ensureDeferred
async def test_event_that_is_sent_again_is_deleted(own_client: Client, database: Database) -> None:
    """A stored event is deleted when it is sent again after the erasure, but not by another application."""
    app, other_app = App().install(database), App().install(database)
    event, foreign_event = make_event(user_id=USER), make_event(user_id=USER)
    assert (await own_client.send(app, [event])).status == 200
    assert (await own_client.send(other_app, [foreign_event])).status == 200
    record_erasure(database)
    await until_not_stored(own_client, database, app, within=2)
    assert counts(await own_client.send(app, [event, foreign_event])) == (200, 2, 0)
    rows = database.query("SELECT event_id::text FROM events")
    assert (event["event_id"],) not in rows
    assert (foreign_event["event_id"],) in rows


@pytest_twisted.ensureDeferred
async def test_nothing_is_stored_if_erasures_are_unknown(own_client: Client, database: Database) -> None:
    """A server that cannot load the erased users stores nothing, and stores events again when it can."""
    app = App().install(database)
    await until_listening(database)
    database.query("NOTIFY tkserver_erasures")
    database.query("ALTER TABLE erasures RENAME TO hidden")

    async def is_unavailable() -> bool:
        return (await own_client.send(app, [make_event()])).status == 503

    await until(is_unavailable, within=2)
    database.query("ALTER TABLE hidden RENAME TO erasures")
    assert (await own_client.send(app, [make_event()])).status == 200


@pytest_twisted.ensureDeferred
async def test_erased_users_are_cached(own_client: Client, database: Database) -> None:
    """If nothing changes, a server loads the erased users only once."""
    app = App().install(database)
    await until_listening(database)
    assert (await own_client.send(app, [make_event()])).status == 200
    database.query("ALTER TABLE erasures RENAME TO hidden")
    assert (await own_client.send(app, [make_event()])).status == 200
