"""``tkserver export``: stored events, written to a file or to standard output."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

import click

from tkserver.cli.atomic_file import open_atomically
from tkserver.cli.database import open_database
from tkserver.cli.exit_codes import Failed
from tkserver.cli.output import TerminalWriter, counted, print_line, progress_bar
from tkserver.cli.parameters import Timestamp
from tkserver.config import load
from tkserver.operations.apps import find_app
from tkserver.operations.export import Selection, UnreadableEvent, open_export
from tkserver.operations.export_formats import WRITERS, write_events
from tkserver.storage.blocking import Connection

_SUFFIXES = {".csv": "csv", ".parquet": "parquet"}
"""Formats by the suffixes of files."""


@click.command()
@click.option("--app", help="Export only the events of this application (name or id).")
@click.option("--user", help="Export only the events of this user (client_... or anon_...).")
@click.option(
    "--since",
    type=Timestamp(),
    help="Export only events that happened at this time or later: 7d (ago), 2026-01-31 or 2026-01-31T12:00:00Z.",
)
@click.option("--until", type=Timestamp(), help="Export only events that happened before this time.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(WRITERS)),
    help="By default, the suffix of the file says it, such as .csv or .parquet; otherwise, ndjson.",
)
@click.option("-o", "--output", type=click.Path(), default="-", help="File to write; by default, standard output (-).")
@click.option("--raw", is_flag=True, help="Write CSV values that look like formulas unchanged, for programs.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def export(
    app: str | None,
    user: str | None,
    since: datetime | None,
    until: datetime | None,
    format_name: str | None,
    output: str,
    raw: bool,
    force: bool,
) -> None:
    """Export stored events, in no particular order.

    NDJSON contains the events as they were sent, and they can be sent again. CSV and Parquet contain the columns of the
    table. In CSV, values that a spreadsheet would take for formulas begin with an apostrophe. The file appears when it
    is complete; only its owner can read it.
    """
    format_name = format_name or _SUFFIXES.get(Path(output).suffix.lower(), "ndjson")
    if output == "-" and format_name == "parquet" and sys.stdout.isatty():
        raise click.UsageError("Parquet cannot be printed to a terminal: specify a file with -o")
    with open_database(load({})) as connection:
        selection = Selection(None if app is None else find_app(connection, app), user, since, until)
        count, unreadable = _export(connection, selection, format_name, output, raw=raw, force=force)
    click.echo(counted(count, "event"), err=True)
    for event in unreadable:
        print_line(f"not exported: event {event.event_id} of application {event.app_id}: {event.problem}", error=True)
    if unreadable:
        raise Failed(f"{counted(len(unreadable), 'event')} cannot be exported")


def _export(
    connection: Connection, selection: Selection, format_name: str, output: str, *, raw: bool, force: bool
) -> tuple[int, list[UnreadableEvent]]:
    to_terminal = output == "-" and sys.stdout.isatty()
    with open_atomically(output, replace=force) as file, open_export(connection, selection) as events:  # noqa: SIM117
        with progress_bar("about", events.estimate, visible=not to_terminal) as advance:  # not between events
            target = cast(BinaryIO, TerminalWriter(file)) if to_terminal else file
            count = write_events(events.chunks(), target, format_name, advance, raw=raw)
            return count, events.unreadable
