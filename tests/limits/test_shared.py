"""Buckets in a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.limits.valkey import Valkey
from tkserver.limits import bucket
from tkserver.limits.bucket import SECOND, Rate
from tkserver.limits.shared import KEY_PREFIX, RedisServer, SharedBuckets


@pytest_twisted.async_yield_fixture
async def shared(directory: Path) -> AsyncIterator[tuple[SharedBuckets, Valkey]]:
    """Buckets that are connected."""
    with Valkey(directory, password="p@ss/word") as valkey:
        buckets = SharedBuckets(RedisServer.of(valkey.url("/3")), reactor)
        buckets.start()
        while not buckets.available:
            await deferLater(reactor, 0.01)
        yield buckets, valkey
        await buckets.stop()


@pytest_twisted.ensureDeferred
async def test_lua_does_what_python_does(shared: tuple[SharedBuckets, Valkey]) -> None:
    """The script comes to the same as the pure function at each step, with rates that change in between too."""
    buckets, _ = shared
    full_at = 0
    for number in range(200):
        rate = Rate.per_minute((7, 60_000, 50, 1_000_000)[number // 10 % 4])
        verdict = await buckets.take("app", rate)
        assert verdict == bucket.take(rate, full_at, verdict.now)
        full_at = verdict.full_at


@pytest_twisted.ensureDeferred
async def test_keys_go_away(shared: tuple[SharedBuckets, Valkey]) -> None:
    """A key lives until its bucket is full, in the database that the URL names."""
    buckets, valkey = shared
    for _ in range(5):
        verdict = await buckets.take("app", Rate.per_minute(60))
    with valkey.client(db=3) as client:
        left = client.pttl(f"{KEY_PREFIX}app")
    assert 0 < left <= (verdict.full_at - verdict.now) / SECOND * 1000 + 1


@pytest_twisted.ensureDeferred
async def test_forgotten_scripts(shared: tuple[SharedBuckets, Valkey]) -> None:
    """Somebody who makes Valkey forget its scripts breaks nothing."""
    buckets, valkey = shared
    for left in (8, 7, 6):
        assert (await buckets.take("app", Rate.per_minute(9))).remaining == left
        with valkey.client() as client:
            client.script_flush()


def test_passwords_are_not_shown() -> None:
    """Nor is anything else lost of a URL."""
    server = RedisServer.of("rediss://us%40er:p%2Fw@example.org:1234/5")
    assert server == RedisServer("example.org", 1234, True, 5, "us@er", "p/w")
    assert "p/w" not in repr(server)
    assert RedisServer.of("redis://[::1]") == RedisServer("::1", 6379, False, 0, None, None)
