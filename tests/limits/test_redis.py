"""TokenBuckets in a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.protocols.portforward import ProxyFactory

from tests.support.logs import logged_lines
from tests.support.valkey import Valkey
from tkserver.limits.redis import KEY_PREFIX, RedisServer, RedisTokenBuckets
from tkserver.limits.token_bucket import SECOND, Rate


@pytest_twisted.async_yield_fixture
async def shared(directory: Path) -> AsyncIterator[tuple[RedisTokenBuckets, Valkey]]:
    """TokenBuckets that are connected."""
    with Valkey(directory, password="p@ss/word") as valkey:
        buckets = RedisTokenBuckets(RedisServer.of(valkey.url("/3")), reactor)
        buckets.start()
        while not buckets.available:
            await deferLater(reactor, 0.01)
        yield buckets, valkey
        await buckets.stop()


@pytest_twisted.ensureDeferred
async def test_lua_does_what_python_does(shared: tuple[RedisTokenBuckets, Valkey]) -> None:
    """The script comes to the same as the pure function at each step, with rates that change in between too."""
    buckets, _ = shared
    full_at = 0
    for number in range(200):
        rate = Rate.per_minute((7, 60_000, 50, 1_000_000)[number // 10 % 4])
        verdict = await buckets.take("app", rate)
        assert verdict == bucket.take(rate, full_at, verdict.now)
        full_at = verdict.full_at


@pytest_twisted.ensureDeferred
async def test_keys_go_away(shared: tuple[RedisTokenBuckets, Valkey]) -> None:
    """A key lives until its bucket is full, in the database that the URL names."""
    buckets, valkey = shared
    for _ in range(5):
        verdict = await buckets.take("app", Rate.per_minute(60))
    with valkey.client(db=3) as client:
        left = client.pttl(f"{KEY_PREFIX}app")
    assert 0 < left <= (verdict.full_at - verdict.now) / SECOND * 1000 + 1


@pytest_twisted.ensureDeferred
async def test_forgotten_scripts(shared: tuple[RedisTokenBuckets, Valkey]) -> None:
    """Somebody who makes Valkey invalidate its scripts breaks nothing."""
    buckets, valkey = shared
    for left in (8, 7, 6):
        assert (await buckets.take("app", Rate.per_minute(9))).remaining == left
        with valkey.client() as client:
            client.script_flush()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side
@pytest_twisted.ensureDeferred
async def test_tls(shared: tuple[RedisTokenBuckets, Valkey], monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """With ``rediss`` the server's certificate is checked, and what is said is encrypted."""
    _, valkey = shared
    authority = trustme.CA()
    key = authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    certificate = PrivateCertificate.loadPEM(key)
    forward = ProxyFactory("127.0.0.1", valkey.port)
    forward.noisy = False
    port = reactor.listenSSL(0, forward, certificate.options(), interface="127.0.0.1")  # type: ignore[attr-defined]
    server = replace(RedisServer.of(valkey.url()), host="localhost", port=port.getHost().port, tls=True)
    stranger = RedisTokenBuckets(server, reactor)
    stranger.start()
    with logged_lines() as lines:
        while not lines:
            await deferLater(reactor, 0.01)
    await stranger.stop()
    assert "Redis cannot be used" in lines[0]

    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(directory / "ca.pem"))
    friend = RedisTokenBuckets(server, reactor)
    friend.start()
    while not friend.available:
        await deferLater(reactor, 0.01)
    assert (await friend.take("app", Rate.per_minute(9))).remaining == 8
    await friend.stop()
    await port.stopListening()


def test_passwords_are_not_shown() -> None:
    """Nor is anything else lost of a URL."""
    server = RedisServer.of("rediss://us%40er:p%2Fw@example.org:1234/5")
    assert server == RedisServer("example.org", 1234, True, 5, "us@er", "p/w")
    assert "p/w" not in repr(server)
    assert RedisServer.of("redis://[::1]") == RedisServer("::1", 6379, False, 0, None, None)
