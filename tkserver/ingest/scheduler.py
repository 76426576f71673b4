"""Fair scheduling of the work on request bodies.

A body of legal size can take seconds of CPU time. Its computation is therefore divided into steps
(:mod:`tkserver.wire.batch`), and the scheduler runs a few steps in each iteration of the reactor. It divides CPU time
equally between applications, so that one application with expensive bodies does not delay the others.

A step that takes too long, although it is the smallest possible one, is followed by a pause of the application.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from tkserver.ingest.active_applications import ActiveApplications, Application
from tkserver.wire.batch import Steps

T = TypeVar("T")

SLICE_TIME = 0.001
"""CPU seconds of work in one iteration of the reactor. A request waits several iterations."""

ALONE_SLICE_TIME = 0.005
"""The same for an application that is alone: longer slices cost less."""

IMMEDIATE_TIME = 0.002
"""Seconds of work of an application that are done without waiting, in each :data:`IMMEDIATE_PERIOD`.

An application that is alone can use them for each body.
"""

IMMEDIATE_PERIOD = 0.02
"""Seconds."""

LONG_STEP = 0.005
"""CPU seconds. Few steps take longer: they decode very long values, and cannot be divided."""

PAUSE_FACTOR = 100
"""The pause of an application after a long step, as a multiple of its duration, while others are active.

Long steps then delay at most one in a hundred requests of other applications.
"""

PAUSE_CHECK = 0.05
"""Seconds until the next attempt if all applications pause."""


@dataclass(eq=False)
class _Task(Generic[T]):
    """A computation in progress."""

    steps: Steps[T]
    context: Context
    result: Deferred[T]


@dataclass(eq=False)
class _Share:
    """The waiting computations of one application.

    :ivar used: CPU seconds that it has used, relative to the others.
    :ivar small: the computations on small bodies. They take turns with those on large bodies.
    """

    used: float
    small: deque[_Task[Any]] = field(default_factory=deque)
    large: deque[_Task[Any]] = field(default_factory=deque)
    is_small_next: bool = True

    def __len__(self) -> int:
        return len(self.small) + len(self.large)

    def next_queue(self) -> deque[_Task[Any]]:
        """Return the queue whose first computation is next."""
        queue, other = (self.small, self.large) if self.is_small_next else (self.large, self.small)
        self.is_small_next = not self.is_small_next
        return queue or other


class FairScheduler:
    """Runs computations: short ones immediately, and long ones in slices.

    :param clock: returns CPU seconds of the current thread, so that other processes do not cause pauses.
    :param active: an application that is alone does not pause, and its slices are longer.
    """

    def __init__(self, reactor: Any, clock: Callable[[], float], active: ActiveApplications) -> None:
        self._reactor = reactor
        self._clock = clock
        self._active = active
        self._shares: dict[Application, _Share] = {}
        self._call: IDelayedCall | None = None
        self._all_pause = False
        self._pauses: dict[Application, float] = {}  # their ends, as times of the reactor
        self._immediate: dict[Application, float] = {}
        self._period_ends = 0.0

    @property
    def waiting(self) -> int:
        """The number of computations that are not finished."""
        return sum(map(len, self._shares.values()))

    async def run(self, owner: Application, steps: Steps[T], *, small: bool) -> T:
        """Run a computation on behalf of an application, and return its result.

        :param owner: the application.
        :param small: true if the computation is about a small body. It does not wait for large bodies then.
        """
        now = self._reactor.seconds()
        left = self._immediate_time(owner, now, small)
        if left > 0:
            deadline = now + left
            try:
                while True:
                    next(steps)
                    if self._reactor.seconds() >= deadline:
                        break
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                self._immediate[owner] = self._immediate.get(owner, 0.0) + self._reactor.seconds() - now
        return await self.enqueue(owner, steps, small=small)

    def _immediate_time(self, owner: Application, now: float, small: bool) -> float:
        """Return the CPU time that the application can use now without waiting for others."""
        if now >= self._period_ends:
            self._immediate.clear()
            self._period_ends = now + IMMEDIATE_PERIOD
        if self._active.is_alone(owner):
            return IMMEDIATE_TIME if small or owner not in self._shares else 0.0
        return IMMEDIATE_TIME - self._immediate.get(owner, 0.0) if small else 0.0

    def enqueue(self, owner: Application, steps: Steps[T], *, small: bool = False) -> Deferred[T]:
        """Run a computation in slices.

        :return: fires with the result. Cancelling it ends the computation.
        """
        task = _Task(steps, copy_context(), Deferred(lambda _: steps.close()))
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = _Share(self._least_used())
        (share.small if small else share.large).append(task)
        if self._call is None or self._all_pause:
            self._schedule(all_pause=False)
        return task.result

    def _least_used(self) -> float:
        """Return where a new share starts: equal to the others, so that it neither waits nor has saved up time."""
        return min((share.used for share in self._shares.values()), default=0.0)

    def _schedule(self, *, all_pause: bool) -> None:
        if self._call is not None:
            self._call.cancel()
        self._all_pause = all_pause
        self._call = self._reactor.callLater(PAUSE_CHECK if all_pause else 0, self._run_slice)

    def _run_slice(self) -> None:
        self._call = None
        ready = [item for item in self._shares.items() if not self._is_paused(item[0])]
        if ready:
            self._run_next(*min(ready, key=lambda item: item[1].used))
        if self._shares and self._call is None:  # the result of a computation can start another one
            self._schedule(all_pause=not ready)

    def _run_next(self, owner: Application, share: _Share) -> None:
        """Run a slice of the next computation of an application."""
        queue = share.next_queue()
        task = queue[0]
        started = self._clock()
        deadline = started + (ALONE_SLICE_TIME if self._active.is_alone(owner) else SLICE_TIME)
        finished = task.result.called or task.context.run(self._continue, task, deadline)
        duration = self._clock() - started
        share.used += duration
        if duration >= LONG_STEP:
            self._pause(owner, PAUSE_FACTOR * duration)
        if finished:
            queue.popleft()
            if not share:
                del self._shares[owner]

    def _is_paused(self, owner: Application) -> bool:
        return self._pauses.get(owner, 0.0) > self._reactor.seconds() and not self._active.is_alone(owner)

    def _pause(self, owner: Application, seconds: float) -> None:
        now = self._reactor.seconds()
        self._pauses = {paused: end for paused, end in self._pauses.items() if end > now}
        self._pauses[owner] = now + seconds

    def _continue(self, task: _Task[Any], deadline: float) -> bool:
        """Run a computation until the deadline, and return true if it has ended."""
        try:
            while True:
                next(task.steps)
                if self._clock() >= deadline:
                    return False
        except StopIteration as stop:
            task.result.callback(stop.value)
        except Exception:
            task.result.errback()
        return True
