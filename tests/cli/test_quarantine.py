"""``tkserver quarantine``: invalid events are listed, shown, replayed and deleted."""

from __future__ import annotations

import json

import pytest

from tests.support.client import App
from tests.support.command import InProcessCommand
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.quarantined import put, quarantined


@pytest.fixture
def app(database: Database, tkserver: InProcessCommand) -> App:
    """An application with the name ``my-cli``."""
    app = App()
    tkserver("apps", "create", "my-cli", "--org", app.org_id, "--app", app.app_id)
    return app


def test_empty_quarantine(tkserver: InProcessCommand, app: App) -> None:
    """An empty quarantine is not an error."""
    assert tkserver("quarantine", "list").out == "No events are in quarantine.\n"
    assert tkserver("quarantine", "show", "my-cli").out == "No events are in quarantine.\n"
    assert tkserver("quarantine", "list", "my-cli", "--json").json == []
    assert tkserver("quarantine", "show", "my-cli", "--json").json == []
    assert tkserver("quarantine", "replay", "--json").json == {"stored": 0, "duplicates": 0, "left": 0}
    assert tkserver("quarantine", "delete", "--all", "--json").json == {"deleted": 0}


def test_list(tkserver: InProcessCommand, database: Database, app: App) -> None:
    """The list shows each reason, with the source, the numbers, and what to do."""
    put(database, app, "{}", "[]", message="service.name: empty")
    database.query("UPDATE quarantine_usage SET dropped = 1234")
    (record,) = tkserver("quarantine", "list", "my-cli", "--json").json
    assert record["first_received_at"] == record["last_received_at"]
    assert {name: value for name, value in record.items() if not name.endswith("_at")} == {
        "app": "my-cli",
        "app_id": app.app_id,
        "org_id": app.org_id,
        "code": "invalid_schema",
        "message": "service.name: empty",
        "sdk": "telemetry-kit-rust",
        "sdk_version": "0.3.0",
        "events": 2,
        "times": 2,
        "dropped": 1234,
        "what_to_do": record["what_to_do"],
    }
    printed = tkserver("quarantine", "list").out
    for text in ("my-cli", "service.name: empty", "telemetry-kit-rust", "0.3.0", record["what_to_do"], "1,234 older"):
        assert text in printed


def test_show(tkserver: InProcessCommand, database: Database, app: App) -> None:
    """The events are shown with their texts, for applications and for single events."""
    put(database, app, '{"a": "ä"}', "[1]")
    first, second = quarantined(database, app)
    both = tkserver("quarantine", "show", "my-cli", "--json").json
    assert [event["event"] for event in both] == ["[1]", '{"a": "ä"}']
    assert len(tkserver("quarantine", "show", "my-cli", "--limit", "1", "--json").json) == 1
    selected = tkserver("quarantine", "show", str(first["id"]), second["event_id"], "--json").json
    assert [event["id"] for event in selected] == [first["id"], second["id"]]
    printed = tkserver("quarantine", "show", "my-cli").out
    assert '{"a": "ä"}' in printed
    assert second["event_id"] in printed
    assert tkserver("quarantine", "show", "my-cli", "--sdk-version", "9", "--json").json == []


def test_terminal(tkserver: InProcessCommand, database: Database, app: App) -> None:
    """Neither escape sequences nor line breaks of an event reach the terminal."""
    put(database, app, '{"a":\n"x\x7f\u202e",\r\t"b":\u20281}', message="\x1b[2Jmessage", sdk=("\x1b]0;x\x07", "\x9b"))
    for command in (("list",), ("show", "my-cli"), ("list", "--json"), ("show", "my-cli", "--json")):
        printed = tkserver("quarantine", *command).out
        assert not any(character in printed for character in "\x1b\x07\x7f\x9b\u202e\u2028\r\t"), command
    assert r'{"a": "x\u007f\u202e",  "b":\u20281}' in tkserver("quarantine", "show", "my-cli").out


def test_replay_and_delete(tkserver: InProcessCommand, database: Database, app: App) -> None:
    """Valid events are stored, the others are left, and can be deleted."""
    put(database, app, json.dumps(make_event()), "{}", "[]")
    assert tkserver("quarantine", "replay", "my-cli", "--json").json == {"stored": 1, "duplicates": 0, "left": 2}
    assert database.value("SELECT count(*) FROM events") == 1
    assert tkserver("quarantine", "delete", "my-cli", "--code", "event_too_large", "--json").json == {"deleted": 0}
    (number, *_) = [str(row["id"]) for row in quarantined(database, app)]
    assert tkserver("quarantine", "delete", number, "--json").json == {"deleted": 1}
    assert "deleted  1" in tkserver("quarantine", "delete", "my-cli").out
    assert quarantined(database, app) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("delete",), 2),
        (("delete", "my-cli", "--all"), 2),
        (("delete", "my-cli", "--code", "no-code"), 2),
        (("show",), 2),
        (("show", "my-cli", "--limit", "0"), 2),
        (("show", "unknown"), 3),
        (("replay", "999"), 3),
        (("delete", "\x1b[2J"), 3),
    ],
    ids=ascii,
)
def test_wrong_arguments(
    tkserver: InProcessCommand, database: Database, app: App, arguments: tuple[str, ...], code: int
) -> None:
    """Wrong arguments are errors, and nothing is deleted."""
    put(database, app, "{}")
    completed = tkserver("quarantine", *arguments, code=code)
    assert "\x1b" not in completed.errors
    assert len(quarantined(database, app)) == 1


def test_prune(tkserver: InProcessCommand, database: Database, app: App) -> None:
    """``tkserver prune`` deletes old events from the quarantine, according to the setting."""
    put(database, app, "1", days=8)
    put(database, app, "2", days=2)
    tkserver("prune", "--dry-run")
    assert len(quarantined(database, app)) == 2
    tkserver("prune")
    assert [row["event"] for row in quarantined(database, app)] == ["2"]
    tkserver("prune", TK__QUARANTINE__DAYS="1")
    assert quarantined(database, app) == []


def test_erase(tkserver: InProcessCommand, database: Database, app: App) -> None:
    """The receipt of an erasure says how many events were deleted from the quarantine."""
    put(database, app, "1", user="client_a")
    receipt = tkserver("erase", "--user", "client_a", "--json").json
    assert (receipt["deleted_from_events"], receipt["deleted_from_quarantine"]) == (0, 1)
