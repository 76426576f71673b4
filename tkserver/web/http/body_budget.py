"""A limit on the memory of all request bodies together, and on the memory of the bodies of each client.

A signature covers the whole body, so a body is held in memory until it is verified. Bodies are charged as they arrive:
a client that only announces a body takes nothing from others. Each client, normally an address, has a limited share of
the memory. If the memory is used up all the same, the client that holds most of it loses a body that is not complete.
Clients that hold little are therefore always served, whatever others send.

Within the share of a client, large and small bodies have separate pools, so that small bodies never wait for large
ones. The bodies of a pool first use its *slack*. When that is used up, the body of which most has been received gets a
reservation for its whole length, so that it can be completed, and the next one, as far as there is memory for that.
Then all others wait: the server stops reading from their connections.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

SMALL_BODY = 65_536
"""The maximum length of a small body. A body of unknown length is not small."""

SHARE = 1 / 4
"""The part of all memory that one client may use, and also the part that only small bodies may use."""

LARGE_RESERVATIONS, LARGE_SLACK = 9 / 16, 2 / 16
SMALL_RESERVATIONS, SMALL_SLACK = 3 / 16, 2 / 16
"""The parts of the share of a client. By default, the first one is enough for a body of the maximum length."""


class BodyReceiver(Protocol):
    """Receives a body. Nothing is called after the body has been finished or released."""

    def stop_reading(self) -> None:
        """Do not read more of the body, because there is no memory for it."""

    def continue_reading(self) -> None:
        """Read the body, because there is memory for it again."""

    def lose_memory(self) -> None:
        """Discard the body: its memory was given to another client."""


@dataclass(eq=False, slots=True)
class BodyMemory:
    """The memory of one body.

    :ivar length: the length of the body, or its maximum if it is not known.
    :ivar held: bytes received so far.
    :ivar reserved: bytes reserved in the pool; 0 without a reservation.
    :ivar waits: true if no more of this body must be read.
    :ivar complete: true if the whole body has been received. It cannot be evicted any more.
    """

    pool: Pool
    length: int
    receiver: BodyReceiver
    held: int = 0
    reserved: int = 0
    waits: bool = False
    complete: bool = False

    def charge(self, bytes: int) -> None:
        """Charge received bytes."""
        self.pool.budget.charge(self, bytes)

    def finish(self, bytes: int) -> None:
        """Charge the last bytes of a body. It does not wait any more."""
        self.pool.budget.finish(self, bytes)

    def release(self) -> None:
        """Return the memory."""
        self.pool.budget.release(self)

    @property
    def delays_others(self) -> bool:
        """True if other bodies wait for memory that this one may hold."""
        return bool(self.pool.waiting) or self.pool.budget.is_short


@dataclass(eq=False, slots=True)
class Pool:
    """The memory of the large or of the small bodies of one client.

    :ivar reservable: the maximum of ``reserved``, the bytes of all reservations.
    :ivar slack: the maximum of ``slack_used``, the received bytes of bodies without a reservation.
    :ivar unreserved: bodies without a reservation.
    :ivar waiting: those of them that wait, in the order in which they began to wait.
    """

    budget: BodyBudget
    client: Client
    is_large: bool
    reservable: int
    slack: int
    reserved: int = 0
    slack_used: int = 0
    unreserved: dict[BodyMemory, None] = field(default_factory=dict)
    waiting: dict[BodyMemory, None] = field(default_factory=dict)

    def has_room(self, body: BodyMemory) -> bool:
        return body.reserved > 0 or self.slack_used < self.slack

    def make_room(self) -> None:
        """Grant reservations while there is no slack, and then let waiting bodies use the slack."""
        while self.unreserved and self.slack_used >= self.slack and self._grant_reservation():
            pass
        while self.waiting and self.slack_used < self.slack:
            self._resume(next(iter(self.waiting)))

    def _grant_reservation(self) -> bool:
        """Grant a reservation to the body of which most has been received, and return whether that was possible.

        One reservation of any length is always possible.
        """
        body = max(self.unreserved, key=lambda other: other.held)
        if self.reserved and self.reserved + body.length > self.reservable:
            return False
        del self.unreserved[body]
        self.slack_used -= body.held
        body.reserved = body.length
        self.reserved += body.length
        if body in self.waiting:
            self._resume(body)
        return True

    def _resume(self, body: BodyMemory) -> None:
        del self.waiting[body]
        self.budget.resume(body)

    def stop_others(self) -> None:
        """Let all bodies without a reservation wait, because there is no slack."""
        for body in self.unreserved:
            if not body.waits and not body.complete:
                body.waits = True
                self.waiting[body] = None
                body.receiver.stop_reading()

    def remove(self, body: BodyMemory) -> None:
        self.waiting.pop(body, None)
        if body.reserved:
            self.reserved -= body.reserved
        else:
            del self.unreserved[body]
            self.slack_used -= body.held


@dataclass(eq=False, slots=True)
class Client:
    """The bodies of one client.

    :ivar incomplete: received bytes of bodies that are not complete.
    """

    key: Hashable
    pools: dict[bool, Pool] = field(default_factory=dict)
    bodies: dict[BodyMemory, None] = field(default_factory=dict)
    incomplete: int = 0

    def largest_incomplete(self) -> BodyMemory:
        return max(self.bodies, key=lambda body: 0 if body.complete else body.held)


class BodyBudget:
    """Accounts for the memory of bodies.

    :param bytes: the total amount.
    :param max_length: the maximum length of a body.
    :ivar used: bytes that are held.
    """

    def __init__(self, bytes: int, max_length: int, reactor: Any) -> None:
        self.total = bytes
        self.used = 0
        self._used_by_large = 0
        self._max_length = max_length
        self._reactor = reactor
        self._clients: dict[Hashable, Client] = {}
        self._bodies: dict[BodyMemory, None] = {}
        self._starved: dict[bool, dict[BodyMemory, None]] = {False: {}, True: {}}

    @property
    def waiting(self) -> int:
        """The number of bodies that wait for memory."""
        return sum(body.waits for body in self._bodies)

    @property
    def is_short(self) -> bool:
        """True if bodies wait because the total amount is used up."""
        return bool(self._starved[False] or self._starved[True])

    def hold(self, bytes: int) -> None:
        """Charge a body that arrived together with its headers. It belongs to no client, and never waits."""
        self.used += bytes

    def return_held(self, bytes: int) -> None:
        """Return the memory charged by :meth:`hold`."""
        self.used -= bytes
        if self.is_short:
            self._resume_starved()

    def begin(self, client: Hashable, length: int | None, receiver: BodyReceiver) -> BodyMemory:
        """Account for a body whose headers have been received. It may have to wait before it is read.

        :param client: identifies the client; ``None`` if it is not known. Unknown clients have no share: they are
            behind a proxy, and all of them together may use all memory.
        :param length: ``None`` if it is not known.
        """
        owner = self._clients.get(client)
        if owner is None:
            owner = self._clients[client] = self._new_client(client)
        pool = owner.pools[length is None or length > SMALL_BODY]
        body = BodyMemory(pool, self._max_length if length is None else length, receiver)
        self._bodies[body] = owner.bodies[body] = None
        pool.unreserved[body] = None
        self._let_wait_if_necessary(body)
        return body

    def charge(self, body: BodyMemory, bytes: int) -> None:
        """See :meth:`BodyMemory.charge`."""
        if body in self._bodies:  # otherwise, it was evicted a moment ago
            self._charge(body, bytes)
            self._let_wait_if_necessary(body)

    def finish(self, body: BodyMemory, bytes: int) -> None:
        """See :meth:`BodyMemory.finish`."""
        if body in self._bodies:
            self._charge(body, bytes)
            pool = body.pool
            pool.client.incomplete -= body.held
            body.complete, body.waits, body.length = True, False, body.held
            pool.waiting.pop(body, None)
            self._starved[pool.is_large].pop(body, None)
            if body.reserved > body.held:
                pool.reserved -= body.reserved - body.held
                body.reserved = body.held
                pool.make_room()

    def release(self, body: BodyMemory) -> None:
        """See :meth:`BodyMemory.release`."""
        if body in self._bodies:
            pool, client = body.pool, body.pool.client
            if not body.complete:
                client.incomplete -= body.held
            del self._bodies[body], client.bodies[body]
            self._starved[pool.is_large].pop(body, None)
            self._use(body, -body.held)
            pool.remove(body)
            if not client.bodies:
                del self._clients[client.key]
            pool.make_room()
            if self.is_short:
                self._resume_starved()

    def resume(self, body: BodyMemory) -> None:
        """Resume a body for which there is room in its pool."""
        body.waits = False
        self._let_wait_if_necessary(body)
        if not body.waits:
            self._reactor.callLater(0, self._continue, body)  # not in the call stack of another request

    @staticmethod
    def _continue(body: BodyMemory) -> None:
        if not body.waits and not body.complete:
            body.receiver.continue_reading()

    def _new_client(self, key: Hashable) -> Client:
        share = self.total * (1 if key is None else SHARE)
        client = Client(key)
        for is_large, reservations, slack in (
            (True, LARGE_RESERVATIONS, LARGE_SLACK),
            (False, SMALL_RESERVATIONS, SMALL_SLACK),
        ):
            client.pools[is_large] = Pool(self, client, is_large, int(share * reservations), int(share * slack))
        return client

    def _charge(self, body: BodyMemory, bytes: int) -> None:
        body.held += bytes
        body.pool.client.incomplete += bytes
        if not body.reserved:
            body.pool.slack_used += bytes
        self._use(body, bytes)

    def _use(self, body: BodyMemory, bytes: int) -> None:
        self.used += bytes
        if body.pool.is_large:
            self._used_by_large += bytes

    def _let_wait_if_necessary(self, body: BodyMemory) -> None:
        pool = body.pool
        if not pool.has_room(body):
            pool.make_room()
        if not pool.has_room(body):
            pool.stop_others()
        elif self._is_exhausted(body) and not self._evict_for(body):
            body.waits = True
            self._starved[pool.is_large][body] = None
            body.receiver.stop_reading()

    def _is_exhausted(self, body: BodyMemory) -> bool:
        """Return whether there is no memory for more of a body, whoever sends it. There always is for the oldest."""
        exhausted = self.used >= self.total
        if body.pool.is_large:
            exhausted = exhausted or self._used_by_large >= self.total * (1 - SHARE)
        return exhausted and body is not next(iter(self._bodies))

    def _evict_for(self, body: BodyMemory) -> bool:
        """Evict bodies of clients that hold more than the client of this body. Return whether that was enough."""
        client = body.pool.client
        while self._is_exhausted(body):
            heaviest = max(self._clients.values(), key=lambda other: other.incomplete)
            if heaviest.incomplete <= client.incomplete:
                return False
            victim = heaviest.largest_incomplete()
            self.release(victim)
            self._reactor.callLater(0, victim.receiver.lose_memory)
        return True

    def _resume_starved(self) -> None:
        """Resume bodies in order while there is memory, and in any case the oldest one."""
        oldest = next(iter(self._bodies), None)
        for starved in self._starved.values():
            if oldest is not None and oldest in starved:
                del starved[oldest]
                self.resume(oldest)
            while starved and not self._is_exhausted(body := next(iter(starved))):
                del starved[body]
                self.resume(body)
