"""Slugs of organizations and applications in the path of requests."""

from __future__ import annotations

import io
import re
import uuid
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.support.client import BOTH, DIALECTS, SDK, App, Client, Reply
from tests.support.clocks import ReactorWithClock
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.json_log import lines_of_event, parse_json_log
from tests.support.queries import stored_ids, until_listening
from tests.support.server import client_of, running_server
from tests.support.waiting import until
from tkserver.log.formatters import format_json
from tkserver.log.observer import LineObserver, StreamSink
from tkserver.wire.ids import is_slug

DOCUMENTED_TIME = 2.0
"""Seconds within which every server applies a change of a slug."""


@dataclass(frozen=True)
class NamedApp:
    """An application with slugs."""

    app: App
    org_slug: str
    app_slug: str

    @classmethod
    def install(cls, database: Database, org_slug: str | None = None, app_slug: str = "my-cli") -> NamedApp:
        """Create an application. By default, its organization has a new slug."""
        named = cls(App().install(database), org_slug or f"org_{uuid.uuid4().hex[:8]}", app_slug)
        insert_org = "INSERT INTO orgs (org_id, name, slug) VALUES (%s, %s, %s)"
        database.query(insert_org, named.app.org_id, f"Org {named.org_slug}"[:100], named.org_slug)
        insert_app = "INSERT INTO apps (org_id, app_id, name, slug) VALUES (%s, %s, %s, %s)"
        database.query(insert_app, named.app.org_id, named.app.app_id, f"App {app_slug}"[:100], app_slug)
        return named

    @property
    def paths(self) -> list[str]:
        """All paths of the application: ids, slugs, and mixtures."""
        orgs = (self.app.org_id, self.app.org_id.upper(), self.app.org_id.replace("-", ""), self.org_slug)
        apps = (self.app.app_id, self.app.app_id.upper(), self.app.app_id.replace("-", ""), self.app_slug)
        return [f"/v1/ingest/{org}/{app}" for org, app in product(orgs, apps)]

    @property
    def path(self) -> str:
        """The path with both slugs."""
        return self.paths[-1]


def without_request_id(reply: Reply) -> tuple[int, Any, dict[str, str]]:
    """Return all that a client can see of a response, except what is different in each response."""
    body = {name: value for name, value in reply.json.items() if name != "request_id"}
    return reply.status, body, {name: value for name, value in reply.headers.items() if name != "x-request-id"}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_all_paths_of_an_application(client: Client, shared_database: Database, dialect: str) -> None:
    """Ids, slugs and mixtures select the same application in every dialect."""
    named = NamedApp.install(shared_database)
    events = [make_event() for _ in named.paths]
    for path, event in zip(named.paths, events, strict=True):
        assert (await client.send(named.app, [event], dialect, path=path)).status == 200, path
    assert set(stored_ids(shared_database, named.app)) == {event["event_id"] for event in events}


@pytest.mark.parametrize(
    "slug", ["a", "7", "Acme.Inc_2-x", "-", "_", "...", "a" * 100, "f" * 31, "f" * 33, "null"], ids=repr
)
@pytest_twisted.ensureDeferred
async def test_unusual_slugs(client: Client, shared_database: Database, slug: str) -> None:
    """Everything that the database accepts as a slug works in a path."""
    assert is_slug(slug)
    named = NamedApp.install(shared_database, org_slug=slug, app_slug=slug)
    for dialect in DIALECTS:
        assert (await client.send(named.app, [make_event()], dialect, path=named.path)).status == 200


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_unknown_slug_is_like_an_unknown_id(client: Client, shared_database: Database, dialect: str) -> None:
    """A response does not tell a stranger, or the owner of another application, whether a slug exists."""
    named, other = NamedApp.install(shared_database), NamedApp.install(shared_database, app_slug="other")
    replies = {}
    for org, app in [
        (str(uuid.uuid4()), str(uuid.uuid4())),
        (named.app.org_id, str(uuid.uuid4())),
        (named.app.org_id, "unknown"),
        (named.org_slug, "unknown"),
        (named.org_slug, "MY-CLI"),
        (named.org_slug.upper(), "my-cli"),
        ("unknown", "my-cli"),
        ("unknown", named.app.app_id),
        (other.org_slug, "my-cli"),
        (named.org_slug, "other"),
        ("Org", "my-cli"),
        (".", ".."),
        ("...", "x" * 100),
    ]:
        path = f"/v1/ingest/{org}/{app}".replace("/./..", "/%2e/%2e%2e")
        reply = await client.send(named.app, [make_event()], dialect, path=path)
        replies[path] = without_request_id(reply)
    expected = (401, "invalid_token") if dialect == SDK else (403, "token_mismatch")
    assert {(status, body["error"]["code"]) for status, body, _ in replies.values()} == {expected}
    first, *others = replies.values()
    assert [reply[:2] for reply in others] == [first[:2]] * len(others)
    assert {frozenset(headers) for _, _, headers in replies.values()} == {frozenset(first[2])}


