"""Storage of events of applications that have a monthly quota: events are stored and counted in one transaction.

The transaction first locks the row of the application in the table ``apps``, which contains the counter. Therefore only
one server at a time stores events for this application. The isolation level is READ COMMITTED: under REPEATABLE READ,
every transaction that waits for the lock would fail, because the counter has changed when it gets the lock.
:func:`_check_conflicts` checks what is not guaranteed under READ COMMITTED.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tkserver.storage.errors import Collision, Inseparable
from tkserver.storage.events import Outcome, Submission
from tkserver.storage.pool import Execute
from tkserver.storage.quota import Allowance, admit

_LOCK = """
SELECT monthly_quota, quota_month, quota_used, now() FROM apps WHERE app_id = %s AND org_id = %s FOR NO KEY UPDATE
"""
_COUNT = "UPDATE apps SET quota_month = %s, quota_used = %s WHERE app_id = %s AND org_id = %s"
_STORED = "SELECT event_id::text FROM events WHERE event_id = ANY (%s::uuid[])"
_OWN = "SELECT 1 FROM events WHERE event_id = ANY (%s::uuid[]) AND app_id = %s AND org_id = %s LIMIT 1"

Insert = Callable[[Execute, Sequence[Submission]], Awaitable[list[Outcome]]]
"""Inserts submissions in the current transaction."""


async def insert_within_quota(execute: Execute, submissions: Sequence[Submission], insert: Insert) -> list[Outcome]:
    """Insert those submissions for which the quota of their application has room, and count the new events.

    :param execute: executes statements in a READ COMMITTED transaction.
    :param submissions: of one application.
    :param insert: inserts the submissions for which there is room.
    :raise Inseparable: if it is uncertain which of several submissions fit: they must be stored one by one.
    """
    allowance = await _lock_allowance(execute, submissions[0])
    if allowance is None:  # the quota was removed a moment ago
        return await insert_and_check_conflicts(execute, submissions, insert)
    exceeded = await _exceeded(execute, submissions, allowance)
    fitting = [submission for submission, excess in zip(submissions, exceeded, strict=True) if excess is None]
    outcomes = await insert_and_check_conflicts(execute, fitting, insert) if fitting else []
    new = sum(outcome.newly_stored(submission) for submission, outcome in zip(fitting, outcomes, strict=True))
    # A submission may have been rejected in favor of an earlier one whose nonce was used, so that it stored nothing.
    uncertain = len(fitting) < len(submissions) and any(outcome.nonce_reused for outcome in outcomes)
    if uncertain or not allowance.has_room_for(new):
        if len(submissions) > 1:
            raise Inseparable("the submissions must be stored separately")
        raise Collision("events were deleted concurrently")
    if new:
        await execute(_COUNT, (allowance.month, allowance.used + new, *_ids(submissions[0])))
    stored = iter(outcomes)
    return [next(stored) if excess is None else Outcome(over_quota=excess) for excess in exceeded]


async def _lock_allowance(execute: Execute, submission: Submission) -> Allowance | None:
    """Wait until no other transaction stores events of the application; return ``None`` if it has no quota now."""
    rows = await execute(_LOCK, _ids(submission))
    if not rows or rows[0][0] is None:
        return None
    quota, month, used, now = rows[0]
    allowance = Allowance.read(quota, month, used, now)
    if month is not None and month > allowance.month:
        # received_at is the start of the transaction, like now(). The month has ended while it waited for the lock.
        raise Collision("the month has ended")
    return allowance


async def _exceeded(
    execute: Execute, submissions: Sequence[Submission], allowance: Allowance
) -> list[Allowance | None]:
    """Return for each submission ``None`` if it fits, otherwise the allowance that it exceeds.

    The stored ids are queried only if there is not enough room for all events.
    """
    if allowance.has_room_for(sum(len(submission.rows) for submission in submissions)):
        return [None] * len(submissions)
    batches = [{str(row.event_id) for row in submission.rows.values()} for submission in submissions]
    stored = {event_id for (event_id,) in await execute(_STORED, (sorted(set().union(*batches)),))}
    return admit(allowance, batches, stored)


async def insert_and_check_conflicts(
    execute: Execute, submissions: Sequence[Submission], insert: Insert
) -> list[Outcome]:
    """Insert submissions of one application in a READ COMMITTED transaction.

    :raise Collision: if another transaction interfered.
    """
    outcomes = await insert(execute, submissions)
    await _check_conflicts(execute, submissions, outcomes)
    return outcomes


async def _check_conflicts(execute: Execute, submissions: Sequence[Submission], outcomes: Sequence[Outcome]) -> None:
    """Check again that conflicting events belong to other applications.

    Under READ COMMITTED, an event that another transaction has just inserted is not visible to the store statement,
    which then reports a conflict. But the event may belong to this application: a server that does not know about the
    quota yet does not wait for the lock.

    :raise Collision: if one of them belongs to this application.
    """
    ids = [
        str(submission.rows[index].event_id)
        for submission, outcome in zip(submissions, outcomes, strict=True)
        for index in outcome.conflicts
    ]
    if ids and await execute(_OWN, (ids, *_ids(submissions[0]))):
        raise Collision("an event was stored concurrently")


def _ids(submission: Submission) -> tuple[str, str]:
    return str(submission.app_id), str(submission.org_id)
