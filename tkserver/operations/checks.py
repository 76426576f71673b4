"""Checks of an installation: settings, database, schema, clocks, disk space, open files."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from tkserver.config import Settings
from tkserver.operations.database import ConfiguredDatabase, running_database
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, Connection, rows, value
from tkserver.storage.errors import StorageError
from tkserver.storage.migrations import IncompatibleDatabase
from tkserver.storage.store_statement import PROBE

MAX_CLOCK_DIFFERENCE = 5.0
"""Seconds between the clocks of the database and of this machine."""

MIN_FREE_DISK = 1 << 30
"""Bytes."""

_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    :ivar check: what was checked.
    :ivar found: the result as text.
    :ivar advice: how to solve the problem; ``None`` if there is none.
    """

    check: str
    found: str
    advice: str | None = None

    @property
    def ok(self) -> bool:
        return self.advice is None


def run_checks(settings: Settings) -> list[Finding]:
    """Check an installation.

    This changes nothing except the one row that servers write, too, to check that the database accepts writes.
    """
    # Settings that cannot be used could not have been loaded.
    findings = [Finding("settings", "valid")]
    findings += _check_database(settings)
    return [*findings, _check_disk(settings), _check_open_files(settings)]


def _check_database(settings: Settings) -> Iterator[Finding]:
    try:
        with running_database(settings) as dsn, closing(BlockingConnections().connect(dsn)) as connection:
            yield Finding("database", f"PostgreSQL {value(connection, 'SHOW server_version')}")
            for name, check in _DATABASE_CHECKS.items():
                yield _run_check(name, check, connection)
    except StorageError as error:
        advice = "Check TK__DATABASE__URL, and that the database is running"
        yield Finding("database", f"cannot be reached: {error}", advice)


def _run_check(name: str, check: Callable[[Connection], Finding], connection: Connection) -> Finding:
    try:
        return check(connection)
    except (StorageError, IncompatibleDatabase) as error:
        return Finding(name, str(error), "See the log of the database")


def _check_writable(connection: Connection) -> Finding:
    applied, _ = migrations.state(connection)
    if not applied:
        return Finding("writable", "no schema yet", "Run tkserver migrate, or start the server")
    try:
        rows(connection, PROBE)
    except StorageError as error:
        advice = "Check whether it is a standby, its disk is full, or the user has no permission to write"
        return Finding("writable", str(error), advice)
    return Finding("writable", "accepts events")


def _check_schema(connection: Connection) -> Finding:
    applied, known = migrations.state(connection)
    missing, unknown = known - applied, applied - known
    if unknown:
        advice = "Install the version of tkserver that migrated it"
        return Finding("schema", f"newer than this version of tkserver: {max(unknown)}", advice)
    if missing:
        return Finding("schema", f"{len(missing)} migrations are missing", "Run tkserver migrate, or start the server")
    return Finding("schema", f"up to date: {max(applied)}")


def _check_clock(connection: Connection) -> Finding:
    before = time.time()
    database_time = float(value(connection, "SELECT extract(epoch FROM clock_timestamp())::float8"))
    difference = database_time - (before + time.time()) / 2
    found = f"{difference:+.1f} s compared with this machine"
    advice = "Synchronize the clocks of both machines with NTP"
    return Finding("database's clock", found, advice if abs(difference) > MAX_CLOCK_DIFFERENCE else None)


_DATABASE_CHECKS = {"writable": _check_writable, "schema": _check_schema, "database's clock": _check_clock}


def _check_disk(settings: Settings) -> Finding:
    embedded = ConfiguredDatabase.from_settings(settings).embedded
    if embedded is None:
        return Finding("disk", "not checked: the database has its own")
    directory = next(path for path in (embedded.data_dir, *embedded.data_dir.parents) if path.exists())
    free = shutil.disk_usage(directory).free
    advice = "Free disk space, or set a retention so that old events are deleted"
    return Finding("disk", f"{free / _GIB:.1f} GiB free at {directory}", advice if free < MIN_FREE_DISK else None)


def _check_open_files(settings: Settings) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.server.open_files
    if hard != resource.RLIM_INFINITY and hard < needed:
        advice = f"Raise the limit to {needed} (ulimit -Hn, LimitNOFILE), or lower TK__SERVER__MAX_CONNECTIONS"
        return Finding("open files", f"limited to {hard}", advice)
    return Finding("open files", "enough for TK__SERVER__MAX_CONNECTIONS")
