"""A bound on all bodies together.

A signature covers the whole body, so that a body must be held until it is checked. What bounds memory is that each
request claims room for its body before it is read, and that its connection is not read from until it has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Claim:
    """Room for one body.

    :ivar granted: whether it is there; otherwise it will be, in its turn.
    """

    budget: Budget
    bytes: int
    on_granted: Callable[[], None]
    granted: bool = False

    def release(self) -> None:
        """Give the room back, or stop waiting for it."""
        self.budget.release(self)


class Budget:
    """Hands out room, first come, first served.

    :param bytes: all that there is.
    """

    def __init__(self, bytes: int, reactor: Any) -> None:
        self._free = self._total = bytes
        self._reactor = reactor
        self._waiting: deque[Claim] = deque()

    @property
    def total(self) -> int:
        """Bytes."""
        return self._total

    @property
    def taken(self) -> int:
        """Bytes that are claimed and granted."""
        return self._total - self._free

    @property
    def waiting(self) -> int:
        """How many claims wait for room."""
        return len(self._waiting)

    def claim(self, bytes: int, on_granted: Callable[[], None]) -> Claim:
        """Ask for room.

        :param on_granted: called when a claim that had to wait is granted.
        """
        claim = Claim(self, min(bytes, self._total), on_granted)
        if not self._waiting and claim.bytes <= self._free:
            self._grant(claim)
        else:
            self._waiting.append(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """See :meth:`Claim.release`."""
        if claim.granted:
            self._free += claim.bytes
        elif claim in self._waiting:
            self._waiting.remove(claim)
        while self._waiting and self._waiting[0].bytes <= self._free:
            granted = self._waiting.popleft()
            self._grant(granted)
            # In a turn of its own: what one request gives back may be enough for many, and theirs for more.
            self._reactor.callLater(0, granted.on_granted)

    def _grant(self, claim: Claim) -> None:
        self._free -= claim.bytes
        claim.granted = True
