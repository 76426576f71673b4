"""``tkserver migrate`` and ``tkserver check``, and the databases that commands use."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.support.blocking_client import post_batch
from tests.support.client import batch
from tests.support.command import Command, InProcessCommand
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.process import Twistd


def test_embedded_database(directory: Path) -> None:
    """Commands work on the embedded database, whether a server is running or not."""
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data")}
    tkserver = partial(Command(settings, directory), code=0)
    before = tkserver("apps", "create", "before", "--json").app
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        assert post_batch(server.url, before, batch([make_event()])) == 200
        meanwhile = tkserver("apps", "create", "meanwhile", "--json").app
        assert post_batch(server.url, meanwhile, batch([make_event()])) == 200
    assert len(tkserver("apps", "list", "--json").json) == 3  # and the demo application
    assert not (directory / "data" / "postmaster.pid").exists()


def test_migrate(directory: Path, database_server: DatabaseServer) -> None:
    """An empty database gets its schema; a second migration changes nothing."""
    with database_server.empty() as database:
        tkserver = partial(Command.on(database, directory), code=0)
        assert "tkserver migrate" in tkserver("check", code=1).out
        tkserver("migrate")
        assert "up to date" in tkserver("migrate").out
        tkserver("check")


def test_check_finds_problems(tkserver: InProcessCommand, database: Database, directory: Path) -> None:
    """The check reports a newer schema, a read-only database and a database that cannot be reached."""
    assert all(finding["ok"] for finding in tkserver("check", "--json").json)
    database.query("INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_later')")
    assert "newer" in tkserver("check", code=1).out
    database.query("DELETE FROM _yoyo_migration WHERE migration_id = '9999_later'")
    read_only = f"{database.dsn}&options=-c%20default_transaction_read_only%3Don"
    assert "wrong  writable" in Command({"TK__DATABASE__URL": read_only}, directory)("check", code=1).out
    unreachable = Command({"TK__DATABASE__URL": "postgresql://u:secret-word@127.0.0.1:1/x"}, directory)
    checked = unreachable("check", code=1)
    assert "cannot be reached" in checked.out
    assert "secret-word" not in checked.out
    assert "1 of 4 checks found a problem" in checked.errors
    assert "the database cannot" in unreachable("apps", "list", code=4).errors


def test_check_as_json(tkserver: InProcessCommand, database: Database) -> None:
    """For programs, each finding has the same keys, and the exit code is the same."""
    database.query("INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_later')")
    findings = tkserver("check", "--json", code=1).json
    assert all(list(finding) == ["check", "ok", "found", "what_to_do"] for finding in findings)
    assert [finding["check"] for finding in findings if not finding["ok"]] == ["schema"]
