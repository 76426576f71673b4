"""Links, sessions and forms of the dashboard."""

from __future__ import annotations

import hmac
import re
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from tests.support.browser import FORM, Browser, create_link, signed_in
from tests.support.client import App, Reply
from tests.support.clocks import ReactorWithClock
from tests.support.command import InProcessCommand
from tests.support.database import Database, DatabaseServer
from tests.support.logs import logged_lines
from tests.support.peer import connect
from tests.support.sample_statistics import install_named
from tests.support.scrape import scrape
from tests.support.server import running_server
from tests.support.waiting import until
from tkserver.server.supervisor import Supervisor
from tkserver.storage.sign_in import LINK_PREFIX, SESSION_PREFIX, hash_token, new_token

HOME = "/dashboard/"
SIGN_IN = "/dashboard/sign-in"
SIGN_OUT = "/dashboard/sign-out"
PROXY = {"TK__SERVER__TRUSTED_PROXIES": "127.0.0.1"}


@pytest.fixture(scope="module")
def module_database(database_server: DatabaseServer) -> Iterator[Database]:
    """A database with two applications."""
    with database_server.migrated() as database:
        for name in ("my-cli", "other"):
            install_named(database, name)
        yield database


@pytest_twisted.async_yield_fixture(scope="module")
async def local(module_database: Database) -> AsyncIterator[Supervisor]:
    """A server with the default settings, whose admin port listens on loopback."""
    async with running_server(module_database) as server:
        yield server


@pytest_twisted.async_yield_fixture(scope="module")
async def proxied(module_database: Database) -> AsyncIterator[Supervisor]:
    """A server behind a proxy that has the address of the tests, and that authenticates users."""
    settings = {"TK__DASHBOARD__USER_HEADER": "X-Remote-User", "TK__DASHBOARD__URL": "https://stats.example.org"}
    async with running_server(module_database, **PROXY, **settings) as server:
        yield server


@pytest.fixture
def browser(local: Supervisor) -> Browser:
    """A browser that is not signed in."""
    return Browser(local.admin_port)


def sessions(database: Database) -> int:
    """Return the number of sessions."""
    return int(database.value("SELECT count(*) FROM dashboard_sessions"))


# --- links


@pytest_twisted.ensureDeferred
async def test_sign_in(module_database: Database, browser: Browser) -> None:
    """The page of the link has a form, which leads to the dashboard. Without a cookie, the dashboard is closed."""
    token = create_link(module_database)
    page = (await browser.get(f"{SIGN_IN}?token={token}")).body.decode()
    assert f'action="{SIGN_IN}"' in page
    assert f'name="token" value="{token}"' in page
    closed = await browser.get()
    assert closed.status == 401
    assert "tkserver dashboard" in closed.body.decode()
    reply = await browser.sign_in(token)
    assert (reply.status, reply.headers["location"], reply.body) == (303, HOME, b"")
    assert (await browser.get()).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest_twisted.ensureDeferred
async def test_opening_a_link_does_not_use_it(module_database: Database, browser: Browser, method: str) -> None:
    """Mail scanners and previews open links any number of times."""
    token = create_link(module_database)
    before = sessions(module_database)
    for _ in range(3):
        assert (await browser.request(method, f"{SIGN_IN}?token={token}")).status == 200
    assert sessions(module_database) == before
    assert (await browser.sign_in(token)).status == 303


@pytest_twisted.ensureDeferred
async def test_link_works_once(module_database: Database, local: Supervisor) -> None:
    """If many browsers use a link at the same time, one of them is signed in."""
    token = create_link(module_database)
    before = sessions(module_database)
    browsers = [Browser(local.admin_port) for _ in range(20)]
    replies: Deferred[list[Reply]] = gatherResults([ensureDeferred(each.sign_in(token)) for each in browsers])
    assert sorted(reply.status for reply in await replies) == [303, *[401] * 19]
    assert sessions(module_database) == before + 1
    assert len([each for each in browsers if each.cookie]) == 1
    again = await browsers[0].sign_in(token)
    assert again.status == 401
    assert "tkserver dashboard" in again.body.decode()


