"""Who may read statistics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_twisted

from tests.support.client import App, Client, Reply
from tests.support.command import InProcessCommand
from tests.support.database import Database, DatabaseServer
from tests.support.logs import logged_lines
from tests.support.peer import connect
from tests.support.sample_statistics import install_named
from tests.support.scrape import scrape
from tests.support.server import running_server
from tkserver.server.supervisor import Supervisor

APPS = "/api/v1/apps"
PANEL = "/api/v1/apps/my-cli/overview"


@pytest.fixture(scope="module")
def module_database(database_server: DatabaseServer) -> Iterator[Database]:
    """A database with two applications."""
    with database_server.migrated() as database:
        for name in ("my-cli", "other"):
            install_named(database, name)
        yield database


@pytest.fixture(scope="module")
def tokens(module_database: Database) -> dict[str, str]:
    """Tokens to read: for ``my-cli``, for ``other``, and for all applications."""
    command = InProcessCommand({"TK__DATABASE__URL": module_database.dsn})
    scopes = {"my-cli": ("my-cli",), "other": ("other",), "all": ("--all",)}
    return {
        name: command("tokens", "create", "--read", "--json", *scope).json["token"] for name, scope in scopes.items()
    }


@pytest_twisted.async_yield_fixture(scope="module")
async def local(module_database: Database, tokens: dict[str, str]) -> AsyncIterator[Supervisor]:
    """A server with the default settings, whose admin port listens on loopback."""
    async with running_server(module_database, TK__ADMIN__ALLOWED_HOSTS="stats.example.org") as server:
        yield server


@pytest_twisted.async_yield_fixture(scope="module")
async def exposed(module_database: Database, tokens: dict[str, str]) -> AsyncIterator[Supervisor]:
    """A server whose admin port listens on all addresses."""
    async with running_server(module_database, TK__ADMIN__HOST="0.0.0.0") as server:
        yield server


async def get(server: Supervisor, path: str, token: str | None = None, **headers: str) -> Reply:
    """Request a path of the admin port."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    client = Client(f"http://127.0.0.1:{server.admin_port}")
    return await client.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})


async def status_for_host(server: Supervisor, host: str) -> int:
    """Return the status of a request for a host."""
    peer = await connect(server.admin_port)
    peer.write(f"GET {APPS} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return int((await peer.read_all()).split(b" ")[1])


# --- without a token


@pytest_twisted.ensureDeferred
async def test_this_machine_needs_no_token(local: Supervisor) -> None:
    """A program on the machine of the server reads the statistics of all applications, whether tokens exist or not."""
    reply = await get(local, APPS)
    assert (reply.status, [app["app"] for app in reply.json["apps"]]) == (200, ["my-cli", "other"])
    assert (await get(local, PANEL)).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1", 200),
        ("[::1]:3001", 200),
        ("stats.example.org", 401),
        ("evil.example.org", 421),
    ],
)
@pytest_twisted.ensureDeferred
async def test_hosts(local: Supervisor, host: str, status: int) -> None:
    """A request in another name comes through a proxy, or from a page of another site."""
    assert await status_for_host(local, host) == status


@pytest.mark.parametrize("name", ["X_Forwarded_For", "Forwarded", "X_Real_IP", "Via", "x_forwarded_proto"])
@pytest_twisted.ensureDeferred
async def test_forwarded_requests_need_a_token(local: Supervisor, tokens: dict[str, str], name: str) -> None:
    """The client of a proxy may be anywhere."""
    assert (await get(local, APPS, **{name: "192.0.2.1"})).status == 401
    assert (await get(local, APPS, tokens["all"], **{name: "192.0.2.1"})).status == 200


@pytest.mark.parametrize(
    ("site", "status"), [("none", 200), ("same-origin", 200), ("same-site", 401), ("cross-site", 401)]
)
@pytest_twisted.ensureDeferred
async def test_pages_of_other_sites_need_a_token(local: Supervisor, site: str, status: int) -> None:
    """A page of another site cannot let a browser on this machine request statistics."""
    assert (await get(local, PANEL, Sec_Fetch_Site=site)).status == status


@pytest_twisted.ensureDeferred
async def test_exposed_port_requires_tokens(exposed: Supervisor, tokens: dict[str, str]) -> None:
    """If other machines can reach the port, every request needs a token, and the error says how to create one."""
    for path in (APPS, PANEL, "/api/v1/apps/nothing/overview"):
        reply = await get(exposed, path)
        assert (reply.status, reply.code) == (401, "missing_authorization")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "tkserver tokens create APP --read" in reply.json["error"]["message"]
        assert "my-cli" not in reply.body.decode()
    assert (await get(exposed, PANEL, tokens["my-cli"])).status == 200
    assert (await get(exposed, "/metrics")).status == 200


