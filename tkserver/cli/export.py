"""``tkserver export``: stored events into a file, or on to another program."""

from __future__ import annotations

import sys
from datetime import date, datetime, time, timezone
from typing import Any

import click
import msgspec

from tkserver.cli.atomic_file import written_whole
from tkserver.cli.output import progress
from tkserver.operations.database import connected
from tkserver.operations.export import Selection, chunks, estimate, query, reading
from tkserver.operations.export_formats import WRITERS
from tkserver.storage.blocking import Connection


class Moment(click.ParamType[datetime]):
    """An RFC 3339 date-time, or a date: its midnight, UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return _moment(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time such as 2026-01-31 or 2026-01-31T12:00:00Z", param, ctx)


def _moment(text: str) -> datetime:
    if len(text) == len("2026-01-31"):
        return datetime.combine(date.fromisoformat(text), time(tzinfo=timezone.utc))
    moment = msgspec.convert(text, datetime)
    if moment.tzinfo is None:
        raise ValueError("no offset")
    return moment.astimezone(timezone.utc)


@click.command()
@click.option("--app", help="Of this application only, by its name or id.")
@click.option("--user", help="Of this user only: client_... or anon_...")
@click.option("--since", type=Moment(), help="That happened then or later: 2026-01-31, or 2026-01-31T12:00:00Z.")
@click.option("--until", type=Moment(), help="That happened before.")
@click.option("--format", "form", type=click.Choice(list(WRITERS)), default="ndjson", show_default=True)
@click.option("-o", "--output", type=click.Path(), default="-", help="A file; - for standard output, the default.")
@click.option("--force", is_flag=True, help="Replace the file, if it is there.")
def export(
    app: str | None,
    user: str | None,
    since: datetime | None,
    until: datetime | None,
    form: str,
    output: str,
    force: bool,
) -> None:
    """Write stored events, all or some, in no particular order.

    NDJSON has them as they were sent, and they can be sent again; CSV and Parquet have the columns of the table. A file
    is there when it is whole, and may be read by its owner only.
    """
    if output == "-" and form == "parquet" and sys.stdout.isatty():
        raise click.UsageError("Parquet is nothing for a terminal: name a file with -o")
    with connected() as connection:
        ids = None
        if app is not None:
            of = registry.app(connection, app)
            ids = of.org_id, of.app_id
        count = _export(connection, Selection(ids, user, since, until), form, output, force)
    click.echo(f"{count:,} events", err=True)


def _export(connection: Connection, selection: Selection, form: str, output: str, force: bool) -> int:
    count = 0
    with written_whole(output, replace=force) as file, reading(connection):
        writer = WRITERS[form](file)
        statement = query(connection, selection)
        shown = output != "-" or not sys.stdout.isatty()  # not in between the events
        with progress("about", lambda: estimate(connection, statement), shown=shown) as advance:
            for events in chunks(connection, statement):
                writer.write(events)
                count += len(events)
                advance(len(events))
        writer.close()
    return count
