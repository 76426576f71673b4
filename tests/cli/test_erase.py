"""``tkserver erase``: the events of a user are deleted, and no server stores new ones."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.support.client import DIALECTS, SDK, App, Client, Reply, batch
from tests.support.command import run, run_json
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.queries import until_listening
from tests.support.stored import events_by_user, store
from tests.support.waiting import until, wait_for
from tkserver.storage.blocking import BlockingConnections

USER, OTHER = "client_to_be_erased", "client_to_be_kept"


async def erase(database: Database, directory: Path, *arguments: str) -> dict[str, object]:
    """Erase the user, while the server in this process continues, and return the receipt."""
    receipt: dict[str, object] = await deferToThread(run_json, database, directory, "erase", "--user", USER, *arguments)
    return receipt


def counts(reply: Reply) -> tuple[int, int, int]:
    """Return the status and the numbers of accepted and rejected events."""
    return reply.status, reply.json["accepted"], reply.json["rejected"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_erased_user(own_client: Client, database: Database, directory: Path, dialect: str) -> None:
    """Only the user's events are deleted; new ones are accepted and not stored, alone or together with others."""
    apps = [App().install(database) for _ in range(2)]
    for app in apps:
        for user in (USER, OTHER):
            assert (await own_client.send(app, [make_event(user_id=user)] * 2, dialect)).status == 200
    receipt = await erase(database, directory)
    assert receipt["deleted_from_events"] == 2
    assert receipt["application"] == "all"
    assert str(receipt["done_at"]).endswith("+00:00")
    assert USER not in str(receipt)
    for app in apps:
        assert events_by_user(database, app) == {OTHER: 1}
        assert counts(await own_client.send(app, [make_event(user_id=USER)] * 3, dialect)) == (200, 3, 0)
        mixed = [make_event(user_id=user) for user in (USER, OTHER, USER, OTHER)]
        assert counts(await own_client.send(app, mixed, dialect)) == (200, 4, 0)
        partly_invalid = [make_event(user_id=USER), make_event(user_id="me@example.org")]
        expected = (207, 2, 0) if dialect == SDK else (207, 1, 1)  # an invalid event that is kept counts as accepted
        assert counts(await own_client.send(app, partly_invalid, dialect)) == expected
        assert events_by_user(database, app) == {OTHER: 3}


@pytest_twisted.ensureDeferred
async def test_one_app(own_client: Client, database: Database, directory: Path) -> None:
    """With ``--app``, other applications are not affected, even one of another organization with the same id."""
    erased = App().install(database)
    other, namesake = App().install(database), replace(App(), app_id=erased.app_id).install(database)
    assert run(database, directory, "apps", "create", "x", "--org", erased.org_id, "--app", erased.app_id).code == 0
    for app in (erased, other, namesake):
        await own_client.send(app, [make_event(user_id=USER)])
    receipt = await erase(database, directory, "--app", "x")
    assert (receipt["application"], receipt["deleted_from_events"]) == ("x", 1)
    for app in (erased, other, namesake):
        assert counts(await own_client.send(app, [make_event(user_id=USER)])) == (200, 1, 0)
    assert [events_by_user(database, app) for app in (erased, other, namesake)] == [{}, {USER: 2}, {USER: 2}]


@pytest_twisted.ensureDeferred
async def test_undo(own_client: Client, database: Database, directory: Path) -> None:
    """New events are stored again within two seconds; an erasure that does not exist cannot be undone."""
    app = App().install(database)
    await erase(database, directory)
    await own_client.send(app, [make_event(user_id=USER)])
    failed = await deferToThread(run, database, directory, "erase", "--user", USER, "--undo", "--app", app.app_id)
    assert (failed.code, "without --app" in failed.errors) == (3, True)
    assert (await erase(database, directory, "--undo"))["deleted_from_erasures"] == 1

    async def is_stored() -> bool:
        await own_client.send(app, [make_event(user_id=USER)])
        return bool(events_by_user(database, app))

    await until(is_stored, within=2)
    assert (await deferToThread(run, database, directory, "erase", "--user", USER, "--undo")).code == 3


@pytest_twisted.ensureDeferred
async def test_repeated_erasure(own_client: Client, database: Database, directory: Path) -> None:
    """A user can be erased repeatedly, from one application and from all; one undo reverses everything."""
    app = App().install(database)
    for arguments in ((), (), ("--app", app.app_id), ("--app", app.app_id)):
        await erase(database, directory, *arguments)
    assert (await erase(database, directory, "--undo"))["deleted_from_erasures"] == 2
    assert database.value("SELECT count(*) FROM erasures") == 0


