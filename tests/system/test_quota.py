"""Monthly quotas: all servers together store no more events than the quota, and count only stored events."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.support.client import BOTH, DOCUMENTED, App, Client, Reply
from tests.support.command import run
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.queries import blocked_backends
from tests.support.server import client_of, running_server
from tests.support.waiting import until

COUNTED = "SELECT quota_used FROM apps WHERE app_id = %s"
STORED = "SELECT count(*) FROM events WHERE app_id = %s"


@pytest_twisted.async_yield_fixture
async def clients(database: Database) -> AsyncIterator[list[Client]]:
    """Clients of two servers with the same database."""
    async with running_server(database) as first, running_server(database) as second:
        yield [client_of(first), client_of(second)]


def create_app(database: Database, quota: int | None) -> App:
    """Create a named application with a quota before any server caches its credential."""
    app = App()
    insert = "INSERT INTO apps (org_id, app_id, name, monthly_quota) VALUES (%s, %s, %s, %s)"
    database.query(insert, app.org_id, app.app_id, app.app_id, quota)
    return app.install(database)


def counts(database: Database, app: App) -> tuple[int, int]:
    """Return the counted events and the stored events of an application."""
    return database.value(COUNTED, app.app_id), database.value(STORED, app.app_id)


def events(number: int) -> list[dict[str, Any]]:
    return [make_event() for _ in range(number)]


async def gather(coroutines: list[Any]) -> list[Any]:
    """Run coroutines concurrently, and return their results."""
    return list(await gatherResults([ensureDeferred(coroutine) for coroutine in coroutines]))


@pytest_twisted.ensureDeferred
async def test_quota_is_exact(clients: list[Client], database: Database) -> None:
    """Two servers that receive all batches concurrently store exactly as many events as the quota allows."""
    random = Random(1)
    app = create_app(database, 200)
    batches = [events(random.choice((1, 1, 1, 2, 3, 7))) for _ in range(150)]

    async def send(batch: list[Any], client: Client) -> tuple[int, int]:
        reply = await client.send(app, batch, random.choice((DOCUMENTED, BOTH)))
        return reply.status, len(batch)

    sent = await gather([send(batch, client) for batch in batches for client in clients])
    assert {status for status, _ in sent} == {200, 429}
    assert counts(database, app) == (200, 200)  # batches of one event use the rest of the quota
    for batch in batches:
        ids = [event["event_id"] for event in batch]
        assert database.value("SELECT count(*) FROM events WHERE event_id = ANY (%s::uuid[])", ids) in (0, len(ids))


@pytest_twisted.ensureDeferred
async def test_batch_is_stored_completely_or_not_at_all(clients: list[Client], database: Database) -> None:
    """No event of a batch beyond the quota is stored, and its nonce can be used for a smaller batch."""
    app, nonce = create_app(database, 10), str(uuid.uuid4())
    client = clients[0]
    assert (await client.send(app, events(6))).status == 200
    reply = await client.send(app, events(5), BOTH, nonce=nonce)
    assert_quota_exceeded(reply, remaining=4, quota=10)
    assert counts(database, app) == (6, 6)
    assert database.value("SELECT count(*) FROM nonces") == 0
    assert (await client.send(app, events(4), BOTH, nonce=nonce)).status == 200
    assert counts(database, app) == (10, 10)
    assert_quota_exceeded(await clients[1].send(app, events(1)), remaining=0, quota=10)


def assert_quota_exceeded(reply: Reply, *, remaining: int, quota: int) -> None:
    """Check that a response is the error of the contract, and contains the beginning of the next month."""
    assert (reply.status, reply.code) == (429, "quota_exceeded")
    now = datetime.now(timezone.utc)
    resets_at = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=timezone.utc)
    retry_after = reply.json["retry_after"]
    assert reply.headers["retry-after"] == str(retry_after)
    assert type(retry_after) is int
    assert abs((resets_at - now).total_seconds() - retry_after) < 30
    assert f"{resets_at:%Y-%m-%dT%H:%M:%SZ}" in reply.json["error"]["message"]
    assert f"is {quota} events, of which {remaining} are left" in reply.json["error"]["message"]


@pytest_twisted.ensureDeferred
async def test_only_stored_events_count(clients: list[Client], database: Database) -> None:
    """Duplicates, conflicts and invalid events are not counted, and duplicates are accepted when the quota is used."""
    app, other = create_app(database, 4), App().install(database)
    client = clients[0]
    conflicting, duplicate, invalid = make_event(), make_event(), make_event(user_id="somebody")
    assert (await client.send(other, [conflicting])).status == 200
    first = await client.send(app, [conflicting, duplicate, duplicate, invalid])
    assert (first.status, first.json["accepted"], first.json["duplicates"]) == (207, 2, 1)
    assert counts(database, app) == (1, 1)
    batch = [duplicate, conflicting, *events(3)]
    for duplicates in (1, 4, 4):
        reply = await client.send(app, batch)
        assert (reply.status, reply.json["accepted"], reply.json["duplicates"]) == (207, 4, duplicates)
        assert counts(database, app) == (4, 4)
    assert (await client.send(app, [duplicate])).status == 200
    assert (await client.send(app, [conflicting])).code == "all_events_rejected"
    assert (await client.send(app, [duplicate, *events(1)])).code == "quota_exceeded"
    assert counts(database, app) == (4, 4)


@pytest_twisted.ensureDeferred
async def test_events_that_violate_a_constraint(clients: list[Client], database: Database) -> None:
    """An event that PostgreSQL rejects is not counted, and the other events of its batch are stored."""
    database.query("ALTER TABLE events ADD CHECK (event_type <> 'forbidden')")
    app = create_app(database, 10)
    forbidden = make_event(event__type="forbidden")
    requests = [clients[0].send(app, [forbidden, *events(2)], BOTH), clients[0].send(app, events(3))]
    replies = await gather(requests)
    assert [reply.status for reply in replies] == [207, 200]
    assert counts(database, app) == (5, 5)


@pytest_twisted.ensureDeferred
async def test_reused_nonce(clients: list[Client], database: Database) -> None:
    """A batch with a reused nonce is not counted, and does not reduce the quota of concurrent batches."""
    app = create_app(database, 4)
    assert (await clients[0].send(app, events(1), BOTH, nonce="used")).status == 200
    requests = [clients[0].send(app, events(3), BOTH, nonce=nonce) for nonce in ("a", "used", "used", "b", "c")]
    statuses = Counter([reply.status for reply in await gather(requests)])
    assert statuses[200] == 1
    assert statuses[429] + statuses[409] == 4
    assert counts(database, app) == (4, 4)


@pytest_twisted.ensureDeferred
async def test_new_month(clients: list[Client], database: Database) -> None:
    """Events of another month do not count."""
    app = create_app(database, 3)
    assert (await clients[0].send(app, events(3))).status == 200
    assert (await clients[0].send(app, events(1))).status == 429
    database.query("UPDATE apps SET quota_month = quota_month - interval '1 month'")
    assert (await clients[0].send(app, events(2))).status == 200
    assert database.value(COUNTED, app.app_id) == 2
    this_month = "SELECT quota_month = date_trunc('month', now() AT TIME ZONE 'UTC') FROM apps"
    assert database.value(this_month) is True
    assert (await clients[1].send(app, events(2))).status == 429


@pytest_twisted.ensureDeferred
async def test_month_ends_during_transaction(clients: list[Client], database: Database) -> None:
    """A transaction does not change the counter of a later month, and the client must send the batch again."""
    app = create_app(database, 3)
    database.query("UPDATE apps SET quota_month = quota_month + interval '1 month', quota_used = 1")
    assert (await clients[0].send(app, events(1))).status == 503
    assert counts(database, app) == (1, 0)


@pytest_twisted.ensureDeferred
async def test_quota_is_changed(clients: list[Client], database: Database) -> None:
    """A quota that is set, changed or removed applies within 2 seconds, and the events of this month count."""
    app = create_app(database, None)
    for client in clients:
        assert (await client.send(app, events(3))).status == 200
    database.query("UPDATE apps SET monthly_quota = 6")
    assert counts(database, app) == (6, 6)

    async def quota_applies() -> bool:
        return {(await client.send(app, events(7))).status for client in clients} == {429}

    await until(quota_applies, within=2)
    database.query("UPDATE apps SET monthly_quota = 1000000")
    # This applies immediately, because servers read the quota together with the counter.
    assert [(await client.send(app, events(1))).status for client in clients] == [200, 200]
    database.query("UPDATE apps SET monthly_quota = 0")
    assert [(await client.send(app, events(1))).status for client in clients] == [429, 429]
    database.query("UPDATE apps SET monthly_quota = NULL")
    assert [(await client.send(app, events(1))).status for client in clients] == [200, 200]


@pytest_twisted.ensureDeferred
async def test_locked_counter(clients: list[Client], database: Database) -> None:
    """While the counter of one application is locked, events of other applications are stored."""
    locked, other, without_quota = create_app(database, 100), create_app(database, 100), App().install(database)
    locker = psycopg2.connect(database.dsn)
    with locker.cursor() as cursor:
        cursor.execute("SELECT FROM apps WHERE app_id = %s FOR UPDATE", (locked.app_id,))
    waiting: list[Deferred[Reply]] = [ensureDeferred(clients[0].send(locked, events(1))) for _ in range(20)]
    for app in (other, without_quota):
        assert (await clients[0].send(app, events(1))).status == 200
    assert not any(reply.called for reply in waiting)
    locker.close()
    assert {reply.status for reply in await gatherResults(waiting)} == {200}
    assert counts(database, locked) == (20, 20)


@pytest_twisted.ensureDeferred
async def test_concurrent_duplicate(clients: list[Client], database: Database) -> None:
    """An event that another server is storing without counting it is a duplicate, not a conflict."""
    app, event = create_app(database, 10), make_event()
    assert (await clients[0].send(app, [event])).status == 200
    # Insert a row like a server that does not know the quota yet, and commit it while this server inserts it, too.
    copy = {"event_id": str(uuid.uuid4())}
    other_server = psycopg2.connect(database.dsn)
    with other_server.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE copy AS SELECT * FROM events WHERE event_id = %s", (event["event_id"],))
        cursor.execute("UPDATE copy SET id = nextval('events_id_seq'), event_id = %s", (copy["event_id"],))
        cursor.execute("INSERT INTO events SELECT * FROM copy")
    waiting = ensureDeferred(clients[0].send(app, [{**event, **copy}, *events(1)]))
    await until(lambda: blocked_backends(database))
    other_server.commit()
    other_server.close()
    reply = await waiting
    assert (reply.status, reply.json["accepted"], reply.json["duplicates"]) == (200, 2, 1)
    assert database.value(COUNTED, app.app_id) == 2


@pytest.mark.parametrize("killed", [False, True])
@pytest_twisted.ensureDeferred
async def test_processes(database: Database, directory: Path, killed: bool) -> None:
    """If one of two servers is killed and all batches are sent again, every stored event is counted once."""
    app = create_app(database, 300)
    settings = {"TK__DATABASE__URL": database.dsn}
    directories = [directory / name for name in ("one", "two")]
    for path in directories:
        path.mkdir()
    with Twistd(directories[0], settings) as first, Twistd(directories[1], settings) as second:
        for server in (first, second):
            server.wait_until_ready()
        clients = [Client(server.url) for server in (first, second)]
        batches = [events(1 + n % 5) for n in range(90)]
        requests = [ensureDeferred(clients[n % 2].send(app, batch, BOTH)) for n, batch in enumerate(batches)]
        for request in requests:
            request.addErrback(lambda _: None)  # the responses of the killed server are lost
        if killed:
            await until(lambda: database.value(STORED, app.app_id))
            second.kill()
        await gatherResults(requests)
        retried = [*batches, *(events(1) for _ in range(2))]
        statuses = [(await clients[0].send(app, batch, BOTH)).status for batch in retried]
    assert set(statuses) == ({200, 429} if sum(map(len, batches)) + 2 > 300 else {200})
    counted, stored = counts(database, app)
    assert counted == stored <= 300
    assert stored == sum(len(batch) for batch, status in zip(retried, statuses, strict=True) if status == 200)


@pytest_twisted.ensureDeferred
async def test_suspended_server(clients: list[Client], database: Database, directory: Path) -> None:
    """Other servers do not wait for a server that has locked the counter and does not respond."""
    app = create_app(database, 10)
    locker = psycopg2.connect(database.dsn)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
        server.wait_until_ready()
        with locker.cursor() as cursor:
            cursor.execute("SELECT FROM apps FOR UPDATE")
        lost = ensureDeferred(Client(server.url).send(app, events(3)))
        lost.addErrback(lambda _: None)
        await until(lambda: blocked_backends(database))
        os.kill(server.pid, signal.SIGSTOP)
        locker.close()
        try:
            assert (await clients[0].send(app, events(2))).status == 200
            assert counts(database, app) == (2, 2)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        reply = await lost
    assert reply is None or reply.status == 503


# --- the command


def test_command(database: Database, directory: Path) -> None:
    """The command sets a quota, shows it with its use and the time of its reset, and removes it."""
    app = create_app(database, None)
    assert run(database, directory, "apps", "rename", app.app_id, "shop").code == 0
    completed = run(database, directory, "apps", "set-quota", "shop", "10000")
    assert (completed.code, completed.out) == (0, "shop may store 10,000 events a month\n")
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
async def test_command_counts_uncounted_events(clients: list[Client], database: Database, directory: Path) -> None:
    """When the command ends, events are counted that a server stored before it knew the first quota."""
    app = create_app(database, None)
    assert (await clients[0].send(app, events(2))).status == 200
    command = deferToThread(run, database, directory, "apps", "set-quota", app.app_id, "4")
    await until(lambda: database.value("SELECT monthly_quota FROM apps"))
    database.query("CREATE TABLE late AS SELECT * FROM events LIMIT 1")
    database.query("UPDATE late SET id = nextval('events_id_seq'), event_id = gen_random_uuid()")
    database.query("INSERT INTO events SELECT * FROM late")
    assert counts(database, app) == (2, 3)
    assert (await command).code == 0
    assert counts(database, app) == (3, 3)
    assert [(await client.send(app, events(2))).status for client in clients] == [429, 429]


@pytest.mark.parametrize("arguments", [("shop",), ("shop", "5", "--none"), ("shop", "-1"), ("shop", "many")])
def test_command_with_invalid_arguments(database: Database, directory: Path, arguments: tuple[str, ...]) -> None:
    """The exit code of the command is 2 if its arguments are invalid."""
    assert run(database, directory, "apps", "set-quota", *arguments).code == 2


def test_command_for_unknown_application(database: Database, directory: Path) -> None:
    """The exit code of the command is 3 if the application does not exist."""
    assert run(database, directory, "apps", "set-quota", "nobody", "5").code == 3