@pytest_twisted.ensureDeferred
async def test_expired_link(module_database: Database, browser: Browser) -> None:
    """A link that has expired is not valid, and the page says what to do."""
    token = create_link(module_database)
    before = sessions(module_database)
    module_database.query("UPDATE dashboard_links SET expires_at = now() WHERE token_hash = %s", hash_token(token))
    reply = await browser.sign_in(token)
    assert (reply.status, sessions(module_database)) == (401, before)
    assert "five minutes" in reply.body.decode()
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("token", ["", "nope", f"{SESSION_PREFIX}123456", LINK_PREFIX + "0" * 64, "ä€😀", "a\0b"])
@pytest_twisted.ensureDeferred
async def test_unknown_link(browser: Browser, token: str) -> None:
    """Texts that are no link are rejected."""
    reply = await browser.sign_in(token)
    assert (reply.status, browser.cookie) == (401, "")


@pytest.mark.parametrize("query", ["token=nope", "token=%22%3E%3Cscript%3E", "token=tkl_%00", "token=tks_" + "0" * 64])
@pytest_twisted.ensureDeferred
async def test_page_of_an_invalid_link(browser: Browser, query: str) -> None:
    """The page shows nothing of a text that has not the form of a link."""
    reply = await browser.get(f"{SIGN_IN}?{query}")
    assert reply.status == 401
    assert not re.search("nope|script|tkl_|tks_|0{10}", reply.body.decode())


@pytest_twisted.ensureDeferred
async def test_page_without_a_link(browser: Browser) -> None:
    """The page says how to get a link."""
    reply = await browser.get(SIGN_IN)
    assert reply.status == 200
    assert "tkserver dashboard" in reply.body.decode()
    assert "<form" not in reply.body.decode()


@pytest_twisted.ensureDeferred
async def test_only_hashes_are_stored(module_database: Database, browser: Browser) -> None:
    """The database contains neither the token of a link nor that of a session."""
    used, unused = create_link(module_database), create_link(module_database)
    await browser.sign_in(used)
    session = browser.cookie.partition("=")[2]
    stored = "".join(
        text
        for table in ("dashboard_links", "dashboard_sessions")
        for (text,) in module_database.query(f"SELECT to_jsonb(t)::text FROM {table} AS t")
    )
    for token in (used, unused, session):
        assert token[4:] not in stored
    for token in (unused, session):
        assert hash_token(token).hex() in stored
    assert hash_token(used).hex() not in stored


# --- cookies


@pytest_twisted.ensureDeferred
async def test_cookie(module_database: Database, browser: Browser) -> None:
    """The cookie is hidden from scripts, from forms of other sites, and from other paths. It has 256 random bits."""
    cookie = (await browser.sign_in(create_link(module_database))).headers["set-cookie"]
    attributes = "; Path=/dashboard; Max-Age=2592000; HttpOnly; SameSite=Lax"
    assert re.fullmatch(f"tkserver=tks_[0-9a-f]{{64}}{attributes}", cookie)
    age = "SELECT DISTINCT extract(day FROM expires_at - created_at)::int FROM dashboard_sessions"
    assert module_database.query(age) == [(30,)]


