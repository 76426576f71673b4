"""What a quota leaves room for, and when it begins anew."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkserver.storage.quota import Allowance, admit

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("now", "month", "resets_at", "retry_after"),
    [
        ("2026-11-01T00:00:00+00:00", "2026-11-01", "2026-12-01T00:00:00+00:00", 30 * 86_400),
        ("2026-11-30T23:59:59.999999+00:00", "2026-11-01", "2026-12-01T00:00:00+00:00", 1),
        ("2026-12-31T23:59:58.5+00:00", "2026-12-01", "2027-01-01T00:00:00+00:00", 2),
        ("2028-02-29T23:59:00+00:00", "2028-02-01", "2028-03-01T00:00:00+00:00", 60),
        ("2026-12-01T01:30:00+02:00", "2026-11-01", "2026-12-01T00:00:00+00:00", 1800),
        ("2026-10-31T23:30:00-01:00", "2026-11-01", "2026-12-01T00:00:00+00:00", 30 * 86_400 - 1800),
    ],
)
def test_month(now: str, month: str, resets_at: str, retry_after: int) -> None:
    """Months are those of UTC, whatever offset a time is written with; the seconds until the next are rounded up."""
    allowance = Allowance.read(10, None, 0, datetime.fromisoformat(now))
    assert allowance.month == date.fromisoformat(month)
    assert allowance.resets_at == datetime.fromisoformat(resets_at)
    assert allowance.retry_after == retry_after


def test_a_new_month_begins_with_nothing_used() -> None:
    """A counter of another month counts for nothing."""
    assert Allowance.read(10, date(2026, 11, 1), 7, NOW).left == 3
    assert Allowance.read(10, date(2026, 11, 1), 7, NOW + timedelta(days=8)).left == 10
    assert Allowance.read(10, None, 0, NOW).left == 10


def test_a_lowered_quota() -> None:
    """Where more is used than there is, nothing is left; what brings nothing new fits all the same."""
    allowance = Allowance(10, 12, NOW)
    assert allowance.left == 0
    assert allowance.has_room_for(0)
    assert not allowance.has_room_for(1)


def test_as_a_whole() -> None:
    """What does not fit as a whole is refused as a whole; a smaller one behind it still fits."""
    refusals = admit(Allowance(10, 6, NOW), ["abc", "de", "f"], set())
    assert [refusal and refusal.left for refusal in refusals] == [None, 1, None]


def test_what_is_stored_takes_up_nothing() -> None:
    """Neither an event that is there already, nor one that an earlier batch brings."""
    assert admit(Allowance(2, 0, NOW), ["abcd", "dc", "ab"], {"a", "b"}) == [None, None, None]


@given(st.integers(0, 20), st.integers(0, 20), st.lists(st.sets(st.integers(0, 30))), st.sets(st.integers(0, 30)))
def test_never_more_than_the_quota(quota: int, used: int, batches: list[set[int]], known: set[int]) -> None:
    """Whatever is admitted, it is no more than was left; whatever is refused would have been too much."""
    allowance = Allowance(quota, used, NOW)
    stored = set(known)
    for batch, refusal in zip(batches, admit(allowance, batches, known), strict=True):
        new = batch - stored
        if refusal is None:
            stored |= new
        else:
            assert len(new) > refusal.left == allowance.left - len(stored - known)
    assert len(stored - known) <= allowance.left
