"""``twistd`` processes that are started as root: they open their ports as root, and continue as another user."""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path

import pytest

from tests.support.blocking_client import post_batch
from tests.support.certificates import Certificate
from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.source import ROOT
from tests.support.waiting import wait_for
from tkserver.storage.embedded import demo
from tkserver.storage.embedded.os_user import UNPRIVILEGED_USER, DatabaseUser

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DEMO = App(demo.ORG_ID, demo.APP_ID, demo.TOKEN, demo.SECRET)


@pytest.fixture
def account() -> pwd.struct_passwd:
    """The user that the server becomes by default."""
    account = DatabaseUser.for_this_process().account
    assert account is not None
    return account


def ids(pid: int) -> tuple[set[int], set[int], set[int]]:
    """Return the user ids of a process, its group ids, and its supplementary groups."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {
        name: {*map(int, text.split())} for name, _, text in (line.partition(":") for line in lines) if name in FIELDS
    }
    return values["Uid"], values["Gid"], values["Groups"]


FIELDS = ("Uid", "Gid", "Groups")


def is_unprivileged(pid: int, account: pwd.struct_passwd) -> bool:
    """Return whether a process has the rights of a user and no others."""
    groups = {*os.getgrouplist(account.pw_name, account.pw_gid)}
    return ids(pid) == ({account.pw_uid}, {account.pw_gid}, groups)


@pytest.mark.parametrize("arguments", [("-n", "tkserver"), ("-ny", str(ROOT / "tkserver.tac"))], ids=["plugin", "tac"])
def test_foreground(
    directory: Path, database: Database, account: pwd.struct_passwd, arguments: tuple[str, ...]
) -> None:
    """A server in the foreground has no privileges when it accepts connections, and stores events."""
    app = App().install(database)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}, arguments) as server:
        assert is_unprivileged(server.pid, account)
        assert f"continuing as the user {UNPRIVILEGED_USER} instead of root" in server.log
        server.wait_until_ready()
        assert post_batch(server.url, app, batch([make_event()])) == 200
        assert server.stop() == 0
    assert "Traceback" not in server.log


def test_daemon_with_embedded_database(directory: Path, account: pwd.struct_passwd) -> None:
    """A daemon owns its log, starts and stops the embedded database without privileges, and removes its pid file."""
    settings = {"TK__DATABASE__DATA_DIR": str(directory / "data")}
    daemon = Twistd(directory, settings, ("tkserver",)).launch()
    assert daemon.wait() == 0
    pid_file = directory / "twistd.pid"
    try:
        daemon.wait_for_line("listens on")
        assert is_unprivileged(int(pid_file.read_text()), account)
        assert (directory / "twistd.log").stat().st_uid == account.pw_uid
        assert pid_file.stat().st_uid == 0
        daemon.wait_until_ready()
        assert post_batch(daemon.url, DEMO, batch([make_event()])) == 200
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    wait_for(lambda: not pid_file.exists())
    assert not (directory / "data/postmaster.pid").exists()
    assert "Traceback" not in daemon.log


def test_directory_of_root(directory: Path, database: Database) -> None:
    """A server whose user cannot write to its directories says so, and starts and stops without errors."""
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__ENDPOINT": f"unix:{closed / 'http.sock'}"}
    with Twistd(closed, settings) as server:
        server.wait_for_line(f"cannot write to {closed}: a log file there is not rotated")
        assert server.stop() == 0
    assert "the socket cannot be removed" in server.log
    assert "Traceback" not in server.log
    with Twistd(closed, settings) as server:
        server.wait_for_line("listens on")
        assert server.stop() == 0


def test_certificate_of_root(directory: Path, database: Database) -> None:
    """If the user cannot read the key, the server works, and says at the start that renewals will not."""
    files = Certificate.make(directory, "localhost")
    (directory / "key.pem").chmod(0o600)
    settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__ENDPOINT": files.endpoint}
    with Twistd(directory, settings) as server:
        server.wait_for_line("the certificate cannot be read again, the previous one is used")
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("user", "reason"), [("no-such-user", "there is no user 'no-such-user'"), ("root", "this user has root privileges")]
)
def test_user_that_cannot_be_used(directory: Path, database: Database, user: str, reason: str) -> None:
    """A server that cannot give up its privileges says why in one line, and ends."""
    server = Twistd(directory, {"TK__DATABASE__URL": database.dsn, "TK__SERVER__USER": user}).launch()
    assert server.wait() == 1
    lines = [line for line in server.log.splitlines() if "cannot give up root privileges" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"(TK__SERVER__USER): {reason} [tap]")
    assert "listens on" not in server.log
    assert "Traceback" not in server.log


def test_option_of_twistd(directory: Path, database: Database, account: pwd.struct_passwd) -> None:
    """``twistd --uid`` has precedence over the setting."""
    arguments = ("-n", "--uid", str(account.pw_uid), "--gid", str(account.pw_gid), "tkserver")
    settings = {"TK__DATABASE__URL": database.dsn, "TK__SERVER__USER": "no-such-user"}
    with Twistd(directory, settings, arguments) as server:
        users, _, _ = ids(server.pid)
        assert users == {account.pw_uid}
        server.wait_until_ready()
        assert server.stop() == 0
