"""Pages of the dashboard: what they contain, and what they do with requests that are not valid."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from html import unescape
from urllib.parse import quote

import pytest
import pytest_twisted

from tests.support.browser import Browser, signed_in
from tests.support.database import Database, DatabaseServer
from tests.support.pages import cells_of, html_of, text_of
from tests.support.sample_statistics import aggregate, install_named, store_recent
from tests.support.stored import store
from tkserver.server.supervisor import Supervisor
from tkserver.web.dashboard.html import HEADERS
from tkserver.web.dashboard.views import PAGES

HOSTILE = "<b>\u202e\"'&{{7*7}}\u2028</b>" + "x" * 200
SHOWN = "<b>\ufffd\"'&{{7*7}}\ufffd</b>"
"""The beginning of what is shown of it."""

ALL_PAGES = [name if name != "command" else "command?name=build" for name in PAGES if name != "live"]


@pytest.fixture(scope="module")
def module_database(database_server: DatabaseServer) -> Iterator[Database]:
    """A database with an application that has statistics, one with hostile texts, and one without events."""
    with database_server.migrated() as database:
        store_recent(database, install_named(database, "my-cli"), range(1, 400))
        hostile = install_named(database, "hostile <i>")
        store_recent(database, hostile, range(1000, 1100))
        database.query(
            """
            UPDATE events SET service_version = left(t, 50), os = left(t, 50), arch = left(t, 20), event_data =
                jsonb_build_object('command', t, 'exit_code', 1, 'error_type', t, 'flags', ARRAY['-' || t])
            FROM (SELECT %s AS t) AS hostile WHERE app_id = %s
            """,
            HOSTILE,
            hostile.app_id,
        )
        install_named(database, "empty")
        aggregate(database)
        yield database


@pytest.mark.parametrize("page", ALL_PAGES)
@pytest_twisted.ensureDeferred
async def test_every_page(browser: Browser, page: str) -> None:
    """Every page is HTML with the headers that protect it, and says which numbers it contains."""
    reply = await browser.get(f"/dashboard/apps/my-cli/{page}")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert all(text in reply.headers[name.lower()] for name, text in HEADERS.items())
    assert reply.headers["cache-control"] == "no-store"
    text = text_of(reply.body.decode())
    assert "in the time zone UTC" in text
    assert "are still filling" in text


@pytest_twisted.ensureDeferred
async def test_numbers_equal_those_of_the_api(browser: Browser) -> None:
    """The numbers of pages are those of the panels."""
    overview = (await browser.get("/api/v1/apps/my-cli/overview?days=7")).json
    commands = (await browser.get("/api/v1/apps/my-cli/commands?days=7")).json
    totals, (item,) = overview["totals"], commands["items"]
    assert totals["events"] > 300
    text = text_of(await html_of(browser, "/dashboard/apps/my-cli/overview?period=7"))
    assert f"Users {totals['users']} " in text
    assert f"Events {totals['events']} " in text
    assert f"Failure rate {totals['failures'] / totals['outcomes']:.1%}".replace("%", " %") in text
    cells = cells_of(await html_of(browser, "/dashboard/apps/my-cli/commands?period=7"), "build")
    assert cells[1:3] == [str(item["events"]), str(item["users"])]
    assert cells[4] == f"{item['failure_rate'] * 100:.1f} %"


@pytest_twisted.ensureDeferred
async def test_verdict_on_a_release(browser: Browser) -> None:
    """The verdict on the last release is a sentence with its numbers."""
    (item,) = (await browser.get("/api/v1/apps/my-cli/releases")).json["items"]
    assert item["verdict"] == "worse"
    text = text_of(await html_of(browser, "/dashboard/apps/my-cli/overview"))
    assert re.search(rf"1\.4\.0 is worse than 1\.3\.2 for build : [\d.]+ % of {item['outcomes']} runs failed", text)


@pytest_twisted.ensureDeferred
async def test_filters(browser: Browser) -> None:
    """A filter applies to the numbers, is shown, and can be removed."""
    url = "/dashboard/apps/my-cli/overview?version=1.3.2"
    page = await html_of(browser, url)
    panel = (await browser.get("/api/v1/apps/my-cli/overview?version=1.3.2")).json
    assert f"Events {panel['totals']['events']} " in text_of(page)
    assert "version: 1.3.2" in text_of(page)
    assert "<option selected>1.3.2</option>" in page
    assert '<a href="/dashboard/apps/my-cli/overview">version: 1.3.2' in page
    assert f'href="{url.replace("overview", "commands")}"' in page  # other pages keep the filter


@pytest_twisted.ensureDeferred
async def test_form_leads_to_a_short_url(browser: Browser) -> None:
    """The form sends all its fields; the URL of the page contains only those that matter."""
    reply = await browser.get(
        "/dashboard/apps/my-cli/errors?period=90&from=&to=&ci=exclude&version=&os=linux&compare=yes"
    )
    assert reply.status == 303
    assert reply.headers["location"] == "/dashboard/apps/my-cli/errors?period=90&os=linux"


@pytest_twisted.ensureDeferred
async def test_files(browser: Browser) -> None:
    """The numbers of a page can be saved as CSV and JSON, with the same filters."""
    page = await html_of(browser, "/dashboard/apps/my-cli/commands?version=1.4.0")
    (link,) = {unescape(link) for link in re.findall(r'href="([^"]+items\.csv[^"]*)"', page)}
    panel = (await browser.get("/api/v1/apps/my-cli/commands?version=1.4.0")).json
    reply = await browser.get(link)
    assert reply.headers["content-disposition"] == 'attachment; filename="commands-items.csv"'
    (row,) = csv.DictReader(io.StringIO(reply.body.decode()))
    assert (row["name"], row["events"]) == ("build", str(panel["items"][0]["events"]))
    saved = (await browser.get(link.replace("items.csv", "panel.json"))).json
    assert saved["items"] == panel["items"]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("my-cli/overview?versoin=1", 400, "There is no parameter 'versoin'"),
        ("my-cli/overview?period=custom", 400, "Say from which day on"),
        ("my-cli/overview?from=2026-02-30", 400, "is not a day"),
        ("my-cli/overview?os=a&os=b", 400, "repeated"),
        ("my-cli/nothing", 404, "does not exist"),
        ("my-cli/command", 404, "does not exist"),
        ("unknown/overview", 404, "does not exist"),
        ("my-cli/export/commands/nothing.csv", 404, "does not exist"),
        ("my-cli/export/nothing/items.csv", 404, "does not exist"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_requests_that_are_not_valid(browser: Browser, path: str, status: int, message: str) -> None:
    """The response is a page that says what is wrong."""
    page = await html_of(browser, f"/dashboard/apps/{path}", status)
    assert message in text_of(page)


@pytest.mark.parametrize("page", ["overview", "commands", "versions", "errors", "environment"])
@pytest_twisted.ensureDeferred
async def test_hostile_texts_are_harmless(browser: Browser, page: str) -> None:
    """Texts of clients are escaped, cut off, and contain no characters that change the direction of others."""
    app = f"/dashboard/apps/{quote('hostile <i>')}"
    html = await html_of(browser, f"{app}/{page}")
    assert SHOWN in unescape(html)
    assert not re.search("[\u202e\u2028]", unescape(html))
    assert "<b>" not in html
    assert "<i>" not in html
    assert "49" not in re.findall(r"&lt;b&gt;.*?&lt;/b&gt;", html)[0]
    longest = max(map(len, re.findall(r">([^<]*)<", html)))
    assert longest < 700, "texts are cut off"


@pytest_twisted.ensureDeferred
async def test_filter_by_a_hostile_text(browser: Browser) -> None:
    """The page of a command with a hostile name is found by its name."""
    app = f"/dashboard/apps/{quote('hostile <i>')}"
    page = await html_of(browser, f"{app}/commands")
    link = unescape(re.findall(r'href="([^"]+/command\?[^"]+)"', page)[0])
    assert "Failures" in text_of(await html_of(browser, link))


@pytest_twisted.ensureDeferred
async def test_live_events(module_database: Database, browser: Browser) -> None:
    """Server-sent events contain each new event, and a position from which the browser continues."""
    app = install_named(module_database, "live-cli")
    store(module_database, app, 2, user="client_a")
    page = await html_of(browser, "/dashboard/apps/live-cli/live?user=client_")
    assert page.count("client_a</td>") == 2
    url = unescape(re.findall(r'data-url="([^"]+)"', page)[0])
    reply = await browser.get(url)
    assert reply.headers["content-type"] == "text/event-stream"
    assert len(events_of(reply.body)) == 2
    position = re.findall(r"^id: (.+)$", reply.body.decode(), re.MULTILINE)[0]
    store(module_database, app, 1, user="client_b")
    store(module_database, app, 1, user="anon_c")
    found = events_of((await browser.get(url, Last_Event_ID=position)).body)
    assert [event[3] for event in found] == ["client_b", "client_a", "client_a"]
    assert events_of((await browser.get(url, Last_Event_ID="9" * 18 + "-" + "9" * 18)).body) == []
    assert len(events_of((await browser.get(url, Last_Event_ID="x")).body)) == 3
    await html_of(browser, "/dashboard/apps/live-cli/live?users=a", 400)
    await html_of(browser, "/dashboard/apps/live-cli/live?user=%00", 400)


def events_of(body: bytes) -> list[list[str]]:
    """Return the events in a response with server-sent events."""
    events: list[list[str]] = json.loads(re.findall(rb"^data: (.+)$", body, re.MULTILINE)[0])
    return events


@pytest_twisted.ensureDeferred
async def test_home(browser: Browser) -> None:
    """The first page lists the applications with their numbers."""
    page = await html_of(browser, "/dashboard/")
    overview = (await browser.get("/api/v1/apps/my-cli/overview")).json
    assert cells_of(page, "my-cli")[1] == str(overview["totals"]["users"])
    assert cells_of(page, "empty")[-3:] == ["none yet", "-", "-"]
    assert 'href="/dashboard/apps/hostile%20%3Ci%3E/overview"' in page


@pytest.mark.parametrize("name", ["twice", ".", "a/b"])
@pytest_twisted.ensureDeferred
async def test_links_to_applications_with_unusual_names(module_database: Database, browser: Browser, name: str) -> None:
    """Links lead to the right application, also if two have the same name, or if the name means something in a path."""
    apps = [install_named(module_database, name) for _ in range(2 if name == "twice" else 1)]
    page = await html_of(browser, "/dashboard/")
    links = re.findall(rf'href="([^"]+/overview)">{re.escape(name)}<', page)
    assert len(links) == len(apps)
    texts = [text_of(await html_of(browser, unescape(link))) for link in links]
    assert all(any(app.app_id in text for text in texts) for app in apps)


@pytest_twisted.ensureDeferred
async def test_viewer_of_one_application(module_database: Database, server: Supervisor) -> None:
    """A viewer of one application sees no other one."""
    browser = await signed_in(module_database, server.admin_port, "empty")
    page = await html_of(browser, "/dashboard/")
    assert "empty" in page
    assert "my-cli" not in page
    await html_of(browser, "/dashboard/apps/empty/overview")
    for path in ("overview", "export/commands/panel.json"):
        await html_of(browser, f"/dashboard/apps/my-cli/{path}", 404)


@pytest_twisted.ensureDeferred
async def test_pages_require_a_session(server: Supervisor) -> None:
    """Without a session, no page and no file can be read."""
    browser = Browser(server.admin_port)
    for path in (
        "",
        "apps/my-cli/overview",
        "apps/unknown/overview",
        "apps/my-cli/export/commands/items.csv",
        "apps/my-cli/live",
        "apps/my-cli/live/events",
    ):
        await html_of(browser, f"/dashboard/{path}", 401)


@pytest_twisted.ensureDeferred
async def test_compression_and_language(browser: Browser) -> None:
    """Pages are compressed if the browser can read that, and have the separators of its language."""
    reply = await browser.request("GET", "/dashboard/", headers={"Accept-Encoding": "br, gzip"})
    assert reply.headers.get("content-encoding") == "gzip" or b"<html" in reply.body  # the client may decode it
    body = gzip.decompress(reply.body) if reply.body[:2] == b"\x1f\x8b" else reply.body
    assert b"my-cli" in body
    text = text_of(await html_of(browser, "/dashboard/apps/my-cli/overview", Accept_Language="de"))
    assert re.search(r"Failure rate \d+,\d %", text)
