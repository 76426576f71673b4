"""Event accounting: every received event has exactly one outcome, whatever clients send and whatever fails."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from random import Random
from typing import Any

import psycopg2
import pytest_twisted
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.support.client import BOTH, DIALECTS, DOCUMENTED, SDK, App, Reply, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.peer import Peer, connect
from tests.support.queries import blocked_backends, until_listening
from tests.support.raw_requests import signed_request
from tests.support.scrape import Scrape, scrape
from tests.support.server import client_of, launch_server, until_ready
from tests.support.waiting import until
from tkserver.ingest.ledger import ENTRIES, Entry
from tkserver.operations import erasure
from tkserver.server.supervisor import Supervisor
from tkserver.storage import erasures
from tkserver.storage.blocking import BlockingConnections

ERASED = "client_to_be_erased"
LATE = "client_to_be_erased_later"

SETTINGS = {
    "TK__INGEST__MAX_QUEUE_EVENTS": 400,
    "TK__INGEST__COMMIT_TIMEOUT": 1.5,
    "TK__INGEST__MAX_BODY_BYTES": 600_000,
    "TK__DATABASE__MAX_CONNECTIONS": 8,
}

Event = dict[str, Any]


class Chaos:
    """Clients that send all kinds of requests, and count their events.

    :ivar received: the number of events that the server must have counted as received.
    :ivar overloaded: the number of events in requests with the error ``overloaded``. The server has received them or
        not.
    :ivar uncertain: the number of events in requests that failed because of the database, or whose client
        disconnected. The server has received them or not.
    :ivar batches: batches that can be sent again.
    :ivar erasure_notices: how often the server was notified of a change of the erasures.
    """

    def __init__(self, server: Supervisor, database: Database) -> None:
        self.random = Random(1)
        self.server = server
        self.database = database
        self.client = client_of(server)
        self.app, self.other = App().install(database), App().install(database)
        self.app_with_quota = self._create_app_with_quota(60)
        self.received = self.overloaded = self.uncertain = 0
        self.batches: list[list[Event]] = []
        self.erasure_notices = 0

    def _create_app_with_quota(self, quota: int) -> App:
        app = App()
        sql = "INSERT INTO apps (org_id, app_id, name, monthly_quota) VALUES (%s, %s, %s, %s)"
        self.database.query(sql, app.org_id, app.app_id, app.app_id, quota)
        return app.install(self.database)

    def count_erasure_notice(self) -> None:
        self.erasure_notices += 1

    async def metrics(self) -> Scrape:
        """Return the metrics of the server. The accounting must be correct at any time."""
        metrics = await scrape(self.server.admin_port)
        assert metrics.balanced, metrics.text
        return metrics

    async def until(self, condition: Callable[[Scrape], bool]) -> Scrape:
        """Wait until the metrics meet a condition, and return them."""
        metrics = await self.metrics()

        async def is_met() -> bool:
            nonlocal metrics
            metrics = await self.metrics()
            return condition(metrics)

        await until(is_met, lambda: metrics.text)
        return metrics

    async def outcomes_since(self, before: Scrape) -> dict[Entry, float]:
        """Return the outcomes of the events since a scrape."""
        now = await self.metrics()
        increases = {entry: now.events(*entry) - before.events(*entry) for entry in ENTRIES}
        return {entry: increase for entry, increase in increases.items() if increase}

    # --- requests

    def events(self, **overrides: Any) -> list[Event]:
        """Return a random number of events."""
        return [make_event(**overrides) for _ in range(self.random.randint(1, 20))]

    async def send(self, events: list[Any], app: App | None = None, **options: Any) -> Reply:
        """Send a batch that the server receives unless it cannot store events at the moment."""
        dialect = options.pop("dialect", None) or self.random.choice(DIALECTS)
        reply = await self.client.send(app or self.app, events, dialect, **options)
        if reply.code == "overloaded":
            self.overloaded += len(events)
        elif reply.code == "storage_unavailable":
            self.uncertain += len(events)
        else:
            self.received += len(events)
        return reply

    async def send_new(self) -> None:
        events = self.events()
        self.batches.append(events)
        await self.send(events)

    async def send_again(self) -> None:
        events = self.random.choice(self.batches) if self.batches else self.events()
        await gather([self.send(events), self.send(events + events[:3])])

    async def send_concurrently(self) -> None:
        events = self.events()
        await gather([self.send(events) for _ in range(3)])

    async def send_conflicting(self) -> None:
        await self.send(self.random.choice(self.batches) if self.batches else self.events(), self.other)
        await self.send([*self.events(), *(self.batches[0][:2] if self.batches else [])], self.other)

    async def send_invalid(self) -> None:
        invalid: list[Any] = [
            make_event(user_id="me@example.org"),
            make_event(schema_version="2.0"),
            make_event(event__data="x" * 110_000),
            make_event(event__type="forbidden"),
            "not an event",
        ]
        sample = self.random.sample(invalid, self.random.randint(1, 4))
        await self.send(sample)
        await self.send(sample + self.events())

    async def send_do_not_track(self) -> None:
        await self.send(self.events(), changes={self.random.choice(("DNT", "Sec-GPC")): "1"})
        events = self.events()
        compressed = gzip.compress(batch(events))
        changes = {"Content-Encoding": "gzip", "DNT": "1"}
        reply = await self.client.send(self.app, compressed, DOCUMENTED, changes=changes)
        assert reply.status == 204
        self.received += len(events)
        assert (await self.client.send(self.app, b"{broken", changes={"DNT": "1"})).status == 204

    async def reuse_nonce(self) -> None:
        nonce = str(uuid.uuid4())
        for _ in range(2):
            await self.send(self.events(), dialect=SDK, nonce=nonce)

    async def send_with_quota(self) -> None:
        await self.send(self.events(), self.app_with_quota)

    async def send_erased(self) -> None:
        await self.send(self.events(user_id=ERASED) + self.events() + self.events(user_id=ERASED, event__type=""))

    async def send_invalid_requests(self) -> None:
        """Send requests whose events the server does not read."""
        events = self.events()
        bodies = [b"{broken", b'{"events": []}', b'{"events": ["\xff"]}', b"x" * 700_000, batch([1] * 1001)]
        await self.client.send(self.app, self.random.choice(bodies))
        changes: list[dict[str, str | None]] = [
            {"X-Signature": "0" * 64},
            {"X-Signature": None},
            {"X-Timestamp": "1"},
            {"Authorization": "Bearer unknown"},
            {"X-Batch-Size": "2000"},
            {"Content-Type": "text/plain"},
            {"Content-Encoding": "gzip"},
        ]
        reply = await self.client.send(self.app, events, changes=self.random.choice(changes))
        assert reply.status >= 400
        await self.client.send(self.app, events, timestamp=1)
        await self.client.request("GET", "/nothing")

    async def disconnect_before_end(self) -> None:
        request = signed_request(self.app, batch(self.events()))
        await self.send_and_close(request[: len(request) - 10])

    async def disconnect_before_response(self) -> None:
        await self.cache_credential(self.app)
        events = self.events()
        self.uncertain += len(events)
        await self.send_and_close(signed_request(self.app, batch(events)))

    async def send_and_close(self, data: bytes) -> None:
        """Send bytes on a new connection, and close it immediately afterwards."""
        peer = await connect(self.server.port)
        peer.write(data)
        assert peer.transport is not None
        peer.transport.loseConnection()

    async def cache_credential(self, app: App) -> None:
        """Make the server cache a credential, so that it handles a complete request without a delay."""
        assert (await self.client.send(app, [])).code == "empty_batch"

    async def send_until_received(self, events: list[Event]) -> Peer:
        """Send a request, and return when the server has received its events."""
        peer = await connect(self.server.port)
        before = (await self.metrics()).received
        peer.write(signed_request(self.app, batch(events)))
        await self.until(lambda metrics: metrics.received >= before + len(events))
        self.received += len(events)
        return peer


async def gather(coroutines: Sequence[Any]) -> list[Any]:
    """Run coroutines concurrently, and return their results."""
    return list(await gatherResults([ensureDeferred(coroutine) for coroutine in coroutines]))


async def run_concurrently(jobs: Sequence[Callable[[], Awaitable[None]]], workers: int) -> None:
    """Run jobs, at most ``workers`` of them at the same time."""
    remaining = iter(jobs)

    async def work() -> None:
        for job in remaining:
            await job()

    await gather([work() for _ in range(workers)])


@contextmanager
def locked(database: Database, statement: str) -> Iterator[None]:
    """Hold the lock that a statement takes while the context lasts."""
    with closing(psycopg2.connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        yield


def mark_as_erased(database: Database, user: str) -> None:
    """Record the erasure of a user, without deleting stored events."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        erasure.record(connection, user, None)