@pytest.mark.parametrize(
    ("headers", "secure"),
    [
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "http, HTTPS"}, True),
        ({"X-Forwarded-Proto": "https, http"}, False),
        ({"X-Forwarded-Proto": "http", "Host": "stats.example.org"}, False),
        ({"Host": "stats.example.org"}, True),
        ({}, False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_cookie_under_tls(
    module_database: Database, proxied: Supervisor, headers: dict[str, str], secure: bool
) -> None:
    """If a trusted proxy or the URL says that there is TLS, the cookie is sent only through TLS, and works."""
    browser = Browser(proxied.admin_port, headers)
    cookie = (await browser.sign_in(create_link(module_database), Origin="null")).headers["set-cookie"]
    assert cookie.startswith("__Secure-tkserver=tks_") is secure
    assert cookie.endswith("; Secure") is secure
    assert (await browser.get()).status == 200
    browser.headers = {"X-Forwarded-Proto": "http" if secure else "https"}
    assert (await browser.get()).status == 401, "a cookie from the other scheme, which others may have set"


@pytest_twisted.ensureDeferred
async def test_scheme_from_anyone_else(module_database: Database, browser: Browser) -> None:
    """``X-Forwarded-Proto`` is ignored unless a trusted proxy has sent it."""
    browser.headers = {"X-Forwarded-Proto": "https"}
    assert "Secure" not in (await browser.sign_in(create_link(module_database))).headers["set-cookie"]


@pytest.mark.parametrize("form", ["a=b; {}", "{}; a=b", "a; {};", "a=;;{}"])
@pytest_twisted.ensureDeferred
async def test_other_cookies(module_database: Database, local: Supervisor, form: str) -> None:
    """Cookies of other programs on the same host do not matter."""
    browser = await signed_in(module_database, local.admin_port)
    browser.cookie = form.format(browser.cookie)
    assert (await browser.get()).status == 200


@pytest.mark.parametrize("value", ["", "nope", "tks_" + "0" * 64, "tks_" + "g" * 64, "x" * 5000, "tks_\xe4"])
@pytest_twisted.ensureDeferred
async def test_unknown_session(browser: Browser, value: str) -> None:
    """Other values are no session."""
    browser.cookie = f"tkserver={value}"
    assert (await browser.get()).status == 401


# --- the end of sessions


@pytest_twisted.ensureDeferred
async def test_expired_session(module_database: Database, local: Supervisor) -> None:
    """A session ends when it expires."""
    browser = await signed_in(module_database, local.admin_port)
    assert (await browser.get()).status == 200
    module_database.query("UPDATE dashboard_sessions SET expires_at = now()")

    async def has_ended() -> bool:
        return (await browser.get()).status == 401

    await until(has_ended)


@pytest_twisted.ensureDeferred
async def test_sign_out(module_database: Database, local: Supervisor) -> None:
    """The button ends this session at once, and no other. The cookie is removed."""
    browser, other = [await signed_in(module_database, local.admin_port) for _ in range(2)]
    stolen = browser.cookie
    reply = await browser.post(SIGN_OUT, {"csrf": await browser.csrf_token()})
    assert (reply.status, reply.headers["location"], browser.cookie) == (303, SIGN_IN, "")
    assert reply.headers["set-cookie"].startswith("tkserver=; Path=/dashboard; Max-Age=0;")
    assert (await Browser(local.admin_port, cookie=stolen).get()).status == 401
    assert (await other.get()).status == 200
    assert (await browser.post(SIGN_OUT, {"csrf": "x"})).status == 401


@pytest_twisted.ensureDeferred
async def test_sign_out_everywhere(database: Database) -> None:
    """After the command, every server rejects every session, also those it has just seen, within two seconds."""
    clocks = [ReactorWithClock(1_800_000_000.0) for _ in range(2)]
    async with (
        running_server(database, reactor=clocks[0]) as first,
        running_server(database, reactor=clocks[1]) as second,
    ):
        browsers = [await signed_in(database, first.admin_port) for _ in range(2)]
        unused = create_link(database)
        seen = [Browser(server.admin_port, cookie=each.cookie) for server in (first, second) for each in browsers]
        assert [(await each.get()).status for each in seen] == [200] * 4
        done = InProcessCommand({"TK__DATABASE__URL": database.dsn})("dashboard", "sign-out", "--json")
        assert done.json == {"ended_sessions": 2}
        for clock in clocks:
            clock.now += 2
        assert [(await each.get()).status for each in seen] == [401] * 4
        assert (await browsers[0].sign_in(unused)).status == 401


@pytest_twisted.ensureDeferred
async def test_deleted_application(database: Database) -> None:
    """Deleting an application deletes its links and ends its sessions, and no others."""
    for name in ("my-cli", "other"):
        install_named(database, name)
    clock = ReactorWithClock(1_800_000_000.0)
    async with running_server(database, reactor=clock) as server:
        browsers = [await signed_in(database, server.admin_port, *app) for app in (("my-cli",), ("other",), ())]
        unused = [create_link(database, *app) for app in (("my-cli",), ("other",), ())]
        assert [(await each.get()).status for each in browsers] == [200] * 3
        InProcessCommand({"TK__DATABASE__URL": database.dsn})("apps", "delete", "my-cli", "--yes")
        clock.now += 2
        assert [(await each.get()).status for each in browsers] == [401, 200, 200]
        assert [(await Browser(server.admin_port).sign_in(link)).status for link in unused] == [401, 303, 303]


# --- forms


@pytest.mark.parametrize(
    ("origin", "site", "status"),
    [
        (None, "same-origin", 303),
        ("null", "same-origin", 303),
        ("null", None, 303),
        ("own", None, 303),
        ("own", "same-origin", 303),
        (None, None, 403),
        ("null", "cross-site", 403),
        ("null", "same-site", 403),
        ("null", "none", 403),
        ("own", "cross-site", 403),
        ("https://evil.example.org", None, 403),
        ("https://evil.example.org", "same-origin", 403),
        ("http://127.0.0.1", None, 403),
        ("http://127.0.0.1:1", None, 403),
        ("http://[", None, 403),
        ("", None, 403),
        ("://", None, 403),
    ],
)
@pytest_twisted.ensureDeferred
async def test_origin(
    module_database: Database, local: Supervisor, origin: str | None, site: str | None, status: int
) -> None:
    """A form from another site does nothing: it does not use the link, and does not end the session."""
    browser = await signed_in(module_database, local.admin_port)
    sent = {"Origin": browser.origin if origin == "own" else origin, "Sec_Fetch_Site": site}
    token = create_link(module_database)
    assert (await Browser(local.admin_port).sign_in(token, **sent)).status == status
    csrf = await browser.csrf_token()
    cookie = browser.cookie
    assert (await browser.post(SIGN_OUT, {"csrf": csrf}, **sent)).status == status
    if status == 403:
        assert (await Browser(local.admin_port, cookie=cookie).get()).status == 200
        assert (await Browser(local.admin_port).sign_in(token)).status == 303


@pytest_twisted.ensureDeferred
async def test_origin_behind_a_proxy(module_database: Database, proxied: Supervisor) -> None:
    """The origin of the URL in the settings is allowed, also if the proxy changes the host."""
    for origin, status in (("https://stats.example.org", 303), ("http://stats.example.org", 403)):
        browser = Browser(proxied.admin_port)
        assert (await browser.sign_in(create_link(module_database), Origin=origin)).status == status


@pytest.mark.parametrize("fields", [{}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "ä"}, {"csrf": "other"}])
@pytest_twisted.ensureDeferred
async def test_csrf_token(module_database: Database, local: Supervisor, fields: dict[str, str]) -> None:
    """A form without the token of this session does nothing. That of another session is not accepted."""
    browser, other = [await signed_in(module_database, local.admin_port) for _ in range(2)]
    if fields == {"csrf": "other"}:
        fields = {"csrf": await other.csrf_token()}
    reply = await browser.post(SIGN_OUT, fields)
    assert reply.status == 403
    assert (await browser.get()).status == 200


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("text/plain", b"token=x", 415),
        (f"{FORM}; charset=UTF-8", b"token=x", 401),
        (FORM.upper(), b"token=x", 401),
        (FORM, b"token=%ff", 400),
        (FORM, b"token=\xff", 400),
        (FORM, b"&".join(b"a=b" for _ in range(51)), 400),
        (FORM, b"a" * 70_000, 413),
        (FORM, b"", 401),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bodies(browser: Browser, content_type: str, body: bytes, status: int) -> None:
    """Bodies that are no form are rejected with a page."""
    reply = await browser.request("POST", SIGN_IN, body, {"Content-Type": content_type, "Origin": browser.origin})
    assert reply.status == status
    assert reply.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(("method", "path"), [("GET", SIGN_OUT), ("POST", HOME), ("PUT", SIGN_IN), ("DELETE", HOME)])
