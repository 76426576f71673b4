"""The numbers of an application that everybody may see. Pure logic.

They reveal no group of fewer than :data:`MIN_USERS` users, neither directly nor by differences:

- A group with fewer users, such as those of a version, is not contained, and neither is its name.
- The others are rounded down to a multiple of :data:`MIN_USERS`. So all differences are such multiples: between the
  total and its parts, between periods, and between days. A difference of 10 can be a single user, or 19.
- There are no combinations, such as the versions of a system, and no number of events of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Json = dict[str, Any]

MIN_USERS = 10
"""Users that a group must have to be shown, and the step of all numbers of users."""

MAX_ITEMS = 20
"""Groups of a category."""

PERIODS = (30, 90, 365)
"""Days."""

PANELS = ("overview", "versions", "environment", "commands")
"""The panels that :func:`public_numbers` needs."""


def public_numbers(periods: Mapping[int, Mapping[str, Json]]) -> Json:
    """Return the numbers by category and period, such as ``{"users": {"30d": 120}, "versions": {"30d": {"1.0": 80}}}``.

    A number is ``None`` if there are too few users.

    :param periods: the panels in :data:`PANELS`, for each number of days in :data:`PERIODS`.
    """
    numbers: Json = {"users": {}, "runs": {}, "versions": {}, "systems": {}, "commands": {}, "features": {}}
    for days, panels in periods.items():
        for category, value in _of_period(panels).items():
            numbers[category][f"{days}d"] = value
    return numbers


def _of_period(panels: Mapping[str, Json]) -> Json:
    users = panels["overview"]["totals"]["users"]
    names = panels["commands"]["items"]
    commands = [item for item in names if item["kind"] == "command"]
    features = [item for item in names if item["kind"] == "feature"]
    return {
        "users": rounded_users(users),
        "runs": rounded_runs(sum(item["events"] for item in commands), users),
        "versions": _groups((item["version"], item["users"]) for item in panels["versions"]["items"]),
        "systems": _groups((item["value"] or "unknown", item["users"]) for item in panels["environment"]["os"]),
        "commands": _groups((item["name"], item["users"]) for item in commands),
        "features": _groups((item["name"], item["users"]) for item in features),
    }


def rounded_users(users: int) -> int | None:
    """Return a number of users, rounded down; ``None`` if it is too small to be shown."""
    return users // MIN_USERS * MIN_USERS or None


def rounded_runs(runs: int, users: int) -> int | None:
    """Return a number of runs with two significant digits, rounded down; ``None`` if too few users share them."""
    if users < MIN_USERS:
        return None
    step: int = 10 ** max(1, len(str(runs)) - 2)
    return runs // step * step


def _groups(groups: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the users of the largest groups, in the order of the groups."""
    shown = {name: rounded for name, users in groups if (rounded := rounded_users(users))}
    largest = set(sorted(shown, key=lambda name: -shown[name])[:MAX_ITEMS])
    return {name: users for name, users in shown.items() if name in largest}
