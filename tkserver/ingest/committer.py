"""Many requests, one commit.

Submissions that arrive while commits are under way are written together in the next one. No timer is involved: a lone
submission is written at once, and the more of them wait, the more are written at a time.

Those of an application that has a quota wait in a lane of its own: its commits follow one another, for they would wait
for each other in the database, and keep those of all others waiting for a writer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredSemaphore, ensureDeferred
from twisted.python.failure import Failure

from tkserver import log
from tkserver.ingest.ledger import GIVEN_UP, Ledger
from tkserver.ingest.patience import Patience
from tkserver.storage.errors import Collision, DataRefused, Inseparable
from tkserver.storage.events import Outcome, Submission
from tkserver.wire.refusal import Overloaded

_log = log.logger(__name__)

WRITERS = 3
"""Commits that are under way at once: while one waits for the disk, the others have the processor."""

METERED_WRITERS = 2
"""The same, for applications that have a quota: more of them would leave the others without a connection."""

MAX_COMMIT_EVENTS = 4000
MAX_COMMIT_BYTES = 4_194_304

LANE_SHARE = 0.25
"""The share of a bound that one application that has a quota may take: its lane may be stuck, and others are not."""

LOW_WATER = 0.5
"""The share of a bound below which submissions are taken again after it was reached."""


@dataclass(frozen=True)
class Bounds:
    """What may wait to be committed, what is just being committed included.

    :ivar events: and ``bytes``: how much of them.
    :ivar timeout: seconds after which a submission is given up.
    """

    events: int = 100_000
    bytes: int = 67_108_864
    timeout: float = 10.0


@dataclass(eq=False, slots=True)
class Load:
    """What waits to be committed, what is just being committed included."""

    events: int = 0
    bytes: int = 0

    def add(self, other: _Pending) -> None:
        self.events += other.events
        self.bytes += other.bytes

    def take_off(self, other: _Pending) -> None:
        self.events -= other.events
        self.bytes -= other.bytes

    def share_of(self, bounds: Bounds) -> float:
        return max(self.events / bounds.events, self.bytes / bounds.bytes)


@dataclass(eq=False, slots=True)
class _Lane:
    """What waits of one application that has a quota."""

    queue: deque[_Pending] = field(default_factory=deque)
    load: Load = field(default_factory=Load)


@dataclass(eq=False, slots=True)
class _Pending:
    submission: Submission
    events: int
    bytes: int
    lane: _Lane | None = None
    outcome: Deferred[Outcome] = field(default_factory=Deferred)

    @property
    def nonce(self) -> tuple[int, int, str] | None:
        """What no two submissions of one commit may share."""
        submission = self.submission
        return None if submission.nonce is None else (*submission.application, submission.nonce)


class Store(Protocol):
    """Where submissions go: see :class:`tkserver.storage.events.EventStore`."""

    def store(self, submissions: Sequence[Submission]) -> Awaitable[list[Outcome]]: ...

    def store_sound_part(self, submission: Submission) -> Awaitable[Outcome]: ...


class Committer:
    """Takes submissions and has them written, several at a time.

    :param metered: stores those of applications that have a quota; is given those of one application at a time.
    :param ledger: is told what becomes of every event that is submitted.
    :ivar load: what waits.
    """

    def __init__(
        self,
        store: Store,
        reactor: Any,
        bounds: Bounds,
        metered: Store | None = None,
        *,
        ledger: Ledger | None = None,
    ) -> None:
        self._store = store
        self._metered = metered or store
        self._bounds = bounds
        self._ledger = ledger or Ledger()
        self._patience = Patience[Outcome](bounds.timeout, reactor, "not committed")
        self._queue: deque[_Pending] = deque()
        self._writers = 0
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self._metered_writers = DeferredSemaphore(METERED_WRITERS)
        self.load = Load()
        self._full = False
        self._complaints = log.Throttle(reactor.seconds)

    def check_load(self) -> None:
        """
        :raise Overloaded: from when a bound is reached until no more than half of it is left.
        """
        fill = self.load.share_of(self._bounds)
        self._full = fill > LOW_WATER if self._full else fill >= 1
        if self._full:
            raise Overloaded("more events are arriving than can be stored: try again")

    def submit(self, submission: Submission) -> Deferred[Outcome]:
        """Have a submission written.

        Cancelling what this gives back drops a submission that still waits; one that is being written is written.

        :raise Overloaded: when too much is waiting already.
        :raise StorageError: when it could not be stored, or not in time. What its commit does later is settled when
            it is sent again.
        """
        pending = _Pending(submission, len(submission.rows), submission.bytes)
        try:
            self.check_load()
            self._enter(pending)
        except Overloaded as refusal:
            self._ledger.refuse(pending.events, refusal.code)
            raise
        self._patience.wait_for(pending.outcome)
        return pending.outcome

    def _enter(self, pending: _Pending) -> None:
        if pending.submission.metered:
            self._enter_lane(pending)
            return
        self.load.add(pending)
        self._queue.append(pending)
        if self._writers < WRITERS:
            log.outside_requests(ensureDeferred, self._write())

    async def _write(self) -> None:
        """Write what there is, until nothing is left."""
        self._writers += 1
        while group := self._next_group(self._queue):
            await self._commit(group, self._store)
        self._writers -= 1

    def _enter_lane(self, pending: _Pending) -> None:
        application = pending.submission.application
        known = self._lanes.get(application)
        lane = pending.lane = known or _Lane()
        if lane.load.share_of(self._bounds) >= LANE_SHARE:
            raise Overloaded("more events of this application are arriving than can be stored: try again")
        self.load.add(pending)
        lane.load.add(pending)
        lane.queue.append(pending)
        if known is None:
            self._lanes[application] = lane
            log.outside_requests(ensureDeferred, self._write_lane(application, lane))

    async def _write_lane(self, application: tuple[int, int], lane: _Lane) -> None:
        """Write what there is of an application, one commit after the other, in turn with other applications."""
        while lane.queue:
            async with self._metered_writers:
                if group := self._next_group(lane.queue):
                    await self._commit(group, self._metered)
        del self._lanes[application]

    def _next_group(self, queue: deque[_Pending]) -> list[_Pending]:
        """The oldest submissions of a queue, as many as go into one commit."""
        group: list[_Pending] = []
        events = size = 0
        nonces: set[object] = set()
        while queue:
            pending = queue[0]
            if pending.outcome.called:  # nobody waits for it any more
                self._settle(queue.popleft(), None)
                continue
            events, size = events + pending.events, size + pending.bytes
            nonce = pending.nonce
            if group and (events > MAX_COMMIT_EVENTS or size > MAX_COMMIT_BYTES or nonce in nonces):
                break
            if nonce is not None:
                nonces.add(nonce)
            group.append(queue.popleft())
        return group

    async def _commit(self, group: list[_Pending], store: Store) -> None:
        """Write a group in one commit; in halves, where one of it is in the way of the others."""
        try:
            outcomes: Sequence[Outcome | Failure] = await self._write_group(group, store)
        except Exception as error:
            if len(group) > 1 and divides(error, group):
                half = len(group) // 2
                await self._commit(group[:half], store)
                await self._commit(group[half:], store)
                return
            outcomes = [Failure()] * len(group)
        for pending, outcome in zip(group, outcomes, strict=True):
            self._settle(pending, outcome)
        self._patience.forget_fired()

    async def _write_group(self, group: list[_Pending], store: Store) -> list[Outcome]:
        """
        :raise StorageError: one that :func:`divides`, where there are several submissions and only some to blame.
        """
        try:
            return await store.store([pending.submission for pending in group])
        except DataRefused as error:
            if len(group) > 1:
                raise
            problem = str(error)
            if self._complaints.lets_pass(problem):
                _log.warn(
                    "the database refuses events that we do not: {problem}", problem=problem, event="data_refused"
                )
            return [await store.store_sound_part(group[0].submission)]

    def _settle(self, pending: _Pending, outcome: Outcome | Failure | None) -> None:
        self.load.take_off(pending)
        if pending.lane is not None:
            pending.lane.load.take_off(pending)
        if isinstance(outcome, Outcome):
            self._ledger.settle(pending.events, outcome)
        elif outcome is None:
            self._ledger.refuse(pending.events, GIVEN_UP)
        else:
            self._ledger.fail(pending.events, outcome.value)
        if outcome is not None and not pending.outcome.called:
            pending.outcome.callback(outcome)


def divides(error: Exception, group: Sized) -> bool:
    """Whether what could not be committed is tried again in parts: a group by submissions, a lone one by events."""
    return isinstance(error, DataRefused) or (len(group) > 1 and isinstance(error, (Collision, Inseparable)))