@pytest_twisted.ensureDeferred
async def test_token_can_be_required(module_database: Database, tokens: dict[str, str]) -> None:
    """A setting requires a token from programs on the same machine, too."""
    async with running_server(module_database, TK__INSIGHT__REQUIRE_TOKEN="true") as server:
        assert (await get(server, PANEL)).status == 401
        assert (await get(server, PANEL, tokens["all"])).status == 200


# --- with a token


@pytest_twisted.ensureDeferred
async def test_token_for_one_application(exposed: Supervisor, tokens: dict[str, str]) -> None:
    """To a token for one application, all others do not exist."""
    for name, other in (("my-cli", "other"), ("other", "my-cli")):
        apps = (await get(exposed, APPS, tokens[name])).json["apps"]
        assert [app["app"] for app in apps] == [name]
        assert (await get(exposed, f"{APPS}/{name}/quality", tokens[name])).status == 200
        hidden = await get(exposed, f"{APPS}/{other}/quality", tokens[name])
        unknown = await get(exposed, f"{APPS}/nothing/quality", tokens[name])
        assert (hidden.status, hidden.json["error"]) == (unknown.status, unknown.json["error"])
        assert hidden.status == 404
    assert len((await get(exposed, APPS, tokens["all"])).json["apps"]) == 2


@pytest_twisted.ensureDeferred
async def test_names_are_unique_among_visible_applications(database: Database) -> None:
    """A token for one application finds it by a name that another one has, too."""
    apps = [install_named(database, "my-cli", org) for org in ("a", "b")]
    command = InProcessCommand({"TK__DATABASE__URL": database.dsn})
    token = command("tokens", "create", "b/my-cli", "--read", "--json").json["token"]
    async with running_server(database) as server:
        assert (await get(server, PANEL)).status == 404
        assert (await get(server, PANEL, token)).json["app"] == "b/my-cli"
        assert (await get(server, f"{APPS}/{apps[1].app_id}/overview", token)).status == 200
        assert (await get(server, f"{APPS}/{apps[0].app_id}/overview", token)).status == 404


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Bearer ", "Bearer nope", "Basic {token}", "{token}", "Bearer {token}x", "Bearer x{token}"],
)
@pytest_twisted.ensureDeferred
async def test_invalid_tokens(local: Supervisor, tokens: dict[str, str], authorization: str) -> None:
    """A token that is sent must be valid, even if none is needed."""
    reply = await get(local, APPS, Authorization=authorization.format(token=tokens["all"]))
    assert (reply.status, reply.code, reply.headers["www-authenticate"]) == (401, "invalid_token", "Bearer")


@pytest_twisted.ensureDeferred
async def test_form_of_the_header(local: Supervisor, tokens: dict[str, str]) -> None:
    """The scheme is not case-sensitive, and spaces around the token are ignored."""
    for authorization in ("bearer {}", "BEARER  {} "):
        assert (await get(local, APPS, Authorization=authorization.format(tokens["all"]))).status == 200


@pytest_twisted.ensureDeferred
async def test_tokens_to_send_cannot_read(local: Supervisor, module_database: Database) -> None:
    """The token of a program that sends events is public, and does not allow to read anything."""
    app = App().install(module_database)
    assert (await get(local, APPS, app.token)).status == 401


@pytest_twisted.ensureDeferred
async def test_failures_are_limited(module_database: Database, tokens: dict[str, str]) -> None:
    """An address that fails to authenticate too often gets a 429, except with a token that has succeeded."""
    limits = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 3}
    async with running_server(module_database, **limits) as server:
        assert (await get(server, APPS, tokens["all"])).status == 200
        statuses = [(await get(server, APPS, "nope")).status for _ in range(4)]
        assert statuses == [401, 401, 401, 429]
        limited = await get(server, APPS, tokens["my-cli"])
        assert (limited.status, limited.code) == (429, "rate_limited")
        assert int(limited.headers["retry-after"]) > 0
        assert (await get(server, APPS, tokens["all"])).status == 200
        assert (await get(server, APPS)).status == 200, "it needs no token"


@pytest_twisted.ensureDeferred
async def test_tokens_are_not_logged(module_database: Database, tokens: dict[str, str]) -> None:
    """Neither the log nor the metrics contain a token or a name from a request."""
    with logged_lines() as lines:
        async with running_server(module_database, TK__SERVER__LOG_LEVEL="debug") as server:
            for token in (tokens["all"], "unmistakable"):
                await get(server, PANEL, token)
                await get(server, f"{APPS}/unmistakable/unmistakable?unmistakable=unmistakable", token)
            metrics = (await scrape(server.admin_port)).text
    assert lines
    for text in (tokens["all"], tokens["all"][4:], "unmistakable", "my-cli"):
        assert text not in metrics
        assert text not in "\n".join(lines)
