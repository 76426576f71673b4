"""``tkserver prune``: what is too old, deleted now."""

from __future__ import annotations

import time

import click

from tkserver.cli.output import json_option, print_records, progress
from tkserver.config import load
from tkserver.operations import retention
from tkserver.operations.database import connected
from tkserver.operations.retention import Limit
from tkserver.storage.blocking import Connection


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@json_option
def prune(dry_run: bool, as_json: bool) -> None:
    """Delete the events that are older than they are to be kept. The servers do so too, every hour.

    An application keeps its events for as long as apps set-retention says, and else TK__RETENTION__DAYS. Prints a
    line for each application that does not keep them for ever.
    """
    default_days = load({}).retention.days
    with connected() as connection:
        limits = retention.limits(connection, default_days)
        numbers = _count(connection, limits) if dry_run else _prune(connection, limits)
    records = [
        {
            "name": limit.name,
            "app_id": limit.app_id,
            "org_id": limit.org_id,
            "retention_days": limit.days,
            "received_before": limit.before,
            "to_delete" if dry_run else "deleted": number,
        }
        for limit, number in zip(limits, numbers, strict=True)
    ]
    print_records(records, as_json=as_json, empty="All events are kept for ever: tkserver apps set-retention APP DAYS")


def _count(connection: Connection, limits: list[Limit]) -> list[int]:
    return [retention.count(connection, limit) for limit in limits]


def _prune(connection: Connection, limits: list[Limit]) -> list[int]:
    with progress("deleting", lambda: sum(_count(connection, limits))) as gone:
        return [retention.prune(connection, limit, time.monotonic, time.sleep, gone) for limit in limits]
