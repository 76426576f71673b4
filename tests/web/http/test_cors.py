"""CORS: the web origins that may send events and read responses."""

from __future__ import annotations

import pytest_twisted

from tests.support.client import App, Client
from tests.support.database import Database
from tests.support.server import start_server
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