@pytest_twisted.ensureDeferred
async def test_methods(module_database: Database, local: Supervisor, method: str, path: str) -> None:
    """A GET changes nothing: what changes something needs a POST."""
    browser = await signed_in(module_database, local.admin_port)
    reply = await browser.request(method, path)
    assert reply.status == 405
    assert method not in reply.headers["allow"]
    assert (await browser.get()).status == 200


# --- pages


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (HOME, 401),
        (SIGN_IN, 200),
        (f"{SIGN_IN}?token=x", 401),
        (f"{SIGN_IN}?token={LINK_PREFIX}{'0' * 64}", 200),
        ("/dashboard", 303),
        ("/dashboard/nothing", 404),
        ("/dashboard//", 404),
        ("/dashboard/static/x/style.css", 404),
        (SIGN_OUT, 405),
    ],
)
@pytest_twisted.ensureDeferred
async def test_headers_of_pages(browser: Browser, path: str, status: int) -> None:
    """Every page, also of an error, allows no scripts, no frames and no other hosts, and is not kept."""
    reply = await browser.get(path)
    assert reply.status == status
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-frame-options"] == "DENY"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "access-control-allow-origin" not in reply.headers
    assert ("www-authenticate" in reply.headers) is (status == 401)


@pytest.mark.parametrize("path", ["/dashboards", "/dashboard.html", "/nothing", "/api/dashboard"])
@pytest_twisted.ensureDeferred
async def test_errors_elsewhere(browser: Browser, path: str) -> None:
    """Errors of other paths are JSON."""
    reply = await browser.get(path)
    assert (reply.status, reply.code) == (404, "not_found")


