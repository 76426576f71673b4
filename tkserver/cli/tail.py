"""``tkserver tail``: events as they arrive."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import click

from tkserver.cli.database import open_database
from tkserver.cli.output import print_line
from tkserver.cli.waiting import not_waiting
from tkserver.config import load
from tkserver.operations.apps import find_app
from tkserver.operations.tail import Tail
from tkserver.storage.arrivals import QUARANTINED, Arrival

POLL_INTERVAL = 1.0
"""Seconds between two looks for new events."""


@click.command()
@click.argument("app")
@click.option("-n", "--last", type=click.IntRange(0, 1000), default=10, show_default=True, help="Show so many first.")
@click.option("--user", metavar="PREFIX", help="Only events of users whose ids begin with this text.")
@click.option("--type", "event_type", help="Only events of this type, such as command_execution.")
@click.option("--no-follow", is_flag=True, help="Do not wait for more events.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each event.")
def tail(app: str, last: int, user: str | None, event_type: str | None, no_follow: bool, as_json: bool) -> None:
    """Show the events of an application as they arrive, for those who integrate an SDK.

    Events in quarantine are shown with the reason. To end the command, press Ctrl+C. With --type, only accepted events
    are shown, because the type of an invalid event may not be known.
    """
    with open_database(load({})) as connection, suppress(KeyboardInterrupt):
        selected = {"user_prefix": user or "", "event_type": event_type or ""}
        arrivals = Tail(connection, find_app(connection, app), time.monotonic, **selected)
        found = arrivals.read(last)
        _print(found, as_json=as_json)
        if no_follow:
            return
        if not found and not as_json:
            print_line("Waiting for events. To send one: tkserver send --help", error=True)
        with not_waiting():
            while True:
                time.sleep(POLL_INTERVAL)
                _print(arrivals.read(), as_json=as_json)


def _print(arrivals: list[Arrival], *, as_json: bool) -> None:
    for arrival in arrivals:
        print_line(_json(arrival) if as_json else _line(arrival))


def _json(arrival: Arrival) -> str:
    return json.dumps({**arrival._asdict(), "received_at": arrival.received_at.isoformat()})


def _line(arrival: Arrival) -> str:
    moment = f"{arrival.received_at.astimezone():%H:%M:%S}"
    user = (arrival.user_id or "-")[:20]
    if arrival.outcome == QUARANTINED:
        return f"{moment}  {arrival.outcome:11}  {user:20}  {arrival.code}: {arrival.message}"
    details = (arrival.type, arrival.name or "", arrival.version, arrival.os)
    return f"{moment}  {arrival.outcome:11}  {user:20}  " + "  ".join(text for text in details if text)
