"""``tkserver send``: the way to try an installation out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_client import is_ready
from tests.support.client import App
from tests.support.command import Command
from tests.support.database import Database, DatabaseServer
from tests.support.process import Twistd
from tests.support.waiting import wait_for
from tkserver.storage.embedded.demo import APP_ID

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def server(directory: Path, database: Database) -> Iterator[Twistd]:
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
        wait_for(lambda: is_ready(server.url))
        yield server


def test_stored(server: Twistd, directory: Path, database: Database) -> None:
    """Events are sent to the server of the settings, signed with the newest active token of the only application."""
    command = Command.on(database, directory, TK__SERVER__HOST="0.0.0.0", TK__SERVER__PORT=str(server.port))
    app = command("apps", "create", "mine", "--json").json
    command("tokens", "revoke", command("tokens", "create", "mine", "--json").json["token"])
    newest = command("tokens", "create", "mine", "--json").json
    done = command("send", "--events", "1500", "--json")
    assert done.code == 0, done.errors
    answer = {"accepted": 1500, "rejected": 0, "duplicates": 0}
    assert done.json == {"endpoint": server.url, "app": "mine", **answer}
    assert database.query("SELECT app_id::text, event_type, count(*) FROM events GROUP BY 1, 2") == [
        (app["app_id"], "sample", 1500)
    ]
    for secret in (newest["token"], newest["secret"]):
        assert secret not in done.output.decode() + done.errors
    shown = command("send", "--app", app["app_id"], "--endpoint", server.url)
    assert b"accepted    1\n" in shown.output


def test_first_run(directory: Path) -> None:
    """Against an embedded database it is the demo application, with nothing to name; so it is in the README."""
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data")}
    with Twistd(directory, settings) as server:
        wait_for(lambda: is_ready(server.url))
        command = Command({**settings, "TK__SERVER__PORT": str(server.port)}, directory)
        command("apps", "create", "another")
        done = command("send", "--json")
        assert (done.code, done.json["app"], done.json["accepted"]) == (0, APP_ID, 1), done.errors
        (example,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
        pasted = example.replace("http://127.0.0.1:3000", server.url)
        shown = subprocess.run([sys.executable, "-c", pasted], capture_output=True, text=True, cwd=directory)
        assert "Result(accepted=1, rejected=0, duplicates=0" in shown.stdout, shown.stderr


def test_nobody_to_send_as(database: Database, directory: Path) -> None:
    """Without applications, tokens or an endpoint it says what to do."""
    command = Command.on(database, directory, TK__SERVER__PORT="0")
    assert "--endpoint" in command("send").errors
    on_socket = Command.on(database, directory, TK__SERVER__ENDPOINT="unix:http.sock")("send")
    assert (on_socket.code, "unix:http.sock: name its URL with --endpoint" in on_socket.errors) == (2, True)
    nobody = command("send", "--endpoint", "http://127.0.0.1:1")
    assert (nobody.code, "tkserver apps create NAME" in nobody.errors) == (3, True)
    token = command("apps", "create", "mine", "--json").json["token"]
    command("tokens", "revoke", token)
    none = command("send", "--endpoint", "http://127.0.0.1:1")
    assert (none.code, "tkserver tokens create mine" in none.errors) == (3, True)


def test_no_server(database: Database, directory: Path) -> None:
    """A server that is not there is a line, an exit code, and no traceback."""
    App().install(database)
    done = Command.on(database, directory)("send", "--endpoint", "http://127.0.0.1:1")
    assert done.code == 1
    assert "cannot be reached" in done.errors
    assert "Traceback" not in done.errors


def test_refused(server: Twistd, database_server: DatabaseServer, directory: Path) -> None:
    """A server that knows another database refuses the token; its code is shown, and the token is not."""
    with database_server.migrated() as another:
        app = App().install(another)
        done = Command.on(another, directory)("send", "--endpoint", server.url)
    assert (done.code, "invalid_token" in done.errors) == (1, True), done.errors
    assert app.token not in done.errors
    assert app.secret not in done.errors