@pytest_twisted.ensureDeferred
async def test_static_files(browser: Browser) -> None:
    """The style sheet is kept forever, because its address contains its version. Other files do not exist."""
    found = re.search(r'href="(/dashboard/static/(\w+)/style\.css)"', (await browser.get(SIGN_IN)).body.decode())
    assert found is not None
    reply = await browser.get(found[1])
    assert (reply.status, reply.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["x-content-type-options"] == "nosniff"
    for name in ("nothing.css", "..", "../html.py", "%2e%2e%2fhtml.py", "..%2Fhtml.py", "%00", "", "style.css/"):
        assert (await browser.get(f"/dashboard/static/{found[2]}/{name}")).status == 404, name


@pytest_twisted.ensureDeferred
async def test_host(local: Supervisor) -> None:
    """Requests for other hosts are rejected with a page that does not show the host, on all paths."""
    for target in (HOME, SIGN_IN, "/dashboard/static/x/style.css", f"http://evil.example.org{HOME}"):
        peer = await connect(local.admin_port)
        peer.write(f"GET {target} HTTP/1.1\r\nHost: evil.example.org\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await peer.read_all()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 421 ")
        assert b"text/html" in head
        assert b"evil" not in body


@pytest_twisted.ensureDeferred
async def test_target_with_host(local: Supervisor) -> None:
    """A request target can have a scheme and a host."""
    peer = await connect(local.admin_port)
    peer.write(b"GET http://localhost/dashboard/sign-in HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (await peer.read_all()).startswith(b"HTTP/1.1 200 ")


@pytest_twisted.ensureDeferred
async def test_database_away(database_server: DatabaseServer, database: Database) -> None:
    """While the database is away, there is a page with a 503. A link is still valid afterwards, and so is a session."""
    async with running_server(database) as server:
        browser = await signed_in(database, server.admin_port)
        token = create_link(database)
        name = database.value("SELECT current_database()")
        postgres = database_server.named("postgres")
        postgres.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)

        async def is_unavailable() -> bool:
            return (await browser.get()).status == 503

        try:
            await until(is_unavailable)
            for reply in (await browser.get(), await Browser(server.admin_port).sign_in(token)):
                assert reply.status == 503
                assert "database is not available" in reply.body.decode()
                assert int(reply.headers["retry-after"]) > 0
        finally:
            postgres.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

        async def is_back() -> bool:
            return (await browser.get()).status == 200

        await until(is_back)
        assert (await Browser(server.admin_port).sign_in(token)).status == 303


# --- users of a proxy


@pytest.mark.parametrize("name", ["alice", "Zoë Ünal", "a" * 255, "<script>alert(1)</script>", "名前", "a'b\"c"])
@pytest_twisted.ensureDeferred
async def test_users_of_a_proxy(proxied: Supervisor, name: str) -> None:
    """A user of a trusted proxy needs no link. The name is escaped."""
    reply = await Browser(proxied.admin_port, {"X-Remote-User": name}).get()
    assert reply.status == 200
    escaped = name[:200].replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;").replace('"', "&#34;")
    assert f"Signed in as {escaped}</p>" in reply.body.decode()


@pytest.mark.parametrize("name", ["a\x01b", "a\x7fb", "a\u202eb", "a\u0085b", "a\u200bb", "a" * 256, "ä" * 128])
@pytest_twisted.ensureDeferred
async def test_invalid_names_of_users(proxied: Supervisor, name: str) -> None:
    """Control characters, invisible characters and long names are rejected, and not shown."""
    peer = await connect(proxied.admin_port)
    peer.write(f"GET {HOME} HTTP/1.1\r\nHost: localhost\r\nX-Remote-User: {name}\r\n".encode())
    peer.write(b"Connection: close\r\n\r\n")
    reply = await peer.read_all()
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert name.encode() not in reply


@pytest.mark.parametrize("lines", [b"X-Remote-User: \xff\r\n", b"X-Remote-User: a\r\nX-Remote-User: b\r\n"])
@pytest_twisted.ensureDeferred
async def test_malformed_names_of_users(proxied: Supervisor, lines: bytes) -> None:
    """A name that is not UTF-8, or that a client may have added, is rejected."""
    peer = await connect(proxied.admin_port)
    peer.write(b"GET /dashboard/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + lines + b"\r\n")
    assert (await peer.read_all()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("name", ["", " "])
@pytest_twisted.ensureDeferred
async def test_without_a_user(proxied: Supervisor, name: str) -> None:
    """If the proxy names nobody, a session is needed."""
    assert (await Browser(proxied.admin_port, {"X-Remote-User": name}).get()).status == 401


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"TK__SERVER__TRUSTED_PROXIES": "127.0.0.1"},
        {"TK__DASHBOARD__USER_HEADER": "X-Remote-User", "TK__SERVER__TRUSTED_PROXIES": "192.0.2.1,unix"},
        {"TK__DASHBOARD__USER_HEADER": "X-Other", "TK__SERVER__TRUSTED_PROXIES": "127.0.0.1"},
    ],
)
@pytest_twisted.ensureDeferred
async def test_user_header_from_anyone_else(module_database: Database, settings: dict[str, str]) -> None:
    """The header is ignored without the setting, and if an address sends it that is not a trusted proxy."""
    async with running_server(module_database, **settings) as server:
        for forwarded in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Forwarded-For": "192.0.2.1"}):
            assert (await Browser(server.admin_port, {"X-Remote-User": "alice", **forwarded}).get()).status == 401


