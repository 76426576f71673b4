"""Which version each user uses: the version of the user's last event in a period."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator

from pyroaring import BitMap

from tkserver.insight.cells import LastTimes

Users = dict[str, BitMap]
"""Disjoint sets of users by version."""


def assign(users: dict[int, BitMap], versions: dict[int, str], last_times: dict[int, LastTimes]) -> Users:
    """Return the users of a day by the version of their last event.

    :param users: by segment.
    :param versions: by segment.
    :param last_times: of at least those segments that have users in common.
    """
    result: defaultdict[str, BitMap] = defaultdict(BitMap)
    shared = overlap(users)
    for segment, own in users.items():
        result[versions[segment]] |= own - shared
    for user in shared:
        candidates = (
            (last_times[segment].times[user], versions[segment]) for segment in users if user in users[segment]
        )
        result[max(candidates)[1]].add(user)
    return result


def overlap(users: dict[int, BitMap]) -> BitMap:
    """Return the users that are in more than one set."""
    seen, shared = BitMap(), BitMap()
    for own in users.values():
        shared |= seen & own
        seen |= own
    return shared


def in_period(days: dict[int, Users]) -> Users:
    """Return the users of a period by the version of their last event.

    :param days: the users by version, by day.
    """
    seen = BitMap()
    result: defaultdict[str, BitMap] = defaultdict(BitMap)
    for day in sorted(days, reverse=True):
        for version, users in days[day].items():
            result[version] |= users - seen
        for users in days[day].values():
            seen |= users
    return result


def rolling(days: dict[int, Users], first: int, last: int, window: int) -> Iterator[tuple[int, Users]]:
    """Yield the users of the last days before each day by the version of their last event.

    :param days: the users by version, by day, from ``window - 1`` days before ``first``.
    :param window: a number of days; the last one is the day itself.
    """
    current: defaultdict[str, BitMap] = defaultdict(BitMap)
    active: deque[BitMap] = deque()
    for day in range(first - window + 1, last + 1):
        today = days.get(day, {})
        users_today = BitMap.union(*today.values()) if today else BitMap()
        expired = active.popleft() if len(active) == window else BitMap()
        active.append(users_today)
        expired -= BitMap.union(*active)
        gone = expired | users_today
        for version in list(current):
            current[version] -= gone
            if not current[version]:
                del current[version]
        for version, users in today.items():
            current[version] |= users
        if day >= first:
            yield day, current
