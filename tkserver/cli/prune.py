"""``tkserver prune``: the deletion of old events."""

from __future__ import annotations

import time

import click

from tkserver.cli.database import open_database, sleep
from tkserver.cli.output import Record, json_option, print_records, progress_bar
from tkserver.config import load
from tkserver.operations import quarantine, retention
from tkserver.operations.retention import RetentionLimit


@click.command()
@click.option("--dry-run", is_flag=True, help="Print how many events would be deleted, and delete nothing.")
@json_option
def prune(dry_run: bool, as_json: bool) -> None:
    """Delete old events now. The servers do this every hour.

    An application stores events for as long as set with apps set-retention, or else with TK__RETENTION__DAYS. The
    command prints a line for each application that does not store events forever. It also deletes old events from the
    quarantine.
    """
    settings = load({})
    default_days = settings.retention.days
    with open_database(settings) as connection:
        if dry_run:
            numbers = retention.preview(connection, default_days)
        else:
            with progress_bar("deleting", lambda: sum(retention.preview(connection, default_days).values())) as advance:
                numbers = retention.prune(connection, default_days, time.monotonic, sleep, advance)
            quarantine.prune(connection, settings.quarantine.days, default_days, time.monotonic, sleep)
    column = "to_delete" if dry_run else "deleted"
    records = [_record(limit, column, number) for limit, number in numbers.items()]
    empty = "All events are stored forever. To change this: tkserver apps set-retention APP DAYS"
    table = [{name: value for name, value in record.items() if name != "org_id"} for record in records]
    print_records(records, as_json=as_json, empty=empty, table=table)


def _record(limit: RetentionLimit, column: str, number: int) -> Record:
    return {
        "name": limit.name,
        "app_id": limit.app_id,
        "org_id": limit.org_id,
        "retention_days": limit.days,
        "received_before": limit.before,
        column: number,
    }
