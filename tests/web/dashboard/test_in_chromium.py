"""The dashboard in Chromium: what only a real browser can show."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.blocking_client import post_batch
from tests.support.browser import create_link
from tests.support.client import App, batch
from tests.support.command import InProcessCommand
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.quarantined import put
from tests.support.sample_statistics import aggregate, install_named, store_recent
from tkserver.web.dashboard.views import PAGES

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.timeout(300),
]

PATHS = [
    "/dashboard/",
    *(f"/dashboard/apps/my-cli/{name}{'?name=build' if name == 'command' else ''}" for name in PAGES),
    "/dashboard/shares",
    "/dashboard/apps/my-cli/share?period=90",
]


EMPTY_PATHS = [f"/dashboard/apps/empty/{name}" for name in ("overview", "data", "live")]

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}</td></table>",
    "\u202egnp.exe\u2066\u200f\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "x" * 255,
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3f3\ufe0f\u200d\U0001f308" * 20,
    "\u0001\u001b[31m\u007f\u0085\u2028\r\n\t",
    "Z\u0351\u036b\u0343\u036a\u0302" * 30,
]
"""Markup, marks that change the direction of text, long text, emoji, control characters, and combining characters."""

MAKE_HOSTILE = """
UPDATE events SET
    service_name = t, service_version = left(t, 100), service_language = left(t, 50),
    service_language_version = left(t, 50), session_id = t, os = left(t, 50), os_version = left(t, 100),
    arch = left(t, 50), shell = left(t, 50), sdk_version = left(t, 50), event_category = left(t, 50),
    event_type = CASE WHEN e.id %% 2 = 0 THEN left(t, 100) ELSE 'command' END,
    event_data = jsonb_build_object(
        'command', t, 'feature', t, 'exit_code', 1, 'success', false, 'error_type', t, 'flags', ARRAY['-' || t, t],
        'duration_ms', 7, t, t
    )
FROM (SELECT id, texts[id %% cardinality(texts) + 1] AS t FROM events, (SELECT %s::text[] AS texts) AS given) AS e
WHERE events.id = e.id AND app_id = %s
"""


def install_hostile(database: Database) -> App:
    """Create an application with hostile values in all fields."""
    hostile = install_named(database, (HOSTILE[1][:5] + HOSTILE[0] + HOSTILE[3])[:100], HOSTILE[0][:60] + HOSTILE[1])
    store_recent(database, hostile, range(1000, 1200))
    database.query(MAKE_HOSTILE, HOSTILE, hostile.app_id)
    for text in HOSTILE:
        event = {**make_event(), "event": {"type": text, "data": {}}}
        put(database, hostile, json.dumps(event), message=f"{text}: missing", sdk=(text[:100], text[:100]), user=text)
    return hostile


@pytest.fixture(scope="module")
def hostile_paths() -> list[str]:
    """The pages of the application with hostile values. The fixture :func:`server` fills it."""
    return []


@pytest.fixture(scope="module")
def server(
    database_server: DatabaseServer, scratch: Path, hostile_paths: list[str]
) -> Iterator[tuple[Database, Twistd]]:
    """A server with an application that has statistics, one without events, and one with hostile values."""
    directory = Path(mkdtemp(dir=scratch))
    directory.chmod(0o755)
    with database_server.migrated() as database:
        store_recent(database, install_named(database, "my-cli"), range(1, 400))
        install_named(database, "empty")
        url = f"/dashboard/apps/{install_hostile(database).app_id}"
        filters = [urlencode({"name": text, "version": text[:100]}) for text in HOSTILE]
        hostile_paths += [f"{url}/{name}" for name in PAGES if name != "command"]
        hostile_paths += [f"{url}/command?{query}" for query in filters] + [f"{url}/overview?{filters[0]}"]
        aggregate(database)
        with Twistd(directory, {"TK__DATABASE__URL": database.dsn, "TK__ADMIN__PORT": "0"}) as twistd:
            twistd.wait_until_ready()
            yield database, twistd


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser."""
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Visit:
    """A page in the browser, and everything that it must not do.

    :ivar complaints: console messages, failed requests, and requests to other hosts.
    """

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.complaints: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: self._check(request.url))

    def _check(self, url: str) -> None:
        if not url.startswith((self.origin, "data:")):
            self.complaints.append(f"request to {url}")

    def open(self, path: str) -> None:
        response = self.page.goto(self.origin + path)
        assert response is not None
        assert response.status == 200, path


