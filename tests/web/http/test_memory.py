"""What is left of a request when it has been answered."""

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
    "refused events": batch([make_event(user_id="x")]),
    "no JSON": b"{",
    "no UTF-8": b"\xff",
    "no batch": b"[]",
    "a lone surrogate": rb'{"events":["\ud800"]}',
    "garbage": random.Random(1).randbytes(100),
}

HEADERS: Mapping[str, dict[str, str | None]] = {
    "another signature": {"X-Signature": "00"},
    "no signature": {"X-Signature": None},
    "unknown token": {"Authorization": "Bearer unknown"},
    "do not track": {"DNT": "1"},
    "no gzip": {"Content-Encoding": "gzip"},
}
"""Headers that are set, or left out."""


def alive() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, (ApiRequest, IngestRequest))]


@pytest_twisted.ensureDeferred
async def test_nothing_waits_for_the_garbage_collector(database: Database) -> None:
    """However a request ends, its body goes with it: no circle of references keeps it until somebody looks."""
    server = await start_server(database)
    app, client = App().install(database), Client(f"http://127.0.0.1:{server.port}")
    await client.send(app, [make_event()])
    gc.collect()
    gc.disable()
    left: dict[str, int] = {}
    try:
        for name, body in BODIES.items():
            await client.send(app, body)
            left[name] = len(alive())
        for name, changes in HEADERS.items():
            await client.send(app, [make_event()], changes=changes)
            left[name] = len(alive())
        for method, path in (("GET", "/nowhere"), ("PUT", "/health"), ("GET", "/health")):
            await client.request(method, path)
            left[path] = len(alive())
    finally:
        gc.enable()
        await server.stopService()
    assert not any(left.values()), left
