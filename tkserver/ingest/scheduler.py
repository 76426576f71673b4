"""Fair scheduling of the work on request bodies.

A body of legal size can take seconds of CPU time. Its computation is therefore divided into steps
(:mod:`tkserver.wire.batch`), and the scheduler runs a few steps in each iteration of the reactor. It divides CPU time
equally between applications, so that one application with expensive bodies does not delay the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from tkserver.wire.batch import Steps

T = TypeVar("T")

SLICE_TIME = 0.005
"""Seconds of work in one iteration of the reactor. Everything else that the server does waits for so long at most."""


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
    """

    used: float
    tasks: deque[_Task[Any]] = field(default_factory=deque)


class FairScheduler:
    """Runs computations in slices.

    :param clock: returns seconds, on any scale; a clock of CPU time or of real time.
    """

    def __init__(self, reactor: Any, clock: Callable[[], float]) -> None:
        self._reactor = reactor
        self._clock = clock
        self._shares: dict[Hashable, _Share] = {}
        self._call: IDelayedCall | None = None

    @property
    def waiting(self) -> int:
        """The number of computations that are not finished."""
        return sum(len(share.tasks) for share in self._shares.values())

    def run(self, owner: Hashable, steps: Steps[T]) -> Deferred[T]:
        """Run a computation on behalf of an application.

        :param owner: the application.
        :return: fires with the result. Cancelling it ends the computation.
        """
        task = _Task(steps, copy_context(), Deferred(lambda _: steps.close()))
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = _Share(self._least_used())
        share.tasks.append(task)
        if self._call is None:
            self._call = self._reactor.callLater(0, self._run_slice)
        return task.result

    def _least_used(self) -> float:
        """Return where a new share starts: equal to the others, so that it neither waits nor has saved up time."""
        return min((share.used for share in self._shares.values()), default=0.0)

    def _run_slice(self) -> None:
        owner, share = min(self._shares.items(), key=lambda item: item[1].used)
        task = share.tasks[0]
        started = self._clock()
        finished = task.result.called or task.context.run(self._continue, task)
        share.used += self._clock() - started
        if finished:
            share.tasks.popleft()
            if not share.tasks:
                del self._shares[owner]
        self._call = self._reactor.callLater(0, self._run_slice) if self._shares else None

    def _continue(self, task: _Task[Any]) -> bool:
        """Run a slice of a computation, and return true if it has ended."""
        deadline = self._clock() + SLICE_TIME
        try:
            while self._clock() < deadline:
                next(task.steps)
        except StopIteration as stop:
            task.result.callback(stop.value)
        except Exception:
            task.result.errback()
        else:
            return False
        return True