@contextmanager
def visit(chromium: Browser, server: tuple[Database, Twistd], width: int = 1200, **options: Any) -> Iterator[Visit]:
    """Open a browser window, and sign in by pressing the button of a link."""
    database, twistd = server
    admin_port = twistd.wait_for_line(r"dashboard on http://127.0.0.1:(\d+)/").rpartition(":")[2].strip("/")
    origin = f"http://127.0.0.1:{admin_port}"
    context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
    try:
        opened = Visit(context.new_page(), origin)
        opened.open(f"/dashboard/sign-in?token={create_link(database)}")
        opened.page.click("main button")
        opened.page.wait_for_url("**/dashboard/")
        yield opened
        assert opened.complaints == []
    finally:
        context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 320)])
def test_pages(chromium: Browser, server: tuple[Database, Twistd], scheme: Any, width: int) -> None:
    """No page scrolls sideways, complains, loads anything from elsewhere, or has a barrier that axe finds."""
    axe = Axe()
    with visit(chromium, server, width, color_scheme=scheme) as opened:
        for path in [*PATHS, *EMPTY_PATHS]:
            check(opened, axe, path, width)


def check(opened: Visit, axe: Axe, path: str, width: int) -> None:
    """Open a page. It must not scroll sideways, and axe must find no barrier."""
    opened.open(path)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, path
    found = axe.run(opened.page)
    assert found.violations_count == 0, f"{path}: {found.generate_report()}"


@pytest.mark.parametrize("width", [1200, 320])
def test_hostile_values(
    chromium: Browser, server: tuple[Database, Twistd], hostile_paths: list[str], width: int
) -> None:
    """Whatever clients send, pages remain accessible, and show it as text without characters that disturb others."""
    axe = Axe()
    with visit(chromium, server, width, color_scheme="light") as opened:
        for path in ["/dashboard/", *hostile_paths]:
            check(opened, axe, path, width)
            assert opened.page.locator("img, main script:not([src])").count() == 0, path
            text = opened.page.inner_text("body")
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]", text), path
            assert "{{7*7}}" in text or path.partition("?")[2], path


def test_without_javascript(chromium: Browser, server: tuple[Database, Twistd]) -> None:
    """Signing in, navigating, filtering and signing out need no JavaScript."""
    with visit(chromium, server, java_script_enabled=False) as opened:
        page = opened.page
        page.click("text=my-cli")
        page.wait_for_url("**/dashboard/apps/my-cli/overview")
        page.select_option("select[name=version]", "1.3.2")
        page.click("form.filters button")
        page.wait_for_url("**/overview?version=1.3.2")
        page.click("nav >> text=Commands")
        page.wait_for_url("**/commands?version=1.3.2")
        page.click("td >> nth=0 >> xpath=../th/a")
        page.wait_for_url(lambda url: "/command?" in url and "name=build" in url)
        page.click("nav.active >> text=version")
        page.wait_for_url(lambda url: "/command?" in url and "version" not in url)
        page.click("header button")
        page.wait_for_url("**/dashboard/sign-in")
        response = page.goto(opened.origin + PATHS[1])
        assert response is not None
        assert response.status == 401
        opened.complaints.clear()  # the browser reports the status


