"""Groups of events in columns: their counts, their users, and histograms of their durations. Pure logic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = "npt.NDArray[np.int64]"
Bytes: TypeAlias = "bytes | memoryview"


def no_ints() -> Ints:
    """Return an empty column."""
    return np.zeros(0, np.int64)


_STORED = np.dtype("<u4")


@dataclass(frozen=True)
class Groups:
    """Groups of events, each with a key. The keys are in ascending order.

    Users and histograms are stored one group after another: first those of the first group, and so on.

    :ivar user_counts: the number of users of each group.
    :ivar bucket_counts: the number of buckets in the histogram of each group.
    :ivar users: the users of each group, in ascending order; empty if only their numbers are known.
    :ivar buckets: empty if the histograms were not read.
    :ivar bucket_events: the number of events in each bucket.
    """

    keys: Ints
    events: Ints
    outcomes: Ints
    failures: Ints
    user_counts: Ints
    bucket_counts: Ints
    users: Ints = field(default_factory=no_ints)
    buckets: Ints = field(default_factory=no_ints)
    bucket_events: Ints = field(default_factory=no_ints)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def are_frozen(self) -> bool:
        """True if the users are not known."""
        return not len(self.users)

    def frozen(self) -> Groups:
        """Return the groups without their users."""
        return replace(self, users=no_ints())

    def selected(self, mask: npt.NDArray[np.bool_]) -> Groups:
        """Return some of the groups.

        :param mask: which ones.
        """
        of_users = np.repeat(mask, self.user_counts) if len(self.users) else slice(0)
        of_buckets = np.repeat(mask, self.bucket_counts) if len(self.buckets) else slice(0)
        return Groups(
            self.keys[mask],
            self.events[mask],
            self.outcomes[mask],
            self.failures[mask],
            self.user_counts[mask],
            self.bucket_counts[mask],
            self.users[of_users],
            self.buckets[of_buckets],
            self.bucket_events[of_buckets],
        )

    def with_keys(self, keys: Ints) -> Groups:
        """Return the groups with other keys; those that get the same key become one group."""
        return _merged(self, keys)

    def without(self, removed: Groups) -> Groups:
        """Return what remains when all events of some users are removed.

        :param removed: their events.
        """
        negative = replace(
            removed,
            events=-removed.events,
            outcomes=-removed.outcomes,
            failures=-removed.failures,
            bucket_events=-removed.bucket_events,
        ).frozen()
        remaining = ~np.isin(self.users, removed.users)
        kept = replace(
            self,
            users=self.users[remaining],
            user_counts=np.bincount(self._user_groups()[remaining], minlength=len(self)),
        )
        total = merge([kept, replace(negative, user_counts=np.zeros_like(negative.user_counts))])
        return total.selected(total.events > 0)

    def _user_groups(self) -> Ints:
        return np.repeat(np.arange(len(self)), self.user_counts)

    # --- stored form

    def encode(self) -> tuple[bytes, bytes, bytes]:
        """Return representations of the counts, of the users, and of the histograms.

        They are not compressed: the time that it takes to decompress them would limit how many days can be read.
        """
        counts = (self.events, self.outcomes, self.failures, self.user_counts, self.bucket_counts)
        return (
            _to_bytes(np.concatenate((self.keys >> 32, self.keys, *counts))),
            _to_bytes(self.users),
            _to_bytes(np.concatenate((self.buckets, self.bucket_events))),
        )


def decode(counts: Bytes, users: Bytes = b"", histograms: Bytes = b"") -> Groups:
    """Return the groups that :meth:`Groups.encode` represented, with those parts that are given."""
    high, low, *columns = _from_bytes(counts).reshape(7, -1)
    groups = Groups(high << 32 | low, *columns)
    if users:
        groups = replace(groups, users=_from_bytes(users))
    if histograms:
        buckets, bucket_events = _from_bytes(histograms).reshape(2, -1)
        groups = replace(groups, buckets=buckets, bucket_events=bucket_events)
    return groups


def _to_bytes(column: Ints) -> bytes:
    return column.astype(_STORED).tobytes()


def _from_bytes(data: Bytes) -> Ints:
    return np.frombuffer(data, _STORED).astype(np.int64)


# --- grouping


def group_events(keys: Ints, outcomes: Ints, failures: Ints, users: Ints, durations: Ints) -> Groups:
    """Return the groups of events with the same key.

    :param keys: of each event.
    :param outcomes: 1 if the event has an outcome, otherwise 0.
    :param durations: buckets; negative if an event has no duration.
    """
    timed = np.flatnonzero(durations >= 0)
    ones = np.ones_like(keys)
    return _grouped(
        keys, (ones, outcomes, failures), None, np.arange(len(keys)), users, timed, durations[timed], ones[timed]
    )


def merge(parts: Sequence[Groups]) -> Groups:
    """Return the sum of groups: either all of them are frozen, or none."""
    if not parts:
        return Groups(*(no_ints() for _ in range(6)))
    joined = Groups(**{column.name: joined_column(parts, column.name) for column in fields(Groups)})
    return _merged(joined, joined.keys)


def joined_column(parts: Sequence[Groups], name: str) -> Ints:
    """Return a column of several groups, one after another."""
    return np.concatenate([getattr(part, name) for part in parts]) if parts else no_ints()


def _merged(groups: Groups, keys: Ints) -> Groups:
    rows = np.arange(len(keys))
    return _grouped(
        keys,
        (groups.events, groups.outcomes, groups.failures),
        groups.user_counts if groups.are_frozen else None,
        no_ints() if groups.are_frozen else np.repeat(rows, groups.user_counts),
        groups.users,
        np.repeat(rows, groups.bucket_counts),
        groups.buckets,
        groups.bucket_events,
    )


def _grouped(
    keys: Ints,
    counts: tuple[Ints, Ints, Ints],
    user_counts: Ints | None,
    user_rows: Ints,
    users: Ints,
    bucket_rows: Ints,
    buckets: Ints,
    bucket_events: Ints,
) -> Groups:
    """Return the sums of rows with the same key.

    :param user_counts: of each row, if the users are not known.
    :param user_rows: the row of each user.
    :param bucket_rows: the row of each bucket.
    """
    unique, group = np.unique(keys, return_inverse=True)
    size = len(unique)
    pairs = _distinct(group[user_rows] << 32 | users)
    found, slot = np.unique(group[bucket_rows] << 32 | buckets, return_inverse=True)
    weights = _sums(slot, bucket_events, len(found))
    found, weights = found[weights != 0], weights[weights != 0]
    events, outcomes, failures = (_sums(group, column, size) for column in counts)
    return Groups(
        unique,
        events,
        outcomes,
        failures,
        np.bincount(pairs >> 32, minlength=size) if user_counts is None else _sums(group, user_counts, size),
        np.bincount(found >> 32, minlength=size),
        pairs & 0xFFFFFFFF,
        found & 0xFFFFFFFF,
        weights,
    )


def _distinct(values: Ints) -> Ints:
    """Return the different values in ascending order, faster than ``numpy.unique``, which hashes them."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _sums(group: Ints, values: Ints, size: int) -> Ints:
    return np.rint(np.bincount(group, weights=values, minlength=size)).astype(np.int64)
