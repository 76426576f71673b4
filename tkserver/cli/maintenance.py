"""``tkserver migrate`` and ``tkserver check``: the database brought up to date, and everything looked over."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import click

from tkserver.cli.exit_codes import Failed
from tkserver.cli.output import json_option, print_records
from tkserver.config import Settings, load
from tkserver.operations.database import embedded_by, reachable
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, Connection, rows, value
from tkserver.storage.errors import DriverError, StorageError, translate
from tkserver.storage.events import PROBE
from tkserver.storage.migrations import IncompatibleDatabase

MOST_CLOCK_DIFFERENCE = 5.0
"""Seconds."""

LEAST_FREE_DISK = 1 << 30
"""Bytes."""


@click.command()
def migrate() -> None:
    """Bring the database's schema up to date. The server does so too when it starts."""
    with reachable() as dsn:
        migrations.migrate(dsn, BlockingConnections())
        with closing(BlockingConnections().connect(dsn)) as connection:
            applied, _ = migrations.state(connection)
    click.echo(f"the schema is up to date: {max(applied)}")


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what to do where it is not well (``advice``)."""

    what: str
    found: str
    advice: str | None = None

    @property
    def well(self) -> bool:
        return self.advice is None


@click.command()
@json_option
def check(as_json: bool) -> None:
    """Look everything over: settings, database, schema, clocks, disk, open files.

    Changes nothing but the one row by which the server, too, finds out whether it can write.

    Exit code 1 where something is not well.
    """
    settings = load({})  # which says itself what is wrong with them
    findings = [Finding("settings", "can be used"), *_database(), *_machine(settings)]
    records = [{"check": one.what, "ok": one.well, "found": one.found, "what_to_do": one.advice} for one in findings]
    if as_json:
        print_records(records, as_json=True, empty="")
    else:
        for one in findings:
            mark = click.style("ok   ", fg="green") if one.well else click.style("wrong", fg="red")
            click.echo(f"{mark}  {one.what}: {one.found}" + (f". {one.advice}" if one.advice else ""))
    wrong = sum(not one.well for one in findings)
    if wrong:
        raise Failed(f"{wrong} of {len(findings)} are not well")


def _database() -> Iterator[Finding]:
    try:
        with reachable() as dsn, closing(BlockingConnections().connect(dsn)) as connection:
            yield Finding("database", f"PostgreSQL {value(connection, 'SHOW server_version')}")
            yield from (_look(one, connection) for one in (_writable, _schema, _clock))
    except (StorageError, DriverError) as error:
        problem = translate(error)
        yield Finding("database", f"cannot be reached: {problem}", "See TK__DATABASE__URL, and whether it runs")


def _look(at: Callable[[Connection], Finding], connection: Connection) -> Finding:
    try:
        return at(connection)
    except (DriverError, IncompatibleDatabase) as error:
        return Finding(at.__name__.strip("_"), str(translate(error) or error), "See the database's log")


def _writable(connection: Connection) -> Finding:
    if not migrations.state(connection)[0]:
        return Finding("writable", "no schema yet", "Run tkserver migrate, or start the server")
    try:
        rows(connection, PROBE)
    except DriverError as error:
        advice = "See whether it is a standby, its disk is full, or the user lacks the right to write"
        return Finding("writable", str(translate(error)), advice)
    return Finding("writable", "takes events")


def _schema(connection: Connection) -> Finding:
    applied, known = migrations.state(connection)
    missing, more = known - applied, applied - known
    if more:
        return Finding("schema", f"newer than this program: {max(more)}", "Install the version that wrote it")
    if missing:
        return Finding("schema", f"{len(missing)} migrations are missing", "Run tkserver migrate, or start the server")
    return Finding("schema", f"up to date: {max(applied)}")


def _clock(connection: Connection) -> Finding:
    began = time.time()
    theirs = float(value(connection, "SELECT extract(epoch FROM clock_timestamp())::float8"))
    difference = theirs - (began + time.time()) / 2
    found = f"{difference:+.1f} s from this machine's"
    if abs(difference) > MOST_CLOCK_DIFFERENCE:
        return Finding("database's clock", found, "Have both machines set their clocks by NTP")
    return Finding("database's clock", found)


def _machine(settings: Settings) -> Iterator[Finding]:
    embedded = embedded_by(settings)
    if embedded is not None:
        directory = next(path for path in (embedded.data_dir, *embedded.data_dir.parents) if path.exists())
        free = shutil.disk_usage(directory).free
        found = f"{free / (1 << 30):.1f} GiB free at {directory}"
        few = free < LEAST_FREE_DISK
        yield Finding("disk", found, "Make room, or have old events deleted" if few else None)
    else:
        yield Finding("disk", "the database's own: look there")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.server.open_files
    if hard != resource.RLIM_INFINITY and hard < wanted:
        advice = f"Raise it to {wanted} (ulimit -Hn, LimitNOFILE), or lower TK__SERVER__MAX_CONNECTIONS"
        yield Finding("open files", f"{hard} are allowed", advice)
    else:
        yield Finding("open files", "as many as TK__SERVER__MAX_CONNECTIONS needs")