def delete_events(database: Database, user: str) -> int:
    """Delete the events of a user, and return their number."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        return erasure.delete_events(connection, user, None, lambda: 0.0, lambda _: None)


@pytest_twisted.async_yield_fixture
async def chaos(database: Database) -> AsyncIterator[Chaos]:
    database.query("ALTER TABLE events ADD CONSTRAINT allowed_type CHECK (event_type <> 'forbidden')")
    failures: list[str] = []
    server = launch_server(database, failures, **SETTINGS)
    chaos = Chaos(server, database)
    server.worker.components.changes.subscribe(erasures.CHANNEL, chaos.count_erasure_notice)
    await until_ready(server, failures)
    await until_listening(database)
    yield chaos
    await server.stopService()


@pytest_twisted.ensureDeferred
async def test_every_event_has_one_outcome(chaos: Chaos) -> None:
    """Every received event has one outcome at any time, and the tables contain what was stored and quarantined."""
    deleted, deleted_from_quarantine = await send_all_kinds(chaos)
    await send_to_locked_table(chaos)
    await erase_during_commit(chaos)
    await commit_with_unknown_erasures(chaos)
    metrics = await chaos.until(lambda metrics: metrics.waiting == 0)
    overloaded = metrics.events("refused", "overloaded")
    assert 0 <= metrics.received - chaos.received - overloaded <= chaos.uncertain < chaos.received / 2
    assert overloaded <= chaos.overloaded
    assert metrics.events("stored") == chaos.database.value("SELECT count(*) FROM events") + deleted
    quarantined = metrics.sum("tkserver_events_total", outcome="quarantined")
    assert quarantined == chaos.database.value("SELECT sum(times) FROM quarantine") + deleted_from_quarantine
    missing = {entry for entry in ENTRIES if not metrics.events(*entry)}
    assert missing == {("refused", "internal_error")}, "the test did not cause all outcomes"


async def send_all_kinds(chaos: Chaos) -> tuple[int, int]:
    """Send all kinds of requests in random order while a user is erased.

    :return: the numbers of deleted events and of events that were deleted from the quarantine.
    """
    kinds = [
        chaos.send_new,
        chaos.send_new,
        chaos.send_again,
        chaos.send_concurrently,
        chaos.send_conflicting,
        chaos.send_invalid,
        chaos.send_do_not_track,
        chaos.reuse_nonce,
        chaos.send_with_quota,
        chaos.send_erased,
        chaos.send_invalid_requests,
        chaos.disconnect_before_end,
        chaos.disconnect_before_response,
    ]
    jobs = kinds * 10
    chaos.random.shuffle(jobs)
    half = len(jobs) // 2
    await run_concurrently(jobs[:half], 4)
    second_half = ensureDeferred(run_concurrently(jobs[half:], 4))
    await deferToThread(mark_as_erased, chaos.database, ERASED)
    await second_half
    deleted: int = await deferToThread(delete_events, chaos.database, ERASED)
    deleted_from_quarantine = chaos.database.query("DELETE FROM quarantine WHERE user_id = %s RETURNING times", ERASED)
    assert deleted
    assert deleted_from_quarantine
    return deleted, sum(times for (times,) in deleted_from_quarantine)


async def send_to_locked_table(chaos: Chaos) -> None:
    """Delay commits: clients disconnect, requests time out, a statement is cancelled, a connection is terminated."""
    await chaos.cache_credential(chaos.app)
    before = await chaos.metrics()
    with locked(chaos.database, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"):
        committing = [await chaos.send_until_received(chaos.events()) for _ in range(3)]
        waiting = [await chaos.send_until_received(chaos.events()) for _ in range(4)]
        with_quota = [ensureDeferred(chaos.send(chaos.events(), chaos.app_with_quota)) for _ in range(20)]
        for peer in (committing[0], *waiting[:2]):
            peer.disconnect()
        replies = await gather([chaos.send(chaos.events()) for _ in range(60)])
        assert {reply.status for reply in replies} == {503}
        backends = blocked_backends(chaos.database)
        chaos.database.query("SELECT pg_terminate_backend(%s)", backends[0])
        chaos.database.query("SELECT pg_cancel_backend(%s)", backends[1])
    await gatherResults(with_quota)
    metrics = await chaos.until(lambda metrics: metrics.waiting == 0)
    assert metrics.events("stored") > before.events("stored"), "events of requests with a 503 were stored later"
    for outcome in ("failed", "unknown"):
        assert metrics.value("tkserver_commits_total", outcome=outcome) > before.value(
            "tkserver_commits_total", outcome=outcome
        )


@asynccontextmanager
async def delayed_commit(
    chaos: Chaos, events: list[Any], app: App, dialect: str | None = None
) -> AsyncIterator[Deferred[Reply]]:
    """Send events that are inserted when the context begins, and are committed when it ends.

    The context must notify the server of an erasure; it ends when the server has received the notification.
    """
    query = chaos.database.query
    query(
        "CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$"
    )
    query("CREATE TRIGGER wait AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION wait()")
    with locked(chaos.database, "SELECT pg_advisory_lock(1)"):
        reply = ensureDeferred(chaos.send(events, app, dialect=dialect))
        await until(lambda: blocked_backends(chaos.database))
        notices = chaos.erasure_notices
        yield reply
        await until(lambda: chaos.erasure_notices > notices)
    await reply
    query("DROP TRIGGER wait ON events")


async def erase_during_commit(chaos: Chaos) -> None:
    """Erase a user during the commit of events of this user: the server deletes the events after the commit."""
    event, conflicting = make_event(user_id=LATE), chaos.batches[0][0]
    stored_before = make_event(user_id=LATE)
    await chaos.send([stored_before])
    before = await chaos.metrics()
    events = [
        *(event, event, stored_before, make_event(), make_event(user_id=LATE, event_id=conflicting["event_id"])),
        *(conflicting, "not an event", make_event(user_id=LATE, event__type="")),
    ]
    async with delayed_commit(chaos, events, chaos.other, BOTH) as reply:
        mark_as_erased(chaos.database, LATE)
    counts = (await reply).json
    assert (counts["accepted"], counts["rejected"], counts["duplicates"]) == (3, 5, 1), json.dumps(counts)
    assert counts["quarantined"] == 2
    assert await chaos.outcomes_since(before) == {
        ("stored", ""): 1,
        ("erased", ""): 5,
        ("quarantined", "event_id_conflict"): 1,
        ("quarantined", "invalid_schema"): 1,
    }
    assert chaos.database.value("SELECT count(*) FROM quarantine WHERE user_id = %s", LATE) == 0


async def commit_with_unknown_erasures(chaos: Chaos) -> None:
    """Commit events while the server cannot read the erasures: the response is a 503, but the events are stored."""
    query = chaos.database.query
    before = await chaos.metrics()
    events = [make_event(), make_event(user_id=ERASED), make_event()]
    async with delayed_commit(chaos, events, chaos.app) as reply:
        query("NOTIFY tkserver_erasures")
        query("ALTER TABLE erasures RENAME TO hidden")
    query("ALTER TABLE hidden RENAME TO erasures")
    assert (await reply).status == 503
    assert await chaos.outcomes_since(before) == {("stored", ""): 2, ("erased", ""): 1}
    assert (await chaos.send(events)).json["duplicates"] == 2
    assert await chaos.outcomes_since(before) == {("stored", ""): 2, ("erased", ""): 2, ("duplicate", ""): 2}
