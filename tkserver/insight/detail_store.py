"""Stores details: the counts of each topic by item and segment on each day, which any filters select from.

The details of a day consist of parts, which are added to each other. New events become a new part. It replaces parts
that are not much larger, so that each event is written only a few times, and a day has only a few parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tkserver.insight.days import iso
from tkserver.insight.groups import Groups, decode, merge, no_ints
from tkserver.storage.blocking import Connection, rows, write_rows

SMALL_PART = 4096
"""Bytes. Smaller parts are always replaced."""

_SIZES = """
SELECT day - date '1970-01-01', topic, part, octet_length(counts) + octet_length(users) + octet_length(histograms)
FROM insight_details WHERE app = %s AND day = ANY (%s::date[]) ORDER BY part DESC
"""
_PARTS = """
SELECT day - date '1970-01-01', topic, part, counts, users, histograms
FROM insight_details JOIN unnest(%s::date[], %s::smallint[], %s::int[]) AS wanted (day, topic, part)
    USING (day, topic, part)
WHERE app = %s
"""
_DELETE_PARTS = """
DELETE FROM insight_details
USING unnest(%s::date[], %s::smallint[], %s::int[]) AS wanted (day, topic, part)
WHERE app = %s AND insight_details.day = wanted.day AND insight_details.topic = wanted.topic
    AND insight_details.part = wanted.part
"""
_WRITE = "INSERT INTO insight_details (app, day, topic, part, counts, users, histograms) VALUES %s"
_WITH_USERS = """
SELECT day - date '1970-01-01', topic, part FROM insight_details WHERE app = %s AND day < %s AND users <> ''
"""
_CLEAR = "DELETE FROM insight_details WHERE app = %s AND day >= %s"


class Part(NamedTuple):
    """The key of a part. ``day`` is in days since 1970-01-01."""

    day: int
    topic: int
    number: int


def change(connection: Connection, app: int, changes: Iterable[tuple[int, int, Groups]], sign: int, edge: int) -> None:
    """Add events to details, or remove all events of their users from them.

    :param changes: with the day and the topic.
    :param sign: 1 to add, -1 to remove.
    :param edge: the first day that is not frozen. Of the days before, only the counts of events change.
    """
    groups = {(day, topic): own if day >= edge else _without_users(own) for day, topic, own in changes}
    stored: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for day, topic, number, size in rows(connection, _SIZES, app, [iso(day) for day in {day for day, _ in groups}]):
        stored[day, topic].append((number, size))
    replaced = {
        key: stored[key] if sign < 0 else _small_parts(stored[key], len(own) * 8) for key, own in groups.items()
    }
    found = _load(connection, app, [Part(*key, number) for key, parts in replaced.items() for number, _ in parts])
    written = []
    for key, own in groups.items():
        parts = [found[Part(*key, number)] for number, _ in replaced[key]]
        total = merge([*parts, own]) if sign > 0 else merge(parts).without(own)
        number = min((number for number, _ in replaced[key]), default=stored[key][0][0] + 1 if stored[key] else 1)
        written.append((Part(*key, number), total))
    _replace(connection, app, found, written)


def freeze(connection: Connection, app: int, end: int) -> None:
    """Delete the users of all days before ``end``, and keep their numbers."""
    parts = [Part(*key) for key in rows(connection, _WITH_USERS, app, iso(end))]
    found = _load(connection, app, parts)
    by_day: defaultdict[tuple[int, int], list[Groups]] = defaultdict(list)
    for part, groups in found.items():
        by_day[part.day, part.topic].append(groups)
    written = [(Part(*key, 1), merge(groups).frozen()) for key, groups in by_day.items()]
    _replace(connection, app, found, written)


def clear(connection: Connection, app: int, first: str) -> None:
    """Delete all details from a day on."""
    rows(connection, _CLEAR, app, first)


def _without_users(groups: Groups) -> Groups:
    return replace(groups, users=no_ints(), user_counts=np.zeros_like(groups.user_counts))


def _small_parts(parts: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return the parts that a new part replaces.

    :param parts: with their sizes, the last one first.
    :param size: about the size of the new part.
    """
    chosen = []
    for part in parts:
        if part[1] > max(2 * size, SMALL_PART):
            break
        chosen.append(part)
        size += part[1]
    return chosen


def _load(connection: Connection, app: int, parts: list[Part]) -> dict[Part, Groups]:
    found = rows(connection, _PARTS, *_columns(parts), app)
    return {Part(*key): decode(*map(bytes, blobs)) for *key, blobs in ((*row[:3], row[3:]) for row in found)}


def _replace(
    connection: Connection, app: int, replaced: Iterable[Part], written: Iterable[tuple[Part, Groups]]
) -> None:
    rows(connection, _DELETE_PARTS, *_columns(replaced), app)
    values = [
        (app, iso(part.day), part.topic, part.number, *groups.encode()) for part, groups in written if len(groups)
    ]
    write_rows(connection, _WRITE, values, "(%s, %s::date, %s, %s, %s::bytea, %s::bytea, %s::bytea)")


def _columns(parts: Iterable[Part]) -> tuple[list[str], list[int], list[int]]:
    """Return the keys of parts as the arrays that SQL statements take."""
    parts = list(parts)
    return [iso(part.day) for part in parts], [part.topic for part in parts], [part.number for part in parts]
