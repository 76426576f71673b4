"""``tkserver apps``: applications are created, listed and changed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.blocking_client import post_batch
from tests.support.client import App, batch
from tests.support.command import Command, InProcessCommand
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.stored import store
from tests.support.terminal import run_on_terminal
from tests.support.waiting import wait_for


def test_printed_credentials_are_sufficient(tkserver: InProcessCommand, twistd: Twistd) -> None:
    """A client can send events with the credentials that are printed for a new application."""
    created = tkserver("apps", "create", "my-cli", "--tier", "pro", "--json")
    assert re.fullmatch(rf"tk_{UUID(created.json['org_id']).hex}_[0-9a-f]{{32}}", created.json["token"])
    assert re.fullmatch(r"[0-9a-f]{64}", created.json["secret"])
    assert post_batch(twistd.url, created.app, batch([make_event()])) == 200
    (token,) = tkserver("tokens", "list", "my-cli", "--json").json
    assert token["tier"] == "pro"


def test_ids_can_be_given(tkserver: InProcessCommand) -> None:
    """An application can have ids that are already used elsewhere; they are printed for the SDK."""
    app = App()
    output = tkserver("apps", "create", "mine", "--org", app.org_id, "--app", app.app_id).out
    assert f'.org_id("{app.org_id}")?' in output
    assert f'.app_id("{app.app_id}")?' in output


def test_list_show_and_rename(tkserver: InProcessCommand, database: Database) -> None:
    """Applications are selected by name or id; one without a name is listed, too, and can be given a name."""
    unnamed = App().install(database)
    named = tkserver("apps", "create", "b", "--json").json
    assert [app["name"] for app in tkserver("apps", "list", "--json").json] == ["b", None]
    assert tkserver("apps", "show", named["app_id"], "--json").json["name"] == "b"
    tkserver("apps", "rename", unnamed.app_id, "a")
    tkserver("apps", "rename", "b", "c")
    assert [app["name"] for app in tkserver("apps", "list", "--json").json] == ["a", "c"]
    table = tkserver("apps", "list").out
    assert re.search(rf"(?m)^c +{named['app_id'][:8]} ", table)
    assert named["app_id"] not in table


def test_list_shows_recent_activity(tkserver: InProcessCommand, database: Database) -> None:
    """The list shows events and users of the last 30 days, and the last event, as far as they are aggregated."""
    busy = tkserver("apps", "create", "busy", "--json").app
    tkserver("apps", "create", "idle")
    store(database, busy, 1200, user="client_a", happened="2020-01-01")
    store(database, busy, 34, days=31, user="client_b")
    columns = ("events_30d", "users_30d", "last_event_at")
    unknown = [[app[name] for name in columns] for app in tkserver("apps", "list", "--json").json]
    assert unknown == [[None] * 3] * 2
    tkserver("stats", "busy")
    first, second = [[app[name] for name in columns] for app in tkserver("apps", "list", "--json").json]
    assert first[:2] == [1200, 1]
    assert first[2] > "2026"  # their clock was wrong, so the time of reception counts
    assert second == [0, 0, None]
    lines = tkserver("apps", "list").out.splitlines()
    assert re.search("events 30d +users 30d +last event", lines[0])
    assert re.search(r"\b1,200 +1 +\d+ s ago", lines[1])
    assert re.search(r"\b0 +0 +-", lines[2])


@pytest.mark.parametrize("name", ["", " x", "x" * 101, "a\nb"])
def test_invalid_name_is_rejected(tkserver: InProcessCommand, name: str) -> None:
    """A name must be printable in one line, so that it can be typed again."""
    assert "printable" in tkserver("apps", "create", "--", name, code=2).errors
    tkserver("apps", "create", "a")
    assert "printable" in tkserver("apps", "rename", "a", "--", name, code=2).errors


def test_errors_have_exit_codes(tkserver: InProcessCommand) -> None:
    """A name that is taken and an application that does not exist are errors, and change nothing."""
    tkserver("apps", "create", "a")
    tkserver("apps", "create", "b")
    assert "exists already" in tkserver("apps", "create", "a", code=1).errors
    assert "another application" in tkserver("apps", "rename", "b", "a", code=1).errors
    assert "apps list" in tkserver("apps", "show", "c", code=3).errors
    assert len(tkserver("tokens", "list", "--json").json) == 2


@pytest.mark.parametrize(
    ("command", "number", "column"),
    [("set-retention", "90", "retention_days"), ("set-quota", "5", "monthly_quota")],
)
def test_settings_need_a_name(
    tkserver: InProcessCommand, database: Database, command: str, number: str, column: str
) -> None:
    """A setting for an application without a name is an error, which says how to give it one."""
    app = App().install(database)
    failed = tkserver("apps", command, app.app_id, number, code=1)
    assert f"tkserver apps rename {app.app_id} NAME" in failed.errors
    tkserver("apps", "rename", app.app_id, "mine")
    tkserver("apps", command, "mine", number)
    assert database.value(f"SELECT {column} FROM apps") == int(number)


@pytest.mark.parametrize("arguments", [(), ("90", "--default"), ("0",), ("36501",), ("soon",)])
def test_invalid_retention_is_wrong_usage(tkserver: InProcessCommand, arguments: tuple[str, ...]) -> None:
    """The retention is either a number of days from 1 to 36500 or the default."""
    tkserver("apps", "set-retention", "any", *arguments, code=2)


def test_names_in_the_path(tkserver: InProcessCommand, twistd: Twistd) -> None:
    """Programs can use the names of ``apps create my-cli --org acme`` instead of ids, and later slugs."""
    created = tkserver("apps", "create", "my-cli", "--org", "acme", "--json")
    assert (created.json["name"], created.json["slug"], created.json["org"]) == ("my-cli", "my-cli", "acme")
    assert post_batch(twistd.url, replace(created.app, org_id="acme", app_id="my-cli"), batch([make_event()])) == 200
    second = tkserver("apps", "create", "My second app", "--slug", "second", "--org", "acme", "--json")
    assert second.json["org_id"] == created.json["org_id"]
    assert post_batch(twistd.url, replace(second.app, org_id="acme", app_id="second"), batch([make_event()])) == 200
    tkserver("apps", "set-slug", "acme/second", "third")
    tkserver("orgs", "set-slug", "acme", "umbrella")
    third = replace(second.app, org_id="umbrella", app_id="third")
    wait_for(lambda: post_batch(twistd.url, third, batch([make_event()])) == 200)
    assert "invalid" not in tkserver("apps", "create", "x", "--org", "umbrella").out


def test_commands_accept_names_of_organizations(tkserver: InProcessCommand) -> None:
    """Commands accept the name of an application after that of its organization, and say when they need it."""
    for org in ("acme", "umbrella"):
        tkserver("apps", "create", "my-cli", "--org", org)
    for command in (["apps", "show"], ["tokens", "list"], ["tokens", "create"], ["export", "--app"]):
        assert "umbrella/my-cli" in tkserver(*command, "my-cli", code=3).errors
        tkserver(*command, "umbrella/my-cli", code=0)
    tkserver("apps", "set-quota", "acme/my-cli", "5")
    tkserver("apps", "set-retention", "acme/my-cli", "5")
    receipt = tkserver("erase", "--user", "client_a", "--app", "acme/my-cli", "--json").json
    assert receipt["application"] == "acme/my-cli"
    tkserver("tokens", "rotate", "acme/my-cli")
    limits = {app["org"]: app["monthly_quota"] for app in tkserver("apps", "list", "--json").json}
    assert limits == {"acme": 5, "umbrella": None}


def test_organizations(tkserver: InProcessCommand) -> None:
    """Organizations are listed, renamed and given slugs."""
    assert "apps create" in tkserver("orgs", "list").out
    tkserver("apps", "create", "my-cli", "--org", "Acme Inc.")
    tkserver("orgs", "set-slug", "Acme Inc.", "acme")
    tkserver("orgs", "rename", "acme", "Umbrella")
    (org,) = tkserver("orgs", "list", "--json").json
    assert (org["name"], org["slug"], org["apps"]) == ("Umbrella", "acme", 1)
    assert "slug" in tkserver("orgs", "set-slug", "acme", "not a slug", code=2).errors
    assert "slug" in tkserver("apps", "create", "x", "--slug", "not a slug", code=2).errors
    assert "orgs list" in tkserver("orgs", "rename", "nobody", "x", code=3).errors


def test_delete(tkserver: InProcessCommand, twistd: Twistd, database: Database) -> None:
    """An application and its events are deleted, and the server rejects its tokens; another application remains."""
    created, other = (tkserver("apps", "create", name, "--json") for name in ("mine", "other"))
    for app in (created.app, other.app):
        assert post_batch(twistd.url, app, batch([make_event(), make_event()])) == 200
    deleted = tkserver("apps", "delete", "mine", "--yes", "--json").json
    assert deleted == {
        **{key: created.json[key] for key in ("name", "org_id", "app_id")},
        "deleted": {"events": 2, "api_tokens": 1, "apps": 1},
    }
    assert post_batch(twistd.url, created.app, batch([make_event()])) == 401
    assert post_batch(twistd.url, other.app, batch([make_event()])) == 200
    assert database.query("SELECT app_id::text, count(*) FROM events GROUP BY 1") == [(other.app.app_id, 3)]
    assert "apps list" in tkserver("apps", "delete", "mine", "--yes", code=3).errors


def test_delete_prints_what_was_deleted(tkserver: InProcessCommand, database: Database) -> None:
    """An application without a name is deleted by its id; the output has a line for each table that had rows."""
    app = App().install(database)
    store(database, app, 1234)
    lines = tkserver("apps", "delete", app.app_id, "--yes").out.splitlines()
    assert [re.split("  +", line) for line in lines if line.startswith("deleted")] == [
        ["deleted from events", "1,234"],
        ["deleted from api tokens", "1"],
    ]


def test_delete_needs_confirmation(tkserver: InProcessCommand, database: Database) -> None:
    """Without a terminal and without --yes, nothing is deleted and no token is revoked."""
    app = tkserver("apps", "create", "mine", "--json").app
    store(database, app, 5)
    assert "--yes" in tkserver("apps", "delete", "mine", code=2).errors
    assert database.value("SELECT count(*) FROM events") == 5
    assert tkserver("apps", "show", "mine", "--json").json["active_tokens"] == 1


def test_delete_asks_for_confirmation(database: Database, directory: Path) -> None:
    """On a terminal, the command asks, and says how many events there are; only a yes deletes them, with a bar."""
    command = Command.on(database, directory)
    app = command("apps", "create", "mine", "--json", code=0).app
    store(database, app, 2000)
    code, _, shown = run_on_terminal(command, "apps", "delete", "mine", typed="no")
    assert (code, "Delete mine, its tokens and its 2,000 events?" in shown) == (1, True)
    assert database.value("SELECT count(*) FROM events") == 2000
    code, _, shown = run_on_terminal(command, "apps", "delete", "mine", typed="yes")
    assert (code, "2000/2000" in shown) == (0, True)
    assert database.value("SELECT count(*) FROM events") == 0


def test_staging(tkserver: InProcessCommand, database: Database, directory: Path) -> None:
    """A staging application is marked, has a quota, and is promoted after a confirmation."""
    created = tkserver("apps", "create", "trial", "--staging", "--json")
    assert created.json["staging"] is True
    assert tkserver("apps", "create", "real", "--json").json["staging"] is False
    assert [app["staging"] for app in tkserver("apps", "list", "--json").json] == [False, True]
    assert re.search(r"(?m)^staging +yes$", tkserver("apps", "show", "trial").out)
    assert tkserver("apps", "show", "trial", "--json").json["monthly_quota"] == 1000
    assert "trial (staging)" in tkserver("stats", "trial").errors
    store(database, created.app, 1234)
    assert "--yes" in tkserver("apps", "promote", "trial", code=2).errors
    command = Command({"TK__DATABASE__URL": database.dsn}, directory)
    code, _, shown = run_on_terminal(command, "apps", "promote", "trial", typed="no")
    assert "Delete 1,234 events of trial (staging)? [y/N]" in shown
    assert code == 1
    assert tkserver("apps", "show", "trial", "--json").json["staging"] is True
    assert tkserver("apps", "promote", "trial", "--yes", "--json").json["deleted_from_events"] == 1234
    promoted = tkserver("apps", "show", "trial", "--json").json
    assert (promoted["staging"], promoted["monthly_quota"], promoted["retention_days"]) == (False, None, None)
    (token,) = tkserver("tokens", "list", "trial", "--json").json
    assert token["token"] == created.json["token"]
    assert "real is not a staging application" in tkserver("apps", "promote", "real", "--yes", code=1).errors


def test_staging_quota_and_promotion_on_a_server(tkserver: InProcessCommand, twistd: Twistd) -> None:
    """A running server applies the quota of a new staging application, and lifts it when it is promoted."""
    app = tkserver("apps", "create", "trial", "--staging", "--json").app
    thousand = batch([make_event() for _ in range(1000)])
    assert post_batch(twistd.url, app, thousand) == 200
    assert post_batch(twistd.url, app, batch([make_event()])) == 429
    assert tkserver("apps", "promote", "trial", "--yes", "--json").json["deleted_from_events"] == 1000
    assert post_batch(twistd.url, app, thousand) == 200
    assert post_batch(twistd.url, app, batch([make_event()])) == 200