@contextmanager
def blocked_inserts(database: Database) -> Iterator[None]:
    """Let statements that insert events wait at a lock, after the insertion, while the context lasts."""
    database.query(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$"
    )
    database.query("CREATE TRIGGER slow AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    with closing(BlockingConnections().connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(1)")
        yield


@pytest_twisted.ensureDeferred
async def test_event_committed_after_the_deletion(own_client: Client, database: Database, directory: Path) -> None:
    """An event is deleted even if its transaction begins before the erasure and commits after the deletion."""
    app = App().install(database)
    await own_client.send(app, [make_event(user_id=OTHER)])
    await until_listening(database)
    with blocked_inserts(database):
        reply = ensureDeferred(own_client.send(app, [make_event(user_id=USER)]))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: database.value(waiting))
        assert (await erase(database, directory))["deleted_from_events"] == 0
    assert counts(await reply) == (200, 1, 0)
    assert events_by_user(database, app) == {OTHER: 1}


@pytest.mark.parametrize(
    ("user", "problem"),
    [
        ("", "begins with client_ or anon_"),
        ("me@example.org", "begins with client_ or anon_"),
        ("client_" + "x" * 300, "at most 255 characters"),
        ("client_\udcff", "not UTF-8"),
    ],
    ids=ascii,
)
def test_invalid_user_id_is_wrong_usage(database: Database, directory: Path, user: str, problem: str) -> None:
    """An id that no event can have is wrong usage, and the message contains the reason and not the id."""
    result = run(database, directory, "erase", "--user", user)
    assert result.code == 2
    assert problem in " ".join(result.errors.split())
    assert not user or user not in result.errors


@pytest.mark.parametrize("user", ["client_a\u200bb", "client_a\nb", "client_\x1b[2J", "anon_é"], ids=ascii)
def test_user_id_of_an_earlier_version(database: Database, directory: Path, user: str) -> None:
    """A user whose id this version would reject can be exported and erased if an earlier version stored it."""
    app = App()
    store(database, app, 2, user=user)
    store(database, app, 1, user=OTHER)
    exported = run(database, directory, "export", "--user", user).output
    assert [json.loads(line)["user_id"] for line in exported.splitlines()] == [user] * 2
    assert run_json(database, directory, "erase", "--user", user)["deleted_from_events"] == 2
    assert events_by_user(database, app) == {OTHER: 1}


def test_many_events(database: Database, directory: Path) -> None:
    """Many events are deleted in many transactions, also in applications without tokens."""
    apps = [App(), App()]
    for app in apps:
        store(database, app, 8000, user=USER)
        store(database, app, 3, user=OTHER)
    assert run_json(database, directory, "erase", "--user", USER)["deleted_from_events"] == 16_000
    assert [events_by_user(database, app) for app in apps] == [{OTHER: 3}] * 2


def test_only_a_hash_is_stored(database: Database, directory: Path) -> None:
    """The id is no longer in the database, and the hashes of two installations are different."""
    store(database, App(), 1, user=USER)
    receipt = run_json(database, directory, "erase", "--user", USER)
    rows = database.query("SELECT encode(user_hash, 'hex'), erasures::text FROM erasures")
    assert [row[0] for row in rows] == [receipt["user_hash"]]
    assert USER not in str(rows)
    database.query("UPDATE erasure_key SET key = sha256('another installation')")
    assert run_json(database, directory, "erase", "--user", USER)["user_hash"] != receipt["user_hash"]


@pytest.fixture
def servers(database: Database, directory: Path) -> Iterator[list[Twistd]]:
    """Two servers on one database, each in a process."""
    started: list[Twistd] = []
    try:
        for name in ("a", "b"):
            (directory / name).mkdir()
            started.append(Twistd(directory / name, {"TK__DATABASE__URL": database.dsn}).start())
        yield started
    finally:
        for server in started:
            server.stop()


@contextmanager
def load(servers: list[Twistd], app: App) -> Iterator[set[int]]:
    """Send events of both users from several threads while the context lasts; return the statuses of the responses."""
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
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)


def test_erasure_under_load(database: Database, directory: Path, servers: list[Twistd]) -> None:
    """No event of the user is left, although two servers receive them before, during and after the erasure."""
    app = App().install(database)
    for server in servers:
        server.wait_until_ready()
    with load(servers, app) as statuses:
        wait_for(lambda: events_by_user(database, app).get(USER, 0) > 50)
        assert run_json(database, directory, "erase", "--user", USER)["deleted_from_events"] > 50
        before = events_by_user(database, app)[OTHER]
        wait_for(lambda: events_by_user(database, app)[OTHER] > before + 50)
    assert statuses == {200}
    assert USER not in events_by_user(database, app)
    assert not any(USER in server.log for server in servers)
