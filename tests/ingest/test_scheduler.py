"""CPU time for request bodies is divided equally between applications."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, ensureDeferred, gatherResults
from twisted.python.failure import Failure

from tests.support.client import App, batch
from tests.support.clock import IterationClock
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.server import client_of, running_server
from tkserver.ingest.active_applications import ACTIVE_TIME, ActiveApplications
from tkserver.ingest.scheduler import (
    IMMEDIATE_PERIOD,
    IMMEDIATE_TIME,
    LONG_STEP,
    PAUSE_FACTOR,
    SLICE_TIME,
    FairScheduler,
)
from tkserver.wire.batch import Steps

STEP = SLICE_TIME / 5
VERY_LONG_STEP = 50 * LONG_STEP


def application(name: str) -> tuple[int, int]:
    """Return the key of an application."""
    return 0, int.from_bytes(name.encode())


class Workbench:
    """A scheduler with a clock of CPU time that only its computations advance. Another application is active.

    :ivar history: the name of each computation that has made a step.
    """

    def __init__(self) -> None:
        self.reactor = IterationClock()
        self.cpu_time = 0.0
        self.history: list[str] = []
        self.active = ActiveApplications(self.reactor.seconds)
        self.scheduler = FairScheduler(self.reactor, lambda: self.cpu_time, self.active)
        self.note_request("another")
        self.note_request("active")

    def note_request(self, owner: str) -> None:
        self.active.note_request(application(owner))

    def compute(self, name: str, steps: int, error: Exception | None = None, step: float = STEP) -> Steps[str]:
        """Do some steps, and then return the name or raise an error."""
        for _ in range(steps):
            self.cpu_time += step
            self.reactor.rightNow += step
            self.history.append(name)
            yield
        if error is not None:
            raise error
        return name

    def run(self, owner: str, steps: int, name: str = "", *, small: bool = False, step: float = STEP) -> list[object]:
        """Start a computation in slices, and return a list to which the result is appended."""
        results: list[object] = []
        computation = self.compute(name or owner, steps, step=step)
        self.scheduler.enqueue(application(owner), computation, small=small).addBoth(results.append)
        return results

    def request(self, owner: str, steps: int, *, small: bool = True) -> list[object]:
        """Start a computation, immediately if possible, and return a list to which the result is appended."""
        results: list[object] = []
        self.note_request(owner)
        running = self.scheduler.run(application(owner), self.compute(owner, steps), small=small)
        ensureDeferred(running).addBoth(results.append)
        return results

    def iterate(self, iterations: int = 1) -> None:
        """Run iterations of the reactor."""
        for _ in range(iterations):
            self.reactor.advance(1)


def test_one_slice_in_each_iteration() -> None:
    """An iteration of the reactor does not do more work than one slice."""
    bench = Workbench()
    results = bench.run("app", 12)
    assert bench.history == []
    bench.iterate()
    assert len(bench.history) == pytest.approx(5, abs=1)
    bench.iterate(3)
    assert results == ["app"]
    assert bench.scheduler.waiting == 0
    assert not bench.reactor.getDelayedCalls()


def test_applications_get_equal_shares() -> None:
    """An application with many computations and one with a single computation get the same CPU time."""
    bench = Workbench()
    for number in range(16):
        bench.run("busy", 100, f"busy {number}")
    bench.iterate(20)
    results = bench.run("quiet", 50)
    before = len(bench.history)
    while not results:
        bench.iterate()
    share = bench.history[before:].count("quiet") / (len(bench.history) - before)
    assert share == pytest.approx(0.5, abs=0.1)


def test_new_application_has_not_saved_up_time() -> None:
    """An application that starts late does not displace the others until it has caught up."""
    bench = Workbench()
    bench.run("old", 1000)
    bench.iterate(50)
    bench.run("new", 1000)
    before = len(bench.history)
    bench.iterate(20)
    assert bench.history[before:].count("old") == pytest.approx(bench.history[before:].count("new"), rel=0.25)


def test_computations_of_an_application_run_in_order() -> None:
    """The computations of an application run one after another."""
    bench = Workbench()
    for name in ("a", "b", "c"):
        bench.run("app", 7, name)
    bench.iterate(10)
    assert bench.history == ["a"] * 7 + ["b"] * 7 + ["c"] * 7


def test_error_of_a_computation() -> None:
    """An error is the result of its own computation, and the next one runs."""
    bench = Workbench()
    results: list[object] = []
    bench.scheduler.enqueue(application("app"), bench.compute("a", 8, ValueError("bad"))).addBoth(results.append)
    following = bench.run("app", 1, "b")
    bench.iterate(6)
    (failure,) = results
    assert isinstance(failure, Failure)
    assert isinstance(failure.value, ValueError)
    assert following == ["b"]


def test_cancelled_computation_ends() -> None:
    """A computation that is cancelled does no more work."""
    bench = Workbench()
    closed: list[bool] = []

    def steps() -> Generator[None, None, str]:
        try:
            return (yield from bench.compute("cancelled", 1000))
        finally:
            closed.append(True)

    results: list[object] = []
    running = bench.scheduler.enqueue(application("app"), steps())
    running.addBoth(results.append)
    following = bench.run("app", 1, "next")
    bench.iterate()
    steps_done = bench.history.count("cancelled")
    running.cancel()
    bench.iterate(5)
    assert bench.history.count("cancelled") == steps_done
    assert closed == [True]
    (failure,) = results
    assert isinstance(failure, Failure)
    assert failure.check(CancelledError)
    assert following == ["next"]


# --- computations that need not wait


def test_short_computation_is_finished_immediately() -> None:
    """A short computation does not wait for the reactor, also while others have long ones."""
    bench = Workbench()
    bench.run("greedy", 1000)
    assert bench.request("modest", 3) == ["modest"]
    assert bench.history == ["modest"] * 3


def test_error_of_a_short_computation() -> None:
    """The error of a computation that is finished immediately is its result."""
    bench = Workbench()
    results: list[object] = []
    running = bench.scheduler.run(application("app"), bench.compute("app", 1, ValueError("bad")), small=True)
    ensureDeferred(running).addBoth(results.append)
    (failure,) = results
    assert isinstance(failure, Failure)
    assert isinstance(failure.value, ValueError)


def test_immediate_work_of_an_application_is_limited() -> None:
    """However many short computations one application has, only some are done at once if there are others."""
    bench = Workbench()
    bench.request("modest", 1)
    results = [bench.request("greedy", 4) for _ in range(100)]
    immediate = bench.history.count("greedy")
    assert immediate * STEP <= IMMEDIATE_TIME + 4 * STEP
    assert results.count(["greedy"]) == pytest.approx(immediate / 4, abs=1)
    before = len(bench.history)
    assert bench.request("modest", 2) == ["modest"]
    assert bench.history[before:] == ["modest"] * 2
    bench.iterate(200)
    assert results == [["greedy"]] * 100
    bench.reactor.rightNow += IMMEDIATE_PERIOD
    assert bench.request("greedy", 4) == ["greedy"]


def test_application_that_is_alone_does_not_wait() -> None:
    """As long as there are no requests of others, each short computation is finished immediately."""
    bench = Workbench()
    bench.request("app", 1)
    bench.reactor.rightNow += 2 * ACTIVE_TIME
    assert [bench.request("app", 4) for _ in range(100)] == [["app"]] * 100


def test_small_body_does_not_wait_for_large_bodies_of_the_same_application() -> None:
    """Small and large bodies of an application take turns."""
    bench = Workbench()
    large = [bench.run("app", 1000, "large") for _ in range(16)]
    small = bench.run("app", 10, "small", small=True)
    bench.iterate(6)
    assert (small, large) == (["small"], [[]] * 16)
    bench.iterate(10)
    assert bench.history.count("large") > 0


# --- steps that cannot be divided


def test_application_pauses_after_a_long_step() -> None:
    """An application with long steps uses less than a hundredth of the time as long as others send requests."""
    bench = Workbench()
    bench.request("modest", 1)
    results = bench.run("greedy", 3, step=VERY_LONG_STEP)
    for _ in range(20):
        bench.iterate()
        bench.request("modest", 1)
    assert bench.history.count("greedy") < 3
    bench.iterate(int(3 * PAUSE_FACTOR * VERY_LONG_STEP) + 10)
    assert results == ["greedy"]


def test_pause_outlasts_the_computations_of_an_application() -> None:
    """An application pauses after a long step, also if it has no other computation at that moment."""
    bench = Workbench()

    def one_long_step() -> Generator[None, None, None]:
        bench.cpu_time += VERY_LONG_STEP
        return
        yield

    finished = bench.scheduler.enqueue(application("greedy"), one_long_step())
    bench.iterate(2)
    assert finished.called
    results = bench.run("greedy", 1)
    for _ in range(20):
        bench.iterate()
        bench.request("modest", 1)
    assert results == []
    bench.iterate(int(PAUSE_FACTOR * VERY_LONG_STEP) + 10)
    assert results == ["greedy"]


def test_large_body_waits_for_its_turn() -> None:
    """The work on a large body does not begin immediately while other applications are active."""
    bench = Workbench()
    results = bench.request("greedy", 1, small=False)
    assert bench.history == []
    bench.iterate(2)
    assert results == ["greedy"]


def test_others_run_during_a_pause() -> None:
    """A pause of one application does not delay the computations of another."""
    bench = Workbench()
    bench.request("modest", 1)
    greedy = bench.run("greedy", 100, step=VERY_LONG_STEP)
    bench.iterate()
    modest = bench.run("modest", 20)
    before = bench.history.count("greedy")
    bench.iterate(5)
    assert (modest, greedy, bench.history.count("greedy")) == (["modest"], [], before)


def test_application_that_is_alone_does_not_pause() -> None:
    """Nobody waits because of long steps if there are no other requests."""
    bench = Workbench()
    bench.request("app", 1)
    bench.reactor.rightNow += 2 * ACTIVE_TIME
    results = bench.run("app", 10, step=VERY_LONG_STEP)
    bench.iterate(12)
    assert results == ["app"]


# --- in the server

EXPENSIVE_DATA = b"[" + b'"",' * 25_000 + b"1e-399]"


def expensive_body(events: int) -> bytes:
    """Return a valid body that is expensive to validate."""
    data = b'{"command": "build", "duration_ms": 42}'
    text = batch([make_event() for _ in range(events)])
    assert text.count(data) == events
    return text.replace(data, EXPENSIVE_DATA)


@pytest_twisted.ensureDeferred
async def test_expensive_bodies_do_not_delay_other_applications(database: Database) -> None:
    """While one application sends expensive bodies, another one sends many small ones and gets no 503."""
    greedy, modest = App().install(database), App().install(database)
    async with running_server(database) as server:
        client = client_of(server)
        assert (await client.send(greedy, expensive_body(1))).json["accepted"] == 1
        large = [ensureDeferred(client.send(greedy, expensive_body(50))) for _ in range(4)]
        small = 0
        while not all(response.called for response in large):
            assert (await client.send(modest, [make_event()])).status == 200
            small += 1
        assert {response.status for response in await gatherResults(large)} == {200}
    assert small > 20
