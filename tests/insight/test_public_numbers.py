"""Public numbers reveal no group of fewer than ten users."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkserver.insight.public_numbers import MAX_ITEMS, MIN_USERS, PERIODS, public_numbers, rounded_runs, rounded_users

GROUPS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), max_size=8)


def panels(users: int, versions: dict[str, int], events: int = 1) -> dict[str, Any]:
    """Return the panels of a period. The systems, commands and features have the same users as the versions."""
    kinds = ("command", "feature", "custom")
    return {
        "overview": {"totals": {"users": users}},
        "versions": {"items": [{"version": name, "users": count} for name, count in versions.items()]},
        "environment": {"os": [{"value": name, "users": count} for name, count in versions.items()]},
        "commands": {
            "items": [
                {"kind": kind, "name": name, "users": count, "events": events}
                for kind in kinds
                for name, count in versions.items()
            ]
        },
    }


def numbers_of(*groups: dict[str, int]) -> dict[str, Any]:
    """Return the public numbers of periods, in each of which every user has one version."""
    return public_numbers({days: panels(sum(own.values()), own) for days, own in zip(PERIODS, groups, strict=True)})


@given(GROUPS)
def test_small_groups_are_not_contained(groups: dict[str, int]) -> None:
    """Groups of fewer than ten users are not contained, all others are, and no number is larger than the true one."""
    numbers = numbers_of(groups, groups, groups)
    for category in ("versions", "systems", "commands", "features"):
        shown = numbers[category]["30d"]
        assert set(shown) == {name for name, users in groups.items() if users >= MIN_USERS}
        assert all(shown[name] <= groups[name] for name in shown)


@given(st.lists(GROUPS, min_size=3, max_size=3))
def test_differences_are_multiples(periods: list[dict[str, int]]) -> None:
    """No difference is between 0 and 10: of a total and its parts, of periods, or of groups."""
    numbers = numbers_of(*periods)
    users = [count or 0 for count in numbers["users"].values()]
    parts = [count for own in numbers["versions"].values() for count in own.values()]
    assert all((one - other) % MIN_USERS == 0 for one in users + parts for other in users + parts)
    rest = [total - sum(own.values()) for total, own in zip(users, numbers["versions"].values(), strict=True)]
    assert all(number >= 0 and number % MIN_USERS == 0 for number in rest)


def test_a_hidden_group_cannot_be_told_from_others() -> None:
    """With 9 users of another version, the numbers are the same as with none or 4."""
    alone, few, nine = (numbers_of(*[{"1.0": 100, "2.0": users}] * 3) for users in (0, 4, 9))
    assert alone == few == nine


@pytest.mark.parametrize(("users", "shown"), [(0, None), (9, None), (10, 10), (19, 10), (1234, 1230)])
def test_users_are_rounded_down(users: int, shown: int | None) -> None:
    assert rounded_users(users) == shown


@pytest.mark.parametrize(
    ("runs", "users", "shown"),
    [(99, 9, None), (99, 10, 90), (123, 10, 120), (1299, 50, 1200), (98_765, 50, 98_000), (0, 10, 0)],
)
def test_runs_have_two_significant_digits(runs: int, users: int, shown: int | None) -> None:
    assert rounded_runs(runs, users) == shown


def test_only_runs_of_commands_count() -> None:
    """Features and other events are no runs."""
    numbers = public_numbers({30: panels(20, {"1.0": 20}, events=150)})
    assert numbers["runs"] == {"30d": 150}


def test_only_the_largest_groups_are_contained() -> None:
    """The number of groups is limited. The order, which is the newest version first, is kept."""
    groups = {f"1.{number}": 10 * (number + 1) for number in range(MAX_ITEMS + 5)}
    shown = numbers_of(groups, groups, groups)["versions"]["30d"]
    assert list(shown) == list(groups)[5:]
