"""The memory of request bodies."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from twisted.internet.task import Clock

from tkserver.web.http.body_budget import LARGE_SLACK, SHARE, SMALL_BODY, BodyBudget, BodyMemory

MIB = 1_048_576
TOTAL, MAX_LENGTH = 128 * MIB, 12 * MIB
CLIENT_SHARE = int(TOTAL * SHARE)
SLACK = int(CLIENT_SHARE * LARGE_SLACK)


@dataclass
class Receiver:
    """Receives a body, and records what happens to it."""

    name: str
    events: list[str]

    def stop_reading(self) -> None:
        self.events.append(f"{self.name} stopped")

    def continue_reading(self) -> None:
        self.events.append(f"{self.name} continued")

    def lose_memory(self) -> None:
        self.events.append(f"{self.name} lost")


class Bodies:
    """Bodies that arrive, and what happens to them."""

    def __init__(self, total: int = TOTAL) -> None:
        self.clock = Clock()
        self.budget = BodyBudget(total, MAX_LENGTH, self.clock)
        self._events: list[str] = []

    def begin(self, name: str, length: int | None, client: Hashable = "client") -> BodyMemory:
        return self.budget.begin(client, length, Receiver(name, self._events))

    def receive(self, client: Hashable, length: int | None, count: int, received: int) -> list[BodyMemory]:
        """Let several bodies of a client begin, of which a part is received immediately unless they wait."""
        bodies = []
        for number in range(count):
            body = self.begin(f"{client} {number}", length, client)
            if not body.waits:
                body.charge(received)
            bodies.append(body)
        return bodies

    def events(self) -> list[str]:
        """Return what has happened since the last call, in order."""
        self.clock.advance(0)
        events = self._events[:]
        self._events.clear()
        return events


class TestOneClient:
    """The share of a client."""

    def test_announced_bodies_hold_nothing(self) -> None:
        """Bodies of which nothing is received take no memory, not even from the same client."""
        bodies = Bodies()
        bodies.receive("client", 5 * MIB, 1000, 0)
        bodies.receive("client", None, 1000, 0)
        assert bodies.budget.used == 0
        for length in (100, SMALL_BODY, MIB, None):
            body = bodies.begin("body", length)
            body.charge(length or MIB)
            assert not body.waits
            body.release()

    @pytest.mark.parametrize("length", [SMALL_BODY, MIB, MAX_LENGTH, None])
    def test_client_holds_no_more_than_its_share(self, length: int | None) -> None:
        """However many bodies a client sends, and in whatever order, it holds no more than its share."""
        bodies = Bodies()
        step, open_bodies = 16_384, [bodies.begin(str(number), length) for number in range(3000)]
        while receiving := [body for body in open_bodies if not body.waits and body.held < body.length]:
            for body in receiving:
                if not body.waits:
                    body.charge(min(step, body.length - body.held))
        assert bodies.budget.used <= CLIENT_SHARE
        assert bodies.budget.waiting > 1000

    @pytest.mark.parametrize("length", [SMALL_BODY, MIB, MAX_LENGTH, None])
    def test_all_bodies_of_a_burst_are_completed(self, length: int | None) -> None:
        """Bodies that arrive at the same time in parts do not block each other: all are completed, some later."""
        bodies = Bodies()
        step, open_bodies = SMALL_BODY // 2, [bodies.begin(str(number), length) for number in range(150)]
        while open_bodies:
            reading = [body for body in open_bodies if not body.waits]
            assert reading, "the bodies block each other"
            for body in reading:
                if body.held >= body.length:
                    body.finish(0)
                    body.release()
                    open_bodies.remove(body)
                elif not body.waits:
                    body.charge(min(step, body.length - body.held))
            assert not [event for event in bodies.events() if "lost" in event]
        assert bodies.budget.used == 0

    def test_small_bodies_do_not_wait_for_large_ones(self) -> None:
        """While large bodies of a client wait for memory, small ones of the same client are received."""
        bodies = Bodies()
        bodies.receive("client", MAX_LENGTH, 100, MAX_LENGTH - 1)
        assert bodies.begin("large", SMALL_BODY + 1).waits
        small = bodies.begin("small", SMALL_BODY)
        small.charge(SMALL_BODY)
        assert not small.waits

    def test_bodies_continue_in_order(self) -> None:
        """When memory is returned, the body of which most was received continues, then those that waited longest."""
        bodies = Bodies()
        first = bodies.begin("first", MAX_LENGTH)
        first.charge(SLACK)
        third, second = [bodies.begin(name, MAX_LENGTH) for name in ("third", "second")]
        third.charge(1)
        second.charge(SLACK)
        assert bodies.events() == ["third stopped", "second stopped"]
        assert bodies.begin("fourth", MAX_LENGTH).waits
        first.finish(MAX_LENGTH - SLACK)
        assert bodies.events() == ["fourth stopped"]
        first.release()
        assert bodies.events() == ["second continued", "third continued", "fourth continued"]

    def test_body_of_unknown_length(self) -> None:
        """A body of unknown length reserves as much as it can need, and when it is complete, what it holds."""
        bodies = Bodies()
        chunked = bodies.begin("chunked", None)
        chunked.charge(SLACK)
        other = bodies.begin("other", MAX_LENGTH)
        other.charge(SLACK)
        assert bodies.events() == ["other stopped"]
        chunked.finish(1)
        assert bodies.events() == ["other continued"]

    def test_complete_bodies_count(self) -> None:
        """Complete bodies that are being handled belong to the share as well."""
        bodies = Bodies()
        for body in bodies.receive("client", MIB, CLIENT_SHARE // MIB, MIB):
            body.finish(0)
        assert bodies.begin("next", MIB).waits

    def test_delays_others(self) -> None:
        """A body delays others if a body of the same pool waits."""
        bodies = Bodies()
        slow, small = bodies.begin("slow", MAX_LENGTH), bodies.begin("small", 10)
        assert (slow.delays_others, small.delays_others) == (False, False)
        bodies.receive("client", MAX_LENGTH, 2, SLACK)
        assert bodies.budget.waiting == 2
        assert (slow.delays_others, small.delays_others) == (True, False)


class TestSeveralClients:
    """The total amount."""

    def test_clients_do_not_affect_each_other(self) -> None:
        """A client that uses all of its share takes nothing from another one."""
        bodies = Bodies()
        bodies.receive("greedy", MAX_LENGTH, 100, MAX_LENGTH)
        other = bodies.begin("other", MAX_LENGTH, "other")
        other.charge(MAX_LENGTH)
        assert not other.waits

    @pytest.mark.parametrize("clients", [4, 16, 1000])
    def test_client_that_holds_most_loses_a_body(self, clients: int) -> None:
        """If many clients fill the memory, those that hold most lose incomplete bodies, and another one is served."""
        bodies = Bodies()
        part = TOTAL // clients // 2
        for number in range(clients):
            bodies.receive(number, part + 1, 2, part)
        other = bodies.begin("other", SMALL_BODY, "other")
        other.charge(SMALL_BODY)
        assert not other.waits
        assert bodies.budget.used <= TOTAL
        assert "lost" in bodies.events()[-1]

    def test_lost_body_is_not_charged_any_more(self) -> None:
        """A body whose memory was given to another client holds nothing from then on."""
        bodies = Bodies(100)
        bodies.begin("first", 90, "greedy")
        victim = bodies.begin("victim", 10, "greedy")
        victim.charge(99)
        other = bodies.begin("other", 10, "other")
        other.charge(1)
        victim.charge(50)
        victim.finish(1)
        victim.release()
        assert bodies.events()[-1] == "victim lost"
        assert bodies.budget.used == 1

    def test_complete_bodies_keep_their_memory(self) -> None:
        """Bodies that are being handled keep their memory: another client waits until they are finished."""
        bodies = Bodies()
        complete = [bodies.receive(number, MAX_LENGTH, 1, MAX_LENGTH)[0] for number in range(8)]
        for body in complete:
            body.finish(0)
        bodies.events()
        assert bodies.begin("waiting", MIB, "other").waits
        assert bodies.budget.waiting == 1
        complete[0].release()
        assert bodies.events() == ["waiting stopped", "waiting continued"]

    def test_memory_for_small_bodies(self) -> None:
        """A part of the memory is only for small bodies."""
        bodies = Bodies()
        for number in range(8):
            bodies.receive(number, MAX_LENGTH, 1, MAX_LENGTH)[0].finish(0)
        assert bodies.begin("large", SMALL_BODY + 1, "other").waits
        assert not bodies.begin("small", SMALL_BODY, "other").waits

    def test_unknown_clients_have_no_share(self) -> None:
        """Clients whose addresses are not known, because they are behind a proxy, can use all memory together."""
        bodies = Bodies()
        received = bodies.receive(None, MIB, 80, MIB)
        assert not [body for body in received if body.waits]

    def test_bodies_received_with_their_headers(self) -> None:
        """Bodies that arrive with their headers are part of the total; when they are released, others are resumed."""
        bodies = Bodies(1000)
        bodies.begin("oldest", 10)
        bodies.budget.hold(1000)
        assert bodies.begin("waiting", 10, "other").waits
        bodies.budget.return_held(1000)
        assert bodies.events() == ["waiting stopped", "waiting continued"]
        assert bodies.budget.used == 0


@pytest.mark.parametrize("length", [None, MAX_LENGTH, 10])
def test_one_body_is_always_possible(length: int | None) -> None:
    """The oldest body is received even if it is longer than all memory, and then the next one."""
    bodies = Bodies(total=1)
    first = bodies.begin("first", length)
    first.charge(5)
    first.charge(4)
    assert not first.waits
    first.finish(1)
    second = bodies.begin("second", length, "other")
    assert second.waits
    first.release()
    assert bodies.events() == ["second stopped", "second continued"]
    second.charge(10)
    assert not second.waits
