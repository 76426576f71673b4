"""The books balance to the event, whatever is sent and whatever fails."""

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
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.storage.test_caches import until_listening
from tests.support.client import DIALECTS, DOCUMENTED, SDK, App, Client, Reply, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.peer import Peer, connect
from tests.support.scrape import Scrape, scrape
from tests.support.server import start_server
from tkserver.ingest.ledger import ENTRIES, Entry
from tkserver.server.supervisor import Supervisor
from tkserver.storage.blocking import BlockingConnections

ERASED = "client_to_be_erased"
LATE = "client_to_be_erased_later"

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() ORDER BY 1"

SETTINGS = {
    "TK__INGEST__MAX_QUEUE_EVENTS": 400,
    "TK__INGEST__COMMIT_TIMEOUT": 1.5,
    "TK__INGEST__MAX_BODY_BYTES": 600_000,
    "TK__DATABASE__MAX_CONNECTIONS": 8,
}

Event = dict[str, Any]


class Chaos:
    """Clients that do all that can be done, and know what they have done.

    :ivar read: events of requests that must have been read.
    :ivar unsure: events of requests that were answered ``overloaded``, before or after they were read.
    :ivar perhaps: events of those that the database, or a client who was gone, may have kept from being read.
    :ivar sent: batches that others may send again.
    """

    def __init__(self, server: Supervisor, database: Database) -> None:
        self.random = Random(1)
        self.server = server
        self.database = database
        self.client = Client(f"http://127.0.0.1:{server.port}")
        self.app, self.other = App().install(database), App().install(database)
        self.has_quota = self._app_with_quota(60)
        self.read = self.unsure = self.perhaps = 0
        self.sent: list[list[Event]] = []

    def _app_with_quota(self, quota: int) -> App:
        app = App()
        sql = "INSERT INTO apps (org_id, app_id, name, monthly_quota) VALUES (%s, %s, %s, %s)"
        self.database.query(sql, app.org_id, app.app_id, app.app_id, quota)
        return app.install(self.database)

    async def look(self) -> Scrape:
        """What the server says. It is true at any time."""
        seen = await scrape(self.server.admin_port)
        assert seen.balanced, seen.text
        return seen

    async def until(self, condition: Callable[[Scrape], bool]) -> Scrape:
        for _ in range(1000):
            seen = await self.look()
            if condition(seen):
                return seen
            await deferLater(reactor, 0.01)
        raise AssertionError(seen.text)

    async def grown(self, before: Scrape) -> dict[Entry, float]:
        """What has been entered since."""
        now = await self.look()
        grown = {entry: now.events(*entry) - before.events(*entry) for entry in ENTRIES}
        return {entry: by for entry, by in grown.items() if by}

    # --- what clients do

    def events(self, **overrides: Any) -> list[Event]:
        return [make_event(**overrides) for _ in range(self.random.randint(1, 20))]

    async def send(self, events: list[Any], app: App | None = None, **how: Any) -> Reply:
        """Send events that are to be read."""
        dialect = how.pop("dialect", None) or self.random.choice(DIALECTS)
        reply = await self.client.send(app or self.app, events, dialect, **how)
        if reply.code == "overloaded":
            self.unsure += len(events)
        elif reply.code == "storage_unavailable":
            self.perhaps += len(events)
        else:
            self.read += len(events)
        return reply

    async def good(self) -> None:
        events = self.events()
        self.sent.append(events)
        await self.send(events)

    async def again(self) -> None:
        events = self.random.choice(self.sent) if self.sent else self.events()
        await all_of([self.send(events), self.send(events + events[:3])])

    async def at_once(self) -> None:
        events = self.events()
        await all_of([self.send(events) for _ in range(3)])

    async def conflict(self) -> None:
        await self.send(self.random.choice(self.sent) if self.sent else self.events(), self.other)
        await self.send([*self.events(), *(self.sent[0][:2] if self.sent else [])], self.other)

    async def bad(self) -> None:
        wrong: list[Any] = [
            make_event(user_id="me@example.org"),
            make_event(schema_version="2.0"),
            make_event(event__data="x" * 110_000),
            make_event(event__type="poison"),
            "no event",
        ]
        some = self.random.sample(wrong, self.random.randint(1, 4))
        await self.send(some)
        await self.send(some + self.events())

    async def no_track(self) -> None:
        await self.send(self.events(), changes={self.random.choice(("DNT", "Sec-GPC")): "1"})
        events = self.events()
        packed = gzip.compress(batch(events))
        changes = {"Content-Encoding": "gzip", "DNT": "1"}
        reply = await self.client.send(self.app, packed, DOCUMENTED, changes=changes)
        assert reply.status == 204
        self.read += len(events)
        assert (await self.client.send(self.app, b"{broken", changes={"DNT": "1"})).status == 204

    async def nonce_twice(self) -> None:
        nonce = str(uuid.uuid4())
        for _ in range(2):
            await self.send(self.events(), dialect=SDK, nonce=nonce)

    async def metered_too(self) -> None:
        await self.send(self.events(), self.has_quota)

    async def of_erased(self) -> None:
        await self.send(self.events(user_id=ERASED) + self.events())

    async def not_read(self) -> None:
        """Requests whose events are never looked at."""
        events = self.events()
        bodies = [b"{broken", b'{"events": []}', b'{"events": ["\xff"]}', b"x" * 700_000, batch([1] * 1001)]
        await self.client.send(self.app, self.random.choice(bodies))
        changes: list[dict[str, str | None]] = [
            {"X-Signature": "0" * 64},
            {"X-Signature": None},
            {"X-Timestamp": "1"},
            {"Authorization": "Bearer none"},
            {"X-Batch-Size": "2000"},
            {"Content-Type": "text/plain"},
            {"Content-Encoding": "gzip"},
        ]
        reply = await self.client.send(self.app, events, changes=self.random.choice(changes))
        assert reply.status >= 400
        await self.client.send(self.app, events, timestamp=1)
        await self.client.request("GET", "/nothing")

    async def hang_up_in_the_middle(self) -> None:
        raw = self.raw(self.events())
        peer = await connect(self.server.port)
        peer.write(raw[: len(raw) - 10])
        await deferLater(reactor, 0.01)
        peer.hang_up()

    async def hang_up_after_sending(self) -> None:
        await self.known(self.app)
        events = self.events()
        self.perhaps += len(events)
        peer = await connect(self.server.port)
        peer.write(self.raw(events))
        assert peer.transport is not None
        peer.transport.loseConnection()

    async def known(self, app: App) -> None:
        """The server remembers the credentials from now on, and handles what has arrived at once."""
        assert (await self.client.send(app, [])).code == "empty_batch"

    async def send_raw(self, events: list[Event], app: App | None = None) -> Peer:
        peer = await connect(self.server.port)
        before = (await self.look()).received
        peer.write(self.raw(events, app))
        await self.until(lambda seen: seen.received >= before + len(events))
        self.read += len(events)
        return peer

    def raw(self, events: list[Event], app: App | None = None) -> bytes:
        """The bytes of a request."""
        app, body = app or self.app, batch(events)
        headers = {"Host": "x", "Content-Length": str(len(body)), **app.headers(body)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {app.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def all_of(work: list[Any]) -> list[Any]:
    return list(await gatherResults([ensureDeferred(one) for one in work]))


async def with_workers(jobs: Sequence[Callable[[], Awaitable[None]]], workers: int) -> None:
    """Run jobs, so many at a time."""
    todo = iter(jobs)

    async def work() -> None:
        for job in todo:
            await job()

    await all_of([work() for _ in range(workers)])


@contextmanager
def held(database: Database, lock: str) -> Iterator[None]:
    """A lock that somebody else has."""
    with closing(psycopg2.connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(lock)
        yield


def remember(database: Database, user: str) -> None:
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        eraser.remember(connection, eraser.hash_of(connection, user), None)


def delete(database: Database, user: str) -> int:
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        return eraser.delete_events(connection, user, None, lambda: 0.0, lambda _: None)


@pytest_twisted.async_yield_fixture
async def chaos(database: Database) -> AsyncIterator[Chaos]:
    database.query("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (event_type <> 'poison')")
    server = await start_server(database, **SETTINGS)
    await until_listening(database)
    yield Chaos(server, database)
    await server.stopService()


@pytest_twisted.ensureDeferred
async def test_books(chaos: Chaos) -> None:
    """Every event that was received ended in one way, at any time, and as many are in the table as were stored."""
    deleted = await everything(chaos)
    await locked(chaos)
    await erased_late(chaos)
    await not_known_who_is_erased(chaos)
    seen = await chaos.until(lambda seen: seen.waiting == 0)
    overloaded = seen.events("refused", "overloaded")
    assert 0 <= seen.received - chaos.read - overloaded <= chaos.perhaps < chaos.read / 2
    assert overloaded <= chaos.unsure
    assert seen.events("stored") == chaos.database.value("SELECT count(*) FROM events") + deleted
    unseen = {entry for entry in ENTRIES if not seen.events(*entry)}
    assert unseen == {("refused", "internal_error")}, "the chaos is none"


async def everything(chaos: Chaos) -> int:
    """All that clients do, in any order, while a user is erased."""
    kinds = [
        chaos.good,
        chaos.good,
        chaos.again,
        chaos.at_once,
        chaos.conflict,
        chaos.bad,
        chaos.no_track,
        chaos.nonce_twice,
        chaos.metered_too,
        chaos.of_erased,
        chaos.not_read,
        chaos.hang_up_in_the_middle,
        chaos.hang_up_after_sending,
    ]
    jobs = kinds * 10
    chaos.random.shuffle(jobs)
    half = len(jobs) // 2
    await with_workers(jobs[:half], 4)
    going_on = ensureDeferred(with_workers(jobs[half:], 4))
    await deferToThread(remember, chaos.database, ERASED)
    await going_on
    deleted: int = await deferToThread(delete, chaos.database, ERASED)
    assert deleted
    return deleted


async def locked(chaos: Chaos) -> None:
    """Commits wait: clients hang up, or are told that it took too long, statements are cancelled, connections end."""
    await chaos.known(chaos.app)
    before = await chaos.look()
    with held(chaos.database, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"):
        being_written = [await chaos.send_raw(chaos.events()) for _ in range(3)]
        waiting = [await chaos.send_raw(chaos.events()) for _ in range(4)]
        has_quota = [ensureDeferred(chaos.send(chaos.events(), chaos.has_quota)) for _ in range(20)]
        for peer in (being_written[0], *waiting[:2]):
            peer.hang_up()
        many = ensureDeferred(all_of([chaos.send(chaos.events()) for _ in range(60)]))
        statuses = {reply.status for reply in await many}
        assert statuses == {503}
        pids = chaos.database.query(WAITING)
        chaos.database.query("SELECT pg_terminate_backend(%s)", pids[0])
        chaos.database.query("SELECT pg_cancel_backend(%s)", pids[1])
    await gatherResults(has_quota)
    seen = await chaos.until(lambda seen: seen.waiting == 0)
    assert seen.events("stored") > before.events("stored"), "what was told 503 was stored later"
    for outcome in ("failed", "unknown"):
        assert seen.value("tkserver_commits_total", outcome=outcome) > before.value(
            "tkserver_commits_total", outcome=outcome
        )


@asynccontextmanager
async def commit_under_way(chaos: Chaos, events: list[Event], app: App) -> AsyncIterator[Deferred[Reply]]:
    """Events that are in the table when this begins, and are committed when it ends."""
    query = chaos.database.query
    query(
        "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$"
    )
    query("CREATE TRIGGER slow AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    with held(chaos.database, "SELECT pg_advisory_lock(1)"):
        reply = ensureDeferred(chaos.send(events, app))
        while not query(WAITING):
            await deferLater(reactor, 0.01)
        yield reply
        await deferLater(reactor, 0.2)  # in which the server hears of what has happened
    await reply
    query("DROP TRIGGER slow ON events")


async def erased_late(chaos: Chaos) -> None:
    """A user is erased while a commit of events of theirs is under way, which then deletes them itself."""
    mine, others = make_event(user_id=LATE), chaos.sent[0][0]
    stored_before = make_event(user_id=LATE)
    await chaos.send([stored_before])
    before = await chaos.look()
    events = [mine, mine, stored_before, make_event(), make_event(user_id=LATE, event_id=others["event_id"])]
    async with commit_under_way(chaos, events, chaos.other) as reply:
        remember(chaos.database, LATE)
    counts = (await reply).json
    assert (counts["accepted"], counts["rejected"], counts["duplicates"]) == (3, 2, 1), json.dumps(counts)
    assert await chaos.grown(before) == {
        ("stored", ""): 1,
        ("erased", ""): 2,
        ("rejected", "event_id_conflict"): 2,
    }


async def not_known_who_is_erased(chaos: Chaos) -> None:
    """What is committed when nobody can say any more who is erased is told 503, and is stored all the same."""
    query = chaos.database.query
    before = await chaos.look()
    events = [make_event(), make_event(user_id=ERASED), make_event()]
    async with commit_under_way(chaos, events, chaos.app) as reply:
        query("NOTIFY tkserver_erasures")
        query("ALTER TABLE erasures RENAME TO hidden")
    query("ALTER TABLE hidden RENAME TO erasures")
    assert (await reply).status == 503
    assert await chaos.grown(before) == {("stored", ""): 2, ("erased", ""): 1}
    assert (await chaos.send(events)).json["duplicates"] == 2
    assert await chaos.grown(before) == {("stored", ""): 2, ("erased", ""): 2, ("duplicate", ""): 2}
