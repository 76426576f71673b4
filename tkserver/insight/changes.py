"""Changes of the aggregates: what a batch of events of one application adds to them. Pure logic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tkserver.insight.cells import DAY, ONE_ITEM, WEEK, WITH_CI, WITHOUT_CI, Delta, Key, bitmap
from tkserver.insight.days import week_of
from tkserver.insight.facts import Facts, ItemKey, Profile, Segment, Topic
from tkserver.insight.groups import Groups, Ints, group_events
from tkserver.insight.histograms import buckets

DETAILED = (Topic.NAME, Topic.FLAG, Topic.ERROR, Topic.SHELL, Topic.LANGUAGE)
"""Topics whose counts in single segments are details. Their cells contain only all segments together."""

MAX_EVENTS = 50_000
"""The maximum size of a batch."""


class Batch(NamedTuple):
    """Events in columns, and the items that each of them counts for.

    :ivar users: numbers of users.
    :ivar durations: buckets; negative if an event has no duration.
    :ivar item_events: the event of each entry of ``items``.
    :ivar topics: of each entry of ``items``.
    """

    days: Ints
    segments: Ints
    is_ci: npt.NDArray[np.bool_]
    users: Ints
    happened: Ints
    outcomes: Ints
    failures: Ints
    durations: Ints
    lateness: Ints
    adjusted: npt.NDArray[np.bool_]
    item_events: Ints
    topics: Ints
    items: Ints


def batch_of(
    facts: Facts,
    users: Ints,
    profiles: Sequence[Profile],
    profile_of: Ints,
    segments: Mapping[Segment, int],
    items: Mapping[tuple[int, ItemKey], int],
) -> Batch:
    """Return events in columns.

    :param users: the number of the user of each event.
    :param profiles: the profiles with which events count.
    :param profile_of: the position of the profile of each event.
    :param segments: numbers of segments.
    :param items: numbers of items.
    """
    topics = [[topic for topic, _ in profile.items] for profile in profiles]
    numbers = [[items[item] for item in profile.items] for profile in profiles]
    item_events, entries = _expand(profile_of, np.array(list(map(len, topics)), np.int64))
    return Batch(
        facts.days,
        np.array([segments[profile.segment] for profile in profiles], np.int64)[profile_of],
        np.array([profile.segment.ci for profile in profiles], np.bool_)[profile_of],
        users,
        facts.happened,
        np.array([profile.outcome is not None for profile in profiles], np.int64)[profile_of],
        np.array([profile.outcome is False for profile in profiles], np.int64)[profile_of],
        np.where(facts.durations >= 0, buckets(facts.durations), -1),
        buckets(facts.lateness),
        facts.are_adjusted,
        item_events,
        np.array([topic for own in topics for topic in own], np.int64)[entries],
        np.array([number for own in numbers for number in own], np.int64)[entries],
    )


def _expand(profiles: Ints, sizes: Ints) -> tuple[Ints, Ints]:
    """Return, for each item of each event, the event and the position in the list of all items of all profiles."""
    starts = np.cumsum(sizes) - sizes
    counts = sizes[profiles]
    events = np.repeat(np.arange(len(profiles)), counts)
    within = np.arange(len(events)) - np.repeat(np.cumsum(counts) - counts, counts)
    return events, starts[profiles][events] + within


# --- details


class Scope(NamedTuple):
    """The scope of details: a topic, on a day or in a week. ``start`` is the first day, since 1970-01-01."""

    topic: int
    period: int
    start: int


def details(batch: Batch) -> dict[Scope, Groups]:
    """Return the counts by item and segment."""
    days = batch.days[batch.item_events]
    return {
        Scope(topic, period, start): _group(
            batch, detail_keys(batch.items[entries], batch.segments[events]), events, topic
        )
        for period, starts in ((DAY, days), (WEEK, week_of(days)))
        for topic, start, entries in _divided(batch.topics, starts)
        for events in [batch.item_events[entries]]
    }


def _divided(topics: Ints, starts: Ints) -> Iterator[tuple[int, int, Ints]]:
    """Yield each topic and start, and the positions that have them."""
    codes, scope = np.unique(starts << 8 | topics, return_inverse=True)
    order = np.argsort(scope, kind="stable")
    ends = np.cumsum(np.bincount(scope, minlength=len(codes))).tolist()
    for code, first, end in zip(codes.tolist(), [0, *ends], ends, strict=False):
        yield code & 0xFF, code >> 8, order[first:end]


def detail_keys(items: Ints, segments: Ints) -> Ints:
    """Return the keys of groups of details."""
    return items << 32 | segments


def _group(batch: Batch, keys: Ints, events: Ints, topic: int) -> Groups:
    if topic == Topic.NAME:
        durations = batch.durations[events]
    elif topic == Topic.LATENESS:
        durations = batch.lateness[events]
    else:
        durations = np.full(len(events), -1)
    return group_events(keys, batch.outcomes[events], batch.failures[events], batch.users[events], durations)


# --- cells

_START_BITS, _SEGMENT_BITS = 23, 17


def cell_changes(batch: Batch) -> dict[Key, Delta]:
    """Return the changes of cells."""
    events = np.arange(len(batch.days))
    adjusted = np.flatnonzero(batch.adjusted)
    changes: dict[Key, Delta] = {}
    for topic in DETAILED:
        entries = np.flatnonzero(batch.topics == topic)
        own = batch.item_events[entries]
        changes.update(_of_topic(batch, topic, own, batch.items[entries], _totals(batch)[own]))
    for topic, own in ((Topic.ALL, events), (Topic.LATENESS, events), (Topic.ADJUSTED, adjusted)):
        changes.update(_of_topic(batch, topic, own, np.full(len(own), ONE_ITEM), _totals(batch)[own]))
    changes.update(_of_topic(batch, Topic.ALL, events, np.full(len(events), ONE_ITEM), batch.segments))
    return changes


def _totals(batch: Batch) -> Ints:
    return np.where(batch.is_ci, WITH_CI, WITHOUT_CI)


def _of_topic(batch: Batch, topic: Topic, events: Ints, items: Ints, segments: Ints) -> Iterator[tuple[Key, Delta]]:
    """Yield the changes of daily and weekly cells of a topic.

    :param events: the events that count.
    :param items: the item that each of them counts for.
    :param segments: the segment in which each of them counts.
    """
    days = batch.days[events]
    known_items, dense_items = np.unique(items, return_inverse=True)
    known_segments, dense_segments = np.unique(segments, return_inverse=True)
    for period, starts in ((DAY, days), (WEEK, week_of(days))):
        keys = (dense_items << _START_BITS | starts) << _SEGMENT_BITS | dense_segments
        groups = _group(batch, keys, events, topic)
        starts = groups.keys >> _SEGMENT_BITS & ((1 << _START_BITS) - 1)
        found_items = known_items[groups.keys >> _SEGMENT_BITS + _START_BITS]
        found_segments = known_segments[groups.keys & ((1 << _SEGMENT_BITS) - 1)]
        for start, item, segment, delta in zip(
            starts.tolist(), found_items.tolist(), found_segments.tolist(), deltas(groups), strict=True
        ):
            yield Key(topic, period, start, item, segment), delta


def deltas(groups: Groups) -> Iterator[Delta]:
    """Yield each group as a change of a cell."""
    user_ends, bucket_ends = np.cumsum(groups.user_counts).tolist(), np.cumsum(groups.bucket_counts).tolist()
    numbers, weights = groups.buckets.tolist(), groups.bucket_events.tolist()
    first_user = first_bucket = 0
    counts = groups.events.tolist(), groups.outcomes.tolist(), groups.failures.tolist()
    for events, outcomes, failures, user_end, bucket_end in zip(*counts, user_ends, bucket_ends, strict=True):
        histogram = dict(zip(numbers[first_bucket:bucket_end], weights[first_bucket:bucket_end], strict=True))
        yield Delta(events, outcomes, failures, bitmap(groups.users[first_user:user_end]), histogram)
        first_user, first_bucket = user_end, bucket_end


# --- the last event of each user


def last_times(batch: Batch) -> dict[tuple[int, int], tuple[Ints, Ints]]:
    """Return the users and the times of their last events, by day and segment."""
    order = np.lexsort((batch.happened, batch.users, batch.segments, batch.days))
    columns = np.stack((batch.days, batch.segments, batch.users))[:, order]
    is_last = np.append(np.any(columns[:, 1:] != columns[:, :-1], axis=0), True)
    days, segments, users = columns[:, is_last]
    times = batch.happened[order][is_last]
    starts = np.flatnonzero(np.append(True, (days[1:] != days[:-1]) | (segments[1:] != segments[:-1])))
    ends = np.append(starts[1:], len(days))
    return {
        (int(days[start]), int(segments[start])): (users[start:end], times[start:end])
        for start, end in zip(starts, ends, strict=True)
    }
