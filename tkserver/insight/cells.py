"""Cells: the counts and the users of one item, in one segment, on one day or in one week. Pure logic."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from tkserver.insight.groups import Ints, no_ints
from tkserver.insight.histograms import Histogram

WITHOUT_CI, WITH_CI = 0, 1
"""The segments that contain the totals of all others without CI, and of those with CI."""

DAY, WEEK = 1, 7
"""Periods, in days."""

ONE_ITEM = 0
"""The item of a topic that has only one."""


class Key(NamedTuple):
    """The key of a cell of an application.

    :ivar start: the first day of the period, in days since 1970-01-01.
    """

    topic: int
    period: int
    start: int
    item: int
    segment: int


class Delta(NamedTuple):
    """A change of a cell through a number of events."""

    events: int
    outcomes: int
    failures: int
    users: BitMap
    durations: Mapping[int, int]


@dataclass
class Cell:
    """The contents of a cell.

    :ivar user_count: the number of users, also if ``users`` is unknown.
    :ivar users: the numbers of the users; ``None`` if the day is frozen.
    """

    events: int = 0
    outcomes: int = 0
    failures: int = 0
    user_count: int = 0
    users: BitMap | None = field(default_factory=BitMap)
    durations: Histogram = field(default_factory=Counter)

    def apply(self, delta: Delta, sign: int) -> None:
        """Add the events of some users, or remove all events of some users.

        :param sign: 1 to add, -1 to remove.
        """
        self.events += sign * delta.events
        self.outcomes += sign * delta.outcomes
        self.failures += sign * delta.failures
        if self.users is not None:
            self.users = self.users | delta.users if sign > 0 else self.users - delta.users
            self.user_count = len(self.users)
        if delta.durations:
            (self.durations.update if sign > 0 else self.durations.subtract)(delta.durations)


def bitmap(users: Ints) -> BitMap:
    """Return a set of users."""
    return BitMap(array("I", users.astype(np.uint32).tobytes()))  # faster than from an array of NumPy


def users_of(users: BitMap) -> Ints:
    """Return the users of a set in ascending order."""
    return np.frombuffer(users.to_array(), np.uint32).astype(np.int64)


@dataclass(frozen=True)
class LastTimes:
    """The time of the last event of each user, in microseconds since 1970.

    :ivar users: in ascending order.
    """

    users: Ints = field(default_factory=no_ints)
    times: Ints = field(default_factory=no_ints)

    @classmethod
    def decode(cls, data: bytes) -> LastTimes:
        """Return what :meth:`encode` represented."""
        size = len(data) // 12
        return cls(
            np.frombuffer(data, _USER, size).astype(np.int64),
            np.frombuffer(data, _TIME, size, offset=4 * size).astype(np.int64),
        )

    def encode(self) -> bytes:
        """Return a compact representation."""
        return self.users.astype(_USER).tobytes() + self.times.astype(_TIME).tobytes()

    def with_events(self, users: Ints, times: Ints) -> LastTimes:
        """Return the times of the last events after further events."""
        return _latest(np.concatenate((self.users, users)), np.concatenate((self.times, times)))

    def of(self, users: Ints) -> LastTimes:
        """Return the times of some users."""
        return self._selected(np.isin(self.users, users))

    def without(self, users: Ints) -> LastTimes:
        """Return the times of other users."""
        return self._selected(~np.isin(self.users, users))

    def _selected(self, mask: npt.NDArray[np.bool_]) -> LastTimes:
        return LastTimes(self.users[mask], self.times[mask])


_USER, _TIME = np.dtype("<u4"), np.dtype("<u8")


def _latest(users: Ints, times: Ints) -> LastTimes:
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    is_last = np.append(users[1:] != users[:-1], True) if len(users) else np.zeros(0, np.bool_)
    return LastTimes(users[is_last], times[is_last])


def superseded(last_times: dict[str, LastTimes]) -> dict[str, BitMap]:
    """Return, for each version, the users whose last event has another version.

    If the last events of two versions have the same time, the version that is greater as a text counts.

    :param last_times: by version.
    """
    versions = sorted(last_times)
    users, ranks = in_order([last_times[version] for version in versions])
    is_followed = np.append(users[1:] == users[:-1], np.zeros(min(len(users), 1), np.bool_))
    return {version: bitmap(users[is_followed & (ranks == rank)]) for rank, version in enumerate(versions)}


def in_order(parts: Sequence[LastTimes]) -> tuple[Ints, Ints]:
    """Return the users of several parts and the positions of their parts, by user, then by time, then by position."""
    users = np.concatenate([part.users for part in parts])
    times = np.concatenate([part.times for part in parts])
    ranks = np.repeat(np.arange(len(parts)), [len(part.users) for part in parts])
    order = np.lexsort((ranks, times, users))
    return users[order], ranks[order]
