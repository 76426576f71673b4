"""Counts that were selected from the aggregates, and their sums."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from tkserver.insight.cells import bitmap
from tkserver.insight.changes import deltas
from tkserver.insight.groups import Groups, Ints, joined_column, no_ints
from tkserver.insight.histograms import Histogram

MANY = 2000
"""Users of whom it is faster to sort out repetitions before they are added to a set."""


class Row(NamedTuple):
    """The counts of an item in a segment. ``start`` is the first day of their period.

    :ivar users: ``None`` if only their number is known.
    """

    start: int
    item: int
    segment: int
    events: int
    outcomes: int
    failures: int
    user_count: int
    users: BitMap | None
    durations: Histogram


@dataclass
class Sum:
    """The sum of rows.

    :ivar frozen: the numbers of users of those rows of which only the number is known.
    """

    events: int = 0
    outcomes: int = 0
    failures: int = 0
    users: BitMap = field(default_factory=BitMap)
    durations: Histogram = field(default_factory=Counter)
    frozen: list[int] = field(default_factory=list)

    @property
    def user_count(self) -> int | None:
        """The number of users; ``None`` if it is not known, because users may be in several frozen rows."""
        if not self.frozen:
            return len(self.users)
        return self.frozen[0] if len(self.frozen) == 1 else None

    def add(self, row: Row) -> None:
        """Add a row."""
        self.events += row.events
        self.outcomes += row.outcomes
        self.failures += row.failures
        if row.users is None:
            self.frozen.append(row.user_count)
        else:
            self.users |= row.users
        if row.durations:
            self.durations.update(row.durations)


class Selection:
    """Counts by day or week, item and segment, in columns.

    :param starts: the first day of the period of each count.
    :param groups: one after another; their keys are items and segments.
    :param has_users: true if the users were read, so that groups without users are frozen.
    """

    def __init__(self, starts: Ints, groups: Sequence[Groups], *, has_users: bool) -> None:
        self._groups = groups
        self._has_users = has_users
        self.starts = starts
        keys = joined_column(groups, "keys")
        self.items, self.segments = keys >> 32, keys & 0xFFFFFFFF

    @classmethod
    def of_parts(cls, starts: Sequence[int], groups: Sequence[Groups], *, has_users: bool) -> Selection:
        """Return the counts of some days or weeks.

        :param starts: the first day of the period of each of ``groups``.
        """
        sizes = np.array(list(map(len, groups)), np.int64)
        return cls(np.repeat(np.array(starts, np.int64), sizes), groups, has_users=has_users)

    def only(self, mask: npt.NDArray[np.bool_]) -> Selection:
        """Return some of the counts.

        :param mask: which ones.
        """
        ends = np.cumsum([len(groups) for groups in self._groups]).tolist()
        parts = zip(self._groups, [0, *ends], ends, strict=False)
        selected = [groups.selected(mask[first:end]) for groups, first, end in parts]
        return Selection(self.starts[mask], selected, has_users=self._has_users)

    def rows(self) -> Iterator[Row]:
        """Yield the counts one by one."""
        columns = zip(self.starts.tolist(), self.items.tolist(), self.segments.tolist(), strict=True)
        for groups in self._groups:
            for user_count, delta in zip(groups.user_counts.tolist(), deltas(groups), strict=True):
                events, outcomes, failures, users, durations = delta
                known = None if groups.are_frozen else users
                yield Row(*next(columns), events, outcomes, failures, user_count, known, Counter(durations))

    def sums_by(self, labels: Ints) -> dict[int, Sum]:
        """Return the sums of the counts with the same label.

        :param labels: of all counts.
        """
        known, label = np.unique(labels, return_inverse=True)
        totals = (
            np.bincount(label, weights=joined_column(self._groups, column), minlength=len(known))
            .astype(np.int64)
            .tolist()
            for column in ("events", "outcomes", "failures")
        )
        parts = (
            self._users_by(label, len(known)),
            self._durations_by(label, len(known)),
            self._frozen_by(label, len(known)),
        )
        sums = zip(*totals, *parts, strict=True)
        return {number: Sum(*values) for number, values in zip(known.tolist(), sums, strict=True)}

    def first_and_last(self) -> dict[int, tuple[int, int]]:
        """Return the starts of the first and the last period of each item."""
        order = np.argsort(self.starts, kind="stable")
        items, starts = self.items[order], self.starts[order]
        known, first = np.unique(items, return_index=True)
        _, last = np.unique(items[::-1], return_index=True)
        return dict(
            zip(known.tolist(), zip(starts[first].tolist(), starts[::-1][last].tolist(), strict=True), strict=True)
        )

    def segments_by_item(self) -> dict[int, list[int]]:
        """Return the segments in which each item occurred."""
        result: defaultdict[int, list[int]] = defaultdict(list)
        for code in np.unique(self.items << 32 | self.segments).tolist():
            result[code >> 32].append(code & 0xFFFFFFFF)
        return result

    def _users_by(self, label: Ints, size: int) -> list[BitMap]:
        of_users = np.repeat(label, self._counts_of("user_counts", "users"))
        # Sorting small integers is several times as fast as sorting large ones.
        order = np.argsort(of_users.astype(np.uint16) if size < 1 << 16 else of_users, kind="stable")
        users = joined_column(self._groups, "users")[order]
        ends = np.cumsum(np.bincount(of_users, minlength=size)).tolist()
        is_seen = np.zeros(users.max(initial=0) + 1, np.bool_)
        return [_distinct(users[first:end], is_seen) for first, end in zip([0, *ends], ends, strict=False)]

    def _frozen_by(self, label: Ints, size: int) -> list[list[int]]:
        frozen: list[list[int]] = [[] for _ in range(size)]
        first = 0
        for groups in self._groups:
            if self._has_users and groups.are_frozen:
                labels = label[first : first + len(groups)].tolist()
                for number, user_count in zip(labels, groups.user_counts.tolist(), strict=True):
                    frozen[number].append(user_count)
            first += len(groups)
        return frozen

    def _durations_by(self, label: Ints, size: int) -> list[Histogram]:
        of_buckets = np.repeat(label, self._counts_of("bucket_counts", "buckets"))
        codes, slot = np.unique(of_buckets << 32 | joined_column(self._groups, "buckets"), return_inverse=True)
        events = np.bincount(slot, weights=joined_column(self._groups, "bucket_events"), minlength=len(codes)).astype(
            np.int64
        )
        histograms: list[Histogram] = [Counter() for _ in range(size)]
        for code, number in zip(codes.tolist(), events.tolist(), strict=True):
            histograms[code >> 32][code & 0xFFFFFFFF] = number
        return histograms

    def _counts_of(self, column: str, contents: str) -> Ints:
        """Return how many users or buckets each count has, as far as they are known."""
        counts = [
            getattr(groups, column) if len(getattr(groups, contents)) else np.zeros_like(groups.keys)
            for groups in self._groups
        ]
        return np.concatenate(counts) if counts else no_ints()


def _distinct(users: Ints, is_seen: npt.NDArray[np.bool_]) -> BitMap:
    """Return a set of users.

    :param is_seen: false for each possible user, also afterwards.
    """
    if len(users) < MANY:
        return bitmap(users)
    is_seen[users] = True
    distinct = np.flatnonzero(is_seen)
    is_seen[distinct] = False
    return bitmap(distinct)


def union(sets: Iterable[BitMap | None]) -> BitMap:
    """Return the union of sets."""
    result = BitMap()
    for users in sets:
        if users is not None:
            result |= users
    return result
