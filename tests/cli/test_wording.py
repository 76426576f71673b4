"""Numbers and durations in the output of commands, and errors of commands that are repeated."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.client import App
from tests.support.command import InProcessCommand
from tests.support.database import Database
from tests.support.stored import store
from tkserver.cli.output import counted, duration


@pytest.mark.parametrize(("number", "text"), [(0, "0 events"), (1, "1 event"), (2, "2 events"), (1234, "1,234 events")])
def test_counted(number: int, text: str) -> None:
    """The noun is in the singular after one, and otherwise in the plural."""
    assert counted(number, "event") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (90, "90 seconds"),
        (1800, "30 minutes"),
        (3600, "1 hour"),
        (5400, "90 minutes"),
        (86_400, "1 day"),
        (604_800, "7 days"),
    ],
)
def test_duration(seconds: int, text: str) -> None:
    """A duration has the largest unit of which it is a multiple."""
    assert duration(timedelta(seconds=seconds)) == text


def test_rotation_without_overlap(tkserver: InProcessCommand) -> None:
    """The command says what has happened to older tokens."""
    tkserver("apps", "create", "my-cli")
    assert "Active for at most 1 day: 1 older token. " in tkserver("tokens", "rotate", "my-cli").out
    assert "No longer active: 2 older tokens." in tkserver("tokens", "rotate", "my-cli", "--overlap", "0m").out
    tkserver("tokens", "revoke", tkserver("tokens", "list", "my-cli", "--json").json[0]["id"])
    assert "There were no other active tokens." in tkserver("tokens", "rotate", "my-cli").out


def test_one_event(tkserver: InProcessCommand, database: Database) -> None:
    """Commands use the singular for one event and for one day."""
    app = tkserver("apps", "create", "my-cli", "--json").app
    store(database, app, 1)
    assert tkserver("export").errors == "1 event\n"
    assert "may store 1 event a month" in tkserver("apps", "set-quota", "my-cli", "1").out
    assert "for 1 day\n" in tkserver("apps", "set-retention", "my-cli", "1").out


def test_create_again_names_no_new_id(tkserver: InProcessCommand) -> None:
    """The error about a name that exists contains no id that was just generated; one that was given is named."""
    created = tkserver("apps", "create", "my-cli", "--org", "acme", "--json").json
    for arguments in (["my-cli"], ["my-cli", "--org", "acme"], ["other", "--org", "acme", "--slug", "my-cli"]):
        message = tkserver("apps", "create", *arguments, code=1).errors
        assert "my-cli" in message
        assert not [word for word in message.split() if word.count("-") == 4], message
    ids = ("--org", created["org_id"], "--app", created["app_id"])
    assert f"the application {created['app_id']} exists already" in tkserver("apps", "create", "x", *ids, code=1).errors


def test_dry_run_of_prune_lists_applications_without_events(tkserver: InProcessCommand, database: Database) -> None:
    """Every application that has a retention is listed, also without events, with the setting as with its own."""
    tkserver("apps", "create", "idle")
    unnamed = App().install(database)
    assert "stored forever" in tkserver("prune", "--dry-run").out
    tkserver("apps", "set-retention", "idle", "7")
    (line,) = tkserver("prune", "--dry-run", "--json").json
    assert (line["name"], line["retention_days"], line["to_delete"]) == ("idle", 7, 0)
    found = tkserver("prune", "--dry-run", "--json", TK__RETENTION__DAYS="30").json
    assert {(line["app_id"], line["retention_days"]) for line in found} == {(line["app_id"], 7), (unnamed.app_id, 30)}
    assert [line["deleted"] for line in tkserver("prune", "--json").json] == [0]


def test_undo_of_an_erasure(tkserver: InProcessCommand) -> None:
    """The receipt for people says what was undone; JSON has the documented key."""
    for option, text in ((None, "undone erasures"), ("--json", "deleted_from_erasures")):
        tkserver("erase", "--user", "client_a")
        output = tkserver("erase", "--user", "client_a", "--undo", *([option] if option else [])).out
        assert text in output
        assert "deleted from erasures" not in output
