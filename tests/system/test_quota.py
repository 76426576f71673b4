"""Monthly quotas: no event more than that, on however many servers, and none counted that was not stored."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.support.client import BOTH, DOCUMENTED, App, Client, Reply
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd, wait_for
from tests.support.run_command import run
from tests.support.server import start_server
from tests.system.test_lifecycle import ready

COUNTED = "SELECT quota_used FROM apps WHERE app_id = %s"
STORED = "SELECT count(*) FROM events WHERE app_id = %s"
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest_twisted.async_yield_fixture
async def clients(database: Database) -> AsyncIterator[list[Client]]:
    """Two servers on one database."""
    servers = [await start_server(database) for _ in range(2)]
    yield [Client(f"http://127.0.0.1:{server.port}") for server in servers]
    for server in servers:
        await server.stopService()


def app_with(database: Database, quota: int | None) -> App:
    """An application that has a name, and a quota from before any server has heard of it."""
    app = App()
    name_sql = "INSERT INTO apps (org_id, app_id, name, monthly_quota) VALUES (%s, %s, %s, %s)"
    database.query(name_sql, app.org_id, app.app_id, app.app_id, quota)
    return app.install(database)


def counts(database: Database, app: App) -> tuple[int, int]:
    """How many events are counted, and how many are stored."""
    return database.value(COUNTED, app.app_id), database.value(STORED, app.app_id)


def events(number: int) -> list[dict[str, Any]]:
    return [make_event() for _ in range(number)]


async def all_of(work: list[Any]) -> list[Any]:
    return list(await gatherResults([ensureDeferred(one) for one in work]))


async def until(condition: Any, within: float = 2) -> None:
    deadline = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        await deferLater(reactor, 0.02)


@pytest_twisted.ensureDeferred
async def test_exact(clients: list[Client], database: Database) -> None:
    """Many clients, two servers, batches of all sizes, each sent twice at once: the quota is stored to the event."""
    random = Random(1)
    app = app_with(database, 200)
    batches = [events(random.choice((1, 1, 1, 2, 3, 7))) for _ in range(150)]

    async def send(batch: list[Any], client: Client) -> tuple[int, int]:
        reply = await client.send(app, batch, random.choice((DOCUMENTED, BOTH)))
        return reply.status, len(batch)

    sent = await all_of([send(batch, client) for batch in batches for client in clients])
    assert {status for status, _ in sent} == {200, 429}
    assert counts(database, app) == (200, 200)  # batches of one event fill the last gap
    for batch in batches:
        ids = [event["event_id"] for event in batch]
        assert database.value("SELECT count(*) FROM events WHERE event_id = ANY (%s::uuid[])", ids) in (0, len(ids))


@pytest_twisted.ensureDeferred
async def test_as_a_whole(clients: list[Client], database: Database) -> None:
    """A batch that does not fit is refused with nothing stored and its nonce unburnt; a smaller one still fits."""
    app, nonce = app_with(database, 10), str(uuid.uuid4())
    client = clients[0]
    assert (await client.send(app, events(6))).status == 200
    refused = await client.send(app, events(5), BOTH, nonce=nonce)
    assert_refused(refused, left=4, quota=10)
    assert counts(database, app) == (6, 6)
    assert database.value("SELECT count(*) FROM nonces") == 0
    assert (await client.send(app, events(4), BOTH, nonce=nonce)).status == 200
    assert counts(database, app) == (10, 10)
    assert_refused(await clients[1].send(app, events(1)), left=0, quota=10)


def assert_refused(reply: Reply, *, left: int, quota: int) -> None:
    """The answer is the contract's, and says when the next month begins."""
    assert (reply.status, reply.code) == (429, "quota_exceeded")
    now = datetime.now(timezone.utc)
    resets_at = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=timezone.utc)
    retry_after = reply.json["retry_after"]
    assert reply.headers["retry-after"] == str(retry_after)
    assert type(retry_after) is int
    assert abs((resets_at - now).total_seconds() - retry_after) < 30
    assert f"{resets_at:%Y-%m-%dT%H:%M:%SZ}" in reply.json["error"]["message"]
    assert f"{left} of the {quota} events" in reply.json["error"]["message"]


