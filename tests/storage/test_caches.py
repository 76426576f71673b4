"""Credentials are remembered, and forgotten when they change."""

from __future__ import annotations

import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.support.client import DIALECTS, App, Client
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.queries import terminate_listeners, until_listening
from tests.support.server import start_server
from tkserver.storage.caches import CredentialCache
from tkserver.storage.credentials import Credential, CredentialStore
from tkserver.storage.errors import Unavailable
from tkserver.storage.pool import Pool


async def until_status(client: Client, app: App, dialect: str, status: int, within: float) -> None:
    """Keep sending until the answer changes to what it should be."""
    deadline = time.monotonic() + within
    while (await client.send(app, [make_event()], dialect)).status != status:
        assert time.monotonic() < deadline, f"not answered {status} within {within} s"
        await deferLater(reactor, 0.02)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE api_tokens SET is_active = false",
        "DELETE FROM api_tokens",
        "TRUNCATE api_tokens",
        "UPDATE api_tokens SET secret = 'another'",
        "UPDATE api_tokens SET app_id = gen_random_uuid(), token = 'another'",
    ],
)
@pytest_twisted.ensureDeferred
async def test_change_is_heard(own_client: Client, database: Database, dialect: str, change: str) -> None:
    """Whatever is changed by hand in the table, the credential is refused within 2 seconds."""
    app = App().install(database)
    assert (await own_client.send(app, [make_event()], dialect)).status == 200
    database.query(change)
    await until_status(own_client, app, dialect, 401, within=2)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_new_credential(own_client: Client, database: Database, dialect: str) -> None:
    """One that was looked for in vain is found as soon as it is there."""
    app = App()
    assert (await own_client.send(app, [make_event()], dialect)).status == 401
    app.install(database)
    await until_status(own_client, app, dialect, 200, within=2)


@pytest_twisted.ensureDeferred
async def test_listener_lost(own_client: Client, database: Database) -> None:
    """A change while nobody listens is noticed within 2 seconds, and so is one after listening began again."""
    app = App().install(database)
    assert (await own_client.send(app, [make_event()])).status == 200
    for status, active in ((401, False), (200, True)):
        await until_listening(database)
        terminate_listeners(database)
        database.query("UPDATE api_tokens SET is_active = %s", active)
        await until_status(own_client, app, "documented", status, within=2)
    await until_listening(database)
    assert (await own_client.send(app, [make_event()])).status == 200
    database.query("UPDATE api_tokens SET is_active = false")
    await until_status(own_client, app, "documented", 401, within=2)


@pytest_twisted.ensureDeferred
async def test_no_query_for_what_is_known(own_client: Client, database: Database) -> None:
    """A known credential costs no query, and neither does one that is known not to be there."""
    known, unknown = App().install(database), App()
    await until_listening(database)
    for _ in range(2):
        for app, status in ((known, 200), (unknown, 401)):
            for dialect in DIALECTS:
                assert (await own_client.send(app, [make_event()], dialect)).status == status
        # From now on every look into the table fails, and only what is remembered can be answered.
        database.query("ALTER TABLE IF EXISTS api_tokens RENAME TO hidden")
    assert (await own_client.send(App(), [make_event()])).status == 503


@pytest_twisted.ensureDeferred
async def test_last_used_at(database: Database) -> None:
    """When a credential was last used is written, at the latest when the server stops; no other row is touched."""
    used, unused = App().install(database), App().install(database)
    server = await start_server(database)
    client = Client(f"http://127.0.0.1:{server.port}")
    await client.send(used, [make_event()])
    await client.send(unused, [make_event()], changes={"X-Signature": "00"})
    await server.stopService()
    recent = "SELECT last_used_at > now() - interval '1 minute' FROM api_tokens WHERE token = %s"
    assert database.value(recent, used.token) is True
    assert database.value(recent, unused.token) is None


async def found_by(cache: CredentialCache, token: str) -> tuple[Credential, ...]:
    found = cache.by_token(token)
    return await found if isinstance(found, Deferred) else found


@pytest_twisted.ensureDeferred
async def test_a_look_up_that_failed_at_once(database: Database) -> None:
    """A look-up that fails before it has begun, for want of a connection, is made again the next time."""
    connections = Pool(reactor, database.dsn, 1)
    cache = CredentialCache(CredentialStore(connections), reactor.seconds)
    app = App().install(database)
    with pytest.raises(Unavailable):
        await found_by(cache, app.token)
    connections.start()
    while not connections.connected:
        await deferLater(reactor, 0.01)
    found = await found_by(cache, app.token)
    assert [credential.secret for credential in found] == [app.secret]
    await connections.stop()
