"""The minimum rate of bodies."""

from __future__ import annotations

from tkserver.web.http.transfer_rate import CHECK_INTERVAL, RATE_FACTOR_WHEN_BUSY, WINDOW, TransferRate

HOUR = 3600.0


def seconds_until_rejected(
    rate: float, *, min_rate: float = 100, timeout: float = HOUR, delays_others: bool = False, burst: int = 0
) -> float | None:
    """Return after how many seconds a body is rejected, or ``None`` if it is not rejected within two hours.

    :param rate: bytes per second.
    :param burst: bytes that arrive immediately.
    """
    transfer, now = TransferRate(min_rate, timeout, 0), 0.0
    while now < 2 * HOUR:
        now += transfer.seconds_to_next_check(now)
        if transfer.problem(now, burst + int(rate * now), delays_others=delays_others):
            return now
    return None


def test_slow_body() -> None:
    """A body that is slower than the minimum rate is rejected after several checks."""
    assert seconds_until_rejected(99) == WINDOW * CHECK_INTERVAL
    assert seconds_until_rejected(0) == WINDOW * CHECK_INTERVAL


def test_body_of_the_minimum_rate() -> None:
    """A body that is not slower than the minimum rate is read until the time limit of the whole body."""
    assert seconds_until_rejected(101) == HOUR


def test_no_minimum_rate() -> None:
    """Without a minimum rate, only the time limit applies."""
    assert seconds_until_rejected(0, min_rate=0, timeout=7) == 7


def test_fast_start_earns_no_time() -> None:
    """A body of which most arrives immediately must continue to arrive."""
    assert seconds_until_rejected(1, burst=10_000_000) == WINDOW * CHECK_INTERVAL + CHECK_INTERVAL


def test_body_that_delays_others() -> None:
    """While others wait for memory, the minimum rate is higher, and each check counts."""
    assert seconds_until_rejected(100 * RATE_FACTOR_WHEN_BUSY - 1, delays_others=True) == CHECK_INTERVAL
    assert seconds_until_rejected(100 * RATE_FACTOR_WHEN_BUSY + 1, delays_others=True) == HOUR


def test_short_interruption() -> None:
    """An interruption that is shorter than the time over which the rate is measured does not matter."""
    transfer = TransferRate(100, HOUR, 0)
    received = [3000, 3000, 3000, 3000, 6000]
    times = [CHECK_INTERVAL * number for number in range(1, 6)]
    assert [transfer.problem(*check, delays_others=False) for check in zip(times, received, strict=True)] == [None] * 5


def test_time_of_waiting_does_not_count() -> None:
    """The rate is measured again from the moment at which the server continues to read."""
    transfer = TransferRate(100, HOUR, 0)
    transfer.resume(100, 5)
    for number in range(1, WINDOW):
        assert transfer.problem(100 + number * CHECK_INTERVAL, 5, delays_others=False) is None
    assert transfer.problem(100 + WINDOW * CHECK_INTERVAL, 5, delays_others=False) is not None
