"""Share links: who can create them, what they show, and when they end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from html import unescape
from urllib.parse import urlsplit

import pytest
import pytest_twisted

from tests.support.browser import Browser, signed_in
from tests.support.client import Reply
from tests.support.command import InProcessCommand
from tests.support.database import Database, DatabaseServer
from tests.support.sample_statistics import aggregate, install_named, store_recent
from tests.support.server import running_server
from tkserver.operations.app_deletion import delete_app
from tkserver.operations.apps import find_app
from tkserver.server.supervisor import Supervisor
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.share_links import SHAREABLE

FORM = "/dashboard/apps/my-cli/share"
FIELDS = {"name": "For <Bob>", "days": "30", "page-overview": "on"}


@pytest.fixture(scope="module")
def module_database(database_server: DatabaseServer) -> Iterator[Database]:
    """A database with two applications that have statistics."""
    with database_server.migrated() as database:
        store_recent(database, install_named(database, "my-cli"), range(1, 400))
        store_recent(database, install_named(database, "other"), range(1000, 1100))
        aggregate(database)
        yield database


@pytest.fixture
def owner(browser: Browser) -> Browser:
    """The browser of somebody who may share all applications."""
    return browser


@pytest.fixture
def guest(server: Supervisor) -> Browser:
    """A browser that is not signed in."""
    return Browser(server.admin_port)


async def share(owner: Browser, query: str = "", **fields: str) -> str:
    """Create a link, and return its path."""
    reply = await owner.post(f"{FORM}{query}", {**FIELDS, **fields, "csrf": await owner.csrf_token()})
    assert reply.status == 200, reply.body.decode()
    found = re.search(r'class="share-link" href="([^"]+)"', reply.body.decode())
    assert found is not None
    assert found[1].startswith(owner.origin)
    return urlsplit(found[1]).path


def links_of(page: str) -> set[str]:
    """Return the targets of all links of a page."""
    return {unescape(target) for target in re.findall(r'href="(/[^"]*)"', page)}


@pytest_twisted.ensureDeferred
async def test_shared_pages(owner: Browser, guest: Browser) -> None:
    """A link shows its pages with its filters and its name, without signing in, and leads nowhere else."""
    path = await share(owner, "?period=7&version=1.3.2", **{"page-versions": "on"})
    for page in ("", "/overview", "/versions"):
        text = (await guest.get(path + page)).body.decode()
        assert "For &lt;Bob&gt;" in text
        assert "7 days, without CI, version: 1.3.2. This link is valid until" in text
        assert all(target.startswith((path, "/dashboard/static/")) for target in links_of(text))
        assert {f"{path}/overview", f"{path}/versions"} <= links_of(text)
        assert "<form" not in text
    own = (await owner.get("/dashboard/apps/my-cli/export/overview/panel.json?period=7&version=1.3.2")).json
    shared = (await guest.get(f"{path}/export/overview/panel.json")).json
    assert shared["totals"] == own["totals"]
    assert own["totals"]["events"] > 100
    assert b"1.3.2" in (await guest.get(f"{path}/export/versions/items.csv")).body


@pytest_twisted.ensureDeferred
async def test_all_shareable_pages(owner: Browser, guest: Browser) -> None:
    """Every page that the form offers can be shared, and all files to which the pages lead can be saved."""
    fields = {f"page-{page}": "on" for page in SHAREABLE}
    path = await share(owner, "?name=build", **fields)
    targets = {target for page in SHAREABLE for target in links_of((await guest.get(f"{path}/{page}")).body.decode())}
    assert len({target for target in targets if "/export/" in target}) > 10
    assert {f"{path}/{page}" for page in SHAREABLE} <= targets
    for target in targets:
        assert (await guest.get(target)).status == 200, target


@pytest_twisted.ensureDeferred
async def test_nothing_else_is_shared(owner: Browser, guest: Browser) -> None:
    """Other pages, other numbers, and other filters cannot be opened with a link."""
    path = await share(owner)
    for rest in ("/retention", "/data", "/live", "/nothing", "/export/retention/panel.json", "/export/quality/x.csv"):
        assert (await guest.get(path + rest)).status == 404, rest
    for query in ("?period=365", "?version=1.3.2", "?a="):
        assert (await guest.get(f"{path}/overview{query}")).status == 400
    for other in ("/dashboard/", "/dashboard/shares", "/dashboard/apps/my-cli/overview"):
        assert (await guest.get(other)).status == 401
    assert (await guest.post(path, {})).status == 405


@pytest_twisted.ensureDeferred
async def test_links_end(owner: Browser, guest: Browser, module_database: Database) -> None:
    """A link ends immediately when it is revoked, and when it expires."""
    first, second = await share(owner), await share(owner, name="second")
    listed = (await owner.get("/dashboard/shares")).body.decode()
    assert "For &lt;Bob&gt;" in listed
    revoke = re.findall(r'action="(/dashboard/shares/\d+/revoke)"', listed)[-1]
    assert (await owner.post(revoke, {"csrf": await owner.csrf_token()})).status == 303
    assert (await guest.get(second)).status == 404
    assert "ask whoever sent it" in (await guest.get(second)).body.decode()
    assert (await owner.post(revoke, {"csrf": await owner.csrf_token()})).status == 404
    assert (await guest.get(first)).status == 200
    module_database.query("UPDATE share_links SET expires_at = now()")
    assert (await guest.get(first)).status == 404
    assert "There are no share links" in (await owner.get("/dashboard/shares")).body.decode()
    await share(owner)
    assert module_database.value("SELECT count(*) FROM share_links") == 1  # expired ones are deleted


@pytest_twisted.ensureDeferred
async def test_secrets(owner: Browser, guest: Browser, module_database: Database) -> None:
    """A token has 128 bits, is stored as a hash, and is kept out of search engines and referrers."""
    path = await share(owner)
    reply = await guest.get(path)
    token = path.rpartition("/")[2]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", token)
    stored = module_database.value("SELECT share_links::text FROM share_links ORDER BY id DESC LIMIT 1")
    assert token not in stored
    assert reply.headers["x-robots-tag"] == "noindex, nofollow"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("token", ["a" * 22, "a" * 21, "a" * 500, "%00", "..%2f..", "'; --"])
@pytest_twisted.ensureDeferred
async def test_invalid_links(guest: Browser, token: str) -> None:
    """Links that do not exist get a page that says so, or are no links."""
    reply = await guest.get(f"/dashboard/shared/{token}")
    assert reply.status == 404


@pytest_twisted.ensureDeferred
async def test_guessing_is_limited(module_database: Database) -> None:
    """An address that tries many links gets a 429."""
    settings = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 6, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 3}
    async with running_server(module_database, **settings) as server:
        guest = Browser(server.admin_port)
        statuses = [(await guest.get(f"/dashboard/shared/{number:022}")).status for number in range(6)]
    assert statuses[0] == 404
    assert statuses[-1] == 429


@pytest_twisted.ensureDeferred
async def test_only_sharers_share(module_database: Database, server: Supervisor, guest: Browser) -> None:
    """Read-only viewers can neither see, nor create, nor revoke links; forms need their token and the right origin."""
    reader = await signed_in(module_database, server.admin_port, "--read-only")
    assert "Share this page" not in (await reader.get("/dashboard/apps/my-cli/overview")).body.decode()
    csrf = await reader.csrf_token()
    refused = [
        await reader.get("/dashboard/shares"),
        await reader.get(FORM),
        await reader.post(FORM, {**FIELDS, "csrf": csrf}),
        await reader.post("/dashboard/shares/1/revoke", {"csrf": csrf}),
    ]
    assert [reply.status for reply in refused] == [403] * 4
    owner = await signed_in(module_database, server.admin_port)
    assert (await owner.post(FORM, FIELDS)).status == 403
    foreign = {**FIELDS, "csrf": await owner.csrf_token()}
    assert (await owner.post(FORM, foreign, Origin="https://evil.example", Sec_Fetch_Site="cross-site")).status == 403
    assert (await guest.post(FORM, FIELDS)).status == 401


@pytest_twisted.ensureDeferred
async def test_scope(module_database: Database, server: Supervisor, owner: Browser) -> None:
    """Somebody who may share one application neither shares another one, nor sees or revokes its links."""
    await share(owner)
    other = await signed_in(module_database, server.admin_port, "other", "--share")
    csrf = await other.csrf_token()
    assert (await other.post(FORM, {**FIELDS, "csrf": csrf})).status == 404
    assert "There are no share links" in (await other.get("/dashboard/shares")).body.decode()
    link_id = module_database.value("SELECT max(id) FROM share_links")
    assert (await other.post(f"/dashboard/shares/{link_id}/revoke", {"csrf": csrf})).status == 404
    assert (await owner.post(f"/dashboard/shares/{link_id}/revoke", {"csrf": await owner.csrf_token()})).status == 303


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {"name": ""}),
        ("", {"name": " \t"}),
        ("", {"name": "x" * 101}),
        ("", {"name": "a\u202eb"}),
        ("", {"days": "0"}),
        ("", {"days": "31"}),
        ("", {"days": ""}),
        ("", {"page-overview": ""}),
        ("?period=8", {}),
        ("?from=yesterday", {}),
        ("?from=2026-02-01&to=2026-01-01", {}),
        ("?from=1000-02-01&to=2026-01-01", {}),
        ("?unknown=1", {}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_forms(owner: Browser, module_database: Database, query: str, fields: dict[str, str]) -> None:
    """A form with a value that is not possible creates no link, and gets a page that says what is wrong."""
    before = module_database.value("SELECT count(*) FROM share_links")
    values = {**FIELDS, **fields, "csrf": await owner.csrf_token()}
    if values["page-overview"] == "":
        del values["page-overview"]
    reply: Reply = await owner.post(f"{FORM}{query}", values)
    assert reply.status == 400
    assert module_database.value("SELECT count(*) FROM share_links") == before


@pytest.mark.parametrize("link_id", ["0", "x", "-1", "9223372036854775807", "9" * 40, "%D9%A3"])
@pytest_twisted.ensureDeferred
async def test_unknown_ids(owner: Browser, link_id: str) -> None:
    """Revoking a link that does not exist gets a 404."""
    csrf = await owner.csrf_token()
    assert (await owner.post(f"/dashboard/shares/{link_id}/revoke", {"csrf": csrf})).status == 404


@pytest_twisted.ensureDeferred
async def test_commands(server: Supervisor, guest: Browser, module_database: Database) -> None:
    """``tkserver shares`` creates, lists and revokes links."""
    tkserver = InProcessCommand({"TK__DATABASE__URL": module_database.dsn})
    arguments = ("--name", "Board", "--page", "versions", "--days", "90", "--url", guest.origin, "--json")
    created = tkserver("shares", "create", "my-cli", *arguments).json
    path = urlsplit(created["url"]).path
    text = (await guest.get(path)).body.decode()
    assert "90 days, without CI." in text
    assert "<h1>Versions</h1>" in text
    listed = next(link for link in tkserver("shares", "list", "my-cli", "--json").json if link["name"] == "Board")
    assert (listed["app"], listed["pages"], listed["filters"]) == ("my-cli", ["versions"], "period=90")
    assert "Board" not in tkserver("shares", "list", "other").out
    assert "revoked: Board" in tkserver("shares", "revoke", str(listed["id"])).out
    assert (await guest.get(path)).status == 404
    tkserver("shares", "revoke", str(listed["id"]), code=3)


@pytest_twisted.ensureDeferred
async def test_links_of_a_deleted_application(database: Database) -> None:
    """Deleting an application deletes its links."""
    install_named(database, "my-cli")
    async with running_server(database) as server:
        path = await share(await signed_in(database, server.admin_port))
        guest = Browser(server.admin_port)
        assert (await guest.get(path)).status == 200
        with closing(BlockingConnections().connect(database.dsn)) as connection:
            delete_app(connection, find_app(connection, "my-cli"), lambda: 0.0, lambda _: None)
        assert (await guest.get(path)).status == 404
    assert database.value("SELECT count(*) FROM share_links") == 0