@pytest_twisted.ensureDeferred
async def test_forms_of_users(module_database: Database, proxied: Supervisor) -> None:
    """The token of the forms of a user is the same on all servers, and is not that of another user."""
    key = bytes(module_database.value("SELECT key FROM dashboard_key"))
    tokens = {
        name: hmac.digest(key, f"tkserver dashboard form, user {name}".encode(), "sha256").hex()
        for name in ("alice", "bob")
    }
    browser = Browser(proxied.admin_port, {"X-Remote-User": "alice"})
    assert (await browser.post(SIGN_OUT, {"csrf": tokens["alice"]})).status == 303
    for wrong in ({"csrf": tokens["bob"]}, {"csrf": ""}, {}):
        assert (await browser.post(SIGN_OUT, wrong)).status == 403
    forged = await browser.post(SIGN_OUT, {"csrf": tokens["alice"]}, Origin="https://evil.example.org")
    assert forged.status == 403


# --- limits, and what others learn


@pytest_twisted.ensureDeferred
async def test_connections_of_ingest_are_not_used(database: Database) -> None:
    """Sessions are looked up on the connection of the catalog."""
    sql = "SELECT application_name FROM pg_stat_activity WHERE query ~ 'dashboard_(links|sessions)'"
    names: set[str] = set()
    async with running_server(database) as server:

        async def is_seen() -> bool:
            await signed_in(database, server.admin_port)
            names.update(name for (name,) in database.query(f"{sql} AND pid <> pg_backend_pid()"))
            return bool(names)

        for _ in range(5):
            await until(is_seen)
    assert names == {"tkserver catalog"}


