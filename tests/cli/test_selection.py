"""What arguments and options select: applications, tokens, times and formats."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.client import App
from tests.support.command import InProcessCommand
from tests.support.database import Database
from tests.support.stored import store
from tkserver.cli.parameters import Timestamp
from tkserver.operations.models import id_pattern
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.embedded import demo


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("0123abcd", "0123abcd%"),
        ("0123ABCD-4", "0123abcd-4%"),
        ("0123abc", None),
        ("0123abcg", None),
        ("%%%%%%%%", None),
        ("my-cli", None),
        ("0" * 40, None),
    ],
)
def test_short_ids(text: str, pattern: str | None) -> None:
    """A short id consists of at least the first 8 characters."""
    assert id_pattern(text) == pattern


@pytest.mark.parametrize("kind", ["named", "token", "events"])
def test_applications_are_found_by_short_ids(tkserver: InProcessCommand, database: Database, kind: str) -> None:
    """Every application is found by its id and its short id, also if it has only events."""
    app = App()
    store(database, app, 3)
    if kind != "events":
        app.install(database)
    if kind == "named":
        tkserver("apps", "rename", app.app_id, "my-cli")
    for text in (app.app_id, app.app_id.upper(), app.app_id[:8], app.app_id[:13]):
        assert tkserver("apps", "show", text, "--json").json["app_id"] == app.app_id
        assert "3 events" in tkserver("export", "--app", text).errors
        assert tkserver("apps", "delete", text, "--dry-run", "--json").json["events_to_delete"] == 3
    tkserver("apps", "show", "00000000", code=3)
    tkserver("apps", "delete", app.app_id[:8], "--yes")
    tkserver("apps", "show", app.app_id, code=3)


def test_ambiguous_short_ids(tkserver: InProcessCommand, database: Database) -> None:
    """If several ids begin so, none is selected; a name that looks like a short id goes first."""
    ids = [str(UUID(int=(0xABCDEF01 << 96) + number)) for number in range(2)]
    for app_id in ids:
        App(app_id=app_id).install(database)
    assert "several applications" in tkserver("apps", "show", "abcdef01", code=3).errors
    tkserver("apps", "create", "abcdef01")
    assert tkserver("apps", "show", "abcdef01", "--json").json["name"] == "abcdef01"
    database.query("UPDATE api_tokens SET id = (left(app_id::text, 8) || substr(id::text, 9))::uuid")
    assert "several tokens" in tkserver("tokens", "revoke", "abcdef01", code=3).errors
    assert database.value("SELECT bool_and(is_active) FROM api_tokens")


def test_tokens_and_organizations_by_short_ids(tkserver: InProcessCommand) -> None:
    """Tokens of both kinds and organizations are selected by short ids."""
    created = tkserver("apps", "create", "my-cli", "--org", "acme", "--json").json
    reader = tkserver("tokens", "create", "my-cli", "--read", "--json").json
    for token in tkserver("tokens", "list", "--json").json:
        assert token["id"] in tkserver("tokens", "revoke", token["id"][:8]).out
    assert reader["id"]
    assert not any(token["active"] for token in tkserver("tokens", "list", "--json").json)
    tkserver("orgs", "rename", created["org_id"][:8], "other")
    assert tkserver("orgs", "list", "--json").json[0]["name"] == "other"


def test_demo_application_has_a_name(tkserver: InProcessCommand, database: Database) -> None:
    """The demo application is called demo, until the operator chooses another name."""
    demo.install(database.dsn, BlockingConnections())
    assert tkserver("apps", "show", "demo", "--json").json["app_id"] == demo.APP_ID
    tkserver("apps", "rename", "demo", "mine")
    demo.install(database.dsn, BlockingConnections())
    assert [app["name"] for app in tkserver("apps", "list", "--json").json] == ["mine"]


@pytest.mark.parametrize(("name", "start"), [
    ("e.csv", b"event_id"), ("e.CSV", b"event_id"), ("e.ndjson", b"{"), ("e.txt", b"{"),
                                             ("e.parquet", b"PAR1")])  # fmt: skip
def test_export_format_follows_the_suffix(
    tkserver: InProcessCommand, database: Database, directory: Path, name: str, start: bytes
) -> None:
    """The suffix of the file says the format, unless an option does."""
    store(database, App().install(database), 1)
    tkserver("export", "-o", str(directory / name))
    assert (directory / name).read_bytes().startswith(start)
    tkserver("export", "-o", str(directory / name), "--format", "ndjson", "--force")
    assert json.loads((directory / name).read_bytes())["event"]["type"] == "command"


@pytest.mark.parametrize(
    ("text", "ago"), [("7d", timedelta(days=7)), ("90s", timedelta(seconds=90)), ("0h", timedelta())]
)
def test_times_ago(text: str, ago: timedelta) -> None:
    """A duration means how long ago."""
    before = datetime.now(timezone.utc)
    time = Timestamp().convert(text, None, None)
    assert before - ago <= time <= datetime.now(timezone.utc) - ago


def test_export_since(tkserver: InProcessCommand, database: Database) -> None:
    """Export takes dates and durations."""
    store(database, App().install(database), 1)
    store(database, App().install(database), 1, happened="2026-01-01T12:00:00Z")
    assert tkserver("export", "--since", "7d").errors == "1 event\n"
    assert tkserver("export", "--since", "2026-01-01").errors == "2 events\n"


def test_days_of_statistics(tkserver: InProcessCommand, database: Database) -> None:
    """Days of statistics can be how long ago they were, in the time zone of the application."""
    tkserver("apps", "create", "my-cli")
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        tkserver("apps", "set-timezone", "my-cli", zone)
        days = "SELECT ((now() - interval '%s days') AT TIME ZONE %s)::date::text"
        before = [database.value(days, number, zone) for number in (7, 1)]
        panel = tkserver("stats", "my-cli", "overview", "--from", "7d", "--to", "24h", "--json").json
        after = [database.value(days, number, zone) for number in (7, 1)]
        assert [panel["from"], panel["to"]] in (before, after)
    assert "99999999d" in tkserver("stats", "my-cli", "--from", "99999999d", code=2).errors
    tkserver("stats", "my-cli", "--from", "999999d", code=2)
    tkserver("export", "--since", "999999d", code=2)