@pytest.mark.parametrize("bad", ["x" * 101, "a b", "a:b", "größe", "a%2Fb", "a%00", "{x}", "a+b", "a@b", "tk_%0a"])
@pytest_twisted.ensureDeferred
async def test_text_that_cannot_be_a_slug(client: Client, shared_database: Database, bad: str) -> None:
    """Text that is neither a UUID nor a possible slug is an invalid id, or no route if it contains a slash."""
    named = NamedApp.install(shared_database)
    expected = (404, "not_found") if "%2F" in bad else (400, "invalid_id")
    for org, app in ((bad, "my-cli"), (named.org_slug, bad), (named.app.org_id, bad)):
        path = f"/v1/ingest/{org}/{app}".replace(" ", "%20").replace("ö", "%C3%B6").replace("ß", "%C3%9F")
        reply = await client.send(named.app, [make_event()], path=path)
        assert (reply.status, reply.code) == expected


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest_twisted.ensureDeferred
async def test_changed_slug(own_client: Client, database: Database, dialect: str) -> None:
    """A change of a slug, even by hand, is applied within two seconds, and ids are not affected."""
    named = NamedApp.install(database, org_slug="acme")

    async def until_status(path: str, status: int) -> None:
        async def has_status() -> bool:
            return (await own_client.send(named.app, [make_event()], dialect, path=path)).status == status

        await until(has_status, lambda: f"{path} is not {status}", DOCUMENTED_TIME)

    rejected = 401 if dialect == SDK else 403
    for change, works, fails in [
        ("UPDATE apps SET slug = 'new'", "/v1/ingest/acme/new", "/v1/ingest/acme/my-cli"),
        ("UPDATE orgs SET slug = 'umbrella'", "/v1/ingest/umbrella/new", "/v1/ingest/acme/new"),
        ("UPDATE apps SET slug = NULL", named.app.path, "/v1/ingest/umbrella/new"),
        ("UPDATE apps SET slug = 'again'", "/v1/ingest/umbrella/again", "/v1/ingest/umbrella/my-cli"),
        ("DELETE FROM orgs", f"/v1/ingest/{named.app.org_id}/again", "/v1/ingest/umbrella/again"),
        ("DELETE FROM apps", named.app.path, f"/v1/ingest/{named.app.org_id}/again"),
    ]:
        await own_client.send(named.app, [make_event()], dialect, path=works)  # so that its absence is cached
        database.query(change)
        await until_status(works, 200)
        await until_status(fails, rejected)
        assert (await own_client.send(named.app, [make_event()], dialect)).status == 200


@pytest_twisted.ensureDeferred
async def test_cached_slug_needs_no_query(own_client: Client, database: Database) -> None:
    """A path that was looked up before needs no query, even if its slugs do not exist."""
    named = NamedApp.install(database)
    await until_listening(database)
    for _ in range(2):
        for dialect in DIALECTS:
            for path, status in ((named.path, 200), ("/v1/ingest/no/such", 401 if dialect == SDK else 403)):
                reply = await own_client.send(named.app, [make_event()], dialect, path=path)
                assert reply.status == status
        # From now on, every query of the table fails.
        database.query("ALTER TABLE IF EXISTS orgs RENAME TO hidden")
    assert (await own_client.send(named.app, [make_event()], SDK, path="/v1/ingest/never/seen")).status == 503


