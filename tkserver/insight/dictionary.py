"""The numbers of segments, items and users, and the limits of their variety."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Set
from functools import partial
from typing import TypeAlias

import msgspec

from tkserver.insight.cells import DAY, ONE_ITEM, WITH_CI, WITHOUT_CI
from tkserver.insight.days import iso
from tkserver.insight.facts import ItemKey, Profile, Segment, Topic
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

    :param unlimited: the days and dimensions of which all values are counted.
    """

    def __init__(self, unlimited: Set[Scope] = frozenset()) -> None:
        self._unlimited = unlimited
        self._admitted: dict[Scope, set[Value]] = {}

    def admit(self, scope: Scope, counted: set[Value], room: int, candidates: Iterable[Value]) -> None:
        """Admit the values that are counted already, and others as long as there is room.

        :param room: the number of other values.
        :param candidates: the most frequent first.
        """
        new = [value for value in candidates if value not in counted and OTHER not in (value, *value[-1:])]
        self._admitted[scope] = counted.union(new[: max(0, room)])

    def limit(self, day: int, profile: Profile) -> Profile:
        """Return the profile that represents a profile."""
        if all((day, dimension) in self._unlimited for dimension, _ in _values(profile)):
            return profile
        items = tuple((topic, self._item(day, topic, key)) for topic, key in profile.items)
        return Profile(self._segment(day, profile.segment), tuple(dict.fromkeys(items)), profile.outcome)

    def _segment(self, day: int, segment: Segment) -> Segment:
        ci, version, os, arch = segment
        value = partial(self._value, day)
        return Segment(ci, value("version", version), value("os", os), value("arch", arch))

    def _item(self, day: int, topic: Topic, key: ItemKey) -> ItemKey:
        if (day, topic) in self._unlimited or key in self._admitted[day, topic]:
            return key
        return (key[0], OTHER) if topic == Topic.NAME else (OTHER,) * len(key)

    def _value(self, day: int, dimension: str, value: str) -> str:
        counted = (day, dimension) in self._unlimited or value in self._admitted[day, dimension]
        return value if counted else OTHER


def load_variety(connection: Connection, app: int, profiles: Counter[tuple[int, Profile]]) -> Variety:
    """Return the limits of the days on which events happened.

    :param profiles: the number of events by day and profile.
    """
    counts: defaultdict[Scope, Counter[Value]] = defaultdict(Counter)
    for (day, profile), events in profiles.items():
        for dimension, value in _values(profile):
            counts[day, dimension][value] += events
    days = {day for day, _ in profiles}
    stored = _stored_segment_values(connection, app, days)
    numbers = {scope: len(values) for scope, values in stored.items()} | _numbers_of_items(connection, app, days)
    unlimited = {scope for scope, new in counts.items() if len(new) + numbers.get(scope, 0) <= MAX_VALUES}
    limited = {scope: new for scope, new in counts.items() if scope not in unlimited}
    stored.update(_stored_items(connection, app, limited))
    variety = Variety(unlimited)
    for scope, new in limited.items():
        most_frequent = sorted(new, key=lambda value, new=new: (-new[value], value))  # type: ignore[misc]
        variety.admit(scope, stored.get(scope, set()), MAX_VALUES - numbers.get(scope, 0), most_frequent)
    return variety


def _values(profile: Profile) -> list[tuple[Dimension, Value]]:
    """Return the values whose number is limited, each with its dimension."""
    _, version, os, arch = profile.segment
    return [("version", version), ("os", os), ("arch", arch), *profile.items]


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
