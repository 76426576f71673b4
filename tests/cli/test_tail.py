"""``tkserver tail``: events as they arrive, accepted or quarantined."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.blocking_client import post_batch
from tests.support.client import App, batch
from tests.support.command import PROGRAM, Command, InProcessCommand
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.stored import store
from tests.support.waiting import wait_for


@contextmanager
def following(command: Command, *arguments: str) -> Iterator[list[str]]:
    """Run the command until the end of the ``with`` block, and yield the lines that it prints."""
    lines: list[str] = []
    process = subprocess.Popen(
        [PROGRAM, "tail", *arguments],
        cwd=command.directory,
        env=command.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=lambda stream: lines.extend(stream), args=(process.stdout,))
    reader.start()
    try:
        yield lines
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def test_events_are_shown_as_they_arrive(twistd: Twistd, database: Database, directory: Path) -> None:
    """Accepted and quarantined events appear within seconds, and Ctrl+C ends the command without an error."""
    app = App().install(database)
    with following(Command.on(database, directory), app.app_id, "--last", "0") as lines:
        wait_for(lambda: bool(lines))  # it waits for events
        invalid = {**make_event(), "timestamp": "yesterday"}
        assert post_batch(twistd.url, app, batch([make_event(), invalid])) == 207
        wait_for(lambda: len(lines) >= 3)
    assert "Waiting for events" in lines[0]
    assert sorted(line.split()[1] for line in lines[1:]) == ["accepted", "quarantined"]
    assert any("command_execution" in line and "build" in line for line in lines)
    assert any("timestamp" in line for line in lines)


def test_filters(tkserver: InProcessCommand, database: Database) -> None:
    """Events are selected by the beginning of the user id and by their type."""
    app = App().install(database)
    for user, event_type in (("client_aa", "command_execution"), ("client_ab", "feature_used"), ("client_b", "custom")):
        store(database, app, 1, user=user)
        database.query("UPDATE events SET event_type = %s WHERE user_id = %s", event_type, user)

    def users(*arguments: str) -> list[str]:
        lines = tkserver("tail", app.app_id, "--no-follow", "--json", *arguments).out.splitlines()
        return [json.loads(line)["user_id"] for line in lines]

    assert users() == ["client_aa", "client_ab", "client_b"]
    assert users("--user", "client_a") == ["client_aa", "client_ab"]
    assert users("--type", "custom") == ["client_b"]
    assert users("--user", "%") == []
    assert users("--last", "2") == ["client_ab", "client_b"]
    assert users("--last", "0") == []
