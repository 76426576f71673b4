"""Which version each user uses: the version of the user's last event in a period."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator

import numpy as np
from pyroaring import BitMap

from tkserver.insight.cells import LastTimes, bitmap, in_order, users_of

Users = dict[str, BitMap]
"""Disjoint sets of users by version."""


def assign(
    users: dict[int, BitMap], versions: dict[int, str], shared: BitMap, last_times: dict[int, LastTimes]
) -> Users:
    """Return the users of a day by the version of their last event.

    :param users: by segment.
    :param versions: by segment.
    :param shared: the users that are in more than one segment.
    :param last_times: of at least those segments that have users in common.
    """
    result: defaultdict[str, BitMap] = defaultdict(BitMap)
    for segment, own in users.items():
        result[versions[segment]] |= own - shared if shared else own
    if shared:
        candidates = {
            segment: last_times[segment].of(users_of(own & shared)) for segment, own in users.items() if own & shared
        }
        for version, latest in _by_version(candidates, versions).items():
            result[version] |= latest
    return result


def _by_version(candidates: dict[int, LastTimes], versions: dict[int, str]) -> Users:
    """Return the users by the version of their last event; of equal times, that of the greater version counts."""
    segments = sorted(candidates, key=lambda segment: versions[segment])
    users, ranks = in_order([candidates[segment] for segment in segments])
    is_last = np.append(users[1:] != users[:-1], True)
    result: defaultdict[str, BitMap] = defaultdict(BitMap)
    for rank, segment in enumerate(segments):
        result[versions[segment]] |= bitmap(users[is_last & (ranks == rank)])
    return result


def overlap(users: dict[int, BitMap]) -> BitMap:
    """Return the users that are in more than one set."""
    if not users or len(BitMap.union(*users.values())) == sum(map(len, users.values())):
        return BitMap()
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