@pytest_twisted.ensureDeferred
async def test_request_is_not_stored_again_under_another_path(client: Client, shared_database: Database) -> None:
    """A nonce belongs to the application: the path is not signed, and a captured request can be sent to another one."""
    named = NamedApp.install(shared_database)
    first, *others = reversed(named.paths)
    for dialect in (SDK, BOTH):
        nonce = f"once in {dialect}".replace(" ", "-")
        assert (await client.send(named.app, [make_event()], dialect, path=first, nonce=nonce)).status == 200
        for path in others:
            reply = await client.send(named.app, [make_event()], dialect, path=path, nonce=nonce)
            assert (reply.status, reply.code) == (409, "nonce_reused")


@pytest_twisted.ensureDeferred
async def test_rate_limit_counts_all_paths_of_an_application(database: Database) -> None:
    """An application has one rate limit, however its path is written."""
    named = NamedApp.install(database)
    clock = ReactorWithClock(1_800_000_000)
    async with running_server(database, reactor=clock, TK__RATE_LIMIT__FREE_RPM=3) as server:
        client = client_of(server)
        paths = [named.paths[0], named.paths[1], named.path, *named.paths]
        stamp = int(clock.now)
        replies = [await client.send(named.app, [make_event()], path=path, timestamp=stamp) for path in paths]
    assert [reply.status for reply in replies] == [200] * 3 + [429] * len(named.paths)


@pytest_twisted.ensureDeferred
async def test_log_contains_ids(database: Database) -> None:
    """The access log contains the same ids for all paths, and no text of a path that is not an id."""
    named, log = NamedApp.install(database), io.BytesIO()
    misplaced = [f"/v1/ingest/{named.app.token}/x", f"/v1/ingest/{named.app.org_id}/{named.app.token}"]
    async with running_server(database) as server:
        observer = LineObserver(format_json, StreamSink(log), reactor)
        server.worker.components.access_log.write_to(observer.write_request)
        for path in (*named.paths, *misplaced):
            await client_of(server).send(named.app, [make_event()], path=path)
        await until(lambda: log.getvalue().count(b"\n") == len(named.paths) + len(misplaced))
    lines = lines_of_event("request", parse_json_log(log.getvalue().decode()))
    ids = [(line.get("org_id"), line.get("app_id")) for line in lines if line["route"].startswith("/v1/ingest")]
    assert ids == [(named.app.org_id, named.app.app_id)] * len(named.paths) + [(None, None)] * len(misplaced)
    assert named.app.token not in log.getvalue().decode()


@pytest.mark.parametrize(
    "slug", ["", ".", "..", "a b", "a/b", "ä", "x" * 101, "0" * 32, "F" * 32, str(uuid.UUID(int=1)), "-" + "a" * 32]
)
def test_database_and_server_have_the_same_rule(database: Database, slug: str) -> None:
    """The database and the server agree on what is a slug; nothing that looks like a UUID is one."""
    assert database.value("SELECT tkserver_is_slug(%s)", slug) is is_slug(slug) is False


def test_all_ascii_characters(database: Database) -> None:
    """The database and the server allow the same characters, and no line break at the end."""
    texts = [chr(code) for code in range(1, 0x250)] + ["a\n", "\na"]
    rows = database.query(
        "SELECT tkserver_is_slug(t) FROM unnest(%s::text[]) WITH ORDINALITY AS u (t, n) ORDER BY n", texts
    )
    allowed = [text for text, (is_allowed,) in zip(texts, rows, strict=True) if is_allowed]
    assert allowed == [text for text in texts if is_slug(text)]
    assert re.fullmatch(r"[-0-9A-Za-z_]+", "".join(allowed))
