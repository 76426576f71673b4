"""Groups of events in columns are equal to what dictionaries and sets would contain."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkserver.insight.groups import Groups, decode, group_events, merge


class Event(NamedTuple):
    """An event. Its duration is a bucket, or -1."""

    key: int
    outcome: int
    failure: int
    user: int
    duration: int


KEYS = st.sampled_from([0, 1, 7, 5 << 32 | 3, 0x7FFFFFFF << 32 | 0x7FFFFFFF])
EVENTS = st.lists(
    st.builds(
        Event, KEYS, st.integers(0, 1), st.integers(0, 1), st.sampled_from([0, 1, 2, 70_000]), st.integers(-1, 3)
    ),
    max_size=40,
)


def groups_of(events: list[Event]) -> Groups:
    """Return events as groups."""
    columns = np.array(events, np.int64).reshape(-1, 5).T
    return group_events(*columns)


def naive(events: list[Event]) -> dict[int, Any]:
    """Return what groups contain, by key."""
    by_key: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_key[event.key].append(event)
    return {
        key: (
            len(own),
            sum(event.outcome for event in own),
            sum(event.failure for event in own),
            sorted({event.user for event in own}),
            Counter(event.duration for event in own if event.duration >= 0),
        )
        for key, own in sorted(by_key.items())
    }


def contents(groups: Groups) -> dict[int, Any]:
    """Return the contents of groups, by key."""
    users, buckets = (
        iter(groups.users.tolist()),
        zip(groups.buckets.tolist(), groups.bucket_events.tolist(), strict=True),
    )
    columns = (groups.keys, groups.events, groups.outcomes, groups.failures, groups.user_counts, groups.bucket_counts)
    return {
        key: (*counts, list(islice(users, user_count)), Counter(dict(islice(buckets, bucket_count))))
        for key, *counts, user_count, bucket_count in zip(*(column.tolist() for column in columns), strict=True)
    }


@given(EVENTS)
def test_grouping_and_encoding(events: list[Event]) -> None:
    """Groups contain each event once, also after they were stored."""
    groups = groups_of(events)
    assert contents(groups) == naive(events)
    assert contents(decode(*groups.encode())) == naive(events)


@given(st.lists(EVENTS, max_size=4))
def test_merging(parts: list[list[Event]]) -> None:
    """The sum of parts is equal to the groups of all events."""
    assert contents(merge([groups_of(part) for part in parts])) == naive([event for part in parts for event in part])


@given(EVENTS, st.sets(st.sampled_from([0, 1, 2, 70_000])))
def test_removing_users(events: list[Event], erased: set[int]) -> None:
    """After the events of users were removed, the groups are equal to those of the other users."""
    removed = [event for event in events if event.user in erased]
    kept = [event for event in events if event.user not in erased]
    assert contents(groups_of(events).without(groups_of(removed))) == naive(kept)


@given(EVENTS, st.sets(KEYS))
def test_selecting(events: list[Event], keys: set[int]) -> None:
    """Selected groups are equal to the groups of the selected events."""
    groups = groups_of(events)
    selected = groups.selected(np.isin(groups.keys, sorted(keys)))
    assert contents(selected) == naive([event for event in events if event.key in keys])


def test_frozen_groups_keep_the_numbers_of_users() -> None:
    """Groups without users can be stored and added to others; new events do not change the numbers of users."""
    events = [Event(1, 1, 0, 5, 2), Event(1, 1, 1, 6, -1), Event(3, 0, 0, 5, -1)]
    frozen = decode(*groups_of(events).frozen().encode())
    assert frozen.are_frozen
    late = groups_of([Event(3, 0, 0, 9, -1)]).frozen()
    total = merge([frozen, replace(late, user_counts=np.zeros_like(late.keys))])
    assert total.user_counts.tolist() == [2, 1]
    assert total.events.tolist() == [2, 2]
    assert contents(total)[1][4] == Counter({2: 1})


@pytest.mark.parametrize("parts", [0, 3])
def test_nothing(parts: int) -> None:
    """The sum of no events is empty, and can be stored."""
    empty = merge([groups_of([])] * parts)
    assert len(empty) == len(decode(*empty.encode())) == 0
