"""``tkserver demo``: the events of a simulated population are sent, or stored without a server."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.support.command import Command, InProcessCommand
from tests.support.database import Database
from tests.support.process import Twistd
from tests.support.terminal import run_on_terminal
from tkserver.demo import Parameters, Population, seeded

UNREACHABLE = "http://127.0.0.1:1"
SIZES = ("--events", "2500", "--users", "200")
PERIOD = ("--until", "2026-02-01", "--days", "400", "--versions", "40", "--commands", "60")
COUNT = "SELECT count(*), count(DISTINCT user_id) FROM events"


def test_events_are_sent(twistd: Twistd, directory: Path, database: Database) -> None:
    """By default, signed batches go to the server of the settings, which accepts all events, and stores each once."""
    command = Command.on(database, directory, TK__SERVER__PORT=str(twistd.port))
    command("apps", "create", "other", code=0)
    sent = command("demo", *SIZES, "--json", code=0)
    expected = {"endpoint": twistd.url, "app": "sample-cli", "accepted": 2500, "rejected": 0, "duplicates": 0}
    assert {key: sent.json[key] for key in expected} == expected
    assert database.query(COUNT) == [(2500, 200)]
    assert database.value("SELECT max(received_at - timestamp) < interval '90 days' FROM events")
    again = command("demo", *SIZES, "--endpoint", twistd.url, "--json", code=0).json
    assert (again["accepted"], again["duplicates"]) == (2500, 2500)
    assert database.query(COUNT) == [(2500, 200)]
    (token,) = command("tokens", "list", "sample-cli", "--show-secret", "--json", code=0).json
    assert token["secret"] not in sent.out + sent.errors
    deleted = command("apps", "delete", "sample-cli", "--yes", "--json", code=0).json["deleted"]
    assert deleted["events"] == 2500
    assert [app["name"] for app in command("apps", "list", "--json", code=0).json] == ["other"]


def test_events_are_stored_without_a_server(tkserver: InProcessCommand, database: Database) -> None:
    """With --direct, events of any age are stored, but none of them twice; another seed adds other events."""
    stored = tkserver("demo", "--direct", *SIZES, *PERIOD, "--json").json
    parameters, until = Parameters(2500, 200, 400, 40, 60), datetime(2026, 2, 1, tzinfo=timezone.utc)
    population = Population(parameters, until, seeded(parameters, 1))
    worse = population.regression
    assert worse is not None
    assert stored == {
        "endpoint": None,
        "app": "sample-cli",
        "accepted": 2500,
        "rejected": 0,
        "duplicates": 0,
        "first_release_at": population.start.isoformat(),
        "until": until.isoformat(),
        "worse_version": worse.version,
        "failing_command": worse.failing,
        "slower_command": worse.slower,
    }
    (times,) = database.query("SELECT min(timestamp), max(received_at) FROM events")
    assert population.start <= times[0] < times[1] < until
    assert tkserver("demo", "--direct", *SIZES, *PERIOD, "--json").json["duplicates"] == 2500
    assert database.query(COUNT) == [(2500, 200)]
    assert tkserver("demo", "--direct", *SIZES, *PERIOD, "--seed", "2", "--json").json["duplicates"] == 0
    assert database.query(COUNT) == [(5000, 400)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--direct", "--endpoint", UNREACHABLE), "--endpoint"),
        (("--events", "10", "--users", "11"), "11 users"),
        (("--days", "91"), "--direct"),
        (("--until", "2020-01-01"), "--direct"),
        (("--until", "2999-01-01"), "--until"),
        (("--until", "soon"), "2026-01-31"),
        (("--days", "0"), "0"),
        (("--versions", "0"), "0"),
    ],
)
def test_wrong_usage(tkserver: InProcessCommand, database: Database, arguments: tuple[str, ...], message: str) -> None:
    """Options that cannot be used are an error, which says what to do, and create no application."""
    assert message in tkserver("demo", *arguments, code=2).errors
    assert database.value("SELECT count(*) FROM apps") == 0


def test_unreachable_server(database: Database, directory: Path) -> None:
    """A server that cannot be reached is a one-line error."""
    failed = Command.on(database, directory)("demo", *SIZES, "--endpoint", UNREACHABLE, code=1)
    assert "cannot be reached" in failed.errors


def test_progress_bar(database: Database, directory: Path) -> None:
    """On a terminal, a bar shows the progress; the output says what to look for, and how to delete the events."""
    code, printed, shown = run_on_terminal(Command.on(database, directory), "demo", "--direct", *SIZES)
    assert (code, "2500/2500" in shown) == (0, True)
    assert "failing command   build\n" in printed
    assert "tkserver apps delete sample-cli" in printed
