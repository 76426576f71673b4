"""``tkserver erase``: a user is forgotten by the database and by every server, and stays so."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.support.blocking_client import is_ready
from tests.support.client import DIALECTS, App, Client, Reply, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.queries import terminate_listeners, until_listening
from tests.support.run_command import run, run_json
from tests.support.stored import store
from tests.support.waiting import wait_for
from tkserver.storage.blocking import BlockingConnections

USER, OTHER = "client_to_be_erased", "client_to_be_kept"


def users(database: Database, app: App) -> dict[str, int]:
    """How many events each user of an application has."""
    sql = "SELECT user_id, count(*) FROM events WHERE app_id = %s AND org_id = %s GROUP BY 1"
    return dict(database.query(sql, app.app_id, app.org_id))


async def erase(database: Database, directory: Path, *arguments: str) -> dict[str, object]:
    """Its receipt; the server in this process goes on meanwhile."""
    receipt: dict[str, object] = await deferToThread(run_json, database, directory, "erase", "--user", USER, *arguments)
    return receipt


def counts(reply: Reply) -> tuple[int, int, int]:
    return reply.status, reply.json["accepted"], reply.json["rejected"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_erased(own_client: Client, database: Database, directory: Path, dialect: str) -> None:
    """Their events go, others' stay; new ones are answered as accepted and not stored, alone or among others."""
    one, two = App().install(database), App().install(database)
    for app in (one, two):
        for user in (USER, OTHER):
            assert (await own_client.send(app, [make_event(user_id=user)] * 2, dialect)).status == 200
    receipt = await erase(database, directory)
    assert receipt["deleted_from_events"] == 2
    assert receipt["application"] == "all"
    assert str(receipt["done_at"]).endswith("+00:00")
    assert USER not in str(receipt)
    for app in (one, two):
        assert users(database, app) == {OTHER: 1}
        assert counts(await own_client.send(app, [make_event(user_id=USER)] * 3, dialect)) == (200, 3, 0)
        mixed = [make_event(user_id=user) for user in (USER, OTHER, USER, OTHER)]
        assert counts(await own_client.send(app, mixed, dialect)) == (200, 4, 0)
        partly = [make_event(user_id=USER), make_event(user_id="me@example.org")]
        assert counts(await own_client.send(app, partly, dialect)) == (207, 1, 1)
        assert users(database, app) == {OTHER: 3}


@pytest_twisted.ensureDeferred
async def test_one_application(own_client: Client, database: Database, directory: Path) -> None:
    """With --app all others keep what they have and go on, one with the same id of another organisation too."""
    erased = App().install(database)
    other, namesake = App().install(database), replace(App(), app_id=erased.app_id).install(database)
    assert run(database, directory, "apps", "create", "x", "--org", erased.org_id, "--app", erased.app_id).code == 0
    for app in (erased, other, namesake):
        await own_client.send(app, [make_event(user_id=USER)])
    receipt = await erase(database, directory, "--app", "x")
    assert (receipt["application"], receipt["deleted_from_events"]) == ("x", 1)
    for app in (erased, other, namesake):
        assert counts(await own_client.send(app, [make_event(user_id=USER)])) == (200, 1, 0)
    assert [users(database, app) for app in (erased, other, namesake)] == [{}, {USER: 2}, {USER: 2}]


@pytest_twisted.ensureDeferred
async def test_undo(own_client: Client, database: Database, directory: Path) -> None:
    """New events are stored again, within two seconds; what was never done cannot be undone."""
    app = App().install(database)
    await erase(database, directory)
    await own_client.send(app, [make_event(user_id=USER)])
    done = await deferToThread(run, database, directory, "erase", "--user", USER, "--undo", "--app", app.app_id)
    assert (done.code, "without --app" in done.errors) == (3, True)
    assert (await erase(database, directory, "--undo"))["deleted_from_erasures"] == 1
    deadline = time.monotonic() + 2
    while not users(database, app):
        assert time.monotonic() < deadline
        await own_client.send(app, [make_event(user_id=USER)])
    assert (await deferToThread(run, database, directory, "erase", "--user", USER, "--undo")).code == 3


