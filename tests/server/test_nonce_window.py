"""Nonces are remembered as long as the timestamps of their requests are valid, whatever servers and clocks do."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import pytest_twisted

from tests.support.client import SDK, App, Client, Reply, batch
from tests.support.clocks import ReactorWithClock, set_clock
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.server import client_of, running_server
from tkserver.server.sweeper import delete_old_nonces
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.store_statement import CLOCK_MARGIN

START = 1_800_000_000
REPLAYED, OUTSIDE = (409, "nonce_reused"), (403, "timestamp_out_of_window")


@dataclass
class CapturedRequest:
    """A signed request, as an attacker captures it."""

    app: App
    timestamp: int
    nonce: str = "captured"
    body: bytes = field(default_factory=lambda: batch([make_event()]))

    async def send(self, client: Client) -> tuple[int, str | None]:
        """Send the request, and return status and error code."""
        return outcome(await client.send(self.app, self.body, SDK, nonce=self.nonce, timestamp=self.timestamp))


def outcome(reply: Reply) -> tuple[int, str | None]:
    return reply.status, reply.code


def sweep(database: Database, now: float, tolerance: int) -> None:
    """Delete old nonces as a server with this tolerance does at this time, by the clock of the database."""
    set_clock(database, now)
    delete_old_nonces(database.dsn, BlockingConnections(), tolerance)


def remembered(database: Database) -> list[str]:
    return [nonce for (nonce,) in database.query("SELECT nonce FROM nonces ORDER BY nonce")]


@pytest.mark.parametrize("tolerance", [0, 1, 600, 86_400])
@pytest.mark.parametrize("sent", ["oldest", "now", "newest"])
@pytest_twisted.ensureDeferred
async def test_captured_request_is_never_stored_twice(database: Database, tolerance: int, sent: str) -> None:
    """A nonce is rejected until its timestamp is, to the fraction of a second, even if old nonces are deleted often.

    Among these is a request whose timestamp is 600 s in the future, sent again after 1200.5 s.
    """
    timestamp = START + {"oldest": -tolerance, "now": 0, "newest": tolerance}[sent]
    request, clock = CapturedRequest(App().install(database), timestamp), ReactorWithClock(START + 0.25)
    valid_until = timestamp + tolerance + 1  # check 4 ignores the fraction of the server's time
    async with running_server(database, reactor=clock, TK__INGEST__TIMESTAMP_TOLERANCE=tolerance) as server:
        client = client_of(server)
        assert await request.send(client) == (200, None)
        times = {START + 0.5, timestamp, valid_until - 0.5, valid_until - 0.001, valid_until, valid_until + 0.5}
        for now in sorted(time for time in times if time > clock.now):
            sweep(database, now, tolerance)
            clock.now = now
            assert await request.send(client) == (REPLAYED if now < valid_until else OUTSIDE), now - timestamp
    sweep(database, valid_until + CLOCK_MARGIN, tolerance)
    assert remembered(database) == []


@pytest.mark.parametrize("ahead", [-3600, -CLOCK_MARGIN, CLOCK_MARGIN - 1, 3600, 86_400 * 365])
@pytest_twisted.ensureDeferred
async def test_wrong_clock_of_the_database(database: Database, ahead: int) -> None:
    """If the clock of the database is wrong, no request is stored twice, and new requests are stored."""
    request, clock = CapturedRequest(App().install(database), START + 600), ReactorWithClock(START)
    async with running_server(database, reactor=clock) as server:
        client = client_of(server)
        assert await request.send(client) == (200, None)
        for now in (START + 1, START + 700, START + 1200.5):
            sweep(database, now + ahead, 600)
            clock.now = now
            assert await request.send(client) == REPLAYED
        clock.now = START + 1201
        fresh = CapturedRequest(request.app, START + 1201, nonce="fresh")
        assert await fresh.send(client) == (200, None)
        if ahead == CLOCK_MARGIN - 1:
            oldest = CapturedRequest(request.app, START + 601, nonce="oldest")
            assert await oldest.send(client) == (200, None)


@pytest_twisted.ensureDeferred
async def test_tolerance_is_raised(database: Database) -> None:
    """After the tolerance is raised, a request is not stored twice whose nonce was deleted under the old tolerance."""
    request, clock = CapturedRequest(App().install(database), START), ReactorWithClock(START)
    async with running_server(database, reactor=clock, TK__INGEST__TIMESTAMP_TOLERANCE=60) as server:
        assert await request.send(client_of(server)) == (200, None)
    sweep(database, START + 300, 60)
    assert remembered(database) == []
    clock.now = START + 300
    async with running_server(database, reactor=clock, TK__INGEST__TIMESTAMP_TOLERANCE=3600) as server:
        client = client_of(server)
        assert await request.send(client) == REPLAYED
        never_sent = CapturedRequest(request.app, START, nonce="other")  # the server cannot know
        assert await never_sent.send(client) == REPLAYED
        newer = CapturedRequest(request.app, START + 1, nonce="other")
        assert await newer.send(client) == (200, None)


def insert_nonce(database: Database, nonce: str, sent_at: int) -> None:
    app = App()
    sql = "INSERT INTO nonces (org_id, app_id, nonce, sent_at) VALUES (%s, %s, %s, to_timestamp(%s))"
    database.query(sql, app.org_id, app.app_id, nonce, sent_at)


def test_largest_tolerance_of_all_servers_counts(database: Database) -> None:
    """A server with a small tolerance deletes no nonces that another server needs, until that is gone for a day."""
    insert_nonce(database, "captured", START)
    for now in (START, START + 3000):
        sweep(database, now, 3600)
        sweep(database, now + 1, 60)
        assert remembered(database) == ["captured"]
    assert database.value("SELECT tolerance FROM nonce_window") == 3600
    sweep(database, START + 3000 + 86_399, 60)
    assert remembered(database) == []  # too old for both
    insert_nonce(database, "later", START + 3000 + 86_401 - 1000)
    sweep(database, START + 3000 + 86_401, 60)
    assert remembered(database) == []
    assert database.value("SELECT tolerance FROM nonce_window") == 60


def test_deleted_nonces_are_recorded_once(database: Database) -> None:
    """The newest deleted timestamp is recorded, and later deletions never lower it."""
    read = "SELECT extract(epoch FROM deleted_until)::float8 FROM nonce_window"
    assert database.value(read) == float("-inf")
    for sent_at in (START, START + 5):
        insert_nonce(database, f"at {sent_at}", sent_at)
    sweep(database, START + 10_000, 60)
    assert database.value(read) == START + 5
    insert_nonce(database, "older", START - 100)
    sweep(database, START + 10_060, 60)
    assert database.value(read) == START + 5
    assert remembered(database) == []


def test_nonces_of_older_servers(database: Database) -> None:
    """A server of an older version stores no timestamp; its nonces are kept for the longest time that they need."""
    app = App()
    database.query("INSERT INTO nonces (org_id, app_id, nonce) VALUES (%s, %s, 'x')", app.org_id, app.app_id)
    assert database.value("SELECT sent_at - used_at = interval '10 minutes' FROM nonces")
