"""``tkserver quarantine``: invalid events."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click

from tkserver.cli.database import open_database, sleep
from tkserver.cli.output import Record, counted, json_option, print_line, print_record, print_records
from tkserver.config import load
from tkserver.operations import quarantine as operations
from tkserver.operations.apps import find_app
from tkserver.operations.quarantine import QuarantinedEvent, Selection
from tkserver.storage.blocking import Connection
from tkserver.storage.quarantine_reasons import Reason, advice
from tkserver.wire.api_errors import EVENT_CODES

_EMPTY = "No events are in quarantine."

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def quarantine() -> None:
    """Show, replay and delete invalid events.

    The server does not store an event that violates a rule. It keeps the event in quarantine, with the reason, for
    TK__QUARANTINE__DAYS.
    """


def _filters(command: _Command) -> _Command:
    """Add the options that select events by their reason and their SDK."""
    for option in (
        click.option("--sdk-version", help="Only events from this version of an SDK, such as 0.3.0."),
        click.option("--sdk", help="Only events from this SDK, such as telemetry-kit-rust."),
        click.option("--code", type=click.Choice(EVENT_CODES), help="Only events with this error code."),
    ):
        command = option(command)
    return command


@quarantine.command("list")
@click.argument("app", required=False)
@json_option
def list_(app: str | None, as_json: bool) -> None:
    """List the reasons of quarantined events, and say what to do.

    APP is the name or id of an application; by default, all applications. Each line counts the events with the same
    reason from the same version of an SDK.
    """
    with open_database(load({})) as connection:
        reasons = operations.list_reasons(connection, None if app is None else find_app(connection, app))
    if as_json:
        print_records([_reason(reason) for reason in reasons], as_json=True, empty="")
        return
    print_records([_summary(reason) for reason in reasons], as_json=False, empty=_EMPTY)
    for line in _advice(reasons):
        print_line(line)


@quarantine.command()
@click.argument("app_or_id", nargs=-1, required=True)
@_filters
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of events.")
@json_option
def show(app_or_id: tuple[str, ...], limit: int, as_json: bool, **filters: Any) -> None:
    """Show quarantined events with their JSON text, latest first.

    APP_OR_ID is the name or id of an application, the id of an event, or its number in the quarantine.
    """
    with open_database(load({})) as connection:
        selections = _selections(connection, app_or_id, filters)
        found = [event for selection in selections for event in operations.list_events(connection, selection, limit)]
    if as_json:
        print_records([event._asdict() for event in found], as_json=True, empty="")
    elif not found:
        print_line(_EMPTY)
    else:
        _print_events(found)


@quarantine.command()
@click.argument("app_or_id", nargs=-1)
@_filters
@json_option
def replay(app_or_id: tuple[str, ...], as_json: bool, **filters: Any) -> None:
    """Validate quarantined events again, and store those that are valid now.

    APP_OR_ID is the name or id of an application, the id of an event, or its number in the quarantine; by default, all
    events. The stored events are removed from the quarantine. The others stay.
    """
    result = operations.Replay()
    with open_database(load({})) as connection:
        for selection in _selections(connection, app_or_id, filters):
            result += operations.replay(connection, selection, time.monotonic, sleep)
    print_record({"stored": result.stored, "duplicates": result.duplicates, "left": result.left}, as_json=as_json)


@quarantine.command()
@click.argument("app_or_id", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="Delete the events of all applications.")
@json_option
def delete(app_or_id: tuple[str, ...], everything: bool, as_json: bool, **filters: Any) -> None:
    """Delete events from the quarantine.

    APP_OR_ID is the name or id of an application, the id of an event, or its number in the quarantine.
    """
    if bool(app_or_id) == everything:
        raise click.UsageError("specify either applications or events, or --all")
    deleted = 0
    with open_database(load({})) as connection:
        for selection in _selections(connection, app_or_id, filters):
            deleted += operations.delete(connection, selection, time.monotonic, sleep)
    print_record({"deleted": deleted}, as_json=as_json)


def _selections(connection: Connection, names: Sequence[str], filters: dict[str, Any]) -> list[Selection]:
    """Return a selection for each argument of a command; for none, one of all events."""
    selections = [operations.select(connection, name) for name in names] or [Selection()]
    return [replace(selection, **filters) for selection in selections]


def _reason(reason: Reason) -> Record:
    return {**reason._asdict(), "what_to_do": advice(reason.code, reason.message)}


def _summary(reason: Reason) -> Record:
    """Return the columns of the table for people."""
    sdk = " ".join(text for text in (reason.sdk, reason.sdk_version) if text)
    return {
        "app": reason.app,
        "events": reason.events,
        "last": reason.last_received_at,
        "sdk": sdk or None,
        "reason": reason.message,
    }


def _advice(reasons: Sequence[Reason]) -> list[str]:
    """Return what to do about each reason, and how many events were dropped."""
    by_advice = {advice(reason.code, reason.message): reason for reason in reasons}
    lines = [f"\n{reason.code}: {reason.message}\n  {text}" for text, reason in by_advice.items()]
    dropped = {reason.app: reason.dropped for reason in reasons if reason.dropped}
    return lines + [
        f"\nDeleted because the quarantine of {app} is full: {counted(number, 'older event')}."
        for app, number in dropped.items()
    ]


def _print_events(events: Sequence[QuarantinedEvent]) -> None:
    for number, event in enumerate(events):
        if number:
            print_line("")
        # Line breaks are allowed between the values of JSON, but must not look like lines of this output.
        text = event.event and re.sub(r"[\t\r\n]", " ", event.event)
        print_record({**event._asdict(), "id": str(event.id), "event": text}, as_json=False)
