"""Routing of requests by method and path."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.support.client import Client
from tests.support.peer import connect

ROUTES = [
    ("GET /health", 200),
    ("GET /health?x=y", 200),
    ("GET /heal%74h", 200),
    ("GET http://any.example/health", 200),
    ("HEAD /health", 200),
    ("GET /health/", 404),
    ("GET //health", 404),
    ("GET /%2fhealth", 404),
    ("GET /health%2fready", 404),
    ("GET http:///health", 404),
    ("GET health", 404),
    ("GET *", 404),
    ("get /health", 405),
    ("head /health", 405),
    ("PUT /health", 405),
    ("GET /" + "x" * 1000, 404),
]


@pytest.mark.parametrize(("request_line", "status"), ROUTES)
@pytest_twisted.ensureDeferred
async def test_routes(client: Client, request_line: str, status: int) -> None:
    """Paths are unquoted segment by segment, methods are case-sensitive, and a cached route gives the same result."""
    for _ in range(2):
        peer = await connect(int(client.url.rpartition(":")[2]))
        peer.write(f"{request_line} HTTP/1.1\r\nHost: x\r\nConnection: foo,close\r\n\r\n".encode())
        received = await peer.read_all()
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"Connection: close" in head
        assert bool(body) != request_line.startswith("HEAD")
