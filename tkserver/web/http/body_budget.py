"""A limit on the memory of all request bodies together.

A signature covers the whole body, so a body is held in memory until it is verified. Each request reserves memory before
its body is read, and the server does not read from its connection until the reservation is granted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Reservation:
    """Memory for one body.

    :ivar granted: true if the memory is available; otherwise the reservation waits in a queue.
    """

    budget: BodyBudget
    bytes: int
    on_granted: Callable[[], None]
    granted: bool = False

    def release(self) -> None:
        """Return the memory, or leave the queue."""
        self.budget.release(self)


class BodyBudget:
    """Grants reservations of memory, first come, first served.

    :param bytes: the total amount.
    """

    def __init__(self, bytes: int, reactor: Any) -> None:
        self._free = self._total = bytes
        self._reactor = reactor
        self._waiting: deque[Reservation] = deque()

    @property
    def total(self) -> int:
        """Bytes in total."""
        return self._total

    @property
    def reserved(self) -> int:
        """Bytes that are reserved."""
        return self._total - self._free

    @property
    def waiting(self) -> int:
        """The number of reservations that are not granted yet."""
        return len(self._waiting)

    def reserve(self, bytes: int, on_granted: Callable[[], None]) -> Reservation:
        """Reserve memory; more than the total amount counts as the total amount.

        :param on_granted: called when the reservation is granted later.
        """
        reservation = Reservation(self, min(bytes, self._total), on_granted)
        if not self._waiting and reservation.bytes <= self._free:
            self._grant(reservation)
        else:
            self._waiting.append(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """See :meth:`Reservation.release`."""
        if reservation.granted:
            self._free += reservation.bytes
        elif reservation in self._waiting:
            self._waiting.remove(reservation)
        while self._waiting and self._waiting[0].bytes <= self._free:
            granted = self._waiting.popleft()
            self._grant(granted)
            # Not in this call stack: each of these requests may release memory for many others in turn.
            self._reactor.callLater(0, granted.on_granted)

    def _grant(self, reservation: Reservation) -> None:
        self._free -= reservation.bytes
        reservation.granted = True