@pytest_twisted.ensureDeferred
async def test_again(own_client: Client, database: Database, directory: Path) -> None:
    """Who is erased can be erased again, from one application and from all; undone for all, it is for each."""
    app = App().install(database)
    for arguments in ((), (), ("--app", app.app_id), ("--app", app.app_id)):
        await erase(database, directory, *arguments)
    assert (await erase(database, directory, "--undo"))["deleted_from_erasures"] == 2
    assert database.value("SELECT count(*) FROM erasures") == 0


def remember(database: Database) -> None:
    """What the command does first, and nothing more."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        eraser.remember(connection, eraser.hash_of(connection, USER), None)


async def until_not_stored(client: Client, database: Database, app: App, user: str, within: float) -> None:
    """Keep sending until what is accepted is not stored any more."""
    deadline = time.monotonic() + within
    stored = -1
    while stored != (stored := users(database, app).get(user, 0)):
        assert time.monotonic() < deadline, f"still stored after {within} s"
        assert counts(await client.send(app, [make_event(user_id=user)])) == (200, 1, 0)


@pytest_twisted.ensureDeferred
async def test_listener_lost(own_client: Client, database: Database) -> None:
    """An erasure that nobody could hear of holds within 2 seconds: the table is asked while nobody listens."""
    app = App().install(database)
    await until_listening(database)
    assert (await own_client.send(app, [make_event(user_id=USER)])).status == 200
    terminate_listeners(database)
    remember(database)
    await until_not_stored(own_client, database, app, USER, within=2)
    await until_listening(database)
    stored = users(database, app)
    for _ in range(5):
        assert counts(await own_client.send(app, [make_event(user_id=USER)])) == (200, 1, 0)
        terminate_listeners(database)
    assert users(database, app) == stored


@pytest_twisted.ensureDeferred
async def test_heard_of(own_client: Client, database: Database) -> None:
    """An erasure holds within 2 seconds."""
    app = App().install(database)
    await until_listening(database)
    assert (await own_client.send(app, [make_event(user_id=USER)])).status == 200
    remember(database)
    await until_not_stored(own_client, database, app, USER, within=2)


@pytest_twisted.ensureDeferred
async def test_sent_again(own_client: Client, database: Database) -> None:
    """An event that was stored without an answer, before a server died, is gone when it is sent again."""
    mine, others = App().install(database), App().install(database)
    event, foreign = make_event(user_id=USER), make_event(user_id=USER)
    assert (await own_client.send(mine, [event])).status == 200
    assert (await own_client.send(others, [foreign])).status == 200
    remember(database)
    await until_not_stored(own_client, database, mine, USER, within=2)
    assert counts(await own_client.send(mine, [event, foreign])) == (200, 2, 0)
    rows = database.query("SELECT event_id::text FROM events")
    assert (event["event_id"],) not in rows
    assert (foreign["event_id"],) in rows


@pytest_twisted.ensureDeferred
async def test_unknown_is_not_none(own_client: Client, database: Database) -> None:
    """A server that cannot find out who is erased stores nothing."""
    app = App().install(database)
    await until_listening(database)
    database.query("NOTIFY tkserver_erasures")
    database.query("ALTER TABLE erasures RENAME TO hidden")
    deadline = time.monotonic() + 2
    while (await own_client.send(app, [make_event()])).status != 503:
        assert time.monotonic() < deadline
        await deferLater(reactor, 0.02)
    database.query("ALTER TABLE hidden RENAME TO erasures")
    assert (await own_client.send(app, [make_event()])).status == 200


@pytest_twisted.ensureDeferred
async def test_no_query_when_nothing_changes(own_client: Client, database: Database) -> None:
    """Who is erased is asked once."""
    app = App().install(database)
    await until_listening(database)
    assert (await own_client.send(app, [make_event()])).status == 200
    database.query("ALTER TABLE erasures RENAME TO hidden")
    assert (await own_client.send(app, [make_event()])).status == 200


@pytest_twisted.ensureDeferred
async def test_committed_after_the_deletion(own_client: Client, database: Database, directory: Path) -> None:
    """An event that a server has begun to store before it heard of the erasure, and committed after the deletion."""
    app = App().install(database)
    await own_client.send(app, [make_event(user_id=OTHER)])
    await until_listening(database)
    # A commit that waits for as long as the whole erasure takes, at a lock that only the statement of the store meets.
    database.query(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$"
    )
    database.query("CREATE TRIGGER slow AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    with closing(BlockingConnections().connect(database.dsn)) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(1)")
        answer = ensureDeferred(own_client.send(app, [make_event(user_id=USER)]))
        while not database.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            await deferLater(reactor, 0.02)
        assert (await erase(database, directory))["deleted_from_events"] == 0
    assert counts(await answer) == (200, 1, 0)
    assert users(database, app) == {OTHER: 1}


@pytest.mark.parametrize("user", ["", "me@example.org", "client_" + "x" * 300])
def test_wrong_usage(database: Database, directory: Path, user: str) -> None:
    """Only ids that an event may have."""
    assert run(database, directory, "erase", "--user", user).code == 2


def test_many(database: Database, directory: Path) -> None:
    """Many events are deleted in many transactions, in applications that nobody knows any more too."""
    apps = [App(), App()]
    for app in apps:
        store(database, app, 8000, user=USER)
        store(database, app, 3, user=OTHER)
    assert run_json(database, directory, "erase", "--user", USER)["deleted_from_events"] == 16_000
    assert [users(database, app) for app in apps] == [{OTHER: 3}] * 2


def test_hash(database: Database, directory: Path) -> None:
    """The id is nowhere in the database any more, and no two installations remember it alike."""
    store(database, App(), 1, user=USER)
    receipt = run_json(database, directory, "erase", "--user", USER)
    kept = database.query("SELECT encode(user_hash, 'hex'), erasures::text FROM erasures")
    assert [row[0] for row in kept] == [receipt["user_hash"]]
    assert USER not in str(kept)
    database.query("UPDATE erasure_key SET key = sha256('another installation')")
    assert run_json(database, directory, "erase", "--user", USER)["user_hash"] != receipt["user_hash"]


@pytest.fixture
def servers(database: Database, directory: Path) -> Iterator[list[Twistd]]:
    """Two servers, each a process."""
    started = []
    try:
        for name in ("a", "b"):
            (directory / name).mkdir()
            started.append(Twistd(directory / name, {"TK__DATABASE__URL": database.dsn}).start())
        yield started
    finally:
        for server in started:
            server.stop()


def test_under_load(database: Database, directory: Path, servers: list[Twistd]) -> None:
    """Whatever two servers are sent of a user before, while and after that is erased, no event of it is left."""
    app = App().install(database)
    for server in servers:
        wait_for(partial(is_ready, server.url))
    stop = threading.Event()
    statuses: set[int] = set()

    def send(port: int) -> None:
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
            body = batch([make_event(user_id=USER), make_event(user_id=OTHER)])
            connection.request("POST", app.path, body, app.headers(body))
            statuses.add(connection.getresponse().status)
            connection.close()

    threads = [threading.Thread(target=send, args=(server.port,), daemon=True) for server in servers * 2]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: users(database, app).get(USER, 0) > 50)
        assert run_json(database, directory, "erase", "--user", USER)["deleted_from_events"] > 50
        before = users(database, app)[OTHER]
        wait_for(lambda: users(database, app)[OTHER] > before + 50)
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)
    assert statuses == {200}
    assert USER not in users(database, app)
    assert not any(USER in server.log for server in servers)
