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
from tkserver.ingest.scheduler import SLICE_TIME, FairScheduler
from tkserver.wire.batch import Steps

STEP = SLICE_TIME / 5


class Workbench:
    """A scheduler with a clock of CPU time that only its computations advance."""

    def __init__(self) -> None:
        self.reactor = IterationClock()
        self.cpu_time = 0.0
        self.history: list[str] = []
        self.scheduler = FairScheduler(self.reactor, lambda: self.cpu_time)

    def compute(self, name: str, steps: int, error: Exception | None = None) -> Steps[str]:
        """Do some steps, and then return the name or raise an error."""
        for _ in range(steps):
            self.cpu_time += STEP
            self.history.append(name)
            yield
        if error is not None:
            raise error
        return name

    def run(self, owner: str, steps: int, name: str = "") -> list[object]:
        """Start a computation, and return a list to which the result is appended."""
        results: list[object] = []
        self.scheduler.run(owner, self.compute(name or owner, steps)).addBoth(results.append)
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
    bench.scheduler.run("app", bench.compute("a", 8, ValueError("bad"))).addBoth(results.append)
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
    running = bench.scheduler.run("app", steps())
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
