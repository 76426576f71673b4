"""Who may read metrics, and whether there is a dashboard."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_twisted

from tests.support.browser import Browser, create_link
from tests.support.client import Reply
from tests.support.database import Database
from tests.support.logs import logged_lines
from tests.support.server import running_server
from tkserver.config import InvalidSettings
from tkserver.server.supervisor import Supervisor

METRICS = "/metrics"
TOKEN = "0123456789abcdef-metrics"
EXPOSED = {"TK__ADMIN__HOST": "0.0.0.0", "TK__ADMIN__ALLOWED_HOSTS": "tkserver"}
FORWARDED = {"X-Forwarded-For": "192.0.2.1"}
OF_PROXIES = ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Proto", "X-Forwarded-Host"]


@pytest_twisted.async_yield_fixture(scope="module")
async def exposed(shared_database: Database) -> AsyncIterator[Supervisor]:
    """A server whose admin port listens on all addresses and serves the dashboard."""
    settings = {**EXPOSED, "TK__DASHBOARD__ENABLED": "true", "TK__ADMIN__METRICS_TOKEN": TOKEN}
    async with running_server(shared_database, **settings) as server:
        yield server


async def get(server: Supervisor, path: str = METRICS, **headers: str) -> Reply:
    """Request a path of the admin port."""
    return await Browser(server.admin_port).get(path, **headers)


# --- metrics


@pytest_twisted.ensureDeferred
async def test_programs_on_this_machine(exposed: Supervisor) -> None:
    """A connection from loopback, to a loopback name, needs no token."""
    assert (await get(exposed)).status == 200
    assert (await get(exposed, Host="localhost:3001")).status == 200


@pytest.mark.parametrize("header", OF_PROXIES)
@pytest_twisted.ensureDeferred
async def test_forwarded_requests(exposed: Supervisor, header: str) -> None:
    """A request that a proxy has forwarded needs the token, and the error says which."""
    reply = await Browser(exposed.admin_port, {header: "127.0.0.1"}).get(METRICS)
    assert (reply.status, reply.code, reply.headers["www-authenticate"]) == (401, "missing_authorization", "Bearer")
    assert "TK__ADMIN__METRICS_TOKEN" in reply.json["error"]["message"]
    assert b"tkserver_" not in reply.body
    allowed = await Browser(exposed.admin_port, {header: "127.0.0.1", "Authorization": f"Bearer {TOKEN}"}).get(METRICS)
    assert allowed.status == 200


@pytest_twisted.ensureDeferred
async def test_other_names(exposed: Supervisor) -> None:
    """A request in another name comes from another machine, or through a proxy."""
    assert (await get(exposed, Host="tkserver:3001")).status == 401
    assert (await get(exposed, Host="tkserver:3001", Authorization=f"bearer  {TOKEN} ")).status == 200


@pytest.mark.parametrize(
    "authorization", ["Bearer", "Bearer x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "\xe4"]
)
@pytest_twisted.ensureDeferred
async def test_invalid_tokens(exposed: Supervisor, authorization: str) -> None:
    """Another token is rejected."""
    reply = await get(exposed, **FORWARDED, Authorization=authorization)
    assert (reply.status, reply.code) == (401, "invalid_token")


@pytest_twisted.ensureDeferred
async def test_without_a_token(shared_database: Database) -> None:
    """If there is no token, nobody else reads metrics. The same applies if the admin port listens on loopback."""
    for settings in ({}, {**EXPOSED, "TK__DASHBOARD__ENABLED": "true"}):
        async with running_server(shared_database, **settings) as server:
            assert (await get(server)).status == 200
            for authorization in ("Bearer", "Bearer None", "Bearer " + TOKEN):
                assert (await get(server, **FORWARDED, Authorization=authorization)).status == 401
            assert (await get(server, **FORWARDED)).status == 401


@pytest.mark.parametrize("settings", [EXPOSED, {"TK__DASHBOARD__ENABLED": "false"}])
@pytest_twisted.ensureDeferred
async def test_without_a_dashboard(shared_database: Database, settings: dict[str, str]) -> None:
    """Without the dashboard, metrics need no token."""
    async with running_server(shared_database, **settings) as server:
        assert (await get(server, **FORWARDED)).status == 200


@pytest_twisted.ensureDeferred
async def test_failures_are_limited(shared_database: Database) -> None:
    """An address that fails too often gets a 429, except with a token that has succeeded."""
    limits = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 3}
    async with running_server(shared_database, TK__ADMIN__METRICS_TOKEN=TOKEN, **limits) as server:
        valid = {**FORWARDED, "Authorization": f"Bearer {TOKEN}"}
        assert (await get(server, **valid)).status == 200
        assert [(await get(server, **FORWARDED)).status for _ in range(4)] == [401, 401, 401, 429]
        assert (await get(server, **valid)).status == 200
        assert (await get(server)).status == 200


# --- whether there is a dashboard


@pytest.mark.parametrize(
    ("settings", "enabled"),
    [
        ({}, True),
        ({"TK__ADMIN__HOST": "::1"}, True),
        ({"TK__DASHBOARD__ENABLED": ""}, True),
        ({"TK__DASHBOARD__ENABLED": "false"}, False),
        (EXPOSED, False),
        ({**EXPOSED, "TK__DASHBOARD__ENABLED": "true"}, True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_log_says_how_to_sign_in(shared_database: Database, settings: dict[str, str], enabled: bool) -> None:
    """The log says where the dashboard is, and how to sign in, if there is one."""
    with logged_lines() as lines:
        async with running_server(shared_database, **settings) as server:
            port = server.admin_port
    host = {"::1": "[::1]"}.get(name := settings.get("TK__ADMIN__HOST", "127.0.0.1"), name)
    line = f"dashboard on http://{host}:{port}/dashboard/: to sign in, run: tkserver dashboard"
    assert (line in lines) is enabled
    assert any("dashboard" in line for line in lines) is enabled


@pytest_twisted.ensureDeferred
async def test_log_contains_the_url(shared_database: Database) -> None:
    """Behind a proxy, the log contains the address of the proxy."""
    with logged_lines() as lines:
        async with running_server(shared_database, TK__DASHBOARD__URL="https://stats.example.org/"):
            pass
    assert "dashboard on https://stats.example.org/dashboard/: to sign in, run: tkserver dashboard" in lines


@pytest_twisted.ensureDeferred
async def test_disabled(shared_database: Database) -> None:
    """Without the dashboard, its paths do not exist: all methods get the same error as for any other path."""
    async with running_server(shared_database, TK__DASHBOARD__ENABLED="false") as server:
        browser = Browser(server.admin_port)
        token = create_link(shared_database)
        for method in ("GET", "HEAD", "POST", "PUT"):
            expected = await browser.request(method, "/nothing")
            for path in ("/dashboard", "/dashboard/", f"/dashboard/sign-in?token={token}", "/dashboard/sign-out"):
                reply = await browser.request(method, path)
                assert reply.status == expected.status == 404
                assert reply.headers.keys() == expected.headers.keys()
                assert method == "HEAD" or reply.json["error"] == expected.json["error"]
        assert (await browser.sign_in(token)).status == 404
        assert "dashboard" not in (await browser.get("/")).json


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"TK__DASHBOARD__USER_HEADER": "X-Remote-User"}, "TK__SERVER__TRUSTED_PROXIES"),
        ({"TK__DASHBOARD__USER_HEADER": "X Remote"}, "TK__DASHBOARD__USER_HEADER"),
        ({"TK__DASHBOARD__USER_HEADER": "X-Remote:\r\n"}, "TK__DASHBOARD__USER_HEADER"),
        ({"TK__DASHBOARD__URL": "https://a/b"}, "TK__DASHBOARD__URL"),
        ({"TK__DASHBOARD__ENABLED": "maybe"}, "TK__DASHBOARD__ENABLED"),
        ({"TK__ADMIN__METRICS_TOKEN": "short"}, "TK__ADMIN__METRICS_TOKEN"),
        ({"TK__ADMIN__METRICS_TOKEN": "with a space, and long"}, "TK__ADMIN__METRICS_TOKEN"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_settings(shared_database: Database, settings: dict[str, str], named: str) -> None:
    """Settings that cannot work are rejected at the start. The message names them, and contains no secret."""
    with pytest.raises(InvalidSettings, match=named) as caught:
        async with running_server(shared_database, **settings):
            pass
    assert "short" not in str(caught.value)
    assert "space" not in str(caught.value)
