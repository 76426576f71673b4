"""Erasure of users: the deletion of their events, also of quarantined ones, and of every later event."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial

from tkserver.insight.aggregation import lock_progress, remove_user
from tkserver.operations import quarantine
from tkserver.operations.apps import APPS_WITH_EVENTS
from tkserver.operations.exceptions import InvalidArgument, UnknownObject
from tkserver.operations.models import App
from tkserver.operations.paced import Clock, PacedTransactions, Sleep
from tkserver.storage.blocking import Connection, rows, transaction, value
from tkserver.storage.changes import PROPAGATION_TIME
from tkserver.storage.erased_users import user_hash
from tkserver.wire.event import USER_ID_PREFIXES

MAX_USER_ID_LENGTH = 255

_NEVER_STORED = re.compile("[\0\ud800-\udfff]")
"""Python represents bytes of an argument that are not UTF-8 as lone surrogates."""

_RECORD = "INSERT INTO erasures (user_hash, org_id, app_id) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
_UNDO_ONE = "DELETE FROM erasures WHERE user_hash = %s AND app_id = %s AND org_id = %s RETURNING true"
_UNDO_ALL = "DELETE FROM erasures WHERE user_hash = %s RETURNING true"

_APPS_WITH_EVENTS = f"WITH {APPS_WITH_EVENTS} SELECT app_id::text, org_id::text FROM app_with_events"

_COUNT = "SELECT count(*) FROM events WHERE app_id = %s AND org_id = %s AND user_id = %s"
_COUNT_QUARANTINED = "SELECT count(*) FROM quarantine AS q WHERE q.user_id = %s"

_DELETE = """
DELETE FROM events WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM events WHERE app_id = %s AND org_id = %s AND user_id = %s LIMIT %s
)) RETURNING true
"""


@dataclass(frozen=True)
class Receipt:
    """A proof of an erasure, or of its reversal. It does not contain the id of the user.

    :ivar user_hash: the hash that is stored instead of the id.
    :ivar app: ``None`` for all applications.
    :ivar done_at: in UTC, by the clock of the database.
    :ivar deleted: the number of events that were deleted; for a reversal, the number of erasures.
    :ivar deleted_from_quarantine: the number of quarantined events that were deleted.
    """

    user_hash: bytes
    app: App | None
    done_at: datetime
    deleted: int
    deleted_from_quarantine: int = 0


def erase(connection: Connection, user_id: str, app: App | None, clock: Clock, sleep: Sleep) -> Receipt:
    """Delete all events of a user in one application or in all, and let no server store new ones.

    The events are deleted only when all servers know about the erasure, so that none is stored after the deletion.

    :raise InvalidArgument: if no user can have this id.
    """
    check_user_id(user_id)
    record(connection, user_id, app)
    sleep(PROPAGATION_TIME)
    # Quarantined events first: a replay that is in progress may still store some of them.
    quarantined = quarantine.delete_events_of_user(connection, user_id, app, clock, sleep)
    deleted = delete_events(connection, user_id, app, clock, sleep)
    return replace(_receipt(connection, user_id, app, deleted), deleted_from_quarantine=quarantined)


def preview(connection: Connection, user_id: str, app: App | None) -> tuple[int, int]:
    """Return how many stored and how many quarantined events :func:`erase` would delete.

    :raise InvalidArgument: if no user can have this id.
    """
    check_user_id(user_id)
    keys = rows(connection, _APPS_WITH_EVENTS) if app is None else [app.key]
    stored = sum(value(connection, _COUNT, *key, user_id) for key in keys)
    condition, parameters = quarantine.Selection(app).condition()
    quarantined = value(connection, f"{_COUNT_QUARANTINED} AND {condition}", user_id, *parameters)
    return stored, quarantined


def undo(connection: Connection, user_id: str, app: App | None) -> Receipt:
    """Let servers store new events of an erased user again. Deleted events are not restored.

    :param app: ``None`` undoes the erasures from all applications and from each single one.
    :raise InvalidArgument: if no user can have this id.
    :raise UnknownObject: if the user is not erased from this application, or from any.
    """
    check_user_id(user_id)
    hashed = _hash(connection, user_id)
    undone = rows(connection, _UNDO_ALL, hashed) if app is None else rows(connection, _UNDO_ONE, hashed, *app.key)
    if not undone:
        raise UnknownObject(
            f"this user is not erased from {app.label} alone; undo an erasure from all applications without --app"
            if app
            else "this user is not erased"
        )
    return _receipt(connection, user_id, app, len(undone))


def check_user_id(user_id: str) -> None:
    """Check that events with this user id can be stored.

    The server accepts only visible ASCII characters. Earlier versions also accepted others except U+0000, and such
    users have the same rights, so that their ids are accepted here.

    :raise InvalidArgument: if no event can have this id.
    """
    if not user_id.startswith(USER_ID_PREFIXES):
        problem = "begins with client_ or anon_"
    elif len(user_id) > MAX_USER_ID_LENGTH:
        problem = f"has at most {MAX_USER_ID_LENGTH} characters"
    elif _NEVER_STORED.search(user_id):
        problem = "contains neither U+0000 nor bytes that are not UTF-8"
    else:
        return
    raise InvalidArgument(f"a user id {problem}; no event with this one can be stored")


def record(connection: Connection, user_id: str, app: App | None) -> None:
    """Store the erasure of a user, and remove the user from the statistics.

    Servers stop storing new events as soon as they know about the erasure, and do not aggregate those that they store
    until then.
    """
    app_id, org_id = (None, None) if app is None else app.key
    with transaction(connection):
        lock_progress(connection)
        rows(connection, _RECORD, _hash(connection, user_id), org_id, app_id)
        for key in rows(connection, _APPS_WITH_EVENTS) if app is None else [app.key]:
            app_id, org_id = key
            remove_user(connection, app_id, org_id, user_id)


def delete_events(connection: Connection, user_id: str, app: App | None, clock: Clock, sleep: Sleep) -> int:
    """Delete the events of a user in one application or in all, in short transactions.

    :return: the number of deleted events.
    """
    app_keys = rows(connection, _APPS_WITH_EVENTS) if app is None else [app.key]
    paced = PacedTransactions(clock, sleep)
    total = 0
    for app_id, org_id in app_keys:
        while deleted := paced.run(partial(_delete_batch, connection, app_id, org_id, user_id)):
            total += deleted
    return total


def _delete_batch(connection: Connection, app_id: str, org_id: str, user_id: str, max_rows: int) -> int:
    return len(rows(connection, _DELETE, app_id, org_id, user_id, max_rows))


def _hash(connection: Connection, user_id: str) -> bytes:
    return user_hash(bytes(value(connection, "SELECT key FROM erasure_key")), user_id)


def _receipt(connection: Connection, user_id: str, app: App | None, deleted: int) -> Receipt:
    now: datetime = value(connection, "SELECT now()")
    return Receipt(_hash(connection, user_id), app, now.astimezone(timezone.utc), deleted)
