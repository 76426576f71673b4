"""Applications without events: the pages say what to do next, and a button sends a sample event."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from html import unescape
from uuid import uuid4

import pytest
import pytest_twisted
from twisted.internet.utils import getProcessOutputAndValue

from tests.support.browser import Browser, create_link, signed_in
from tests.support.client import App
from tests.support.command import InProcessCommand
from tests.support.database import Database
from tests.support.documents import blocks_of
from tests.support.pages import html_of, text_of
from tests.support.quarantined import put
from tests.support.queries import stored_ids
from tests.support.sample_statistics import aggregate, install_named
from tests.support.server import running_server
from tests.support.source import ROOT
from tests.support.stored import store
from tests.support.waiting import until
from tkserver.server.supervisor import Supervisor
from tkserver.storage.embedded import demo
from tkserver.web.dashboard.samples import SERVICE, TYPE, USER_ID
from tkserver.web.dashboard.views import PAGES
from tkserver.web.listen.listener import endpoint_for_clients

APP_URL = "/dashboard/apps/my-cli"
ALL_PAGES = ["command?name=build" if name == "command" else name for name in PAGES]


@pytest.fixture
def app(database: Database) -> App:
    """An application without events."""
    return install_named(database, "my-cli")


@pytest_twisted.async_yield_fixture
async def server(database: Database, app: App) -> AsyncIterator[Supervisor]:
    """A server of :func:`database`, in which the application exists before it starts."""
    async with running_server(database) as running:
        yield running


@pytest_twisted.async_yield_fixture
async def browser(database: Database, server: Supervisor) -> AsyncIterator[Browser]:
    """A browser that is signed in, and may share."""
    yield await signed_in(database, server.admin_port)


async def press(browser: Browser, app: str = "my-cli") -> str:
    """Press the button, and return the location of the following page."""
    fields = {"csrf": await browser.csrf_token()}
    reply = await browser.post(f"/dashboard/apps/{app}/sample", fields)
    assert reply.status == 303, reply.body
    return reply.headers["location"]


def code_on(page: str, language: str) -> str:
    """Return the example for a language."""
    match = re.search(rf'<pre [^>]*id="{language}">(.*?)</pre>', page, re.DOTALL)
    assert match is not None
    return unescape(match[1])


@pytest.mark.parametrize("page", [name for name in ALL_PAGES if name not in ("data", "live")])
@pytest_twisted.ensureDeferred
async def test_every_page_says_what_to_do_next(browser: Browser, app: App, page: str) -> None:
    """Without events, a page has the ids, the endpoint, and the commands for credentials, and no secret."""
    html = await html_of(browser, f"{APP_URL}/{page}")
    text = text_of(html)
    assert "No event has arrived yet." in text
    assert f"Organization {app.org_id} Application {app.app_id}" in text
    for command in ("send --app my-cli", "tokens create my-cli", "tokens list my-cli --show-secret"):
        assert f"tkserver {command}" in text
    assert app.token not in html
    assert app.secret not in html


@pytest_twisted.ensureDeferred
async def test_python_example_works(database: Database, server: Supervisor, browser: Browser, app: App) -> None:
    """The Python example sends an event, with the token and the secret in their places."""
    code = code_on(await html_of(browser, f"{APP_URL}/overview"), "python")
    code = code.replace('"TOKEN"', f'"{app.token}"').replace('"SECRET"', f'"{app.secret}"')
    out, err, status = await getProcessOutputAndValue(sys.executable, ["-c", code])
    assert status == 0, err
    assert b"Result(accepted=1" in out
    assert len(stored_ids(database, app)) == 1


@pytest_twisted.ensureDeferred
async def test_rust_example_is_that_of_the_readme(server: Supervisor, browser: Browser, app: App) -> None:
    """The Rust example is the one that was built, with the values of this application."""
    ((_, expected),) = blocks_of((ROOT / "README.md").read_text(), "rust")
    values = {
        "http://127.0.0.1:3000": f"http://127.0.0.1:{server.port}",
        demo.ORG_ID: app.org_id,
        demo.APP_ID: app.app_id,
        demo.TOKEN: "TOKEN",
        demo.SECRET: "SECRET",
    }
    for demo_value, value in values.items():
        expected = expected.replace(f'"{demo_value}"', f'"{value}"')
    assert code_on(await html_of(browser, f"{APP_URL}/overview"), "rust").strip() == expected.strip()


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("https://[::1]:443", "https://[::1]:443"),
        ("http://0.0.0.0:3000", "http://SERVER:3000"),
        ("https://[::]:3000", "https://SERVER:3000"),
        ("unix:/run/tkserver.sock", "https://telemetry.example.org"),
    ],
)
def test_endpoint(url: str, endpoint: str) -> None:
    """Addresses that clients cannot use are replaced by what stands for the right one."""
    assert endpoint_for_clients(url) == endpoint


@pytest_twisted.ensureDeferred
async def test_sample_event_arrives(database: Database, server: Supervisor, browser: Browser, app: App) -> None:
    """The button stores an event that is recognizable, and that the following page shows."""
    location = await press(browser)
    assert location.startswith(f"{APP_URL}/live?sample=")
    (row,) = database.query(
        "SELECT event_id::text, app_id::text, org_id::text, service_name, event_type, user_id FROM events"
    )
    assert row == (location.rpartition("=")[2], app.app_id, app.org_id, SERVICE, TYPE, USER_ID)
    page = text_of(await html_of(browser, location))
    assert "The sample event has arrived" in page
    assert re.search(rf"accepted {USER_ID} {TYPE}", page)
    metrics = (await browser.get("/metrics")).body.decode()
    assert 'tkserver_events_total{code="",outcome="stored"} 1.0' in metrics
    assert "Events have arrived" in text_of(await html_of(browser, f"{APP_URL}/overview"))
    aggregate(database)

    async def is_counted() -> bool:
        return "Events 1 " in text_of(await html_of(browser, f"{APP_URL}/overview"))

    await until(is_counted)  # the server knows about two seconds later that there are numbers


@pytest_twisted.ensureDeferred
async def test_only_the_form_sends(database: Database, browser: Browser, app: App) -> None:
    """A GET, a form without the token, and a form of another site store nothing."""
    token = await browser.csrf_token()
    assert (await browser.get(f"{APP_URL}/sample")).status in (404, 405)
    for fields, headers in (
        ({}, {}),
        ({"csrf": "x"}, {}),
        ({"csrf": token}, {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}),
    ):
        reply = await browser.post(f"{APP_URL}/sample", fields, **headers)
        assert reply.status == 403
    assert (await Browser(browser.port).post(f"{APP_URL}/sample", {"csrf": token})).status == 401
    assert (await browser.post("/dashboard/apps/unknown/sample", {"csrf": token})).status == 404
    assert stored_ids(database, app) == []


@pytest_twisted.ensureDeferred
async def test_readers_cannot_send(database: Database, server: Supervisor, app: App) -> None:
    """A viewer who may only read sees why there is no button, and gets a 403 for the form."""
    reader = await signed_in(database, server.admin_port, "--read-only")
    page = await html_of(reader, f"{APP_URL}/overview")
    assert "/sample" not in page
    assert "You can only read this dashboard" in text_of(page)
    reply = await reader.post(f"{APP_URL}/sample", {"csrf": await reader.csrf_token()})
    assert reply.status == 403
    assert stored_ids(database, app) == []


@pytest_twisted.ensureDeferred
async def test_viewer_of_another_application_cannot_send(database: Database, server: Supervisor, app: App) -> None:
    """A viewer of one application cannot send events to another one."""
    install_named(database, "other")
    viewer = Browser(server.admin_port)
    await viewer.sign_in(create_link(database, "other", "--share"))
    reply = await viewer.post(f"{APP_URL}/sample", {"csrf": await viewer.csrf_token()})
    assert reply.status == 404
    assert stored_ids(database, app) == []


@pytest_twisted.ensureDeferred
async def test_quota_holds(database: Database, browser: Browser, app: App) -> None:
    """Sample events count towards the quota. When it is exhausted, the page says so."""
    database.query("UPDATE apps SET monthly_quota = 1")
    await press(browser)
    assert database.value("SELECT quota_used FROM apps") == 1
    reply = await browser.post(f"{APP_URL}/sample", {"csrf": await browser.csrf_token()})
    assert reply.status == 409
    assert "The monthly quota of this application is 1 event, of which 0 are left" in text_of(reply.body.decode())
    assert len(stored_ids(database, app)) == 1


@pytest_twisted.ensureDeferred
async def test_erasure_holds(database: Database, browser: Browser, app: App) -> None:
    """If the user of sample events is erased, they are not stored, and the page says why."""
    InProcessCommand({"TK__DATABASE__URL": database.dsn})("erase", "--user", USER_ID)
    page = text_of(await html_of(browser, await press(browser)))
    assert "The sample event is not stored." in page
    assert f"tkserver erase --user {USER_ID} --undo" in page
    assert stored_ids(database, app) == []


@pytest_twisted.ensureDeferred
async def test_message_cannot_be_forged(database: Database, browser: Browser, app: App) -> None:
    """The page says that an event has arrived only if it is stored in this application."""
    other = App().install(database)
    store(database, other, 1)
    for event_id in (str(uuid4()), *stored_ids(database, other)):
        assert "has arrived" not in text_of(await html_of(browser, f"{APP_URL}/live?sample={event_id}"))
    await html_of(browser, f"{APP_URL}/live?sample=x", 400)


@pytest_twisted.ensureDeferred
async def test_only_invalid_events(database: Database, browser: Browser, app: App) -> None:
    """If all events were invalid, the page leads to the reasons."""
    put(database, app, "{}")
    page = await html_of(browser, f"{APP_URL}/overview")
    assert "But some have that are not valid" in text_of(page)
    assert f'<a href="{APP_URL}/data">see why</a>' in page


@pytest_twisted.ensureDeferred
async def test_period_without_events(database: Database, app: App) -> None:
    """If there are events, but not in this period or with these filters, the pages offer links that show more."""
    store(database, app, 1)
    aggregate(database)
    async with running_server(database) as server:
        await _check_links(await signed_in(database, server.admin_port))


async def _check_links(browser: Browser) -> None:
    for page in ("overview", "commands", "versions", "retention", "command"):
        html = await html_of(browser, f"{APP_URL}/{page}?name=nothing&version=9&from=2020-01-01&to=2020-01-02")
        links = {unescape(link) for link in re.findall(r'<p class="empty">(.*?)</p>', html, re.DOTALL)}
        assert any("Remove the filters" in text and "Show 365 days" in text for text in links), page
