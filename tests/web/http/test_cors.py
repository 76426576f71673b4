"""CORS: the web origins that may send events and read responses."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.support.client import App, Client
from tests.support.database import Database
from tests.support.peer import connect
from tests.support.server import start_server
from tkserver.server.supervisor import Supervisor
from tkserver.web.http.response import CorsPolicy

LISTED = CorsPolicy(("https://a.example", "https://b.example"))


def test_every_origin_is_allowed_by_default() -> None:
    """By default, every web origin is allowed."""
    assert CorsPolicy().headers("https://x.example")["Access-Control-Allow-Origin"] == "*"
    assert CorsPolicy().headers(None)["Access-Control-Allow-Origin"] == "*"


def test_listed_origin_is_allowed() -> None:
    """A listed origin is allowed, and caches learn that the response depends on the origin."""
    headers = LISTED.headers("https://b.example")
    assert headers["Access-Control-Allow-Origin"] == "https://b.example"
    assert headers["Vary"] == "Origin"


def test_other_origins_are_not_allowed() -> None:
    """An origin that is not listed is not allowed."""
    for origin in ("https://c.example", "https://a.example.evil.example", "null", None):
        assert LISTED.headers(origin) == {"Vary": "Origin"}


def test_preflight_lists_requested_headers_by_name() -> None:
    """The response to a preflight request lists the requested headers, because ``*`` does not cover Authorization."""
    headers = CorsPolicy.preflight("POST", "authorization, x-nonce")
    assert headers["Access-Control-Allow-Headers"] == "authorization, x-nonce"
    assert headers["Access-Control-Allow-Methods"] == "POST"


UNUSUAL = ["\x1b[31mX", "x\x00y", "x\x7f", "x\x85y", "x\ty", "x, \x08y", "x y", "\xe9", 'x"', "<b>", "", ",", "x,,y"]


@pytest.mark.parametrize("text", UNUSUAL)
def test_preflight_does_not_reflect_other_characters(text: str) -> None:
    """A value that cannot be a list of names is not sent back: control characters would reach terminals and logs."""
    assert CorsPolicy.preflight(text, text) == CorsPolicy.preflight(None, None)


@pytest_twisted.ensureDeferred
async def test_preflight_with_control_characters(shared_server: Supervisor) -> None:
    """The response to a preflight request contains no control character that the client sent."""
    controls = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in b"\0\r\n"]
    for code in controls:
        peer = await connect(shared_server.port)
        text = b"x" + bytes([code]) + b"y"
        lines = [b"OPTIONS /health HTTP/1.1", b"Host: x", b"Origin: " + text, b"Connection: close"]
        lines += [b"Access-Control-Request-Method: " + text, b"Access-Control-Request-Headers: a, " + text]
        peer.write(b"\r\n".join([*lines, b"", b""]))
        received = await peer.read_all()
        assert received.startswith(b"HTTP/1.1 204 ")
        assert code not in received.replace(b"\r\n", b"")


@pytest_twisted.ensureDeferred
async def test_setting_applies_to_error_responses(database: Database) -> None:
    """The origins in the settings also apply to error responses."""
    server = await start_server(database, TK__SERVER__CORS_ORIGINS="https://a.example, https://b.example")
    try:
        client = Client(f"http://127.0.0.1:{server.port}")
        listed = await client.request("POST", App().path, headers={"Origin": "https://a.example"})
        other = await client.request("POST", App().path, headers={"Origin": "https://c.example"})
    finally:
        await server.stopService()
    assert (listed.status, other.status) == (401, 401)
    assert listed.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in other.headers
