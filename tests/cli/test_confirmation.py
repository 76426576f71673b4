"""Commands that cannot be undone ask for confirmation on a terminal, and can be tried without an effect."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg2
import pytest

from tests.support.command import Command, InProcessCommand
from tests.support.database import Database
from tests.support.quarantined import put
from tests.support.stored import store
from tests.support.terminal import run_on_terminal
from tests.support.waiting import wait_for

USER = "client_a"


def test_erase_asks(database: Database, directory: Path) -> None:
    """On a terminal, the command says how many events it would delete, and only a yes deletes them."""
    command = Command.on(database, directory)
    app = command("apps", "create", "my-cli", "--json", code=0).app
    store(database, app, 1234, user=USER)
    put(database, app, "{}", user=USER)
    question = f"Delete 1,234 events, and 1 in quarantine, of {USER} in all applications, and store no new ones?"
    code, _, shown = run_on_terminal(command, "erase", "--user", USER, typed="no")
    assert (code, question in shown) == (1, True)
    assert database.value("SELECT count(*) FROM events") == 1234
    assert database.value("SELECT count(*) FROM erasures") == 0
    code, printed, shown = run_on_terminal(command, "erase", "--user", USER, "--app", "my-cli", typed="yes")
    assert (code, "of client_a in my-cli, and" in shown) == (0, True)
    assert "1,234" in printed
    assert "Waiting for the servers" in shown
    code, _, shown = run_on_terminal(command, "erase", "--user", USER, "--yes")
    assert (code, "?" in shown) == (0, False)


def test_revoke_asks(database: Database, directory: Path) -> None:
    """On a terminal, the command says what the token is for, and only a yes revokes it."""
    command = Command.on(database, directory)
    command("apps", "create", "my-cli", code=0)
    (token,) = command("tokens", "list", "--json", code=0).json
    code, _, shown = run_on_terminal(command, "tokens", "revoke", token["id"], typed="no")
    assert code == 1
    assert "Programs can no longer send events of my-cli" in shown
    assert "The application has 0 other active tokens. Revoke it? [y/N]" in shown
    assert database.value("SELECT is_active FROM api_tokens")
    code, _, _ = run_on_terminal(command, "tokens", "revoke", token["id"], typed="yes")
    assert code == 0
    assert not database.value("SELECT is_active FROM api_tokens")


def test_dry_run_changes_nothing(tkserver: InProcessCommand, database: Database) -> None:
    """With --dry-run, commands print the numbers of events that they would delete, and do nothing."""
    app = tkserver("apps", "create", "my-cli", "--staging", "--json").app
    store(database, app, 12, user=USER)
    store(database, app, 3, user="client_b")
    put(database, app, "{}", user=USER)
    before = database.query("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM erasures), * FROM api_tokens")
    erased = tkserver("erase", "--user", USER, "--dry-run", "--json").json
    assert erased == {"application": "all", "to_delete_from_events": 12, "to_delete_from_quarantine": 1}
    erased = tkserver("erase", "--user", "client_b", "--app", "my-cli", "--dry-run", "--json").json
    assert erased == {"application": "my-cli", "to_delete_from_events": 3, "to_delete_from_quarantine": 0}
    assert tkserver("apps", "delete", "my-cli", "--dry-run", "--json").json["events_to_delete"] == 15
    assert tkserver("apps", "promote", "my-cli", "--dry-run", "--json").json["events_to_delete"] == 15
    assert "can no longer send events of my-cli (staging)" in tkserver("tokens", "revoke", app.token, "--dry-run").out
    tkserver("erase", "--user", USER, "--undo", "--dry-run", code=2)
    after = database.query("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM erasures), * FROM api_tokens")
    assert after == before


def test_scripts_need_no_confirmation(tkserver: InProcessCommand, database: Database) -> None:
    """Without a terminal, erase and tokens revoke do what they are asked to."""
    app = tkserver("apps", "create", "my-cli", "--json").app
    store(database, app, 2, user=USER)
    assert tkserver("erase", "--user", USER, "--json").json["deleted_from_events"] == 2
    tkserver("tokens", "revoke", app.token)
    assert tkserver("tokens", "revoke", app.token, "--dry-run").out.endswith("is not active already.\n")


@pytest.mark.timeout(60)
def test_waiting_is_shown(database: Database, directory: Path) -> None:
    """A command that waits for the database says so on a terminal."""
    command = Command.on(database, directory)
    command("apps", "create", "my-cli", code=0)
    blocker = psycopg2.connect(database.dsn)
    blocker.cursor().execute("LOCK TABLE apps IN ACCESS EXCLUSIVE MODE")
    result: list[tuple[int, str, str]] = []
    thread = threading.Thread(target=lambda: result.append(run_on_terminal(command, "apps", "list")))
    thread.start()
    try:
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND now() - query_start > '2 s'"
        wait_for(lambda: database.value(waits) > 0)
    finally:
        blocker.close()
        thread.join()
    ((code, printed, shown),) = result
    assert (code, "my-cli" in printed) == (0, True)
    assert shown.count("Waiting for the database …") == 1
