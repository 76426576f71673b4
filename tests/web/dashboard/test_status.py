"""The status of applications: last event, quota, and quarantine, on the first page and on the page about data."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone

import pytest
import pytest_twisted

from tests.support.browser import Browser, signed_in
from tests.support.client import App
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.pages import cells_of, html_of, text_of
from tests.support.quarantined import put
from tests.support.sample_statistics import install_named
from tests.support.server import running_server
from tests.support.stored import store
from tkserver.storage.app_status import MAX_COUNTED, STATUS
from tkserver.storage.quota import Allowance
from tkserver.web.dashboard.status import MAX_LATEST, MAX_REASONS, AppStatus, event_type

NOW = datetime(2026, 3, 31, 23, tzinfo=timezone.utc)


@pytest.fixture
def app(database: Database) -> App:
    """An application."""
    return install_named(database, "my-cli")


@pytest_twisted.async_yield_fixture
async def browser(database: Database, app: App) -> AsyncIterator[Browser]:
    """A browser that is signed in, and a server of :func:`database`."""
    async with running_server(database) as server:
        yield await signed_in(database, server.admin_port)


def set_quota(database: Database, app: App, quota: int, used: int) -> None:
    sql = "UPDATE apps SET monthly_quota = %s WHERE app_id = %s"
    database.query(sql, quota, app.app_id)
    database.query("UPDATE apps SET quota_used = %s WHERE app_id = %s", used, app.app_id)


@pytest.mark.parametrize(
    ("quota", "used", "level", "share"),
    [
        (1000, 0, "", 0.0),
        (1000, 799, "", 0.799),
        (1000, 800, "warning", 0.8),
        (1000, 999, "warning", 0.999),
        (1000, 1000, "exhausted", 1.0),
        (1000, 1500, "exhausted", 1.0),
        (0, 0, "exhausted", 1.0),
        (1, 0, "", 0.0),
    ],
)
def test_quota_level(quota: int, used: int, level: str, share: float) -> None:
    """Pages warn from 80 % on."""
    status = AppStatus(None, Allowance(quota, used, NOW), 0)
    assert (status.quota_level, status.quota_share) == (level, share)


def test_no_quota() -> None:
    """Without a quota, there is nothing to warn about."""
    status = AppStatus(None, None, 0)
    assert (status.quota_level, status.quota_share) == ("", 0.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"event": {"type": "build"}, "user_id": 7}', "build"),
        ('{"event": {"type": "a\\u202eb<i>"}}', "a\ufffdb<i>"),
        ('{"event": {"type": "a\\u0000b"}}', "a\ufffdb"),
        ('{"event": {"type": "' + "x" * 255 + '"}}', "x" * 200),
        ('{"event": {"type": 7}}', ""),
        ('{"event": {"type": "\\ud800"}}', ""),
        ('{"event": []}', ""),
        ('{"event"', ""),
        ("[" * 5000, ""),
        ("", ""),
        (None, ""),
    ],
)
def test_event_type(text: str | None, found: str) -> None:
    """The type is known if the text is an event as far as that."""
    assert event_type(text) == found


@pytest_twisted.ensureDeferred
async def test_home_shows_the_status(database: Database, browser: Browser, app: App) -> None:
    """The first page shows the last event in the time zone of the application, the used quota, and the quarantine."""
    store(database, app, 3, days=2)
    store(database, app, 1)
    (last,) = database.query("SELECT max(received_at) FROM events")[0]
    database.query("UPDATE apps SET timezone = 'Asia/Tokyo'")
    set_quota(database, app, 1000, 812)
    put(database, app, *["{}"] * 3)
    put(database, app, "{}", days=8)
    tokyo = last.astimezone(timezone(timedelta(hours=9)))
    cells = cells_of(await html_of(browser, "/dashboard/"), "my-cli")
    assert cells[0] == "my-cli quota 81.2 %"
    assert cells[-3:] == [f"{tokyo:%Y-%m-%d %H:%M}", "812 of 1,000", "3"]


@pytest_twisted.ensureDeferred
async def test_home_shows_that_a_quota_is_exhausted(database: Database, browser: Browser, app: App) -> None:
    """An exhausted quota is named so. The counter of another month does not count."""
    set_quota(database, app, 10, 10)
    cells = cells_of(await html_of(browser, "/dashboard/"), "my-cli")
    assert (cells[0], cells[-2]) == ("my-cli quota exhausted", "10 of 10")
    database.query("UPDATE apps SET quota_month = quota_month - interval '1 month'")
    cells = cells_of(await html_of(browser, "/dashboard/"), "my-cli")
    assert (cells[0], cells[-2]) == ("my-cli", "0 of 10")


@pytest_twisted.ensureDeferred
async def test_home_counts_up_to_a_limit(database: Database, browser: Browser, app: App) -> None:
    """A large quarantine is not counted to its end."""
    put(database, app, *["{}"] * (MAX_COUNTED + 1))
    assert cells_of(await html_of(browser, "/dashboard/"), "my-cli")[-1] == f"{MAX_COUNTED:,} or more"


@pytest_twisted.ensureDeferred
async def test_status_of_one_application(database: Database, browser: Browser, app: App) -> None:
    """An application does not have the events, the quota and the quarantine of another one with the same id."""
    other = App(app_id=app.app_id).install(database)
    store(database, other, 1)
    put(database, other, "{}")
    cells = cells_of(await html_of(browser, "/dashboard/"), "my-cli")
    assert cells[-3:] == ["none yet", "-", "-"]


@pytest_twisted.ensureDeferred
async def test_quota_on_the_data_page(database: Database, browser: Browser, app: App) -> None:
    """The page says how much is left, until when, and how to get more."""
    url = "/dashboard/apps/my-cli/data"
    assert "To set one: tkserver apps set-quota my-cli EVENTS" in text_of(await html_of(browser, url))
    set_quota(database, app, 1000, 100)
    text = text_of(await html_of(browser, url))
    assert re.search(r"this month \(UTC\): 100 of 1,000 used, 900 left\. The next month begins at \d{4}-\d\d-01", text)
    assert "of the quota are used." not in text
    set_quota(database, app, 1000, 800)
    assert "80.0 % of the quota are used." in text_of(await html_of(browser, url))
    set_quota(database, app, 1000, 1000)
    assert "The quota is exhausted." in text_of(await html_of(browser, url))


@pytest_twisted.ensureDeferred
async def test_quarantine_on_the_data_page(database: Database, browser: Browser, app: App) -> None:
    """The page shows reasons with counts and advice, and the latest events without what they contain."""
    event = {**make_event(user_id="client_secret"), "service": {"name": "private"}}
    put(database, app, json.dumps(event), json.dumps(event), user="client_secret")
    put(database, app, "7", message="$: must be an object, not a number", sdk=("other", "2.0"), days=1)
    page = await html_of(browser, "/dashboard/apps/my-cli/data")
    cells = cells_of(page, "invalid_schema user_id: missing")
    assert cells[1:4] == ["telemetry-kit-rust 0.3.0", "2", "2"]
    assert cells[-1].startswith("Send an anonymous id")
    assert cells_of(page, "invalid_schema $: must be an object")[1:4] == ["other 2.0", "1", "1"]
    text = text_of(page)
    assert f"{event['event']['type']} invalid_schema user_id: missing" in text
    assert "unknown invalid_schema $: must be an object, not a number" in text
    assert "tkserver quarantine show my-cli" in text
    assert "client_secret" not in page
    assert "private" not in page


@pytest_twisted.ensureDeferred
async def test_long_quarantine_on_the_data_page(database: Database, browser: Browser, app: App) -> None:
    """The page shows a limited number of reasons and of events, and says so."""
    for number in range(MAX_REASONS + 1):
        put(database, app, "{}", message=f"field {number:03}: missing")
    database.query("UPDATE quarantine_usage SET dropped = 1234")
    page = await html_of(browser, "/dashboard/apps/my-cli/data")
    assert page.count("Correct field") == MAX_REASONS
    assert page.count(": missing") == MAX_REASONS + MAX_LATEST
    assert "There are more reasons: tkserver quarantine list my-cli" in text_of(page)
    assert "because the quarantine was full: 1,234." in text_of(page)


@pytest_twisted.ensureDeferred
async def test_commands_on_pages_can_be_pasted(database: Database) -> None:
    """A name is quoted for a shell; one that cannot be typed is replaced by the id."""
    words = {install_named(database, "it's $HOME").app_id: """'it'"'"'s $HOME'"""}
    for name in ("--none", "a\u202eb", "a" * 99 + "\n"):
        app_id = install_named(database, name).app_id
        words[app_id] = app_id
    async with running_server(database) as server:
        browser = await signed_in(database, server.admin_port)
        for app_id, word in words.items():
            assert f"set-quota {word} EVENTS" in text_of(await html_of(browser, f"/dashboard/apps/{app_id}/data"))


def test_status_reads_few_rows(database: Database, app: App) -> None:
    """The statement reads a limited number of events and of quarantined events, whatever the tables contain."""
    others = [App().install(database) for _ in range(3)]
    for one in (app, *others):
        store(database, one, 3000)
    put(database, app, *["{}"] * 3000)
    database.query("ANALYZE events, quarantine")
    plan = database.value(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {STATUS}", [app.app_id, others[0].app_id], [app.org_id, others[0].org_id]
    )
    read = {node["Relation Name"]: node["Actual Rows"] for node in _nodes(plan[0]["Plan"]) if "Relation Name" in node}
    assert 0 < read["events"] <= 100
    assert read["quarantine"] <= MAX_COUNTED
    scans = {node["Node Type"] for node in _nodes(plan[0]["Plan"]) if node.get("Relation Name") == "events"}
    assert scans == {"Index Scan"}


def _nodes(plan: dict) -> list[dict]:  # type: ignore[type-arg]
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


@pytest_twisted.ensureDeferred
async def test_staging_is_marked(database: Database, app: App) -> None:
    """The first page and all pages of a staging application mark it."""
    database.query("UPDATE apps SET staging = true")
    install_named(database, "real")
    async with running_server(database) as server:
        browser = await signed_in(database, server.admin_port)
        home = await html_of(browser, "/dashboard/")
        assert cells_of(home, "my-cli")[0] == "my-cli staging"
        assert cells_of(home, "real")[0] == "real"
        for page in ("overview", "data", "live"):
            text = text_of(await html_of(browser, f"/dashboard/apps/my-cli/{page}"))
            assert "my-cli (staging)" in text
            assert "Applications / my-cli staging" in text
            assert "staging" not in await html_of(browser, f"/dashboard/apps/real/{page}")
        assert "tkserver apps promote my-cli" in await html_of(browser, "/dashboard/apps/my-cli/data")
        apps = (await browser.get("/api/v1/apps")).json["apps"]
        assert [one["staging"] for one in apps] == [True, False]