@pytest_twisted.ensureDeferred
async def test_failures_are_limited(module_database: Database) -> None:
    """An address that fails too often gets a 429, also with a valid link, but sessions that are used do not."""
    limits = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 3}
    async with running_server(module_database, **limits) as server:
        user = await signed_in(module_database, server.admin_port)
        unseen = await signed_in(module_database, server.admin_port)
        assert (await user.get()).status == 200
        stranger = Browser(server.admin_port)
        guesses = [new_token(LINK_PREFIX) for _ in range(3)]
        assert [(await stranger.sign_in(guess)).status for guess in guesses] == [401] * 3
        limited = await stranger.sign_in(create_link(module_database))
        assert limited.status == 429
        assert int(limited.headers["retry-after"]) > 0
        assert "text/html" in limited.headers["content-type"]
        stranger.cookie = f"tkserver={new_token(SESSION_PREFIX)}"
        assert (await stranger.get()).status == 429
        assert (await unseen.get()).status == 429, "it cannot be told from a guess"
        assert (await user.get()).status == 200
        assert (await stranger.get(SIGN_IN)).status == 200


@pytest_twisted.ensureDeferred
async def test_guessed_cookies_are_limited(module_database: Database) -> None:
    """Cookies that are no session count as failures."""
    limits = {"TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": 1, "TK__RATE_LIMIT__AUTH_FAILURES_BURST": 3}
    async with running_server(module_database, **limits) as server:
        browser = Browser(server.admin_port)
        statuses = []
        for _ in range(4):
            browser.cookie = f"tkserver={new_token(SESSION_PREFIX)}"
            statuses.append((await browser.get()).status)
        assert statuses == [401, 401, 401, 429]


@pytest_twisted.ensureDeferred
async def test_tokens_are_not_logged(module_database: Database) -> None:
    """No line of the log and no metric contains a token, the name of a user, or a path or query as it was sent."""
    settings = {"TK__SERVER__LOG_LEVEL": "debug", "TK__DASHBOARD__USER_HEADER": "X-Remote-User", **PROXY}
    with logged_lines() as lines:
        async with running_server(module_database, **settings) as server:
            token, browser = create_link(module_database), Browser(server.admin_port)
            await browser.get(f"{SIGN_IN}?token={token}")
            await browser.sign_in(token)
            session, csrf = browser.cookie.partition("=")[2], await browser.csrf_token()
            await browser.sign_in(token)
            await browser.get(f"/dashboard/unmistakable?unmistakable={token}")
            await browser.get(HOME, X_Remote_User="unmistakable")
            await browser.post(SIGN_OUT, {"csrf": "unmistakable"})
            await browser.post(SIGN_OUT, {"csrf": csrf})
            await browser.get()
            metrics = (await scrape(server.admin_port)).text
    assert any("to sign in, run: tkserver dashboard" in line for line in lines)
    for text in (token[4:], session[4:], csrf, "unmistakable", "127.0.0.1 "):
        assert text not in metrics
        assert text not in "\n".join(lines)


@pytest_twisted.ensureDeferred
async def test_tokens_of_programs(module_database: Database, browser: Browser) -> None:
    """Tokens to send and tokens to read open no page."""
    app = App().install(module_database)
    command = InProcessCommand({"TK__DATABASE__URL": module_database.dsn})
    token = command("tokens", "create", "--read", "--all", "--json").json["token"]
    for own in (app.token, token):
        browser.cookie = f"tkserver={own}"
        assert (await browser.get(HOME, Authorization=f"Bearer {own}")).status == 401
        assert (await browser.sign_in(own)).status == 401
