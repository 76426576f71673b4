"""Storage of events: one statement and one commit for many submissions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from enum import Enum

import msgspec
from msgspec.structs import replace

from tkserver.storage.caches import ErasedUserCache
from tkserver.storage.erased_users import ErasedUsers
from tkserver.storage.erasures import ErasureStore
from tkserver.storage.errors import Collision, ConnectionLost, DataRefused, Inseparable, StorageError
from tkserver.storage.events import ALL_STORED, Outcome, Row, Submission
from tkserver.storage.pool import READ_COMMITTED, Execute, JsonLiteral, Pool
from tkserver.storage.quarantine import Received, forget_nonce, quarantine, use_nonce
from tkserver.storage.quota_store import Insert, insert_and_check_conflicts, insert_within_quota
from tkserver.storage.store_statement import PROBE, STORE


class CommitResult(Enum):
    """The end of an attempt to commit.

    ``SPLIT``: some submissions prevented the commit, which is retried in parts. ``UNKNOWN``: the connection was lost
    before the database responded, so that the commit may have succeeded.
    """

    COMMITTED = "committed"
    SPLIT = "split"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class CommitRecord:
    """The record of an attempt to commit.

    :ivar events: the number of events, including those that are quarantined.
    :ivar seconds: includes the time spent waiting for a connection.
    """

    result: CommitResult
    events: int
    seconds: float


class EventStore:
    """The events of all applications, and their quarantine.

    Events of erased users are neither stored nor quarantined. Users are checked before the commit, and again after it
    if a user may have been erased in the meantime: an erasure deletes the events that were committed before it, and
    this class deletes those that were committed after it. Events that are not stored are deleted as well, because they
    may be in the table: if a server crashes between the commit and the second check, the SDK sends the same events
    again.

    :param pool: its connections have executed ``PREPARE_STORE``.
    :param clock: returns seconds, on any scale.
    :param observe: called after each attempt to commit.
    :ivar dropped: the number of quarantined events that were deleted to make room for newer ones.
    """

    def __init__(
        self,
        pool: Pool,
        erasures: ErasureStore,
        erased_users: ErasedUserCache,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[CommitRecord], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._erasures = erasures
        self._erased_users = erased_users
        self._clock = clock
        self._observe = observe
        self.dropped = 0

    async def store(self, submissions: Sequence[Submission], *, skip_unstorable: bool = False) -> list[Outcome]:
        """Store all submissions in one commit, or none of them.

        Two submissions of an application must not have the same nonce. Submissions of an application that has a quota,
        and those with invalid events, must not be mixed with those of other applications. Submissions that exceed the
        quota are not stored.

        :param skip_unstorable: skip the events that the database does not accept, instead of raising ``DataRefused``.
        :return: the outcome of each submission.
        :raise DataRefused: if the database does not accept a value of an event.
        :raise Inseparable: if the quota can be checked only for fewer submissions at once.
        :raise StorageError: if the submissions were not stored for another reason. A later attempt may succeed.
        """
        erased, generation = await self._erased_users.current()
        skipped = [_erased_events(submission, erased) for submission in submissions]
        remaining = [submission.without(indexes) for submission, indexes in zip(submissions, skipped, strict=True)]
        stored = iter(await self._commit([submission for submission in remaining if submission.size], skip_unstorable))
        outcomes = [
            _with_erased(next(stored) if submission.size else ALL_STORED, indexes)
            for submission, indexes in zip(remaining, skipped, strict=True)
        ]
        # The events are committed. An error from now on is part of the outcome, and does not undo the commit.
        try:
            skipped = await self._check_again(submissions, skipped, generation)
        except StorageError as error:
            return [replace(outcome, problem=error) for outcome in outcomes]
        return [
            await self._delete(submission, indexes, outcome) if indexes else outcome
            for submission, indexes, outcome in zip(submissions, skipped, outcomes, strict=True)
        ]

    async def probe(self) -> None:
        """Write a row to check that the database accepts writes.

        :raise StorageError: if it does not.
        """
        await self._pool.run(PROBE)

    async def _commit(self, submissions: list[Submission], skip_unstorable: bool) -> list[Outcome]:
        if not submissions:
            return []
        started = self._clock()
        try:
            outcomes = await self._insert(submissions, skip_unstorable)
        except Exception as error:
            is_split = is_divisible(error, submissions) and not skip_unstorable
            self._record(CommitResult.SPLIT if is_split else _result_of(error), submissions, started)
            raise
        self._record(CommitResult.COMMITTED, submissions, started)
        return outcomes

    def _record(self, result: CommitResult, submissions: list[Submission], started: float) -> None:
        events = sum(submission.size for submission in submissions)
        self._observe(CommitRecord(result, events, self._clock() - started))

    async def _insert(self, submissions: list[Submission], skip_unstorable: bool) -> list[Outcome]:
        insert: Insert = insert_accepted if skip_unstorable else insert_all
        if any(submission.invalid for submission in submissions):
            outcomes, dropped = await self._pool.transaction(
                lambda execute: insert_and_quarantine(execute, submissions, insert), READ_COMMITTED
            )
            self.dropped += dropped
            return outcomes
        if submissions[0].has_quota:
            return await self._pool.transaction(
                lambda execute: insert_within_quota(execute, submissions, insert), READ_COMMITTED
            )
        if skip_unstorable:
            return await self._pool.transaction(lambda execute: insert(execute, submissions))
        return await insert(self._pool.run, submissions)

    async def _check_again(
        self, submissions: Sequence[Submission], skipped: list[frozenset[int]], generation: int
    ) -> list[frozenset[int]]:
        """Return the events of each submission that must not be stored, for the current set of erased users."""
        if not self._erased_users.may_have_changed_since(generation):
            return skipped
        erased, _ = await self._erased_users.current()
        return [
            _erased_events(submission, erased) | indexes
            for submission, indexes in zip(submissions, skipped, strict=True)
        ]

    async def _delete(self, submission: Submission, indexes: frozenset[int], outcome: Outcome) -> Outcome:
        """Delete events of erased users, and return the outcome after that."""
        application = submission.org_id, submission.app_id
        event_ids = [row.event_id for index, row in submission.rows.items() if index in indexes]
        invalid = [event for index, event in submission.invalid.items() if index in indexes]
        try:
            if event_ids:
                await self._erasures.delete(*application, event_ids)
            if invalid:
                await self._erasures.delete_quarantined(*application, invalid)
        except StorageError as error:
            return replace(outcome, problem=error)
        return _with_erased(outcome, indexes)


def is_divisible(error: Exception, submissions: Sized) -> bool:
    """Return true if a failed commit can be retried in parts: each with fewer submissions, or with fewer events."""
    return isinstance(error, DataRefused) or (len(submissions) > 1 and isinstance(error, (Collision, Inseparable)))


def _result_of(error: Exception) -> CommitResult:
    return CommitResult.UNKNOWN if isinstance(error, ConnectionLost) else CommitResult.FAILED


async def insert_all(execute: Execute, submissions: Sequence[Submission]) -> list[Outcome]:
    """Insert all submissions, or none of them."""
    parts = [b"["]
    for submission in submissions:
        parts += _encode(submission)
        parts.append(b",")
    parts[-1] = b"]"
    exceptions: dict[int, dict[str | None, bool]] = {}
    for request, event_id, is_own in await execute(STORE, (JsonLiteral(b"".join(parts)),)):
        exceptions.setdefault(request, {})[event_id] = is_own
    stored: dict[tuple[int, int], set[int]] = {}
    return [
        _outcome(submission.rows, exceptions.get(number, {}), stored.setdefault(submission.application, set()))
        for number, submission in enumerate(submissions, start=1)
    ]


async def insert_accepted(execute: Execute, submissions: Sequence[Submission]) -> list[Outcome]:
    """Insert the events that the database accepts, and skip the others.

    :param execute: executes statements in a transaction.
    """
    await execute("SET CONSTRAINTS ALL IMMEDIATE")  # an error at COMMIT would not tell which event caused it
    return [await _insert_halves(execute, submission) for submission in submissions]


async def _insert_halves(execute: Execute, submission: Submission) -> Outcome:
    """Insert a submission. If the database does not accept it, insert its halves, down to single events."""
    await execute("SAVEPOINT halves")
    try:
        (outcome,) = await insert_all(execute, [submission])
        return outcome
    except DataRefused:
        await execute("ROLLBACK TO SAVEPOINT halves")
    indexes = sorted(submission.rows)
    if len(indexes) == 1:
        return Outcome(unstorable=frozenset(indexes))
    middle = len(indexes) // 2
    first, second = submission.without(set(indexes[middle:])), submission.without(set(indexes[:middle]))
    outcome = await _insert_halves(execute, first)
    if outcome.nonce_reused:
        return outcome
    if outcome.stores_any_of(first):
        second = replace(second, nonce=None)  # the first half has used it
    return outcome.merged_with(await _insert_halves(execute, second))


async def insert_and_quarantine(
    execute: Execute, submissions: Sequence[Submission], insert: Insert
) -> tuple[list[Outcome], int]:
    """Insert the valid events of submissions, and quarantine the invalid ones.

    :param execute: executes statements in a READ COMMITTED transaction.
    :param submissions: of one application.
    :param insert: inserts valid events.
    :return: the outcomes, and the number of events that were deleted from the quarantine to make room.
    """
    are_fresh = [await _use_nonce(execute, submission) for submission in submissions]
    fresh = [submission for submission, is_fresh in zip(submissions, are_fresh, strict=True) if is_fresh]
    valid = [_without_invalid(submission) for submission in fresh]
    stored = iter(await _insert_read_committed(execute, [part for part in valid if part.rows], insert))
    outcomes = [next(stored) if part.rows else ALL_STORED for part in valid]
    dropped = await _quarantine(execute, fresh, outcomes)
    results = iter(outcomes)
    return [next(results) if is_fresh else Outcome(nonce_reused=True) for is_fresh in are_fresh], dropped


async def _use_nonce(execute: Execute, submission: Submission) -> bool:
    """Use the nonce of a submission with invalid events, and return false if another request has used it.

    If there are no invalid events, the nonce is used when the events are inserted.
    """
    if submission.nonce is None or not submission.invalid:
        return True
    org_id, app_id = submission.org_id, submission.app_id
    return await use_nonce(execute, org_id, app_id, submission.nonce, submission.sent_at)


def _without_invalid(submission: Submission) -> Submission:
    return replace(submission, invalid={}, nonce=None) if submission.invalid else submission


async def _quarantine(execute: Execute, submissions: Sequence[Submission], outcomes: Sequence[Outcome]) -> int:
    """Quarantine the invalid events of submissions, unless they exceed the quota: then nothing of them is stored.

    :return: the number of events that were deleted to make room.
    """
    received: list[Received] = []
    for submission, outcome in zip(submissions, outcomes, strict=True):
        if not submission.invalid:
            continue
        if outcome.over_quota is None:
            received.append(submission.received)
        elif submission.nonce is not None:
            await forget_nonce(execute, submission.org_id, submission.app_id, submission.nonce)
    return await quarantine(execute, submissions[0].org_id, submissions[0].app_id, received) if received else 0


async def _insert_read_committed(execute: Execute, submissions: list[Submission], insert: Insert) -> list[Outcome]:
    if not submissions:
        return []
    if submissions[0].has_quota:
        return await insert_within_quota(execute, submissions, insert)
    return await insert_and_check_conflicts(execute, submissions, insert)


def _erased_events(submission: Submission, erased: ErasedUsers) -> frozenset[int]:
    """Return the indexes of the events of erased users."""
    if not erased.everywhere and not erased.by_app:
        return frozenset()
    user_ids = {index: row.user_id for index, row in submission.rows.items()}
    user_ids.update((index, event.user_id) for index, event in submission.invalid.items() if event.user_id is not None)
    users = erased.intersection(submission.application, set(user_ids.values()))
    return frozenset(index for index, user_id in user_ids.items() if user_id in users) if users else frozenset()


def _with_erased(outcome: Outcome, indexes: frozenset[int]) -> Outcome:
    return replace(outcome, erased=indexes) if indexes else outcome


def _encode(submission: Submission) -> list[bytes]:
    """Encode a submission for the store statement, and return the parts of the text.

    Of several events with the same id, only the first is included. The parts are not joined, because they can be long.
    """
    head = msgspec.json.encode((submission.org_id, submission.app_id, submission.nonce, submission.sent_at))
    seen: set[int] = set()
    origins: dict[bytes, list[bytes]] = {}
    for row in submission.rows.values():
        number = row.event_id.int
        if number not in seen:
            seen.add(number)
            origins.setdefault(row.origin, []).append(row.values)
    parts = [head[:-1], b",["]
    for origin, values in origins.items():
        parts += (origin, b",[", b",".join(values), b"]]", b",")
    parts[-1] = b"]]"
    return parts


def _outcome(rows: dict[int, Row], exceptions: dict[str | None, bool], stored: set[int]) -> Outcome:
    """
    :param exceptions: the ids that were not inserted, with true if they belong to this application; or only the key
        ``None``, if the nonce was used before.
    :param stored: the ids that this application has stored in this commit so far. The new ones are added.
    """
    if None in exceptions:
        return Outcome(nonce_reused=True)
    ids = {row.event_id.int for row in rows.values()}
    if not exceptions and len(ids) == len(rows) and stored.isdisjoint(ids):
        stored |= ids
        return ALL_STORED
    duplicates: list[int] = []
    conflicts: list[int] = []
    for index, row in rows.items():
        is_own = exceptions.get(str(row.event_id))
        if is_own is False:
            conflicts.append(index)
        elif is_own or row.event_id.int in stored:
            duplicates.append(index)
        else:
            stored.add(row.event_id.int)
    return Outcome(duplicates=frozenset(duplicates), conflicts=frozenset(conflicts))
