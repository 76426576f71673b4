"""``tkserver erase``: the erasure of a user."""

from __future__ import annotations

import time

import click

from tkserver.cli.confirmation import confirm, dry_run_option, yes_option
from tkserver.cli.database import open_database, sleep
from tkserver.cli.output import Record, counted, json_option, print_record
from tkserver.cli.parameters import CheckedText
from tkserver.config import load
from tkserver.operations import erasure
from tkserver.operations.apps import find_app
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection

USER_ID = CheckedText("user id", erasure.check_user_id)


@click.command()
@click.option("--user", "user_id", type=USER_ID, required=True, help="Id of the user: client_... or anon_...")
@click.option("--app", help="Name or id of the only application to erase the user from; by default, all applications.")
@click.option("--undo", is_flag=True, help="Store new events of the user again. Deleted events are not restored.")
@yes_option
@dry_run_option
@json_option
def erase(user_id: str, app: str | None, undo: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Delete all events of a user, and store no new ones.

    The server accepts later events of the user, so that SDKs delete them, but does not store them. To recognize the
    user, it stores a hash of the id, keyed with a key of this installation. The command prints a receipt, which does
    not contain the id.
    """
    with open_database(load({})) as connection:
        found = None if app is None else find_app(connection, app)
        if dry_run and not undo:
            print_record(_preview(connection, user_id, found), as_json=as_json)
            return
        if dry_run:
            raise click.UsageError("--undo deletes nothing, and has no --dry-run")
        if undo:
            receipt = erasure.undo(connection, user_id, found)
        else:
            confirm(lambda: _question(connection, user_id, found), yes=yes, without_terminal=True)
            receipt = erasure.erase(connection, user_id, found, time.monotonic, sleep)
    record = {
        "user_hash": receipt.user_hash.hex(),
        "application": "all" if receipt.app is None else receipt.app.label,
        "done_at": receipt.done_at,
        _deleted(undo=undo, as_json=as_json): receipt.deleted,
    }
    if not undo:
        record["deleted_from_quarantine"] = receipt.deleted_from_quarantine
    print_record(record, as_json=as_json)


def _question(connection: Connection, user_id: str, app: App | None) -> str:
    stored, quarantined = erasure.preview(connection, user_id, app)
    place = "all applications" if app is None else app.title
    events = f"{counted(stored, 'event')}, and {quarantined:,} in quarantine,"
    return f"Delete {events} of {user_id} in {place}, and store no new ones?"


def _preview(connection: Connection, user_id: str, app: App | None) -> Record:
    stored, quarantined = erasure.preview(connection, user_id, app)
    place = "all" if app is None else app.label
    return {"application": place, "to_delete_from_events": stored, "to_delete_from_quarantine": quarantined}


def _deleted(*, undo: bool, as_json: bool) -> str:
    """Return what the number in a receipt is called."""
    if not undo:
        return "deleted_from_events"
    return "deleted_from_erasures" if as_json else "undone_erasures"
