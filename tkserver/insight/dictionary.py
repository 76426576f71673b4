"""The numbers of segments, items and users, and the limits of their variety."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tkserver.insight.cells import DAY, ONE_ITEM, WITH_CI, WITHOUT_CI
from tkserver.insight.days import iso
from tkserver.insight.facts import Facts, ItemKey, Profile, Segment, Topic
from tkserver.storage.blocking import Connection, rows, write_rows

MAX_VALUES = 200
"""Values of a dimension that are counted separately on one day."""

OTHER = "(other)"
"""Stands for all further values."""

Value: TypeAlias = "str | ItemKey"

Dimension: TypeAlias = "str | int"
"""``version``, ``os``, ``arch``, or a topic."""

Scope: TypeAlias = "tuple[int, Dimension]"
"""A day and a dimension."""

_SEGMENTS = "SELECT segment, ci, version, os, arch FROM insight_segments WHERE app = %s"
_ADD_SEGMENTS = "INSERT INTO insight_segments (app, ci, version, os, arch) VALUES %s ON CONFLICT DO NOTHING"

_ITEMS = "SELECT item, topic, key FROM insight_items WHERE app = %s AND key = ANY (%s)"
_ADD_ITEMS = "INSERT INTO insight_items (app, topic, key) VALUES %s ON CONFLICT DO NOTHING"

_COUNTED_ITEMS = """
SELECT start - date '1970-01-01', topic, count(DISTINCT item) FROM insight_cells
WHERE app = %s AND topic = ANY (%s) AND period = %s AND segment = ANY (%s) AND start = ANY (%s::date[])
GROUP BY start, topic
"""
_ITEMS_BY_DAY = """
SELECT DISTINCT start - date '1970-01-01', topic, item FROM insight_cells
WHERE app = %s AND topic = ANY (%s) AND period = %s AND segment = ANY (%s) AND start = ANY (%s::date[])
"""
_SEGMENTS_BY_DAY = """
SELECT start - date '1970-01-01', ci, version, os, arch FROM insight_cells JOIN insight_segments USING (app, segment)
WHERE app = %s AND topic = %s AND period = %s AND start = ANY (%s::date[]) AND item = %s
"""


def all_segments(connection: Connection, app: int) -> dict[int, Segment]:
    """Return the segments of an application by their numbers."""
    return {number: Segment(*values) for number, *values in rows(connection, _SEGMENTS, app)}


def segment_numbers(connection: Connection, app: int, wanted: set[Segment]) -> dict[Segment, int]:
    """Return the numbers of segments. New segments get new numbers."""
    known = {segment: number for number, segment in all_segments(connection, app).items()}
    if missing := wanted - known.keys():
        write_rows(connection, _ADD_SEGMENTS, [(app, *segment) for segment in sorted(missing)])
        known = {segment: number for number, segment in all_segments(connection, app).items()}
    return known


def item_numbers(
    connection: Connection, app: int, wanted: set[tuple[Topic, ItemKey]]
) -> dict[tuple[int, ItemKey], int]:
    """Return the numbers of items. New items get new numbers."""
    encoded = {(topic, encode_key(key)) for topic, key in wanted}
    known = _known_items(connection, app, encoded)
    if missing := encoded - known.keys():
        write_rows(connection, _ADD_ITEMS, [(app, *item) for item in sorted(missing)])
        known = _known_items(connection, app, encoded)
    return {(topic, decode_key(key)): number for (topic, key), number in known.items()}


def _known_items(connection: Connection, app: int, wanted: Collection[tuple[int, str]]) -> dict[tuple[int, str], int]:
    found = rows(connection, _ITEMS, app, list({key for _, key in wanted}))
    return {(topic, key): number for number, topic, key in found}


def encode_key(key: ItemKey) -> str:
    """Return the stored form of a key."""
    return msgspec.json.encode(key).decode()


def decode_key(text: str) -> ItemKey:
    """Return the key that :func:`encode_key` represented."""
    return msgspec.json.decode(text, type=tuple[str, ...])


class Variety:
    """Limits the number of values on each day: values beyond the limit are replaced by ``OTHER``.

    A value that is counted on a day stays counted on that day, whatever follows.
    """

    def __init__(self) -> None:
        self._replaced: defaultdict[int, dict[Dimension, set[Value]]] = defaultdict(dict)  # by day

    def admit(self, scope: Scope, counted: set[Value], room: int, candidates: Iterable[Value]) -> None:
        """Admit the values that are counted already, and others as long as there is room. Replace the rest.

        :param room: the number of other values.
        :param candidates: the most frequent first.
        """
        day, dimension = scope
        new = [value for value in candidates if value not in counted]
        admitted = [value for value in new if OTHER not in (value, *value[-1:])][: max(0, room)]
        if replaced := set(new).difference(admitted):
            self._replaced[day][dimension] = replaced

    def limit(self, day: int, profile: Profile) -> Profile:
        """Return the profile that represents a profile."""
        replaced = self._replaced[day]
        if not any(value in replaced[dimension] for dimension, value in _values(profile) if dimension in replaced):
            return profile
        ci, *names = profile.segment
        values = [
            OTHER if name in replaced.get(dimension, ()) else name
            for dimension, name in zip(_NAMES, names, strict=True)
        ]
        limited = [
            (topic, _other(topic, key) if key in replaced.get(topic, ()) else key) for topic, key in profile.items
        ]
        return Profile(Segment(ci, *values), tuple(dict.fromkeys(limited)), profile.outcome)

    def limit_all(self, facts: Facts) -> tuple[list[Profile], npt.NDArray[np.int64]]:
        """Return the profiles that represent the profiles of events, and the position of the profile of each event."""
        profiles, profile_of = list(facts.profiles), facts.profile_of.copy()
        positions: dict[Profile, int] = {}
        for day in self._replaced:
            events = np.flatnonzero(facts.days == day)
            found, event_of = np.unique(facts.profile_of[events], return_inverse=True)
            limited = [self.limit(day, facts.profiles[number]) for number in found]
            for profile in limited:
                if profile not in positions:
                    positions[profile] = len(profiles)
                    profiles.append(profile)
            profile_of[events] = np.array([positions[profile] for profile in limited], np.int64)[event_of]
        used, profile_of = np.unique(profile_of, return_inverse=True)
        return [profiles[number] for number in used], profile_of


def _other(topic: Topic, key: ItemKey) -> ItemKey:
    return (key[0], OTHER) if topic == Topic.NAME else (OTHER,) * len(key)


def load_variety(connection: Connection, app: int, facts: Facts) -> Variety:
    """Return the limits of the days on which events happened."""
    days = set(facts.days.tolist())
    stored = _stored_segment_values(connection, app, days)
    numbers = {scope: len(values) for scope, values in stored.items()} | _numbers_of_items(connection, app, days)
    counts = _count_values(facts, _possibly_limited(facts.profiles, days, numbers))
    limited = {scope: new for scope, new in counts.items() if len(new) + numbers.get(scope, 0) > MAX_VALUES}
    stored.update(_stored_items(connection, app, limited))
    variety = Variety()
    for scope, new in limited.items():
        most_frequent = sorted(new, key=lambda value, new=new: (-new[value], value))  # type: ignore[misc]
        variety.admit(scope, stored.get(scope, set()), MAX_VALUES - numbers.get(scope, 0), most_frequent)
    return variety


def _possibly_limited(profiles: Sequence[Profile], days: set[int], numbers: Mapping[Scope, int]) -> set[Scope]:
    """Return the days and dimensions that exceed the limit if all values of all events are on each day."""
    values: defaultdict[Dimension, set[Value]] = defaultdict(set)
    for profile in profiles:
        for dimension, value in _values(profile):
            values[dimension].add(value)
    return {
        (day, dimension)
        for dimension, new in values.items()
        for day in days
        if len(new) + numbers.get((day, dimension), 0) > MAX_VALUES
    }


def _count_values(facts: Facts, scopes: set[Scope]) -> dict[Scope, Counter[Value]]:
    """Return the number of events by value, for some days and dimensions."""
    counts: defaultdict[Scope, Counter[Value]] = defaultdict(Counter)
    if not scopes:
        return counts
    pairs, events = np.unique(facts.days * len(facts.profiles) + facts.profile_of, return_counts=True)
    for pair, number in zip(pairs.tolist(), events.tolist(), strict=True):
        day, position = divmod(pair, len(facts.profiles))
        for dimension, value in _values(facts.profiles[position]):
            if (day, dimension) in scopes:
                counts[day, dimension][value] += number
    return counts


def _values(profile: Profile) -> list[tuple[Dimension, Value]]:
    """Return the values whose number is limited, each with its dimension."""
    return [*zip(_NAMES, profile.segment[1:], strict=True), *profile.items]


_NAMES = ("version", "os", "arch")


def _stored_segment_values(connection: Connection, app: int, days: Collection[int]) -> dict[Scope, set[Value]]:
    stored: defaultdict[Scope, set[Value]] = defaultdict(set)
    found = rows(connection, _SEGMENTS_BY_DAY, app, Topic.ALL, DAY, list(map(iso, days)), ONE_ITEM)
    for day, _, version, os, arch in found:
        stored[day, "version"].add(version)
        stored[day, "os"].add(os)
        stored[day, "arch"].add(arch)
    return stored


_LIMITED_TOPICS = [Topic.NAME, Topic.FLAG, Topic.ERROR, Topic.SHELL, Topic.LANGUAGE]


def _numbers_of_items(connection: Connection, app: int, days: Collection[int]) -> dict[Scope, int]:
    scope = (app, _LIMITED_TOPICS, DAY, [WITHOUT_CI, WITH_CI], list(map(iso, days)))
    return {(day, topic): number for day, topic, number in rows(connection, _COUNTED_ITEMS, *scope)}


def _stored_items(
    connection: Connection, app: int, scopes: Mapping[Scope, Collection[Value]]
) -> dict[Scope, set[Value]]:
    """Return those of the given values that are counted already."""
    wanted = [(day, topic) for day, topic in scopes if isinstance(topic, int)]
    if not wanted:
        return {}
    topics, days = {topic for _, topic in wanted}, {iso(day) for day, _ in wanted}
    keys = {(topic, encode_key(key)) for day, topic in wanted for key in scopes[day, topic] if isinstance(key, tuple)}
    known = _known_items(connection, app, keys)
    key_of = {number: decode_key(key) for (_, key), number in known.items()}
    stored: defaultdict[Scope, set[Value]] = defaultdict(set)
    for day, topic, item in rows(connection, _ITEMS_BY_DAY, app, list(topics), DAY, [WITHOUT_CI, WITH_CI], list(days)):
        if item in key_of:
            stored[day, topic].add(key_of[item])
    return stored
