"""Group commit: many requests, one transaction.

Submissions that arrive while commits are in progress are written together by the next commit. There is no timer: a
single submission is written immediately, and commits become larger as the load grows.

Some submissions have a queue of their application (a lane), whose commits run one after another: those of an
application that has a quota, those with invalid events, and large ones. The first two would wait for each other in the
database, and occupy writers that other applications need. Large ones would occupy its processors.

Invalid events are quarantined by the commit that stores the valid events of the same request. Events that only the
database refuses are quarantined by a second commit, before the outcome is reported.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredSemaphore, ensureDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tkserver import log
from tkserver.ingest.active_applications import ActiveApplications, Application
from tkserver.ingest.ledger import GIVEN_UP, Ledger
from tkserver.storage.errors import DataRefused, StorageError, Unavailable
from tkserver.storage.event_store import is_divisible
from tkserver.storage.events import Outcome, Submission
from tkserver.wire.api_errors import Overloaded

_log = log.logger(__name__)

WRITERS = 3
"""Concurrent commits: while one waits for the disk, the others use the processor."""

LARGE_SUBMISSION = 131_072
"""Bytes. Submissions that are longer are committed separately, so that small ones do not wait for them."""

LARGE_WRITERS = 3
"""Concurrent commits of large submissions; of one application only if no other one is active."""

LANE_WRITERS = 2
"""Concurrent commits from other lanes. More would leave no connections for other commits."""

PAUSE_FACTOR = 3.0
"""The pause of an application after a commit of more than :data:`LARGE_SUBMISSION` bytes, while others are active.