@pytest_twisted.ensureDeferred
async def test_only_what_is_new_counts(clients: list[Client], database: Database) -> None:
    """Duplicates, conflicts and refused events are not counted, and a stored batch is a 200 with nothing left."""
    app, other = app_with(database, 4), App().install(database)
    client = clients[0]
    theirs, twice, wrong = make_event(), make_event(), make_event(user_id="somebody")
    assert (await client.send(other, [theirs])).status == 200
    first = await client.send(app, [theirs, twice, twice, wrong])
    assert (first.status, first.json["accepted"], first.json["duplicates"]) == (207, 2, 1)
    assert counts(database, app) == (1, 1)
    batch = [twice, theirs, *events(3)]
    for duplicates in (1, 4, 4):
        again = await client.send(app, batch)
        assert (again.status, again.json["accepted"], again.json["duplicates"]) == (207, 4, duplicates)
        assert counts(database, app) == (4, 4)
    assert (await client.send(app, [twice])).status == 200
    assert (await client.send(app, [theirs])).code == "all_events_rejected"
    assert (await client.send(app, [twice, *events(1)])).code == "quota_exceeded"
    assert counts(database, app) == (4, 4)


@pytest_twisted.ensureDeferred
async def test_what_the_database_refuses(clients: list[Client], database: Database) -> None:
    """An event that PostgreSQL will not take costs its batch nothing, and is not counted."""
    database.query("ALTER TABLE events ADD CHECK (event_type <> 'bad')")
    app = app_with(database, 10)
    bad = make_event(event__type="bad")
    together = [clients[0].send(app, [bad, *events(2)], BOTH), clients[0].send(app, events(3))]
    replies = await all_of(together)
    assert [reply.status for reply in replies] == [207, 200]
    assert counts(database, app) == (5, 5)


@pytest_twisted.ensureDeferred
async def test_nonce_reused(clients: list[Client], database: Database) -> None:
    """What is refused for its nonce is not counted, and takes no room from what is sent beside it."""
    app = app_with(database, 4)
    assert (await clients[0].send(app, events(1), BOTH, nonce="used")).status == 200
    sent = [clients[0].send(app, events(3), BOTH, nonce=nonce) for nonce in ("a", "used", "used", "b", "c")]
    told = Counter([reply.status for reply in await all_of(sent)])
    assert told[200] == 1
    assert told[429] + told[409] == 4
    assert counts(database, app) == (4, 4)


@pytest_twisted.ensureDeferred
async def test_a_new_month(clients: list[Client], database: Database) -> None:
    """What was used in another month does not count in this one."""
    app = app_with(database, 3)
    assert (await clients[0].send(app, events(3))).status == 200
    assert (await clients[0].send(app, events(1))).status == 429
    database.query("UPDATE apps SET quota_month = quota_month - interval '1 month'")
    assert (await clients[0].send(app, events(2))).status == 200
    assert database.value(COUNTED, app.app_id) == 2
    this_month = "SELECT quota_month = date_trunc('month', now() AT TIME ZONE 'UTC') FROM apps"
    assert database.value(this_month) is True
    assert (await clients[1].send(app, events(2))).status == 429


@pytest_twisted.ensureDeferred
async def test_a_month_that_ends_while_waiting(clients: list[Client], database: Database) -> None:
    """A counter of a later month than the transaction's is left alone, and the batch is for the next try."""
    app = app_with(database, 3)
    database.query("UPDATE apps SET quota_month = quota_month + interval '1 month', quota_used = 1")
    assert (await clients[0].send(app, events(1))).status == 503
    assert counts(database, app) == (1, 0)


