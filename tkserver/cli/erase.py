"""``tkserver erase``: a user forgotten, and kept forgotten."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

import click

from tkserver.cli.exit_codes import NotFound
from tkserver.cli.output import json_option, print_record
from tkserver.operations.database import connected
from tkserver.operations.erasure import Application
from tkserver.storage.blocking import Connection
from tkserver.wire.event import USER_ID_PREFIXES

SERVERS_KNOW = 2.5
"""Seconds after which every server knows of an erasure, also one that has just lost the connection that listens."""

_LONGEST = 255


class UserId(click.ParamType[str]):
    """An anonymous user id, as the SDKs make them."""

    name = "user id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text.startswith(USER_ID_PREFIXES) or len(text) > _LONGEST or not text.isprintable():
            self.fail("a user id begins with client_ or anon_ and has at most 255 characters", param, ctx)
        return text


@click.command()
@click.option("--user", "user_id", type=UserId(), required=True, help="The user's id: client_… or anon_….")
@click.option("--app", help="Only from this application, by its name or id; from all if left out.")
@click.option("--undo", is_flag=True, help="Have new events of the user stored again. What was deleted stays so.")
@json_option
def erase(user_id: str, app: str | None, undo: bool, as_json: bool) -> None:
    """Delete all events of a user, and have none stored any more.

    What an SDK still holds of this user is answered as accepted, so that it lets go of it, and not stored. All that
    is remembered is a hash of the id, with a key of this installation. Prints a receipt, without the id.
    """
    with connected() as connection:
        of = None if app is None else registry.app(connection, app)
        application = None if of is None else (of.org_id, of.app_id)
        erased = eraser.hash_of(connection, user_id)
        if undo:
            receipt = {"deleted_from_erasures": _lift(connection, erased, application)}
        else:
            receipt = {"deleted_from_events": _erase(connection, user_id, erased, application)}
    scope = "all" if of is None else of.name or str(of.app_id)
    head = {"user_hash": erased.hex(), "application": scope, "done_at": datetime.now(timezone.utc)}
    print_record({**head, **receipt}, as_json=as_json)


def _erase(connection: Connection, user_id: str, erased: bytes, application: Application | None) -> int:
    """Delete only when no server stores anything more of this user, so that nothing slips in between."""
    eraser.remember(connection, erased, application)
    time.sleep(SERVERS_KNOW)
    return eraser.delete_events(connection, user_id, application, time.monotonic, time.sleep)


def _lift(connection: Connection, erased: bytes, application: Application | None) -> int:
    lifted = eraser.lift(connection, erased, application)
    if not lifted:
        if application is None:
            raise NotFound("this user is not erased")
        raise NotFound("this user is not erased from just this application; undo an erasure from all without --app")
    return lifted
