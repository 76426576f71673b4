"""Shared token buckets in a real Valkey server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.ssl import PrivateCertificate
from twisted.protocols.portforward import ProxyFactory

from tests.support.logs import logged_lines
from tests.support.valkey import Valkey
from tests.support.waiting import until
from tkserver.limits import token_bucket
from tkserver.limits.redis import KEY_PREFIX, RedisServer, RedisTokenBuckets
from tkserver.limits.token_bucket import SECOND, Rate


async def connected(server: RedisServer) -> RedisTokenBuckets:
    """Return token buckets with a connection."""
    buckets = RedisTokenBuckets(server, reactor)
    buckets.start()
    await until(lambda: buckets.available)
    return buckets


@pytest_twisted.async_yield_fixture
async def shared(directory: Path) -> AsyncIterator[tuple[RedisTokenBuckets, Valkey]]:
    """Token buckets with a connection, and their server."""
    with Valkey(directory, password="p@ss/word") as valkey:
        buckets = await connected(RedisServer.from_url(valkey.url("/3")))
        yield buckets, valkey
        await buckets.stop()


@pytest_twisted.ensureDeferred
async def test_lua_script_equals_python_function(shared: tuple[RedisTokenBuckets, Valkey]) -> None:
    """The Lua script makes the same decisions as the Python function, also when the rate changes."""
    buckets, _ = shared
    full_at = 0
    for number in range(200):
        rate = Rate.per_minute((7, 60_000, 50, 1_000_000)[number // 10 % 4])
        decision = await buckets.take("app", rate)
        assert decision == token_bucket.take(rate, full_at, decision.now)
        full_at = decision.full_at


@pytest_twisted.ensureDeferred
async def test_keys_expire(shared: tuple[RedisTokenBuckets, Valkey]) -> None:
    """A key expires when its bucket is full, and is in the database that the URL names."""
    buckets, valkey = shared
    for _ in range(5):
        decision = await buckets.take("app", Rate.per_minute(60))
    with valkey.client(db=3) as client:
        lifetime = client.pttl(f"{KEY_PREFIX}app")
    assert 0 < lifetime <= (decision.full_at - decision.now) / SECOND * 1000 + 1


@pytest_twisted.ensureDeferred
async def test_flushed_scripts(shared: tuple[RedisTokenBuckets, Valkey]) -> None:
    """``SCRIPT FLUSH`` has no effect on the buckets."""
    buckets, valkey = shared
    for remaining in (8, 7, 6):
        assert (await buckets.take("app", Rate.per_minute(9))).remaining == remaining
        with valkey.client() as client:
            client.script_flush()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side
@pytest_twisted.ensureDeferred
async def test_tls(shared: tuple[RedisTokenBuckets, Valkey], monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """With ``rediss``, the connection is encrypted, and the certificate of the server is verified."""
    _, valkey = shared
    authority = trustme.CA()
    key = authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    certificate = PrivateCertificate.loadPEM(key)
    forward = ProxyFactory("127.0.0.1", valkey.port)
    forward.noisy = False
    port = reactor.listenSSL(0, forward, certificate.options(), interface="127.0.0.1")  # type: ignore[attr-defined]
    server = replace(RedisServer.from_url(valkey.url()), host="localhost", port=port.getHost().port, tls=True)
    distrusting = RedisTokenBuckets(server, reactor)
    distrusting.start()
    with logged_lines() as lines:
        await until(lambda: lines)
    await distrusting.stop()
    assert "Redis is not available" in lines[0]

    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(directory / "ca.pem"))
    trusting = await connected(server)
    assert (await trusting.take("app", Rate.per_minute(9))).remaining == 8
    await trusting.stop()
    await port.stopListening()


def test_url_of_a_server() -> None:
    """All parts of a URL are used, and the representation of a server does not contain the password."""
    server = RedisServer.from_url("rediss://us%40er:p%2Fw@example.org:1234/5")
    assert server == RedisServer("example.org", 1234, True, 5, "us@er", "p/w")
    assert "p/w" not in repr(server)
    assert RedisServer.from_url("redis://[::1]") == RedisServer("::1", 6379, False, 0, None, None)
