"""What is told of each commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from tkserver.ingest.committer import BETTER_IN_PARTS, Store
from tkserver.storage.errors import ConnectionLost, DataRefused
from tkserver.storage.events import Outcome, Submission

T = TypeVar("T")


class Ending(Enum):
    """How a commit ended.

    ``SPLIT``: one of it was in the way of the others, and it is tried again in parts. ``UNKNOWN``: the connection was
    lost before the database had answered, so that it may have been done or not.
    """

    COMMITTED = "committed"
    SPLIT = "split"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, error: Exception, *, separable: bool) -> Ending:
        """
        :param separable: whether there were several submissions.
        """
        if isinstance(error, BETTER_IN_PARTS if separable else DataRefused):
            return cls.SPLIT
        return cls.UNKNOWN if isinstance(error, ConnectionLost) else cls.FAILED


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
        return await self._watch(self._store.store(submissions), submissions)

    async def store_sound_part(self, submission: Submission) -> Outcome:
        """As the other store does."""
        return await self._watch(self._store.store_sound_part(submission), [submission])

    async def _watch(self, work: Awaitable[T], submissions: Sequence[Submission]) -> T:
        began, ending = self._clock(), Ending.COMMITTED
        try:
            return await work
        except Exception as error:
            ending = Ending.of(error, separable=len(submissions) > 1)
            raise
        finally:
            events = sum(len(one.rows) for one in submissions)
            self._observe(Commit(ending, events, self._clock() - began))
