"""``tkserver apps``, ``tokens``, ``migrate`` and ``check``, run as processes on a real database and server."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.blocking_client import is_ready, post_batch
from tests.support.client import App, batch
from tests.support.command import Command, Done
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.waiting import wait_for
from tkserver.cli.main import main
from tkserver.cli.output import print_records
from tkserver.storage.blocking import BlockingConnections, transaction

Tkserver = Callable[..., Done]


def succeeding(command: Command) -> Tkserver:
    """The command, which must succeed unless another exit code is expected."""
    return partial(command, code=0)


@pytest.fixture
def tkserver(database: Database, directory: Path) -> Tkserver:
    """The command on a database of its own."""
    return succeeding(Command.on(database, directory))


@pytest.fixture
def server(database: Database, directory: Path) -> Iterator[Twistd]:
    """A server on the same database."""
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as server:
        wait_for(lambda: is_ready(server.url))
        yield server


def app_of(printed: dict[str, Any]) -> App:
    """The application of whose credentials a command has told."""
    return App(printed["org_id"], printed["app_id"], printed["token"], printed["secret"])


def accepted(server: Twistd, app: App) -> bool:
    return post_batch(server.url, app, batch([make_event()])) == 200


class TestApps:
    """Made, named, listed."""

    def test_created(self, tkserver: Tkserver, server: Twistd) -> None:
        """What is printed is enough to send events with."""
        printed = tkserver("apps", "create", "my-cli", "--tier", "pro", "--json").json
        assert re.fullmatch(rf"tk_{UUID(printed['org_id']).hex}_[0-9a-f]{{32}}", printed["token"])
        assert re.fullmatch(r"[0-9a-f]{64}", printed["secret"])
        assert accepted(server, app_of(printed))
        (token,) = tkserver("tokens", "list", "my-cli", "--json").json
        assert token["tier"] == "pro"

    def test_given_ids(self, tkserver: Tkserver) -> None:
        """Ids that exist elsewhere already can be kept."""
        app = App()
        said = tkserver("apps", "create", "mine", "--org", app.org_id, "--app", app.app_id).out
        assert f'.org_id("{app.org_id}")?' in said
        assert f'.app_id("{app.app_id}")?' in said

    def test_listed_shown_renamed(self, tkserver: Tkserver, database: Database) -> None:
        """By name or id; one without a name is there too, and can be given one."""
        nameless = App().install(database)
        named = tkserver("apps", "create", "b", "--json").json
        assert [app["name"] for app in tkserver("apps", "list", "--json").json] == ["b", None]
        assert tkserver("apps", "show", named["app_id"], "--json").json["name"] == "b"
        tkserver("apps", "rename", nameless.app_id, "a")
        tkserver("apps", "rename", "b", "c")
        assert [app["name"] for app in tkserver("apps", "list", "--json").json] == ["a", "c"]
        table = tkserver("apps", "list").out
        assert named["app_id"] in table
        assert "active tokens" in table

    @pytest.mark.parametrize("name", ["", " x", "x" * 101, "a\nb"])
    def test_bad_names(self, tkserver: Tkserver, name: str) -> None:
        """A name is something that can be typed again."""
        assert "printable" in tkserver("apps", "create", "--", name, code=2).errors

    def test_mistakes(self, tkserver: Tkserver) -> None:
        """Each has its exit code, and leaves nothing half done."""
        tkserver("apps", "create", "a")
        tkserver("apps", "create", "b")
        assert "is there already" in tkserver("apps", "create", "a", code=1).errors
        assert "another application" in tkserver("apps", "rename", "b", "a", code=1).errors
        assert "apps list" in tkserver("apps", "show", "c", code=3).errors
        assert len(tkserver("tokens", "list", "--json").json) == 2

    @pytest.mark.parametrize(
        ("command", "number", "column"),
        [("set-retention", "90", "retention_days"), ("set-quota", "5", "monthly_quota")],
    )
    def test_without_a_name(
        self, tkserver: Tkserver, database: Database, command: str, number: str, column: str
    ) -> None:
        """What is set for an application that has no name yet tells to give it one first, and how."""
        app = App().install(database)
        done = tkserver("apps", command, app.app_id, number, code=1)
        assert f"tkserver apps rename {app.app_id} NAME" in done.errors
        tkserver("apps", "rename", app.app_id, "mine")
        tkserver("apps", command, "mine", number)
        assert database.value(f"SELECT {column} FROM apps") == int(number)


class TestTokens:
    """Given out and taken back."""

    def test_rotation(self, tkserver: Tkserver, server: Twistd) -> None:
        """Both work until the overlap ends, then only the new one."""
        old = app_of(tkserver("apps", "create", "a", "--tier", "business", "--json").json)
        assert accepted(server, old)
        new = app_of(tkserver("tokens", "rotate", "a", "--overlap", "3s", "--json").json)
        end = time.monotonic() + 3
        assert accepted(server, old)
        assert accepted(server, new)
        wait_for(lambda: not accepted(server, old))
        assert time.monotonic() > end - 0.5
        assert accepted(server, new)
        listed = tkserver("tokens", "list", "a", "--json").json
        assert [(token["active"], token["tier"]) for token in listed] == [(True, "business"), (False, "business")]

    def test_rotated_by_two_at_once(self, tkserver: Tkserver, database: Database) -> None:
        """The second one waits for the first, and has its token end as well."""
        tkserver("apps", "create", "a")
        connection = BlockingConnections().connect(database.dsn)
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        with closing(connection), ThreadPoolExecutor() as operators:
            with transaction(connection):
                of = registry.app(connection, "a")
                registry.lock_tokens(connection, of)
                first = registry.create_token(connection, of.org_id, of.app_id, "free", secrets.token_hex)
                second = operators.submit(tkserver, "tokens", "rotate", "a", "--json")
                wait_for(lambda: second.done() or database.query(waiting))
            new = second.result().json["token"]
        ends = {token["token"]: token["expires_at"] for token in tkserver("tokens", "list", "a", "--json").json}
        assert ends[first.token] is not None
        assert [token for token, end in ends.items() if end is None] == [new]

    def test_revoked(self, tkserver: Tkserver, server: Twistd) -> None:
        """Refused within two seconds; the others of the application are not."""
        first = app_of(tkserver("apps", "create", "a", "--json").json)
        second = app_of(tkserver("tokens", "create", "a", "--json").json)
        assert accepted(server, first)
        assert accepted(server, second)
        tkserver("tokens", "revoke", first.token)
        began = time.monotonic()
        wait_for(lambda: not accepted(server, first))
        assert time.monotonic() - began < 2
        assert accepted(server, second)
        assert "tokens list" in tkserver("tokens", "revoke", "nope", code=3).errors

    def test_secrets_are_shown_when_asked_for(self, tkserver: Tkserver) -> None:
        """And when they are made."""
        secret = tkserver("apps", "create", "a", "--json").json["secret"]
        assert secret not in tkserver("tokens", "list").out + tkserver("tokens", "list", "--json").out
        assert secret in tkserver("tokens", "list", "--show-secret").out

    def test_durations(self, tkserver: Tkserver) -> None:
        """What is none is said, with an example."""
        tkserver("apps", "create", "a")
        assert "24h" in tkserver("tokens", "rotate", "a", "--overlap", "tomorrow", code=2).errors


class TestDatabase:
    """What the command runs on."""

    def test_embedded(self, directory: Path) -> None:
        """On the embedded database, whether a server is running on it or not."""
        settings = {"TK__DATABASE__DATA_DIR": str(directory / "data")}
        tkserver = succeeding(Command(settings, directory))
        app = app_of(tkserver("apps", "create", "before", "--json").json)
        with Twistd(directory, settings) as server:
            wait_for(lambda: is_ready(server.url))
            assert accepted(server, app)
            other = app_of(tkserver("apps", "create", "meanwhile", "--json").json)
            assert accepted(server, other)
        assert len(tkserver("apps", "list", "--json").json) == 3  # and the demo application
        assert not (directory / "data" / "postmaster.pid").exists()

    def test_migrate(self, directory: Path, database_server: DatabaseServer) -> None:
        """An empty database gets its schema; a second time there is nothing to do."""
        with database_server.empty() as database:
            tkserver = succeeding(Command.on(database, directory))
            assert "tkserver migrate" in tkserver("check", code=1).out
            tkserver("migrate")
            assert "up to date" in tkserver("migrate").out
            tkserver("check")

    def test_check(self, tkserver: Tkserver, database: Database, directory: Path) -> None:
        """Well; newer than the program; read-only; away."""
        assert all(one["ok"] for one in tkserver("check", "--json").json)
        database.query("INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_later')")
        assert "newer" in tkserver("check", code=1).out
        database.query("DELETE FROM _yoyo_migration WHERE migration_id = '9999_later'")
        read_only = f"{database.dsn}&options=-c%20default_transaction_read_only%3Don"
        said = Command({"TK__DATABASE__URL": read_only}, directory)("check", code=1).out
        assert "wrong  writable" in said
        away = Command({"TK__DATABASE__URL": "postgresql://u:secret-word@127.0.0.1:1/x"}, directory)
        said = away("check", code=1).out
        assert "cannot be reached" in said
        assert "secret-word" not in said
        assert "the database cannot" in away("apps", "list", code=4).errors

    def test_wrong_settings(self, directory: Path) -> None:
        """As the server says it."""
        said = Command({"TK__SERVER__PORT": "many"}, directory)("apps", "list", code=2).errors
        assert said.startswith("Error: TK__SERVER__PORT: ")


def test_every_command_has_help(tkserver: Tkserver) -> None:
    """With a line on what it does."""
    commands: list[tuple[str, ...]] = [()]
    for name, command in main.commands.items():
        commands += [(name,), *((name, inner) for inner in getattr(command, "commands", {}))]
    for path in commands:
        said = tkserver(*path, "--help").out
        assert re.search(r"Usage: tkserver.*\n\n  \w", said), said


def test_nothing_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Says what to do for people, and is an empty array for programs."""
    print_records([], as_json=False, empty="No apps")
    print_records([], as_json=True, empty="No apps")
    assert capsys.readouterr().out == "No apps\n[]\n"
