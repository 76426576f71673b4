"""Time limits that are moved again and again."""

from __future__ import annotations

from tkserver.web.deadline import Deadline
from twisted.internet.task import Clock


class Rung:
    """A deadline and how often it was reached."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.times: list[float] = []
        self.deadline = Deadline(self.clock, lambda: self.times.append(self.clock.seconds()))

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)


def test_reached_once() -> None:
    """It calls when the time is over, and not again."""
    rung = Rung()
    rung.deadline.set(5)
    rung.wait(20)
    assert rung.times == [5]


def test_moved() -> None:
    """The last time that was set counts, whether it is later or sooner than the one before."""
    rung = Rung()
    rung.deadline.set(5)
    rung.wait(3)
    rung.deadline.set(5)
    rung.wait(20)
    assert rung.times == [8]
    rung.deadline.set(75)
    rung.deadline.set(10)
    rung.wait(20)
    assert rung.times == [8, 33]


def test_moved_after_its_timer_rang_early() -> None:
    """A timer that was put off may have to be brought forward again."""
    rung = Rung()
    rung.deadline.set(5)
    rung.deadline.set(75)
    rung.wait(10)
    rung.deadline.set(5)
    rung.wait(100)
    assert rung.times == [15]


def test_without_end() -> None:
    """No time limit, until the next one."""
    rung = Rung()
    rung.deadline.set(5)
    rung.deadline.set(None)
    rung.wait(20)
    assert rung.times == []
    rung.deadline.set(5)
    rung.wait(20)
    assert rung.times == [25]


def test_stopped() -> None:
    """Nothing is left in the reactor."""
    rung = Rung()
    rung.deadline.set(5)
    rung.deadline.stop()
    assert rung.clock.getDelayedCalls() == []


def test_moving_touches_no_timer() -> None:
    """However often it is moved later, there is one timer, set once."""
    rung = Rung()
    rung.deadline.set(5)
    (timer,) = rung.clock.getDelayedCalls()
    for _ in range(100):
        rung.deadline.set(75)
        rung.deadline.set(10)
    assert rung.clock.getDelayedCalls() == [timer]
    assert timer.getTime() == 5