It is a multiple of the time that the commit took: the database works for the others most of the time.
"""

MAX_COMMIT_EVENTS = 4000
MAX_COMMIT_BYTES = 4_194_304

LANE_SHARE = 0.25
"""The share of the limits that one application with a quota may use: a lock may block its lane."""

APPLICATION_SHARE = 0.75
"""The share of the limits that any application may use, so that the others do not get a 503."""

LOW_WATER = 0.5
"""The share of the limits at which submissions are accepted again after the queue was full."""


@dataclass(frozen=True)
class QueueLimits:
    """Limits of the queue, in which submissions stay until they are committed.

    :ivar timeout: seconds after which a submission fails.
    """

    events: int = 100_000
    bytes: int = 67_108_864
    timeout: float = 10.0


@dataclass(eq=False, slots=True)
class QueueLoad:
    """The submissions in a queue, including those that are being committed."""

    events: int = 0
    bytes: int = 0

    def add(self, pending: _Pending) -> None:
        self.events += pending.events
        self.bytes += pending.bytes

    def remove(self, pending: _Pending) -> None:
        self.events -= pending.events
        self.bytes -= pending.bytes

    def share_of(self, limits: QueueLimits) -> float:
        """Return how full the queue is, from 0 to 1."""
        return max(self.events / limits.events, self.bytes / limits.bytes)


class Store(Protocol):
    """Stores submissions: see :class:`tkserver.storage.event_store.EventStore`."""

    def store(
        self, submissions: Sequence[Submission], *, skip_unstorable: bool = False
    ) -> Awaitable[list[Outcome]]: ...


class _FairQueue:
    """Submissions in the order in which they are committed: in turn for each application, oldest first."""

    def __init__(self) -> None:
        # The next application is the first key. A dict would take longer to find it, the more keys were removed.
        self._by_application: OrderedDict[Application, deque[_Pending]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_application)

    def append(self, pending: _Pending) -> None:
        self._by_application.setdefault(pending.submission.application, deque()).append(pending)

    def peek(self) -> _Pending:
        """Return the next submission."""
        return next(iter(self._by_application.values()))[0]

    def pop(self) -> _Pending:
        """Remove and return the next submission. The next one after it is of another application, if there is one."""
        application, submissions = next(iter(self._by_application.items()))
        pending = submissions.popleft()
        if submissions:
            self._by_application.move_to_end(application)
        else:
            del self._by_application[application]
        return pending


@dataclass(eq=False, slots=True)
class _Pending:
    """A submission in a queue.

    :ivar outcome: fires when it is committed.
    :ivar previous: if the submission quarantines events that an earlier commit refused, the outcome of that commit.
    """

    submission: Submission
    events: int
    bytes: int
    outcome: Deferred[Outcome] = field(default_factory=Deferred)
    previous: Outcome | None = None

    @property
    def nonce(self) -> tuple[int, int, str] | None:
        """A key for the nonce, of which a commit must not contain two."""
        submission = self.submission
        return None if submission.nonce is None else (*submission.application, submission.nonce)


class _LaneKind(Enum):
    """Why submissions are in a lane. An application can have several lanes, because its quota can change."""

    QUOTA = auto()
    INVALID = auto()
    LARGE = auto()


def _lane_kind(pending: _Pending) -> _LaneKind | None:
    """Return ``None`` if a submission needs no lane."""
    if pending.submission.has_quota:
        return _LaneKind.QUOTA
    if pending.submission.invalid:
        return _LaneKind.INVALID
    return _LaneKind.LARGE if pending.bytes > LARGE_SUBMISSION else None


@dataclass(eq=False, slots=True)
class _Lane:
    """A queue of one application, and the number of its writers at work."""

    application: Application
    kind: _LaneKind
    queue: _FairQueue = field(default_factory=_FairQueue)
    writers: int = 0


class Committer:
    """Accepts submissions and commits them in groups.

    :param ledger: counts the outcome of every submitted event.
    :param active: gets to know each submission. An application that is alone does not pause.
    :ivar load: the load of all queues together.
    """

    def __init__(
        self,
        store: Store,
        reactor: Any,
        limits: QueueLimits,
        ledger: Ledger,
        active: ActiveApplications,
    ) -> None:
        self._store = store
        self._reactor = reactor
        self._active = active
        self._limits = limits
        self._ledger = ledger
        self._timeouts = _Timeouts(limits.timeout, reactor)
        self._small, self._writers = _FairQueue(), 0
        self._lanes: dict[tuple[Application, _LaneKind], _Lane] = {}
        self._large_writers, self._other_writers = DeferredSemaphore(LARGE_WRITERS), DeferredSemaphore(LANE_WRITERS)
        self.load = QueueLoad()
        self._loads: dict[Application, QueueLoad] = {}
        self._full = False
        self._throttle = log.Throttle(reactor.seconds)

    def check_load(self) -> None:
        """
        :raise Overloaded: if the queue is full, or was full and has not been emptied to ``LOW_WATER`` since.
        """
        share = self.load.share_of(self._limits)
        self._full = share > LOW_WATER if self._full else share >= 1
        if self._full:
            raise Overloaded("events arrive faster than they can be stored: try again later")

    def submit(self, submission: Submission) -> Deferred[Outcome]:
        """Add a submission to the queue, and return a Deferred that fires when it is committed.

        If the Deferred is cancelled before the commit has begun, the submission is not written.

        :raise Overloaded: if the queue is full.
        :raise StorageError: if the submission was not stored in time. A commit that has begun may still succeed; the
            client gets the result when it sends the events again.
        """
        pending = _Pending(submission, submission.size, submission.bytes)
        self._active.note_request(submission.application)
        try:
            self.check_load()
            self._check_share(pending)
        except Overloaded as error:
            self._ledger.refuse(pending.events, error.code)
            raise
        self._enqueue(pending)
        self._timeouts.add(pending.outcome)
        return pending.outcome

    def _enqueue(self, pending: _Pending) -> None:
        self._add_load(pending)
        kind = _lane_kind(pending)
        if kind is not None:
            self._enqueue_in_lane(pending, kind)
            return
        self._small.append(pending)
        if self._writers < WRITERS:
            _start(self._write_small())

    def _enqueue_in_lane(self, pending: _Pending, kind: _LaneKind) -> None:
        application = pending.submission.application
        lane = self._lanes.get((application, kind))
        if lane is None:
            lane = self._lanes[application, kind] = _Lane(application, kind)
        lane.queue.append(pending)
        if lane.writers < self._max_writers(lane):
            _start(self._write_lane(lane))

    def _max_writers(self, lane: _Lane) -> int:
        """Return how many commits of a lane can be in progress at once."""
        return LARGE_WRITERS if lane.kind is _LaneKind.LARGE and self._active.is_alone(lane.application) else 1

    def _check_share(self, pending: _Pending) -> None:
        """
        :raise Overloaded: if the application uses its share of the queue already.
        """
        load = self._loads.get(pending.submission.application) or QueueLoad()
        if load.share_of(self._limits) >= (LANE_SHARE if pending.submission.has_quota else APPLICATION_SHARE):
            raise Overloaded("events of this application arrive faster than they can be stored: try again later")

    def _add_load(self, pending: _Pending) -> None:
        self._loads.setdefault(pending.submission.application, QueueLoad()).add(pending)
        self.load.add(pending)

    def _remove_load(self, pending: _Pending) -> None:
        application = pending.submission.application
        load = self._loads[application]
        load.remove(pending)
        if not load.bytes:
            del self._loads[application]
        self.load.remove(pending)

    async def _write_small(self) -> None:
        """Commit until there are no small submissions."""
        self._writers += 1
        while group := self._next_group(self._small):
            await self._commit(group)
        self._writers -= 1

    async def _write_lane(self, lane: _Lane) -> None:
        """Commit until a lane is empty, in turn with other lanes."""
        writers = self._large_writers if lane.kind is _LaneKind.LARGE else self._other_writers
        lane.writers += 1
        while lane.queue and lane.writers <= self._max_writers(lane):
            async with writers:
                group, started = self._next_group(lane.queue), self._reactor.seconds()
                if group:
                    await self._commit(group)
            await self._pause(lane, group, self._reactor.seconds() - started)
        lane.writers -= 1
        if not lane.writers:
            del self._lanes[lane.application, lane.kind]

    async def _pause(self, lane: _Lane, group: list[_Pending], duration: float) -> None:
        """Pause after a commit.

        :param duration: of the commit, in seconds.
        """
        is_large = sum(pending.bytes for pending in group) > LARGE_SUBMISSION
        if is_large and duration > 0 and not self._active.is_alone(lane.application):
            await deferLater(self._reactor, PAUSE_FACTOR * duration)

    def _next_group(self, queue: _FairQueue) -> list[_Pending]:
        """Remove the next submissions from a queue, as many as fit into one commit."""
        group: list[_Pending] = []
        events = size = 0
        nonces: set[object] = set()
        while queue:
            pending = queue.peek()
            if pending.outcome.called:  # it has timed out or was cancelled
                self._finish(queue.pop(), None)
                continue
            events, size = events + pending.events, size + pending.bytes
            nonce = pending.nonce
            if group and (events > MAX_COMMIT_EVENTS or size > MAX_COMMIT_BYTES or nonce in nonces):
                break
            if nonce is not None:
                nonces.add(nonce)
            group.append(queue.pop())
        return group

    async def _commit(self, group: list[_Pending]) -> None:
        """Commit a group. If some of its submissions prevent that, commit its halves separately."""
        try:
            outcomes: Sequence[Outcome | Failure] = await self._store_group([pending.submission for pending in group])
        except Exception as error:
            if len(group) > 1 and is_divisible(error, group):
                half = len(group) // 2
                await self._commit(group[:half])
                await self._commit(group[half:])
                return
            outcomes = [_storage_failure(error)] * len(group)
        for pending, outcome in zip(group, outcomes, strict=True):
            self._finish(pending, outcome)
        self._timeouts.discard_fired()

    async def _store_group(self, submissions: list[Submission]) -> list[Outcome]:
        try:
            return await self._store.store(submissions)
        except DataRefused as error:
            if len(submissions) > 1:
                raise
            problem = str(error)
            if self._throttle.allows(problem):
                _log.warn(
                    "the database rejects events that passed validation: {problem}",
                    problem=problem,
                    event="data_refused",
                )
            return await self._store.store(submissions, skip_unstorable=True)

    def _finish(self, pending: _Pending, outcome: Outcome | Failure | None) -> None:
        """Remove a submission from the load, count its outcome, and fire its Deferred.

        :param outcome: ``None`` if the submission was not written because nothing waits for it anymore.
        """
        self._remove_load(pending)
        if isinstance(outcome, Outcome):
            self._ledger.settle(pending.submission, outcome)
            if outcome.refused:
                self._quarantine_refused(pending, outcome)
                return
            if pending.previous is not None:
                outcome = outcome.following(pending.previous)
        elif outcome is None:
            self._ledger.refuse(pending.events, GIVEN_UP)
        else:
            self._ledger.fail(pending.events, outcome.value)
        if outcome is not None and not pending.outcome.called:
            pending.outcome.callback(outcome)

    def _quarantine_refused(self, pending: _Pending, outcome: Outcome) -> None:
        """Quarantine the events that the database has refused."""
        refused = pending.submission.refused(outcome)
        self._enqueue(_Pending(refused, refused.size, refused.bytes, pending.outcome, outcome))


class _Timeouts:
    """Fails Deferreds that have not fired in time. All have the same timeout, so that one timer is enough.

    :param seconds: the time after which a Deferred fails with :exc:`Unavailable`.
    """

    def __init__(self, seconds: float, reactor: Any) -> None:
        self._seconds = seconds
        self._reactor = reactor
        self._waiting: deque[tuple[float, Deferred[Outcome]]] = deque()
        self._timer: IDelayedCall | None = None

    def add(self, deferred: Deferred[Outcome]) -> None:
        self._waiting.append((self._reactor.seconds() + self._seconds, deferred))
        if self._timer is None:
            self._timer = self._reactor.callLater(self._seconds, self._expire)

    def discard_fired(self) -> None:
        """Remove the oldest Deferreds that have fired, so that the memory of their results is freed."""
        while self._waiting and self._waiting[0][1].called:
            self._waiting.popleft()

    def _expire(self) -> None:
        self._timer = None
        self.discard_fired()
        while self._waiting and self._waiting[0][0] <= self._reactor.seconds():
            self._waiting.popleft()[1].errback(Unavailable(f"not committed within {self._seconds:g} s"))
            self.discard_fired()
        if self._waiting:
            self._timer = self._reactor.callLater(self._waiting[0][0] - self._reactor.seconds(), self._expire)


def _start(writer: Any) -> None:
    """Start a writer outside the context of the current request, because it commits for many requests."""
    Context().run(ensureDeferred, writer)


def _storage_failure(error: Exception) -> Failure:
    """Return the failure of a commit. An unexpected error is logged, and the events may be sent again."""
    if isinstance(error, StorageError):
        return Failure(error)
    _log.failure("a commit failed unexpectedly", event="commit_failed")
    return Failure(Unavailable("unexpected error"))
