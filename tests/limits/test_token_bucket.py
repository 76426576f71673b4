"""Token buckets, with the time as an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tkserver.limits.token_bucket import SECOND, Rate, TokenBuckets, peek, take

NOW = 1_700_000_000 * SECOND

rates = st.builds(Rate.per_minute, st.integers(1, 100_000_000), burst=st.none() | st.integers(1, 1000))
pauses = st.lists(st.integers(0, 100 * SECOND), max_size=50)


@given(rate=rates, pauses=pauses)
def test_rate_is_never_exceeded(rate: Rate, pauses: list[int]) -> None:
    """In any period, at most a full bucket and the tokens added in the period are taken."""
    full_at, now, taken = 0, NOW, 0
    for pause in pauses:
        now += pause
        decision = take(rate, full_at, now)
        full_at, taken = decision.full_at, taken + decision.allowed
        assert taken <= rate.limit + (now - NOW) // rate.interval
        assert 0 <= decision.remaining < rate.limit


@given(rate=rates, full_at=st.integers(0, 2 * NOW), now=st.integers(0, 2 * NOW))
def test_properties_of_a_decision_are_true(rate: Rate, full_at: int, now: int) -> None:
    """``remaining`` tokens are available now, one is available after ``retry_after``, and all at ``reset``."""
    decision = peek(rate, full_at, now)
    assert decision.allowed == (decision.retry_after == 0) == (decision.remaining > 0)
    assert peek(rate, decision.full_at, now + decision.retry_after * SECOND).allowed
    assert peek(rate, decision.full_at, decision.reset * SECOND).remaining == rate.limit
    assert decision.reset * SECOND - now <= rate.window + SECOND


@given(rate=st.builds(Rate.per_minute, st.integers(1, 200)), now=st.integers(0, NOW))
def test_full_bucket_has_limit_tokens(rate: Rate, now: int) -> None:
    """Exactly ``limit`` tokens can be taken from a full bucket at once."""
    full_at = 0
    for remaining in reversed(range(rate.limit)):
        decision = take(rate, full_at, now)
        assert (decision.allowed, decision.remaining) == (True, remaining)
        full_at = decision.full_at
    assert not take(rate, full_at, now).allowed


def test_rejected_requests_do_not_extend_the_wait() -> None:
    """Requests while no token is available do not delay the next token."""
    rate = Rate.per_minute(1)
    full_at = take(rate, 0, NOW).full_at
    for second in range(60):
        rejected = take(rate, full_at, NOW + second * SECOND)
        assert (rejected.allowed, rejected.retry_after) == (False, 60 - second)
        full_at = rejected.full_at
    assert take(rate, full_at, NOW + 60 * SECOND).allowed


def test_clock_that_is_set_back() -> None:
    """When the clock is set back, no one waits longer than a bucket takes to fill."""
    rate = Rate.per_minute(60)
    full_at = take(rate, 0, NOW).full_at
    assert take(rate, full_at, NOW - 3600 * SECOND).retry_after == 1


def test_number_of_buckets_is_limited() -> None:
    """At most ``maximum`` buckets are in memory, and no full ones."""
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
