"""The embedded PostgreSQL is started by its first user and stopped by its last, whatever happened before."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
from pathlib import Path

import psutil
import psycopg2
import psycopg2.errors
import pytest

from tests.support.database import Database
from tests.support.waiting import wait_for
from tkserver.storage.embedded import posix_acl
from tkserver.storage.embedded.exceptions import EmbeddedError
from tkserver.storage.embedded.os_user import UNPRIVILEGED_USER, DatabaseUser
from tkserver.storage.embedded.posix_acl import with_traversal
from tkserver.storage.embedded.postgres import EmbeddedPostgres, sizes_for

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the database as another user")


@pytest.fixture
def data_dir(directory: Path) -> Path:
    return directory / "new" / "data"


def is_running(server: EmbeddedPostgres) -> bool:
    return (server.data_dir / "postmaster.pid").exists()


def test_last_user_stops_the_server(data_dir: Path) -> None:
    """The second user finds the server running, and the last user stops it."""
    first, second = EmbeddedPostgres(data_dir), EmbeddedPostgres(data_dir)
    first.start()
    try:
        pid = (data_dir / "postmaster.pid").read_text().splitlines()[0]
        second.start()
        first.stop()
        assert (data_dir / "postmaster.pid").read_text().splitlines()[0] == pid
        assert Database(second.dsn).value("SELECT 1") == 1
    finally:
        second.stop()
        first.stop()
    assert not is_running(second)


def test_stale_pid_of_another_program(data_dir: Path) -> None:
    """The server starts although its pid file contains the process id of another program."""
    server = EmbeddedPostgres(data_dir)
    server.start()
    text = (data_dir / "postmaster.pid").read_text()
    server.stop()
    (data_dir / "postmaster.pid").write_text(text.replace(text.splitlines()[0], str(os.getpid()), 1))
    server.start()
    try:
        assert Database(server.dsn).value("SELECT 1") == 1
    finally:
        server.stop()


def test_stale_pid_of_another_server(directory: Path, data_dir: Path) -> None:
    """A pid file whose pid belongs to the PostgreSQL of another directory does not keep the server from starting."""
    other = EmbeddedPostgres(directory / "other")
    other.start()
    postgres = EmbeddedPostgres(data_dir)
    try:
        postgres.start()
        pid_file = (data_dir / "postmaster.pid").read_text()
        os.kill(int(pid_file.split()[0]), signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(int(pid_file.split()[0])))
        other_pid = (directory / "other" / "postmaster.pid").read_text().split()[0]
        (data_dir / "postmaster.pid").write_text(pid_file.replace(pid_file.split()[0], other_pid, 1))
        postgres.start()
        assert Database(postgres.dsn).value("SELECT 1") == 1
        assert Database(other.dsn).value("SELECT 1") == 1
    finally:
        postgres.stop()
        other.stop()


def test_server_is_a_zombie(data_dir: Path) -> None:
    """A server that has died, and whose parent has not noticed that, is started again."""
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    try:
        os.kill(int((data_dir / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        zombie = subprocess.Popen(["true"])
        wait_for(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)
        lines = (data_dir / "postmaster.pid").read_text().splitlines(keepends=True)
        (data_dir / "postmaster.pid").write_text("".join([f"{zombie.pid}\n", *lines[1:]]))
        postgres.start()
        assert Database(postgres.dsn).value("SELECT 1") == 1
        zombie.wait()
    finally:
        postgres.stop()


def test_interrupted_first_start(data_dir: Path) -> None:
    """The files of an interrupted first start are replaced, and an empty data directory is initialized."""
    (data_dir.parent / ".data.unfinished" / "base").mkdir(parents=True)
    data_dir.mkdir()
    server = EmbeddedPostgres(data_dir)
    server.start()
    server.stop()
    assert (data_dir / "PG_VERSION").exists()


def test_data_directory_with_a_long_name(directory: Path) -> None:
    """The path of the data directory may contain spaces and quotes, and may be too long for a socket."""
    server = EmbeddedPostgres(directory / ("a long name, with 'quotes' " + "x" * 80) / "data")
    server.start()
    try:
        assert Database(server.dsn).value("SELECT 1") == 1
    finally:
        server.stop()


def test_only_the_owner_has_access(data_dir: Path) -> None:
    """Only the owner can access the data and the socket, and the server does not listen on TCP."""
    server = EmbeddedPostgres(data_dir)
    server.start()
    try:
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / ".s.PGSQL.5432").stat().st_mode) == 0o700
        assert Database(server.dsn).value("SHOW listen_addresses") == ""
    finally:
        server.stop()


def test_log_contains_no_values(data_dir: Path) -> None:
    """The log of PostgreSQL contains neither a failed statement nor its values."""
    server = EmbeddedPostgres(data_dir)
    server.start()
    try:
        database = Database(server.dsn)
        database.query("CREATE TABLE t (v text UNIQUE)")
        database.query("INSERT INTO t VALUES ('client_x')")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            database.query("INSERT INTO t VALUES ('client_x') -- client_y")
    finally:
        server.stop()
    log = (data_dir / "server.log").read_text()
    assert "duplicate key value" in log
    assert "client_" not in log


def test_data_of_another_major_version(data_dir: Path) -> None:
    """The data of another major version is not changed."""
    data_dir.mkdir(parents=True)
    (data_dir / "PG_VERSION").write_text("13\n")
    with pytest.raises(EmbeddedError, match="PostgreSQL 13"):
        EmbeddedPostgres(data_dir).start()
    assert [path.name for path in data_dir.iterdir()] == ["PG_VERSION"]


def test_directory_that_cannot_be_created() -> None:
    """The error names the directory and the reason."""
    with pytest.raises(EmbeddedError, match=r"/proc/nowhere: "):
        EmbeddedPostgres(Path("/proc/nowhere/data")).start()


def run_as_database_user(*command: str | Path) -> int:
    """Run a program as the user who runs PostgreSQL for root, and return its exit status."""
    options = DatabaseUser.for_this_process().subprocess_options
    return subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL, **options).returncode


@as_root
def test_closed_directory_of_root(directory: Path) -> None:
    """The user who runs PostgreSQL can pass through a closed directory, but not list it; nobody else can do either."""
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").touch(mode=0o644)
    server = EmbeddedPostgres(closed / "data")
    server.start()
    try:
        assert Database(server.dsn).value("SELECT 1") == 1
        mode = closed.stat().st_mode
        assert mode & stat.S_IRWXO == 0
        assert mode & stat.S_IRGRP == 0
        assert run_as_database_user("cat", closed / "file") == 0
        assert run_as_database_user("ls", closed) != 0
        nobody = pwd.getpwnam("nobody")
        read = subprocess.run(
            ["cat", closed / "file"],
            cwd="/",
            stderr=subprocess.DEVNULL,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
        )
        assert read.returncode != 0
    finally:
        server.stop()


ACL = "user::rwx\nuser:1000:rw-\ngroup::r-x\ngroup:50:---\nmask::rw-\nother::---"


def test_traversal_changes_the_rights_of_nobody_else() -> None:
    """An access control list keeps its entries, and rights that its mask removed stay removed."""
    added = with_traversal(ACL, 1001).splitlines()
    assert added == [
        *("user::rwx", "user:1000:rw-", "group::r--", "group:50:---", "mask::rwx", "other::---", "user:1001:--x")
    ]
    extended = with_traversal(ACL, 1000).splitlines()
    assert extended == ["user::rwx", "user:1000:rwx", "group::r--", "group:50:---", "mask::rwx", "other::---"]


def test_traversal_of_a_directory_without_a_list() -> None:
    """The permissions of the group are the mask of a directory that had no access control list."""
    assert with_traversal("user::rwx\ngroup::---\nother::---", 7).splitlines() == [
        *("user::rwx", "group::---", "other::---", "user:7:--x", "mask::--x")
    ]


@as_root
@pytest.mark.parametrize(
    ("name", "value"), [("_LIBRARY", "libmissing.so.1"), ("_TYPE_ACCESS", 0)], ids=["no library", "not supported"]
)
def test_access_control_lists_are_missing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """Without access control lists, the error names the user and the path, and says what to do."""
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(posix_acl, name, value)
    with pytest.raises(EmbeddedError, match="start the server as another user") as error:
        DatabaseUser.for_this_process().allow_traversal(closed / "data")
    assert UNPRIVILEGED_USER in str(error.value)
    assert str(closed) in str(error.value)


def test_sizes() -> None:
    """Memory and log sizes are proportional to the machine, between PostgreSQL's defaults and a useful maximum."""
    gib = 1 << 30
    assert sizes_for(gib // 2, gib) == {"shared_buffers": "128MB", "max_wal_size": "1024MB"}
    assert sizes_for(2 * gib, 20 * gib) == {"shared_buffers": "256MB", "max_wal_size": "2048MB"}
    assert sizes_for(64 * gib, 900 * gib) == {"shared_buffers": "512MB", "max_wal_size": "4096MB"}
