"""What is told of each commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from tkserver.ingest.committer import Store, divides
from tkserver.storage.errors import ConnectionLost
from tkserver.storage.events import Outcome, Submission


class Ending(Enum):
    """How a commit ended.

    ``SPLIT``: one of it was in the way of the others, and it is tried again in parts. ``UNKNOWN``: the connection was
    lost before the database had answered, so that it may have been done or not.
    """

    COMMITTED = "committed"
    SPLIT = "split"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Commit:
    """One attempt to store so many events; ``seconds`` include the wait for a connection."""

    ending: Ending
    events: int
    seconds: float


class ObservedStore:
    """Another store, which is watched.

    :param clock: gives seconds, on any scale.
    :param observe: is told of each commit when it has ended.
    """

    def __init__(self, store: Store, clock: Callable[[], float], observe: Callable[[Commit], None]) -> None:
        self._store = store
        self._clock = clock
        self._observe = observe

    async def store(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """As the other store does."""
        began = self._clock()
        try:
            outcomes = await self._store.store(submissions)
        except Exception as error:
            self._tell(Ending.SPLIT if divides(error, submissions) else _end_of(error), submissions, began)
            raise
        self._tell(Ending.COMMITTED, submissions, began)
        return outcomes

    async def store_sound_part(self, submission: Submission) -> Outcome:
        """As the other store does."""
        began = self._clock()
        try:
            outcome = await self._store.store_sound_part(submission)
        except Exception as error:
            self._tell(_end_of(error), [submission], began)
            raise
        self._tell(Ending.COMMITTED, [submission], began)
        return outcome

    def _tell(self, ending: Ending, submissions: Sequence[Submission], began: float) -> None:
        events = sum(len(one.rows) for one in submissions)
        self._observe(Commit(ending, events, self._clock() - began))


def _end_of(error: Exception) -> Ending:
    return Ending.UNKNOWN if isinstance(error, ConnectionLost) else Ending.FAILED