@pytest.mark.parametrize(("scheme", "width"), [("light", 320), ("dark", 1200)])
def test_shared_and_public_pages(chromium: Browser, server: tuple[Database, Twistd], scheme: Any, width: int) -> None:
    """Pages for people who are not signed in are as accessible as the others. A link is created in the browser."""
    database, twistd = server
    axe = Axe()
    InProcessCommand({"TK__DATABASE__URL": database.dsn})("apps", "publish", "my-cli")
    with visit(chromium, server, width, color_scheme=scheme) as opened:
        page = opened.page
        opened.open(PATHS[1])
        page.click("text=Share this page")
        page.fill("input[name=name]", "For Bob")
        page.check("text=Versions")
        page.click("text=Create link")
        url = page.locator(".share-link").text_content()
        assert url is not None
        page.context.clear_cookies()
        for address in (url, f"{url}/versions", f"{twistd.url}/public/my-cli"):
            opened.origin, path = address[: address.index("/", 8)], address[address.index("/", 8) :]
            opened.open(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            found = axe.run(page)
            assert found.violations_count == 0, f"{path}: {found.generate_report()}"


def test_keyboard(chromium: Browser, server: tuple[Database, Twistd]) -> None:
    """The first Tab offers to skip the navigation, and every focused element is visible."""
    with visit(chromium, server) as opened:
        opened.open(PATHS[1])
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        page.wait_for_url("**/overview#content")
        for _ in range(15):
            page.keyboard.press("Tab")
            box = page.evaluate("(() => { const b = document.activeElement.getBoundingClientRect();"
                                " return [b.width, b.height]; })()")  # fmt: skip
            assert min(box) > 0


def test_sample_event(chromium: Browser, server: tuple[Database, Twistd]) -> None:
    """The button of an application without events sends one, without JavaScript, and shows that it has arrived."""
    database, _ = server
    install_named(database, "new-cli")
    with visit(chromium, server, java_script_enabled=False) as opened:
        opened.open("/dashboard/apps/new-cli/overview")
        opened.page.click("main button")
        opened.page.wait_for_url("**/live?sample=*")
        assert (
            opened.page.locator("main [role=status] >> nth=0").inner_text().startswith("The sample event has arrived")
        )


def test_live_events(chromium: Browser, server: tuple[Database, Twistd]) -> None:
    """Events appear while the page is open, accepted or quarantined, unless it is paused."""
    database, twistd = server
    app = install_named(database, "live-cli")
    with visit(chromium, server) as opened:
        opened.open("/dashboard/apps/live-cli/live")
        page = opened.page
        assert page.locator("#events tbody tr").count() == 0
        invalid = {**make_event(), "timestamp": "yesterday"}
        assert post_batch(twistd.url, app, batch([make_event(user_id="client_first"), invalid])) == 207
        page.wait_for_selector("text=client_first")
        page.wait_for_selector("tr.quarantined >> text=timestamp")
        page.click("#pause")
        assert post_batch(twistd.url, app, batch([make_event(user_id="client_second")])) == 200
        opened.open("/dashboard/apps/live-cli/live?user=client_second")
        assert page.locator("#events tbody tr").count() == 1
        page.click("#pause")
        page.wait_for_selector("text=Paused.")
        assert post_batch(twistd.url, app, batch([make_event(user_id="client_second")])) == 200
        page.wait_for_timeout(2500)
        assert page.locator("#events tbody tr").count() == 1
        page.click("#pause")
        page.locator("#events tbody tr").nth(1).wait_for()
        assert page.locator("#events tbody tr").count() == 2
        opened.complaints = [text for text in opened.complaints if "/live/events" not in text]  # ended by the page


def test_dates_are_asked_for_only_if_needed(chromium: Browser, server: tuple[Database, Twistd]) -> None:
    """The fields for the first and the last day appear with the period that needs them."""
    with visit(chromium, server) as opened:
        opened.open(PATHS[1])
        field = opened.page.locator("input[name=from]")
        assert not field.is_visible()
        opened.page.select_option("select[name=period]", "custom")
        assert field.is_visible()


def test_print(chromium: Browser, server: tuple[Database, Twistd]) -> None:
    """On paper, there are numbers and charts, and nothing to click."""
    with visit(chromium, server) as opened:
        opened.open(PATHS[1])
        opened.page.emulate_media(media="print")
        assert opened.page.locator(".tiles").is_visible()
        assert opened.page.locator("svg.plot").first.is_visible()
        for selector in ("nav >> nth=0", "form.filters", "header button", ".downloads >> nth=0"):
            assert not opened.page.locator(selector).is_visible(), selector
