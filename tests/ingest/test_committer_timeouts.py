"""Giving up on many things with one timer."""

from __future__ import annotations

from tkserver.ingest.patience import SharedTimeout
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tkserver.storage.errors import Unavailable


class Waiting:
    """SharedTimeout of ten seconds, and when which wait ended how."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.patience = SharedTimeout[str](10, self.clock, "not done")
        self.ends: list[tuple[float, str]] = []

    def begin(self) -> Deferred[str]:
        work: Deferred[str] = Deferred()
        work.addBoth(self._note)
        self.wait_for(work)
        return work

    def _note(self, end: str | Failure) -> None:
        if isinstance(end, Failure):
            end.trap(Unavailable)
            end = str(end.value)
        self.ends.append((self.clock.seconds(), end))

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)


def test_each_has_its_own_time() -> None:
    """Each is given up after its ten seconds, not with the first."""
    waiting = Waiting()
    waiting.begin()
    waiting.wait(4)
    waiting.begin()
    waiting.begin()
    waiting.wait(30)
    late = "not done within 10 s"
    assert waiting.ends == [(10, late), (14, late), (14, late)]


def test_what_is_done_is_left_alone() -> None:
    """Done in time, in whatever order, and those after it are still given up."""
    waiting = Waiting()
    works = []
    for _ in range(3):
        works.append(waiting.begin())
        waiting.wait(2)
    works[1].callback("done")
    waiting.wait(30)
    assert waiting.ends == [(6, "done"), (10, "not done within 10 s"), (14, "not done within 10 s")]


def test_one_timer_for_all_and_none_for_nothing() -> None:
    """One however many wait, and none when all that was waited for is over."""
    waiting = Waiting()
    works = [waiting.begin() for _ in range(100)]
    assert len(waiting.clock.getDelayedCalls()) == 1
    for work in works:
        work.callback("done")
    waiting.forget_fired()
    waiting.wait(10)
    assert waiting.clock.getDelayedCalls() == []
    waiting.begin()
    waiting.wait(10)
    assert waiting.ends[-1] == (20, "not done within 10 s")