@pytest_twisted.ensureDeferred
async def test_changes(clients: list[Client], database: Database) -> None:
    """A quota that is set, changed or taken away holds within 2 seconds; what this month has brought counts."""
    app = app_with(database, None)
    for client in clients:
        assert (await client.send(app, events(3))).status == 200
    database.query("UPDATE apps SET monthly_quota = 6")
    assert counts(database, app) == (6, 6)

    async def refused() -> bool:
        return {(await client.send(app, events(7))).status for client in clients} == {429}

    await until(refused)
    database.query("UPDATE apps SET monthly_quota = 1000000")
    assert [(await client.send(app, events(1))).status for client in clients] == [200, 200]  # read with the counter
    database.query("UPDATE apps SET monthly_quota = 0")
    assert [(await client.send(app, events(1))).status for client in clients] == [429, 429]
    database.query("UPDATE apps SET monthly_quota = NULL")
    assert [(await client.send(app, events(1))).status for client in clients] == [200, 200]


@pytest_twisted.ensureDeferred
async def test_locked_rows_are_one_application_s(clients: list[Client], database: Database) -> None:
    """While one application's counter is locked, others are stored, with a quota and without."""
    stuck, free, unmetered = app_with(database, 100), app_with(database, 100), App().install(database)
    holder = psycopg2.connect(database.dsn)
    with holder.cursor() as cursor:
        cursor.execute("SELECT FROM apps WHERE app_id = %s FOR UPDATE", (stuck.app_id,))
    waiting: list[Deferred[Reply]] = [ensureDeferred(clients[0].send(stuck, events(1))) for _ in range(20)]
    for app in (free, unmetered):
        assert (await clients[0].send(app, events(1))).status == 200
    assert not any(reply.called for reply in waiting)
    holder.close()
    assert {reply.status for reply in await gatherResults(waiting)} == {200}
    assert counts(database, stuck) == (20, 20)


@pytest_twisted.ensureDeferred
async def test_an_id_that_is_stored_meanwhile(clients: list[Client], database: Database) -> None:
    """An event that a server stores which has not heard of the quota yet is a duplicate, and never a conflict."""
    app, event = app_with(database, 10), make_event()
    assert (await clients[0].send(app, [event])).status == 200
    # As such a server would: the same row, not committed yet while the other one comes to it.
    copy = {"event_id": str(uuid.uuid4())}
    holder = psycopg2.connect(database.dsn)
    with holder.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE copy AS SELECT * FROM events WHERE event_id = %s", (event["event_id"],))
        cursor.execute("UPDATE copy SET id = nextval('events_id_seq'), event_id = %s", (copy["event_id"],))
        cursor.execute("INSERT INTO events SELECT * FROM copy")
    waiting = ensureDeferred(clients[0].send(app, [{**event, **copy}, *events(1)]))
    while not database.value(BLOCKED):
        await deferLater(reactor, 0.02)
    holder.commit()
    holder.close()
    reply = await waiting
    assert (reply.status, reply.json["accepted"], reply.json["duplicates"]) == (200, 2, 1)
    assert database.value(COUNTED, app.app_id) == 2


@pytest.mark.parametrize("killed", [False, True])
@pytest_twisted.ensureDeferred
async def test_processes(database: Database, directory: Path, killed: bool) -> None:
    """Two real processes, one of them killed in the middle of it: all is sent again, and nothing counted twice."""
    app = app_with(database, 300)
    settings = {"TK__DATABASE__URL": database.dsn}
    directories = [directory / name for name in ("one", "two")]
    for path in directories:
        path.mkdir()
    with Twistd(directories[0], settings) as first, Twistd(directories[1], settings) as second:
        for server in (first, second):
            wait_for(partial(ready, server.url))
        clients = [Client(server.url) for server in (first, second)]
        batches = [events(1 + n % 5) for n in range(90)]
        sending = [ensureDeferred(clients[n % 2].send(app, batch, BOTH)) for n, batch in enumerate(batches)]
        for one in sending:
            one.addErrback(lambda _: None)  # the answers of the one that is killed are lost
        if killed:
            while not database.value(STORED, app.app_id):
                await deferLater(reactor, 0.01)
            second.kill()
        await gatherResults(sending)
        again = [(await clients[0].send(app, batch, BOTH)).status for batch in [*batches, *(events(1) for _ in "12")]]
    assert set(again) == ({200, 429} if sum(map(len, batches)) + 2 > 300 else {200})
    counted, stored = counts(database, app)
    assert counted == stored <= 300
    fitting = sum(len(batch) for batch, status in zip(batches, again, strict=False) if status == 200)
    assert stored == fitting + sum(status == 200 for status in again[len(batches) :])


