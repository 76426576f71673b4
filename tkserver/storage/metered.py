"""Events of applications that have a monthly quota: stored and counted in one transaction, or neither.

The transaction locks the application's row first, so that at any time one server stores events for it, and counts what
it has stored there. It runs under READ COMMITTED: under REPEATABLE READ whoever had to wait for the lock would collide
with what was counted meanwhile. What that costs is said at :func:`_check_conflicts`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from tkserver.storage.errors import Collision, Inseparable
from tkserver.storage.events import Outcome, Submission, store_all, store_sound_part
from tkserver.storage.pool import READ_COMMITTED, Execute, Pool
from tkserver.storage.quota import Allowance, admit

_LOCK = """
SELECT monthly_quota, quota_month, quota_used, now() FROM apps WHERE app_id = %s AND org_id = %s FOR NO KEY UPDATE
"""
_COUNT = "UPDATE apps SET quota_month = %s, quota_used = %s WHERE app_id = %s AND org_id = %s"
_KNOWN = "SELECT event_id::text FROM events WHERE event_id = ANY (%s::uuid[])"
_OWN = "SELECT 1 FROM events WHERE event_id = ANY (%s::uuid[]) AND app_id = %s AND org_id = %s LIMIT 1"

_Write = Callable[[Execute, Sequence[Submission]], Awaitable[list[Outcome]]]


class MeteredStore:
    """The events of the applications that have a quota.

    :param pool: on whose connections ``PREPARE_STORE`` was run.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def store(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store, in one commit, those submissions of one application that its quota has room for, or none.

        No two of them may have the same nonce.

        :return: what became of each.
        :raise DataRefused: when there is a value among them that the database will never take.
        :raise Inseparable: when what fits can only be said of fewer of them.
        :raise StorageError: when it did not work this time.
        """
        return await self._pool.transaction(partial(_store, submissions=submissions, write=store_all), READ_COMMITTED)

    async def store_sound_part(self, submission: Submission) -> Outcome:
        """Store, in one commit, what the database takes of a submission that it refused as a whole.

        Whether it fits is decided by the whole of it, and what is stored is counted.
        """
        work = partial(_store, submissions=[submission], write=_write_halves)
        (outcome,) = await self._pool.transaction(work, READ_COMMITTED)
        return outcome


async def _store(execute: Execute, submissions: Sequence[Submission], write: _Write) -> list[Outcome]:
    allowance = await _lock(execute, submissions[0])
    if allowance is None:  # it had a quota a moment ago
        return await _write(execute, submissions, write)
    refusals = await _refusals(execute, submissions, allowance)
    fitting = [one for one, refusal in zip(submissions, refusals, strict=True) if refusal is None]
    outcomes = await _write(execute, fitting, write) if fitting else []
    new = sum(outcome.newly_stored(one) for one, outcome in zip(fitting, outcomes, strict=True))
    # A submission that was refused for what another one would take up, which then took up nothing, might have fitted.
    unsure = len(fitting) < len(submissions) and any(outcome.nonce_reused for outcome in outcomes)
    if unsure or not allowance.has_room_for(new):
        if len(submissions) > 1:
            raise Inseparable("they do not fit together")
        raise Collision("events were deleted meanwhile")
    if new:
        await execute(_COUNT, (allowance.month, allowance.used + new, *_ids(submissions[0])))
    stored = iter(outcomes)
    return [next(stored) if refusal is None else Outcome(over_quota=refusal) for refusal in refusals]


async def _lock(execute: Execute, submission: Submission) -> Allowance | None:
    """Wait until nobody else stores events for the application. ``None`` where it has no quota any more."""
    rows = await execute(_LOCK, _ids(submission))
    if not rows or rows[0][0] is None:
        return None
    quota, month, used, now = rows[0]
    allowance = Allowance.read(quota, month, used, now)
    if month is not None and month > allowance.month:
        # now() is when the transaction began, and so is received_at: it waited beyond the end of its month.
        raise Collision("the month has ended meanwhile")
    return allowance


async def _refusals(
    execute: Execute, submissions: Sequence[Submission], allowance: Allowance
) -> list[Allowance | None]:
    """As :func:`admit` has it. Looks at what is stored only where it matters: most often there is room for all."""
    if allowance.has_room_for(sum(len(one.rows) for one in submissions)):
        return [None] * len(submissions)
    batches = [{str(row.event_id) for row in one.rows.values()} for one in submissions]
    known = {event_id for (event_id,) in await execute(_KNOWN, (sorted(set().union(*batches)),))}
    return admit(allowance, batches, known)


async def _write(execute: Execute, submissions: Sequence[Submission], write: _Write) -> list[Outcome]:
    outcomes = await write(execute, submissions)
    await _check_conflicts(execute, submissions, outcomes)
    return outcomes


async def _check_conflicts(execute: Execute, submissions: Sequence[Submission], outcomes: Sequence[Outcome]) -> None:
    """Look again whose events they are that conflict.

    Under READ COMMITTED an event that somebody else has just inserted is neither inserted nor visible. A server that
    has not heard of the quota yet may have inserted it for this very application.
    """
    ids = [
        str(one.rows[place].event_id)
        for one, outcome in zip(submissions, outcomes, strict=True)
        for place in outcome.conflicts
    ]
    if ids and await execute(_OWN, (ids, *_ids(submissions[0]))):
        raise Collision("an event was stored meanwhile")


async def _write_halves(execute: Execute, submissions: Sequence[Submission]) -> list[Outcome]:
    return [await store_sound_part(execute, one) for one in submissions]


def _ids(submission: Submission) -> tuple[str, str]:
    return str(submission.app_id), str(submission.org_id)
