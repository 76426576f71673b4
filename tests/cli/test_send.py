"""``tkserver send``: sample events, to try an installation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import App
from tests.support.command import Command, InProcessCommand
from tests.support.database import Database, DatabaseServer
from tests.support.process import Twistd

README = Path(__file__).parents[2] / "README.md"

UNREACHABLE = "http://127.0.0.1:1"


def test_sample_events_are_stored(twistd: Twistd, directory: Path, database: Database) -> None:
    """Events go to the server of the settings, signed with the newest active token of the only application."""
    command = Command.on(database, directory, TK__SERVER__HOST="0.0.0.0", TK__SERVER__PORT=str(twistd.port))
    app = command("apps", "create", "mine", "--json").json
    command("tokens", "revoke", command("tokens", "create", "mine", "--json").json["token"])
    newest = command("tokens", "create", "mine", "--json").json
    sent = command("send", "--events", "1500", "--json")
    assert sent.code == 0, sent.errors
    counts = {"accepted": 1500, "rejected": 0, "duplicates": 0}
    assert sent.json == {"endpoint": twistd.url, "app": "mine", **counts}
    assert database.query("SELECT app_id::text, event_type, count(*) FROM events GROUP BY 1, 2") == [
        (app["app_id"], "sample", 1500)
    ]
    for secret in (newest["token"], newest["secret"]):
        assert secret not in sent.output.decode() + sent.errors
    shown = command("send", "--app", app["app_id"], "--endpoint", twistd.url)
    assert b"accepted    1\n" in shown.output


def test_demo_application_is_the_default(directory: Path) -> None:
    """On the embedded database, events are sent as the demo application, as in the example of the README."""
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data")}
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        command = Command({**settings, "TK__SERVER__PORT": str(server.port)}, directory)
        command("apps", "create", "another")
        sent = command("send", "--json")
        assert (sent.code, sent.json["app"], sent.json["accepted"]) == (0, "demo", 1), sent.errors
        (example,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
        pasted = example.replace("http://127.0.0.1:3000", server.url)
        shown = subprocess.run([sys.executable, "-c", pasted], capture_output=True, text=True, cwd=directory)
        assert "Result(accepted=1, rejected=0, duplicates=0" in shown.stdout, shown.stderr


def test_missing_prerequisites(database: Database, directory: Path) -> None:
    """Without an endpoint, an application or a token, the error says what to do."""
    command = Command.on(database, directory, TK__SERVER__PORT="0")
    assert "--endpoint" in command("send").errors
    on_socket = Command.on(database, directory, TK__SERVER__ENDPOINT="unix:http.sock")("send")
    assert (on_socket.code, "unix:http.sock: specify its URL with --endpoint" in on_socket.errors) == (2, True)
    without_app = command("send", "--endpoint", UNREACHABLE)
    assert (without_app.code, "tkserver apps create NAME" in without_app.errors) == (3, True)
    token = command("apps", "create", "mine", "--json").json["token"]
    command("tokens", "revoke", token)
    without_token = command("send", "--endpoint", UNREACHABLE)
    assert (without_token.code, "tkserver tokens create mine" in without_token.errors) == (3, True)


@pytest.mark.parametrize(
    "url", ["localhost:3000", "ftp://x", "x", "http://", "http://[::1", "http://x:70000", "http://x?y"]
)
def test_invalid_endpoint_is_wrong_usage(tkserver: InProcessCommand, url: str) -> None:
    """An endpoint that is not a URL is an error, which contains an example."""
    assert "http://127.0.0.1:3000" in tkserver("send", "--endpoint", url, code=2).errors


def test_unreachable_server(database: Database, directory: Path) -> None:
    """A server that cannot be reached is a one-line error without a traceback."""
    App().install(database)
    failed = Command.on(database, directory)("send", "--endpoint", UNREACHABLE)
    assert failed.code == 1
    assert "cannot be reached" in failed.errors
    assert "Traceback" not in failed.errors


def test_rejected_token(twistd: Twistd, database_server: DatabaseServer, directory: Path) -> None:
    """If the server uses another database, it rejects the token; the error contains the code but not the token."""
    with database_server.migrated() as another:
        app = App().install(another)
        failed = Command.on(another, directory)("send", "--endpoint", twistd.url)
    assert (failed.code, "invalid_token" in failed.errors) == (1, True), failed.errors
    assert app.token not in failed.errors
    assert app.secret not in failed.errors
