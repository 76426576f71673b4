"""Tables for people: they fit on a terminal, begin with names, and contain no secrets."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.support.command import Command, InProcessCommand
from tests.support.database import Database
from tests.support.quarantined import put
from tests.support.stored import store
from tkserver.cli.output import relative

NOW = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(0), "0 s ago"),
        (timedelta(seconds=59), "59 s ago"),
        (timedelta(seconds=60), "1 min ago"),
        (timedelta(minutes=59, seconds=59), "59 min ago"),
        (timedelta(hours=23), "23 h ago"),
        (timedelta(days=99), "99 d ago"),
        (timedelta(days=100), "2026-02-21"),
        (timedelta(hours=-24), "in 1 d"),
        (timedelta(seconds=-5), "in 5 s"),
        (timedelta(days=-3000), "2034-08-18"),
    ],
)
def test_relative_times(ago: timedelta, text: str) -> None:
    """Times are relative to now if they are not far away."""
    assert relative(NOW - ago, NOW) == text


@pytest.fixture
def filled(tkserver: InProcessCommand, database: Database) -> InProcessCommand:
    """The command, and a database with everything that is listed, with names of usual lengths."""
    app = tkserver("apps", "create", "my-cli", "--org", "acme", "--staging", "--tier", "enterprise", "--json").app
    tkserver("apps", "create", "another-program")
    tkserver("tokens", "rotate", "my-cli")
    tkserver("tokens", "create", "--all", "--read")
    tkserver("shares", "create", "my-cli", "--name", "the team")
    store(database, app, 900, user="client_a")
    put(database, app, "{}", message="service.name: missing")
    tkserver("stats", "my-cli")
    database.query("UPDATE api_tokens SET last_used_at = now() - interval '50 minutes'")
    return tkserver


@pytest.mark.parametrize(
    "arguments", ["apps list", "tokens list", "orgs list", "prune --dry-run", "quarantine list", "shares list"]
)
def test_tables_fit(filled: InProcessCommand, database: Database, arguments: str) -> None:
    """A table has at most 80 columns, and no ids in full."""
    lines = filled(*arguments.split()).out.split("\n\n")[0].splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80, lines
    assert not [word for line in lines for word in line.split() if word.count("-") == 4]


def test_lists_contain_no_secrets(filled: InProcessCommand, database: Database) -> None:
    """Neither tokens nor secrets are listed unless that is asked for; JSON has the tokens."""
    printed = filled("tokens", "list").out
    for token, secret in database.query("SELECT token, secret FROM api_tokens"):
        assert token not in printed
        assert secret not in printed
        shown = filled("tokens", "list", "--show-secret").out
        assert token in shown
        assert secret in shown
        assert token in filled("tokens", "list", "--json").out


def test_short_ids_of_tables_can_be_used(filled: InProcessCommand) -> None:
    """Commands accept the ids that tables show."""
    rows = [line.split() for line in filled("apps", "list").out.splitlines()[1:]]
    assert rows[0][0] == "another-program"
    assert filled("apps", "show", rows[0][1], "--json").json["name"] == "another-program"
    token = filled("tokens", "list", "another-program").out.splitlines()[1].split()[1]
    assert "revoked" in filled("tokens", "revoke", token).out


def test_long_names_on_a_terminal(database: Database, directory: Path) -> None:
    """On a terminal, a long name is continued in the next line, and nothing is cut off."""
    command = Command.on(database, directory, COLUMNS="80", FORCE_COLOR="1", TERM="dumb")
    command("apps", "create", "n" * 100, code=0)
    printed = command("apps", "list", code=0).out
    assert printed.count("n" * 20) > 1
    assert printed.count("n") > 100
    assert max(map(len, printed.splitlines())) <= 80
