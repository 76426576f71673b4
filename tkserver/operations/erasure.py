"""A user erased, or allowed again, as an operator asks for it. Blocks.

Each function takes a connection on which each statement is a transaction, and raises ``psycopg2.Error`` when the
database does not do what it is asked to.
"""

from __future__ import annotations

from uuid import UUID

from psycopg2.errors import DeadlockDetected

from tkserver.operations.retention import APPLICATIONS, Clock, Sleep
from tkserver.storage.adaptive_batch import AdaptiveBatch
from tkserver.storage.blocking import Connection, rows
from tkserver.storage.erasures import user_hash

Application = tuple[UUID, UUID]
"""``org_id`` and ``app_id``."""

_REMEMBER = "INSERT INTO erasures (user_hash, org_id, app_id) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
_LIFT_ONE = "DELETE FROM erasures WHERE user_hash = %s AND org_id = %s AND app_id = %s RETURNING true"
_LIFT_ALL = "DELETE FROM erasures WHERE user_hash = %s RETURNING true"

_APPLICATIONS = f"WITH {APPLICATIONS} SELECT org_id::text, app_id::text FROM application"

_DELETE = """
DELETE FROM events WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM events WHERE app_id = %s AND org_id = %s AND user_id = %s LIMIT %s
)) RETURNING true
"""


def hash_of(connection: Connection, user_id: str) -> bytes:
    """What this installation remembers of a user whom it erases."""
    ((key,),) = rows(connection, "SELECT key FROM erasure_key")
    return user_hash(bytes(key), user_id)


def remember(connection: Connection, erased: bytes, application: Application | None) -> None:
    """Have nothing more stored of a user, by one application or by all, as soon as the servers have heard of it."""
    rows(connection, _REMEMBER, erased, *_texts(application))


def lift(connection: Connection, erased: bytes, application: Application | None) -> int:
    """Allow a user again.

    :param application: just for this one; ``None`` for all, and each.
    :return: how many erasures were lifted.
    """
    if application is None:
        return len(rows(connection, _LIFT_ALL, erased))
    return len(rows(connection, _LIFT_ONE, erased, *_texts(application)))


def delete_events(
    connection: Connection, user_id: str, application: Application | None, clock: Clock, sleep: Sleep
) -> int:
    """Delete all events of a user, in short transactions with pauses.

    :return: how many.
    """
    applications = [application] if application else _applications(connection)
    pace = AdaptiveBatch()
    return sum(_delete(connection, user_id, one, pace, clock, sleep) for one in applications)


def _delete(
    connection: Connection, user_id: str, of: Application, pace: AdaptiveBatch, clock: Clock, sleep: Sleep
) -> int:
    org_id, app_id = _texts(of)
    deleted = 0
    while True:
        began = clock()
        try:
            found = len(rows(connection, _DELETE, app_id, org_id, user_id, pace.rows))
        except DeadlockDetected:  # with the end of the same events by their age
            sleep(pace.pause_after(clock() - began))
            continue
        if not found:
            return deleted
        deleted += found
        sleep(pace.pause_after(clock() - began))


def _applications(connection: Connection) -> list[Application]:
    return [(UUID(org_id), UUID(app_id)) for org_id, app_id in rows(connection, _APPLICATIONS)]


def _texts(application: Application | None) -> tuple[str | None, str | None]:
    return (None, None) if application is None else (str(application[0]), str(application[1]))
