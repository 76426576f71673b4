"""The memory of a request is released when the request ends."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping

import pytest_twisted

from tests.support.client import App, Client, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.server import start_server
from tkserver.ingest.verification import IngestRequest
from tkserver.web.http.request import ApiRequest

BODIES = {
    "stored": batch([make_event()]),
    "invalid event": batch([make_event(user_id="x")]),
    "not JSON": b"{",
    "not UTF-8": b"\xff",
    "not a batch": b"[]",
    "lone surrogate": rb'{"events":["\ud800"]}',
    "random bytes": random.Random(1).randbytes(100),
}

HEADERS: Mapping[str, dict[str, str | None]] = {
    "wrong signature": {"X-Signature": "00"},
    "no signature": {"X-Signature": None},
    "unknown token": {"Authorization": "Bearer unknown"},
    "do not track": {"DNT": "1"},
    "not gzip": {"Content-Encoding": "gzip"},
}
"""Changed headers; ``None`` removes a header."""


def requests_in_memory() -> list[object]:
    return [thing for thing in gc.get_objects() if isinstance(thing, (ApiRequest, IngestRequest))]


@pytest_twisted.ensureDeferred
async def test_requests_are_freed_without_garbage_collection(database: Database) -> None:
    """However a request ends, no reference cycle keeps it in memory until the next garbage collection."""
    server = await start_server(database)
    app, client = App().install(database), Client(f"http://127.0.0.1:{server.port}")
    await client.send(app, [make_event()])
    gc.collect()
    gc.disable()
    remaining: dict[str, int] = {}
    try:
        for name, body in BODIES.items():
            await client.send(app, body)
            remaining[name] = len(requests_in_memory())
        for name, changes in HEADERS.items():
            await client.send(app, [make_event()], changes=changes)
            remaining[name] = len(requests_in_memory())
        for method, path in (("GET", "/nowhere"), ("PUT", "/health"), ("GET", "/health")):
            await client.request(method, path)
            remaining[path] = len(requests_in_memory())
    finally:
        gc.enable()
        await server.stopService()
    assert not any(remaining.values()), remaining
