"""Which version each user uses: the version of the user's last event in a period."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from pyroaring import BitMap

from tkserver.insight.cells import LastTimes, bitmap, in_order, users_of
from tkserver.insight.groups import Ints, no_ints

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


def rolling(
    days: dict[int, Users], versions: Sequence[str], first: int, last: int, window: int
) -> Iterator[tuple[int, Ints]]:
    """Yield the numbers of users of the last days before each day by the version of their last event.

    :param days: the users by version, by day, from ``window - 1`` days before ``first``.
    :param versions: the order of the numbers.
    :param window: a number of days; the last one is the day itself.
    """
    rank = {version: number for number, version in enumerate(versions)}
    size = max((own.max() for users in days.values() for own in users.values() if own), default=-1) + 1
    version_of, day_of = np.zeros(size, np.int32), np.full(size, first - 2 * window, np.int32)
    counts = np.zeros(len(versions), np.int64)
    users_of_day: dict[int, Ints] = {}
    for day in range(first - window + 1, last + 1):
        today = {rank[version]: users_of(own) for version, own in days.get(day, {}).items()}
        users = users_of_day[day] = np.concatenate([no_ints(), *today.values()])
        expired = users_of_day.pop(day - window, no_ints())
        gone = np.concatenate((expired[day_of[expired] == day - window], users[day_of[users] > day - window]))
        counts -= np.bincount(version_of[gone], minlength=len(versions))
        for number, own in today.items():
            version_of[own] = number
            counts[number] += len(own)
        day_of[users] = day
        if day >= first:
            yield day, counts
