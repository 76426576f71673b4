"""Cells: the counts and the users of one item, in one segment, on one day or in one week. Pure logic."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pyroaring import BitMap

from tkserver.insight.days import week_of
from tkserver.insight.facts import Topic
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


@dataclass(slots=True)
class Delta:
    """A change of a cell through a number of events.

    :ivar users: the user of each event.
    :ivar durations: buckets.
    """

    events: int = 0
    outcomes: int = 0
    failures: int = 0
    users: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)

    def add(self, other: Delta) -> None:
        """Add the changes of a part."""
        self.events += other.events
        self.outcomes += other.outcomes
        self.failures += other.failures
        self.users += other.users
        self.durations += other.durations


Deltas = dict[Key, Delta]


def delta_of(deltas: Deltas, key: Key) -> Delta:
    """Return the change of a cell, to change it further."""
    delta = deltas.get(key)
    if delta is None:
        delta = deltas[key] = Delta()
    return delta


def with_totals(deltas: Deltas, ci_segments: set[int]) -> Deltas:
    """Return changes of daily cells, together with the changes of weekly cells and of all segments together.

    :param ci_segments: the segments of CI.
    """
    result: Deltas = {}
    for key, delta in deltas.items():
        for wider in _wider_keys(key, ci_segments):
            delta_of(result, wider).add(delta)
    return result


def _wider_keys(key: Key, ci_segments: set[int]) -> Iterator[Key]:
    topic, _, day, item, segment = key
    total = WITH_CI if segment in ci_segments else WITHOUT_CI
    week = week_of(day)
    if topic not in (Topic.LATENESS, Topic.ADJUSTED):
        yield key
        yield Key(topic, WEEK, week, item, segment)
    yield Key(topic, DAY, day, item, total)
    yield Key(topic, WEEK, week, item, total)


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
            if sign > 0:
                self.users |= BitMap(delta.users)
            else:
                self.users -= BitMap(delta.users)
            self.user_count = len(self.users)
        if delta.durations:
            (self.durations.update if sign > 0 else self.durations.subtract)(delta.durations)


class LastTimes:
    """The time of the last event of each user, in microseconds since 1970."""

    def __init__(self, times: dict[int, int] | None = None) -> None:
        self.times = times or {}

    @classmethod
    def decode(cls, data: bytes) -> LastTimes:
        """Return what :meth:`encode` represented."""
        size = len(data) // 12
        users, times = array("I"), array("Q")
        users.frombytes(data[: 4 * size])
        times.frombytes(data[4 * size :])
        return cls(dict(zip(users, times, strict=True)))

    def encode(self) -> bytes:
        """Return a compact representation."""
        users = sorted(self.times)
        return array("I", users).tobytes() + array("Q", [self.times[user] for user in users]).tobytes()

    def update(self, times: dict[int, int]) -> None:
        """Add events."""
        own = self.times
        for user, time in times.items():
            if own.get(user, -1) < time:
                own[user] = time

    def remove(self, users: Iterable[int]) -> None:
        """Remove users."""
        for user in users:
            self.times.pop(user, None)


def superseded(last_times: dict[str, LastTimes]) -> dict[str, BitMap]:
    """Return, for each version, the users whose last event has another version.

    If the last events of two versions have the same time, the version that is greater as a text counts.

    :param last_times: by version.
    """
    latest: dict[int, tuple[int, str]] = {}
    users_of = {version: BitMap(times.times) for version, times in last_times.items()}
    several = _in_several(list(users_of.values()))
    for version, times in last_times.items():
        for user in users_of[version] & several:
            candidate = (times.times[user], version)
            if user not in latest or latest[user] < candidate:
                latest[user] = candidate
    return {
        version: BitMap(user for user in users & several if latest[user][1] != version)
        for version, users in users_of.items()
    }


def _in_several(sets: list[BitMap]) -> BitMap:
    """Return the users that are in more than one set."""
    seen, several = BitMap(), BitMap()
    for users in sets:
        several |= seen & users
        seen |= users
    return several
