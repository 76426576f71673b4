"""Every error of the public port is in the format that the published SDK can parse, also those of early rejections."""

from __future__ import annotations

import gzip
import json
import re

import pytest_twisted

from tests.support.client import App, Client, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.peer import connect
from tests.support.published_sdk import VERSION
from tests.support.raw_requests import request_head
from tests.support.server import client_of, running_server
from tkserver.server.supervisor import Supervisor

FLAT = {"X-SDK-Version": VERSION}
NEWER = {"X-SDK-Version": "telemetry-kit-rust/0.3.1"}


@pytest_twisted.ensureDeferred
async def test_rejected_requests(client: Client, app: App) -> None:
    """Errors of routing, verification and decoding are flat for the published SDK, and only for it."""
    requests: list[tuple[int, str, bytes, str, dict[str, str | None]]] = [
        (404, "not_found", b"", "/nothing", {}),
        (404, "not_found", b"", app.path + "/more", {}),
        (405, "method_not_allowed", b"", "/health", {}),
        (400, "invalid_id", b"", f"/v1/ingest/%20/{app.app_id}", {}),
        (401, "missing_signature", b"", app.path, {"X-Signature": None}),
        (401, "invalid_signature", b"", app.path, {"X-Signature": "0"}),
        (400, "invalid_json", b"{", app.path, {}),
        (400, "empty_batch", batch([]), app.path, {}),
        (415, "unsupported_media_type", batch([1]), app.path, {"Content-Type": "text/plain"}),
        (413, "payload_too_large", gzip.compress(b" " * 13_000_000), app.path, {"Content-Encoding": "gzip"}),
        (400, "all_events_rejected", batch([1]), app.path, {}),
    ]
    for status, code, body, path, changes in requests:
        flat = await client.send(app, body, changes={**FLAT, **changes}, path=path)
        nested = await client.send(app, body, changes={**NEWER, **changes}, path=path)
        without = await client.send(app, body, changes=changes, path=path)
        assert (flat.status, flat.json["error"]) == (status, code)
        assert nested.status == without.status == status
        problem = {"code": code, "message": flat.json["message"]}
        assert nested.json["error"] == without.json["error"] == problem, path
        assert flat.json.keys() == nested.json.keys() | {"message"}


async def exchange(server: Supervisor, data: bytes) -> tuple[int, dict[str, object]]:
    """Write bytes to a new connection, and return status and content of the response."""
    peer = await connect(server.port)
    peer.write(data)
    head, _, body = (await peer.read_all()).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


SDK_LINE = f"X-SDK-Version: {VERSION}\r\nX-Schema-Version: 1.0.0\r\n".encode()


@pytest_twisted.ensureDeferred
async def test_requests_that_are_not_read(database: Database) -> None:
    """Errors of requests whose headers or bodies are not read completely are flat, too."""
    settings = {"TK__SERVER__HEADER_TIMEOUT": 0.5, "TK__SERVER__BODY_TIMEOUT": 0.5}
    async with running_server(database, **settings) as server:
        app = App().install(database)
        start = f"POST {app.path} HTTP/1.1\r\nHost: x\r\n".encode() + SDK_LINE
        body = batch([make_event()])
        head = request_head(app, body).replace(b"Host: x\r\n", b"Host: x\r\n" + SDK_LINE)
        too_long = re.sub(rb"Content-Length: \d+", b"Content-Length: 99999999999", head)
        expected = {
            "payload_too_large": (413, too_long),
            "bad_request": (400, start + b"X: " + b"x" * 20_000),
            "request_timeout": (408, start + b"X: y\r\n"),
        }
        for code, (status, data) in expected.items():
            found, content = await exchange(server, data)
            assert (found, content["error"]) == (status, code)
            assert isinstance(content["message"], str)
        status, content = await exchange(server, head + body[:10])
        assert (status, content["error"]) == (408, "request_timeout")


@pytest_twisted.ensureDeferred
async def test_temporary_errors(database: Database) -> None:
    """429 and 503 are flat, with ``retry_after`` in the body and in the headers."""
    settings = {
        "TK__RATE_LIMIT__FREE_RPM": 1,
        "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1,
        "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 1,
    }
    async with running_server(database, **settings) as server:
        client, app, other = client_of(server), App().install(database), App().install(database)
        assert (await client.send(app, [make_event()])).status == 200
        database.query("ALTER TABLE events RENAME TO hidden")
        replies = [
            await client.send(app, [make_event()], changes=FLAT),  # more requests than the tier allows
            await client.send(other, [make_event()], changes=FLAT),  # the database does not store the event
        ]
        await client.send(other, [make_event()], changes={"X-Signature": "00"})
        replies.append(await client.send(other, [make_event()], changes=FLAT))  # after a failed authentication
        database.query("ALTER TABLE hidden RENAME TO events")
    found = [(reply.status, reply.json["error"]) for reply in replies]
    assert found == [(429, "rate_limited"), (503, "storage_unavailable"), (429, "rate_limited")]
    for reply in replies:
        assert int(reply.headers["retry-after"]) == reply.json["retry_after"] > 0
        assert isinstance(reply.json["message"], str)
