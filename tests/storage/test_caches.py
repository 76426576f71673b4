"""Cached credentials and erased users, and their invalidation when the database changes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock

from tests.support.client import DIALECTS, App, Client
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.queries import terminate_listeners, until_listening
from tests.support.server import client_of, start_server
from tests.support.waiting import until
from tkserver.storage.caches import LIFETIME, MAX_LOOKUPS, CredentialCache, ErasedUserCache
from tkserver.storage.changes import ChangeListener
from tkserver.storage.credentials import Credential, CredentialStore
from tkserver.storage.erased_users import ErasedUsers
from tkserver.storage.errors import Unavailable
from tkserver.storage.pool import Pool

DOCUMENTED_TIME = 2.0
"""Seconds within which every server applies a change of credentials, as the documentation says."""


async def until_status(
    client: Client, app: App, status: int, dialect: str = "documented", within: float = DOCUMENTED_TIME
) -> None:
    """Send requests until the response has a status."""

    async def has_status() -> bool:
        return (await client.send(app, [make_event()], dialect)).status == status

    await until(has_status, lambda: f"the status is not {status}", within)


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
async def test_changed_credential_is_rejected(
    own_client: Client, database: Database, dialect: str, change: str
) -> None:
    """After any change of the table, even by hand, the old credential is rejected within two seconds."""
    app = App().install(database)
    assert (await own_client.send(app, [make_event()], dialect)).status == 200
    database.query(change)
    await until_status(own_client, app, 401, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_new_credential_is_accepted(own_client: Client, database: Database, dialect: str) -> None:
    """A credential that a server has looked up without success is accepted when it has been created."""
    app = App()
    assert (await own_client.send(app, [make_event()], dialect)).status == 401
    app.install(database)
    await until_status(own_client, app, 200, dialect)


@pytest_twisted.ensureDeferred
async def test_change_is_applied_after_listener_was_lost(own_client: Client, database: Database) -> None:
    """Changes while no connection listens, and after it listens again, are applied within two seconds."""
    app = App().install(database)
    assert (await own_client.send(app, [make_event()])).status == 200
    for status, active in ((401, False), (200, True)):
        await until_listening(database)
        terminate_listeners(database)
        database.query("UPDATE api_tokens SET is_active = %s", active)
        await until_status(own_client, app, status)
    await until_listening(database)
    assert (await own_client.send(app, [make_event()])).status == 200
    database.query("UPDATE api_tokens SET is_active = false")
    await until_status(own_client, app, 401)


@pytest_twisted.ensureDeferred
async def test_cached_lookup_needs_no_query(own_client: Client, database: Database) -> None:
    """A credential that was looked up before needs no query, even if it does not exist."""
    known, unknown = App().install(database), App()
    await until_listening(database)
    for _ in range(2):
        for app, status in ((known, 200), (unknown, 401)):
            for dialect in DIALECTS:
                assert (await own_client.send(app, [make_event()], dialect)).status == status
        # From now on, every query of the table fails.
        database.query("ALTER TABLE IF EXISTS api_tokens RENAME TO hidden")
    assert (await own_client.send(App(), [make_event()])).status == 503


@pytest_twisted.ensureDeferred
async def test_last_use_of_credential_is_written(database: Database) -> None:
    """The last use of a credential is written when the server stops at the latest; other rows are not changed."""
    used, unused = App().install(database), App().install(database)
    server = await start_server(database)
    client = client_of(server)
    await client.send(used, [make_event()])
    await client.send(unused, [make_event()], changes={"X-Signature": "00"})
    await server.stopService()
    recent = "SELECT last_used_at > now() - interval '1 minute' FROM api_tokens WHERE token = %s"
    assert database.value(recent, used.token) is True
    assert database.value(recent, unused.token) is None


class FakeListener(ChangeListener):
    """A listener that listens when the test says so, without a database."""

    def __init__(self) -> None:
        super().__init__(reactor, "")
        self.listening = True


async def by_token(cache: CredentialCache, token: str) -> tuple[Credential, ...]:
    result = cache.by_token(token)
    return await result if isinstance(result, Deferred) else result


@pytest_twisted.ensureDeferred
async def test_failed_lookup_is_repeated(database: Database) -> None:
    """A lookup that fails immediately, because there is no connection, is repeated for the next request."""
    pool = Pool(reactor, database.dsn, 1)
    cache = CredentialCache(CredentialStore(pool), FakeListener(), reactor.seconds)
    app = App().install(database)
    with pytest.raises(Unavailable):
        await by_token(cache, app.token)
    pool.start()
    await until(lambda: pool.connected)
    found = await by_token(cache, app.token)
    assert [credential.secret for credential in found] == [app.secret]
    await pool.stop()


@pytest_twisted.ensureDeferred
async def test_unknown_tokens(database: Database) -> None:
    """Unknown tokens are cached, and however many there are, they do not displace those of users."""
    pool = Pool(reactor, database.dsn, 1)
    pool.start()
    await until(lambda: pool.connected)
    cache = CredentialCache(CredentialStore(pool), FakeListener(), reactor.seconds)
    app = App().install(database)
    assert len(await by_token(cache, app.token)) == 1
    for number in range(MAX_LOOKUPS):
        cache._unknown[f"unknown {number}"] = ()
    assert not await by_token(cache, "another")
    await pool.stop()
    assert len(await by_token(cache, app.token)) == 1
    assert not await by_token(cache, "another")
    assert len(cache._unknown) == MAX_LOOKUPS


@pytest_twisted.ensureDeferred
async def test_query_can_be_prevented(database: Database) -> None:
    """An exception that is raised before a query prevents it; results that are cached need no query."""

    def prevent() -> None:
        raise PermissionError

    pool = Pool(reactor, database.dsn, 1)
    pool.start()
    await until(lambda: pool.connected)
    cache = CredentialCache(CredentialStore(pool), FakeListener(), reactor.seconds)
    app = App().install(database)
    with pytest.raises(PermissionError):
        cache.by_token(app.token, prevent)
    assert len(await by_token(cache, app.token)) == 1
    assert len(cast("tuple[Credential, ...]", cache.by_token(app.token, prevent))) == 1
    await pool.stop()


class Queries:
    """Queries that the test answers, in the place of a store.

    :ivar pending: the queries in progress, oldest first.
    """

    def __init__(self) -> None:
        self.pending: list[Deferred[object]] = []

    def by_token(self, _: str) -> Deferred[object]:
        return self.load()

    def load(self) -> Deferred[object]:
        query: Deferred[object] = Deferred()
        self.pending.append(query)
        return query


CREDENTIALS = (Credential(uuid.uuid4(), uuid.uuid4(), uuid.uuid4(), "token", "secret"),)
NOBODY = ErasedUsers(b"key", frozenset(), {})


class Cached:
    """A cache on a fake store, a fake listener and a fake clock."""

    def __init__(self, value: object, create: Callable[[Queries, ChangeListener, Callable[[], float]], object]) -> None:
        self.value, self.queries, self.listener, self.clock = value, Queries(), FakeListener(), Clock()
        self.cache = create(self.queries, self.listener, self.clock.seconds)

    def request(self) -> list[object]:
        """Request the value, and return a list to which it is appended."""
        results: list[object] = []
        if isinstance(self.cache, CredentialCache):
            found = self.cache.by_token("token")
            if isinstance(found, Deferred):
                found.addCallback(results.append)
            else:
                results.append(found)
        elif isinstance(self.cache, ErasedUserCache):
            ensureDeferred(self.cache.current()).addCallback(lambda result: results.append(result[0]))
        return results

    def invalidate(self) -> None:
        self.cache.invalidate()  # type: ignore[attr-defined]

    def answer(self) -> None:
        """Let the oldest query return the value."""
        self.queries.pending.pop(0).callback(self.value)


@pytest.fixture(params=["credentials", "erased users"])
def cached(request: pytest.FixtureRequest) -> Cached:
    if request.param == "credentials":
        return Cached(CREDENTIALS, CredentialCache)  # type: ignore[arg-type]
    return Cached(NOBODY, ErasedUserCache)  # type: ignore[arg-type]


def test_result_is_cached_for_its_lifetime(cached: Cached) -> None:
    """A result is used until its lifetime ends."""
    results = cached.request()
    cached.answer()
    cached.clock.advance(LIFETIME - 1)
    assert results == cached.request() == [cached.value]
    assert cached.queries.pending == []
    cached.clock.advance(1)
    assert cached.request() == []
    assert len(cached.queries.pending) == 1


def test_result_of_an_earlier_generation_is_not_cached(cached: Cached) -> None:
    """If something changes during a query, its result is returned but not cached, and later requests query again."""
    earlier = cached.request()
    cached.invalidate()
    later = cached.request()
    assert len(cached.queries.pending) == 2
    cached.answer()
    assert earlier == [cached.value]
    assert later == cached.request() == []
    cached.answer()
    assert later == [cached.value]


def test_cache_is_not_used_while_nobody_listens(cached: Cached) -> None:
    """While changes would not be noticed, each request queries the database."""
    cached.request()
    cached.answer()
    cached.listener.listening = False
    assert cached.request() == []
    assert len(cached.queries.pending) == 1


def test_concurrent_requests_share_a_lookup() -> None:
    """While a credential is looked up, other requests wait for the same query."""
    cached = Cached(CREDENTIALS, CredentialCache)  # type: ignore[arg-type]
    results = [cached.request() for _ in range(3)]
    assert len(cached.queries.pending) == 1
    cached.answer()
    assert results == [[CREDENTIALS]] * 3


@pytest_twisted.ensureDeferred
async def test_erasures_may_have_changed() -> None:
    """A set of erased users is up to date as long as changes would be noticed and none was."""
    cached = Cached(NOBODY, ErasedUserCache)  # type: ignore[arg-type]
    cache, listener = cached.cache, cached.listener
    assert isinstance(cache, ErasedUserCache)
    cached.request()
    cached.answer()
    _, generation = await cache.current()
    assert not cache.may_have_changed_since(generation)
    listener.listening = False
    assert cache.may_have_changed_since(generation)
    listener.listening = True
    cache.invalidate()
    assert cache.may_have_changed_since(generation)
