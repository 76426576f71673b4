"""Users who were erased stay so: what SDKs still hold of them is answered as accepted, and not stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from tkserver.ingest.committer import Store
from tkserver.ingest.remembered import Remembered
from tkserver.storage.erasures import Erased, ErasureStore
from tkserver.storage.errors import StorageError
from tkserver.storage.events import Outcome, Row, Submission

LIFETIME = 60.0
"""Seconds for which the erased are remembered; a change is heard of at once, this is for what was not heard."""


class ErasedUsers(Remembered):
    """Who is erased, remembered as long as nothing changes.

    :param clock: gives seconds, on any scale.
    """

    def __init__(self, store: ErasureStore, clock: Callable[[], float]) -> None:
        super().__init__()
        self._store = store
        self._clock = clock
        self._remembered: Erased | None = None
        self._stale_from = float("-inf")

    def forget(self) -> None:
        """Somebody may have been erased."""
        super().forget()
        self._remembered = None

    async def now(self) -> tuple[Erased, int]:
        """All of them, and what to ask :meth:`may_have_changed_since` with.

        :raise StorageError: when they are not known, and cannot be found out.
        """
        generation = self._generation
        if self._listening and self._remembered is not None and self._clock() < self._stale_from:
            return self._remembered, generation
        found = await self._store.load()
        if generation == self._generation:
            self._remembered, self._stale_from = found, self._clock() + LIFETIME
        return found, generation

    def may_have_changed_since(self, generation: int) -> bool:
        """Whether somebody may have been erased since :meth:`now` was called."""
        return not self._listening or generation != self._generation


Write = Callable[[Sequence[Submission]], Awaitable[list[Outcome]]]


class ErasingStore:
    """Stores in another store what is not of erased users.

    Who is erased is looked at before the commit, and again after it where that may have changed meanwhile: an erasure
    deletes what was committed before it, and this what was committed after. Events that are left out are deleted, too,
    for they may be there: a server that died before it could look again has not answered, and the SDK sends the same
    events once more.
    """

    def __init__(self, store: Store, erasures: ErasureStore, users: ErasedUsers) -> None:
        self._store = store
        self._erasures = erasures
        self._users = users

    async def store(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """As the other store does."""
        return await self._guard(submissions, self._store.store)

    async def store_sound_part(self, submission: Submission) -> Outcome:
        """As the other store does."""

        async def write(submissions: Sequence[Submission]) -> list[Outcome]:
            return [await self._store.store_sound_part(one) for one in submissions]

        (outcome,) = await self._guard([submission], write)
        return outcome

    async def _guard(self, submissions: Sequence[Submission], write: Write) -> list[Outcome]:
        erased, generation = await self._users.now()
        left_out = [rows_of(erased, one) for one in submissions]
        kept = [without(one, rows) for one, rows in zip(submissions, left_out, strict=True)]
        written = iter(await _write_some([one for one in kept if one.rows], write))
        outcomes = [
            _leaving_out(rows, next(written) if one.rows else Outcome())
            for one, rows in zip(kept, left_out, strict=True)
        ]
        # From here on it is committed: whatever fails is for the answer to tell, and undoes nothing.
        try:
            left_out = await self._look_again(submissions, left_out, generation)
        except StorageError as error:
            return [replace(one, problem=error) for one in outcomes]
        return [await self._delete(*one) for one in zip(submissions, left_out, outcomes, strict=True)]

    async def _look_again(
        self, submissions: Sequence[Submission], left_out: list[dict[int, Row]], generation: int
    ) -> list[dict[int, Row]]:
        """What is to be left out now."""
        if not self._users.may_have_changed_since(generation):
            return left_out
        erased, _ = await self._users.now()
        return [rows_of(erased, one) | rows for one, rows in zip(submissions, left_out, strict=True)]

    async def _delete(self, submission: Submission, rows: dict[int, Row], outcome: Outcome) -> Outcome:
        """See that these rows of a submission are not stored."""
        if not rows:
            return outcome
        try:
            ids = [row.event_id for row in rows.values()]
            await self._erasures.delete(submission.org_id, submission.app_id, ids)
        except StorageError as error:
            return replace(outcome, problem=error)
        return _leaving_out(rows, outcome)


def _leaving_out(rows: dict[int, Row], outcome: Outcome) -> Outcome:
    return replace(outcome, erased=frozenset(rows)) if rows else outcome


async def _write_some(submissions: list[Submission], write: Write) -> list[Outcome]:
    return await write(submissions) if submissions else []


def rows_of(erased: Erased, submission: Submission) -> dict[int, Row]:
    """The rows of a submission that are of erased users, by their place."""
    if not erased.everywhere and not erased.by_app:
        return {}
    users = erased.among(submission.application, {row.user_id for row in submission.rows.values()})
    return {place: row for place, row in submission.rows.items() if row.user_id in users} if users else {}


def without(submission: Submission, rows: dict[int, Row]) -> Submission:
    """The submission without these of its rows."""
    if not rows:
        return submission
    return replace(submission, rows={place: row for place, row in submission.rows.items() if place not in rows})