@pytest_twisted.ensureDeferred
async def test_a_server_that_falls_silent(clients: list[Client], database: Database, directory: Path) -> None:
    """One that has locked the counter and says nothing more, as when its machine is gone, is not waited for."""
    app = app_with(database, 10)
    holder = psycopg2.connect(database.dsn)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
        wait_for(partial(ready, server.url))
        with holder.cursor() as cursor:
            cursor.execute("SELECT FROM apps FOR UPDATE")
        lost = ensureDeferred(Client(server.url).send(app, events(3)))
        lost.addErrback(lambda _: None)
        while not database.value(BLOCKED):
            await deferLater(reactor, 0.02)
        os.kill(server.pid, signal.SIGSTOP)
        holder.close()
        try:
            assert (await clients[0].send(app, events(2))).status == 200
            assert counts(database, app) == (2, 2)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        reply = await lost
    assert reply is None or reply.status == 503


# --- the command


def test_command(database: Database, directory: Path) -> None:
    """A quota is set, shown with what is used of it and when it begins anew, and taken away."""
    app = app_with(database, None)
    assert run(database, directory, "apps", "rename", app.app_id, "shop").code == 0
    done = run(database, directory, "apps", "set-quota", "shop", "10000")
    assert (done.code, done.out) == (0, "shop may store 10,000 events a month\n")
    database.query("UPDATE apps SET quota_used = 1234")
    shown = run(database, directory, "apps", "show", "shop", "--json").json
    assert (shown["monthly_quota"], shown["used_this_month"]) == (10_000, 1234)
    resets_at = datetime.fromisoformat(shown["quota_resets_at"])
    assert (resets_at.day, resets_at.hour, resets_at.utcoffset()) == (1, 0, timedelta(0))
    assert timedelta(0) < resets_at - datetime.now(timezone.utc) <= timedelta(days=31)
    assert "used this month  1,234\n" in run(database, directory, "apps", "show", "shop").out
    assert run(database, directory, "apps", "set-quota", "shop", "--none").code == 0
    shown = run(database, directory, "apps", "show", "shop", "--json").json
    assert (shown["monthly_quota"], shown["used_this_month"], shown["quota_resets_at"]) == (None, None, None)


@pytest_twisted.ensureDeferred
async def test_command_counts_what_slips_by(clients: list[Client], database: Database, directory: Path) -> None:
    """What a server stores that has not heard of a first quota yet is counted all the same when the command ends."""
    app = app_with(database, None)
    assert (await clients[0].send(app, events(2))).status == 200
    done = deferToThread(run, database, directory, "apps", "set-quota", app.app_id, "4")
    while database.value("SELECT monthly_quota FROM apps") is None:
        await deferLater(reactor, 0.02)
    database.query("CREATE TABLE late AS SELECT * FROM events LIMIT 1")
    database.query("UPDATE late SET id = nextval('events_id_seq'), event_id = gen_random_uuid()")
    database.query("INSERT INTO events SELECT * FROM late")
    assert counts(database, app) == (2, 3)
    assert (await done).code == 0
    assert counts(database, app) == (3, 3)
    assert [(await client.send(app, events(2))).status for client in clients] == [429, 429]


@pytest.mark.parametrize("arguments", [("shop",), ("shop", "5", "--none"), ("shop", "-1"), ("shop", "many")])
def test_command_used_wrongly(database: Database, directory: Path, arguments: tuple[str, ...]) -> None:
    """Wrong usage is said, with exit code 2."""
    assert run(database, directory, "apps", "set-quota", *arguments).code == 2


def test_command_for_nobody(database: Database, directory: Path) -> None:
    """An application that is not there is exit code 3."""
    assert run(database, directory, "apps", "set-quota", "nobody", "5").code == 3
