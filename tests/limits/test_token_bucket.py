"""Token buckets, with time as an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tkserver.limits.token_bucket import SECOND, Rate, TokenBuckets, look, take

NOW = 1_700_000_000 * SECOND

rates = st.builds(Rate.per_minute, st.integers(1, 100_000_000), burst=st.none() | st.integers(1, 1000))
pauses = st.lists(st.integers(0, 100 * SECOND), max_size=50)


@given(rate=rates, pauses=pauses)
def test_never_more_than_the_rate(rate: Rate, pauses: list[int]) -> None:
    """In any span of time no more is taken than a full bucket and what has come back since."""
    full_at, now, taken = 0, NOW, 0
    for pause in pauses:
        now += pause
        verdict = take(rate, full_at, now)
        full_at, taken = verdict.full_at, taken + verdict.allowed
        assert taken <= rate.limit + (now - NOW) // rate.interval
        assert 0 <= verdict.remaining < rate.limit


@given(rate=rates, full_at=st.integers(0, 2 * NOW), now=st.integers(0, 2 * NOW))
def test_what_is_said_is_so(rate: Rate, full_at: int, now: int) -> None:
    """There is a token after ``retry_after`` and as many as ``remaining``, and all are back at ``reset``."""
    verdict = look(rate, full_at, now)
    assert verdict.allowed == (verdict.retry_after == 0) == (verdict.remaining > 0)
    assert look(rate, verdict.full_at, now + verdict.retry_after * SECOND).allowed
    assert look(rate, verdict.full_at, verdict.reset * SECOND).remaining == rate.limit
    assert verdict.reset * SECOND - now <= rate.window + SECOND


@given(rate=st.builds(Rate.per_minute, st.integers(1, 200)), now=st.integers(0, NOW))
def test_burst(rate: Rate, now: int) -> None:
    """A full bucket gives exactly its limit at once."""
    full_at = 0
    for left in reversed(range(rate.limit)):
        verdict = take(rate, full_at, now)
        assert (verdict.allowed, verdict.remaining) == (True, left)
        full_at = verdict.full_at
    assert not take(rate, full_at, now).allowed


def test_refusals_are_free() -> None:
    """Who keeps asking waits no longer for it."""
    rate = Rate.per_minute(1)
    full_at = take(rate, 0, NOW).full_at
    for second in range(60):
        refused = take(rate, full_at, NOW + second * SECOND)
        assert (refused.allowed, refused.retry_after) == (False, 60 - second)
        full_at = refused.full_at
    assert take(rate, full_at, NOW + 60 * SECOND).allowed


def test_a_clock_that_is_set_back() -> None:
    """Nobody is locked out for longer than a bucket takes to fill."""
    rate = Rate.per_minute(60)
    full_at = take(rate, 0, NOW).full_at
    assert take(rate, full_at, NOW - 3600 * SECOND).retry_after == 1


def test_bounded() -> None:
    """So many buckets are kept and no more, and none that is full again."""
    now = 1_700_000_000.0
    buckets = TokenBuckets(10, 60.0, lambda: now)
    rate = Rate.per_minute(1)
    for key in range(100):
        assert buckets.take(key, rate).allowed
    assert len(buckets) == 10
    assert not buckets.take(99, rate).allowed
    now += 60
    assert buckets.take(99, rate).allowed
    assert len(buckets) == 1
