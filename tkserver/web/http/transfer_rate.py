"""The minimum rate at which a request body must arrive, so that slow clients cannot hold memory for long."""

from __future__ import annotations

from collections import deque

CHECK_INTERVAL = 5.0
"""Seconds between two checks of a body."""

WINDOW = 4
"""The number of checks over which the rate is measured. Short interruptions of a mobile network do not matter."""

RATE_FACTOR_WHEN_BUSY = 8
"""While other bodies wait for memory, the minimum rate is so many times as high, and measured between two checks."""


class TransferRate:
    """The progress of one body.

    :param min_rate: bytes per second; 0 allows any rate.
    :param timeout: seconds for the whole body.
    :param now: seconds, on the scale of all other times.
    """

    def __init__(self, min_rate: float, timeout: float, now: float) -> None:
        self._min_rate = min_rate
        self._ends = now + timeout
        self._checks: deque[tuple[float, int]] = deque([(now, 0)], WINDOW)

    def seconds_to_next_check(self, now: float) -> float:
        return max(0.0, min(CHECK_INTERVAL, self._ends - now))

    def resume(self, now: float, received: int) -> None:
        """Measure from now on, because the server did not read for some time.

        :param received: bytes of the body so far.
        """
        self._checks.clear()
        self._checks.append((now, received))

    def problem(self, now: float, received: int, *, delays_others: bool) -> str | None:
        """Check the body, and return why it is too slow, or ``None`` if it is not.

        :param received: bytes of the body so far.
        :param delays_others: true if other bodies wait for memory.
        """
        if now >= self._ends:
            return "timeout while receiving the body"
        if delays_others and self._is_slower(self._min_rate * RATE_FACTOR_WHEN_BUSY, self._checks[-1], now, received):
            return "too slow while other clients wait"
        if len(self._checks) == WINDOW and self._is_slower(self._min_rate, self._checks[0], now, received):
            return f"slower than {self._min_rate:g} bytes per second"
        self._checks.append((now, received))
        return None

    @staticmethod
    def _is_slower(rate: float, check: tuple[float, int], now: float, received: int) -> bool:
        return received - check[1] < rate * (now - check[0])
