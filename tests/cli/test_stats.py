"""``tkserver stats``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.client import App
from tests.support.command import Command
from tests.support.database import Database
from tests.support.quarantined import put
from tests.support.sample_statistics import install_named, store_recent
from tkserver.operations.statistics import PANEL_NAMES


@pytest.fixture
def app(database: Database) -> App:
    """An application with events of the last days: the new version fails more often."""
    app = install_named(database, "my-cli")
    store_recent(database, app, range(1, 401))
    return app


def test_summary(database: Database, directory: Path, app: App) -> None:
    """The summary fits into 80 columns, and has the verdict in words."""
    done = Command.on(database, directory, COLUMNS="80")("stats", "my-cli")
    text = done.output.decode()
    assert done.code == 0, done.errors
    assert "1.4.0 is worse than 1.3.2 for `build`: 30.0 % of 200 runs failed, before 10.0 % of 200" in " ".join(
        text.split()
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for heading in ("Commands", "Versions", "Releases", "Systems", "Retention"):
        assert f"\n{heading}\n" in text


@pytest.mark.parametrize("panel", PANEL_NAMES)
def test_panels(database: Database, directory: Path, app: App, panel: str) -> None:
    """Each panel is printed as text, and as JSON with the facts that every panel states."""
    command = Command.on(database, directory)
    assert command("stats", "my-cli", panel).output
    printed = json.loads(command("stats", "my-cli", panel, "--json", "--days", "7").output)
    assert printed["app"] == "my-cli"
    assert printed.keys() >= {"timezone", "from", "to", "ci", "filters", "generated_at", "summed_until", "filling_from"}


def test_quality(database: Database, directory: Path, app: App) -> None:
    """The quality is printed with quarantined events by code, and the space of the events."""
    put(database, app, "{}", "{}", code="invalid_schema")
    text = Command.on(database, directory)("stats", "my-cli", "quality").out
    lines = [line.split() for line in text.splitlines()]
    assert ["duplicates", "0"] in lines
    assert ["in", "quarantine", "2"] in lines
    assert ["invalid_schema", "2"] in lines
    assert ["stored", "events", "400"] in lines
    assert re.search(r"their size +\d+\.\d kB", text)


@pytest.mark.parametrize("panel", PANEL_NAMES)
def test_title_states_whether_ci_counts(database: Database, directory: Path, app: App, panel: str) -> None:
    """The title of a panel says that events of CI count, which they do not by default."""
    command = Command.on(database, directory)
    first, _, _ = command("stats", "my-cli", panel).out.partition("\n\n")
    assert "ci" not in first
    first, _, _ = command("stats", "my-cli", panel, "--ci", "include").out.partition("\n\n")
    assert "ci include" in " ".join(first.split())


def test_no_events(database: Database, directory: Path) -> None:
    """An application without events has an empty summary, which says what to do."""
    command = Command.on(database, directory)
    command("apps", "create", "empty")
    assert "No events in this period" in command("stats", "empty").output.decode()
    assert json.loads(command("stats", "empty", "--json").output)["totals"]["events"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("my-cli", "users"), "unknown panel 'users': use overview, commands"),
        (("my-cli", "quality", "--os", "linux"), "unknown parameter 'os': use days, from, to, ci"),
        (("my-cli", "--ci", "no"), "ci='no': use exclude, include, only"),
        (("my-cli", "--days", "0"), "days='0': use a number from 1 to"),
        (("my-cli", "--from", "yesterday"), "from='yesterday': use a day such as"),
        (("my-cli", "--to", "2026-01-01"), "use either days, or from with or without to"),
    ],
)
def test_invalid_parameters(
    database: Database, directory: Path, app: App, arguments: tuple[str, ...], message: str
) -> None:
    """The error names the allowed values."""
    done = Command.on(database, directory)("stats", *arguments)
    assert done.code == 2
    assert message in done.errors


def test_rebuild_and_time_zone(database: Database, directory: Path, app: App) -> None:
    """The statistics can be computed again, and days follow the time zone of the application."""
    command = Command.on(database, directory)
    before = json.loads(command("stats", "my-cli", "--json").output)
    assert command("stats", "rebuild", "my-cli").output == b"The statistics of my-cli have been computed again.\n"
    assert json.loads(command("stats", "my-cli", "--json").output)["days"] == before["days"]
    assert command("apps", "set-timezone", "my-cli", "Mars/Phobos").code == 2
    assert command("apps", "set-timezone", "my-cli", "Asia/Tokyo").code == 0
    assert json.loads(command("stats", "my-cli", "--json").output)["timezone"] == "Asia/Tokyo"
