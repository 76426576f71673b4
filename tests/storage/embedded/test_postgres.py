"""The embedded PostgreSQL: started by its first user, stopped by its last, whatever happened before."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest

from tests.support.database import Database
from tkserver.storage.embedded.postgres import EmbeddedError, EmbeddedPostgres, sizes_for

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the database as somebody else")


@pytest.fixture
def data_dir(directory: Path) -> Path:
    return directory / "new" / "data"


def running(server: EmbeddedPostgres) -> bool:
    return (server.data_dir / "postmaster.pid").exists()


def test_two_users(data_dir: Path) -> None:
    """The second one finds it running, and the one that leaves last stops it."""
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
    assert not running(second)


def test_pid_of_something_else(data_dir: Path) -> None:
    """A pid file whose pid is now that of another program does not keep it from starting."""
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


def test_unfinished_start(data_dir: Path) -> None:
    """What an interrupted first start has left is made anew, and an empty directory is as good as none."""
    (data_dir.parent / ".data.unfinished" / "base").mkdir(parents=True)
    data_dir.mkdir()
    server = EmbeddedPostgres(data_dir)
    server.start()
    server.stop()
    assert (data_dir / "PG_VERSION").exists()


def test_long_and_odd_names(directory: Path) -> None:
    """A data directory may have a name that no socket can have."""
    server = EmbeddedPostgres(directory / ("a long name, with 'quotes' " + "x" * 80) / "data")
    server.start()
    try:
        assert Database(server.dsn).value("SELECT 1") == 1
    finally:
        server.stop()


def test_private(data_dir: Path) -> None:
    """Nobody but its owner gets to the data or the socket."""
    server = EmbeddedPostgres(data_dir)
    server.start()
    try:
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / ".s.PGSQL.5432").stat().st_mode) == 0o700
        assert Database(server.dsn).value("SHOW listen_addresses") == ""
    finally:
        server.stop()


def test_its_log_holds_no_event(data_dir: Path) -> None:
    """A statement that goes wrong is not in the database's own log, nor is the value it went wrong with."""
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


def test_other_version(data_dir: Path) -> None:
    """Data of another major version is not touched."""
    data_dir.mkdir(parents=True)
    (data_dir / "PG_VERSION").write_text("13\n")
    with pytest.raises(EmbeddedError, match="was written by PostgreSQL 13"):
        EmbeddedPostgres(data_dir).start()


def test_directory_that_cannot_be_made() -> None:
    """It says which one and why."""
    with pytest.raises(EmbeddedError, match=r"/proc/nowhere: "):
        EmbeddedPostgres(Path("/proc/nowhere/data")).start()


@as_root
def test_way_for_one_user(directory: Path) -> None:
    """Root's directories are opened to the user that runs the database, to pass, and to nobody else."""
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "data")
    server.start()
    try:
        assert Database(server.dsn).value("SELECT 1") == 1
        mode = closed.stat().st_mode
        assert mode & stat.S_IRWXO == 0
        assert mode & stat.S_IRGRP == 0
        own = pwd.getpwnam(embedded.UNPRIVILEGED_USER)
        assert passage._acl(closed)[passage._USER, own.pw_uid] == passage._PASS
    finally:
        server.stop()


def test_passage_keeps_what_is_there() -> None:
    """A list that somebody has made keeps its entries, and what its mask took away stays away."""
    nobody = 0xFFFFFFFF
    acl = {(1, nobody): 7, (2, 1000): 6, (4, nobody): 5, (16, nobody): 6, (32, nobody): 0}
    assert passage.with_passage(acl, 1001) == {**acl, (2, 1001): 1, (4, nobody): 4, (16, nobody): 7}
    assert passage.with_passage(acl, 1000) == {**acl, (2, 1000): 7, (4, nobody): 4, (16, nobody): 7}


def test_sizes() -> None:
    """In proportion to the machine, between PostgreSQL's own defaults and what is of use."""
    gib = 1 << 30
    assert sizes_for(gib // 2, gib) == {"shared_buffers": "128MB", "max_wal_size": "1024MB"}
    assert sizes_for(2 * gib, 20 * gib) == {"shared_buffers": "256MB", "max_wal_size": "2048MB"}
    assert sizes_for(64 * gib, 900 * gib) == {"shared_buffers": "512MB", "max_wal_size": "4096MB"}
