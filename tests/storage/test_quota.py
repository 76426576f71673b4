"""Monthly quotas: what fits, and when the next month begins."""

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
def test_months_are_utc(now: str, month: str, resets_at: str, retry_after: int) -> None:
    """Months begin in UTC, for times with any offset; the seconds until the next month are rounded up."""
    allowance = Allowance.read(10, None, 0, datetime.fromisoformat(now))
    assert allowance.month == date.fromisoformat(month)
    assert allowance.resets_at == datetime.fromisoformat(resets_at)
    assert allowance.retry_after == retry_after


def test_nothing_is_used_at_the_beginning_of_a_month() -> None:
    """A counter of another month is ignored."""
    assert Allowance.read(10, date(2026, 11, 1), 7, NOW).left == 3
    assert Allowance.read(10, date(2026, 11, 1), 7, NOW + timedelta(days=8)).left == 10
    assert Allowance.read(10, None, 0, NOW).left == 10


def test_lowered_quota_accepts_only_known_events() -> None:
    """If more is used than the quota allows, nothing is left; a batch without new events fits nevertheless."""
    allowance = Allowance(10, 12, NOW)
    assert allowance.left == 0
    assert allowance.has_room_for(0)
    assert not allowance.has_room_for(1)


def test_batches_are_admitted_as_a_whole() -> None:
    """A batch that does not fit as a whole is rejected as a whole; a smaller batch after it may fit."""
    exceeded = admit(Allowance(10, 6, NOW), ["abc", "de", "f"], set())
    assert [allowance and allowance.left for allowance in exceeded] == [None, 1, None]


def test_known_events_do_not_count() -> None:
    """Events that are stored already, or that an earlier batch contains, do not count."""
    assert admit(Allowance(2, 0, NOW), ["abcd", "dc", "ab"], {"a", "b"}) == [None, None, None]


@given(st.integers(0, 20), st.integers(0, 20), st.lists(st.sets(st.integers(0, 30))), st.sets(st.integers(0, 30)))
def test_quota_is_never_exceeded(quota: int, used: int, batches: list[set[int]], known: set[int]) -> None:
    """The admitted batches never exceed the quota, and each rejected batch would have exceeded it."""
    allowance = Allowance(quota, used, NOW)
    stored = set(known)
    for batch, exceeded in zip(batches, admit(allowance, batches, known), strict=True):
        new = batch - stored
        if exceeded is None:
            stored |= new
        else:
            assert len(new) > exceeded.left == allowance.left - len(stored - known)
    assert len(stored - known) <= allowance.left
