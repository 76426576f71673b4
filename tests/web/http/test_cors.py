"""Which web pages may talk to the server."""

from __future__ import annotations

import pytest_twisted

from tests.support.client import App, Client
from tests.support.database import Database
from tests.support.server import start_server
from tkserver.web.http.response import CorsPolicy

LISTED = CorsPolicy(("https://a.example", "https://b.example"))


def test_any_origin() -> None:
    """By default every page may."""
    assert CorsPolicy().headers("https://x.example")["Access-Control-Allow-Origin"] == "*"
    assert CorsPolicy().headers(None)["Access-Control-Allow-Origin"] == "*"


def test_listed_origin() -> None:
    """A page that is listed may, and caches are told that others get another answer."""
    headers = LISTED.headers("https://b.example")
    assert headers["Access-Control-Allow-Origin"] == "https://b.example"
    assert headers["Vary"] == "Origin"


def test_other_origin() -> None:
    """A page that is not listed may not."""
    for origin in ("https://c.example", "https://a.example.evil.example", "null", None):
        assert LISTED.headers(origin) == {"Vary": "Origin"}


def test_preflight_names_what_was_asked_for() -> None:
    """``*`` does not stand for Authorization, so that headers are named."""
    headers = CorsPolicy.preflight("POST", "authorization, x-nonce")
    assert headers["Access-Control-Allow-Headers"] == "authorization, x-nonce"
    assert headers["Access-Control-Allow-Methods"] == "POST"


@pytest_twisted.ensureDeferred
async def test_setting(database: Database) -> None:
    """The setting's list is kept to, on refusals as well."""
    server = await start_server(database, TK__SERVER__CORS_ORIGINS="https://a.example, https://b.example")
    try:
        client = Client(f"http://127.0.0.1:{server.port}")
        allowed = await client.request("POST", App().path, headers={"Origin": "https://a.example"})
        refused = await client.request("POST", App().path, headers={"Origin": "https://c.example"})
    finally:
        await server.stopService()
    assert (allowed.status, refused.status) == (401, 401)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in refused.headers
