"""Stores details: the counts of each topic by item and segment on each day and in each week, for any filters.

The details of a day or week consist of parts, which are added to each other. New events become a new part. It replaces
parts that are not much larger, so that each event is written only a few times, and there are only a few parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tkserver.insight.cells import DAY, WEEK
from tkserver.insight.changes import Scope
from tkserver.insight.days import iso
from tkserver.insight.groups import Groups, decode, merge, no_ints
from tkserver.storage.blocking import Connection, rows, write_rows

SMALL_PART = 16384
"""Bytes. Smaller parts are always replaced."""

_KEY = "topic, period, start, part"
_WANTED = "unnest(%s::smallint[], %s::smallint[], %s::date[], %s::int[]) AS wanted (topic, period, start, part)"
_SIZES = """
SELECT topic, period, start - date '1970-01-01', part,
    octet_length(counts) + octet_length(users) + octet_length(histograms)
FROM insight_details
WHERE app = %s AND (topic, period, start) IN (SELECT * FROM unnest(%s::smallint[], %s::smallint[], %s::date[]))
ORDER BY part DESC
"""
_PARTS = f"""
SELECT topic, period, start - date '1970-01-01', part, counts, users, histograms
FROM insight_details JOIN {_WANTED} USING ({_KEY}) WHERE app = %s
"""
_DELETE_PARTS = f"""
DELETE FROM insight_details USING {_WANTED}
WHERE app = %s AND insight_details.topic = wanted.topic AND insight_details.period = wanted.period
    AND insight_details.start = wanted.start AND insight_details.part = wanted.part
"""
_WRITE = f"INSERT INTO insight_details (app, {_KEY}, counts, users, histograms) VALUES %s"
_WITH_USERS = f"""
SELECT topic, period, start - date '1970-01-01', part FROM insight_details
WHERE app = %s AND period = {DAY} AND start < %s AND users <> ''
"""
_DROP_WEEKS = f"DELETE FROM insight_details WHERE app = %s AND period = {WEEK} AND start < %s"
_CLEAR = f"""
DELETE FROM insight_details
WHERE app = %s AND ((period = {DAY} AND start >= %s) OR (period = {WEEK} AND start > %s::date - {WEEK}))
"""


class Part(NamedTuple):
    """The key of a part."""

    scope: Scope
    number: int


def change(connection: Connection, app: int, changes: Mapping[Scope, Groups], sign: int, edge: int) -> None:
    """Add events to details, or remove all events of their users from them.

    :param sign: 1 to add, -1 to remove.
    :param edge: the first day that is not frozen. Of the days before, only the counts of events change.
    """
    changes = {
        scope: groups if scope.start >= edge else _without_users(groups)
        for scope, groups in changes.items()
        if scope.start >= edge or scope.period == DAY
    }
    stored: defaultdict[Scope, list[tuple[int, int]]] = defaultdict(list)
    for *key, number, size in rows(connection, _SIZES, app, *_columns(changes)):
        stored[Scope(*key)].append((number, size))
    replaced = {
        scope: stored[scope] if sign < 0 else _small_parts(stored[scope], len(groups.users) * 8)
        for scope, groups in changes.items()
    }
    found = _load(connection, app, [Part(scope, number) for scope, own in replaced.items() for number, _ in own])
    written = []
    for scope, groups in changes.items():
        parts = [found[Part(scope, number)] for number, _ in replaced[scope]]
        total = merge([*parts, groups]) if sign > 0 else merge(parts).without(groups)
        next_number = stored[scope][0][0] + 1 if stored[scope] else 1
        number = min((number for number, _ in replaced[scope]), default=next_number)
        written.append((Part(scope, number), total))
    _replace(connection, app, found, written)


def freeze(connection: Connection, app: int, end: int) -> None:
    """Delete the users of all days before ``end``, and keep their numbers."""
    rows(connection, _DROP_WEEKS, app, iso(end))
    parts = [Part(Scope(*scope), number) for *scope, number in rows(connection, _WITH_USERS, app, iso(end))]
    found = _load(connection, app, parts)
    by_scope: defaultdict[Scope, list[Groups]] = defaultdict(list)
    for part, groups in found.items():
        by_scope[part.scope].append(groups)
    written = [(Part(scope, parts[0].number), merge(groups).frozen()) for scope, groups in by_scope.items()]
    _replace(connection, app, found, written)


def clear(connection: Connection, app: int, first: str) -> None:
    """Delete all details from a day on."""
    rows(connection, _CLEAR, app, first, first)


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
    return {
        Part(Scope(*scope), number): decode(bytes(counts), bytes(users), bytes(histograms))
        for *scope, number, counts, users, histograms in rows(connection, _PARTS, *_part_columns(parts), app)
    }


def _replace(
    connection: Connection, app: int, replaced: Iterable[Part], written: Iterable[tuple[Part, Groups]]
) -> None:
    rows(connection, _DELETE_PARTS, *_part_columns(replaced), app)
    values = [
        (app, part.scope.topic, part.scope.period, iso(part.scope.start), part.number, *groups.encode())
        for part, groups in written
        if len(groups)
    ]
    write_rows(connection, _WRITE, values, "(%s, %s, %s, %s::date, %s, %s::bytea, %s::bytea, %s::bytea)")


def _columns(scopes: Iterable[Scope]) -> tuple[list[int], list[int], list[str]]:
    """Return scopes as the arrays that SQL statements take."""
    scopes = list(scopes)
    return (
        [scope.topic for scope in scopes],
        [scope.period for scope in scopes],
        [iso(scope.start) for scope in scopes],
    )


def _part_columns(parts: Iterable[Part]) -> tuple[list[int], list[int], list[str], list[int]]:
    """Return the keys of parts as the arrays that SQL statements take."""
    parts = list(parts)
    return *_columns(part.scope for part in parts), [part.number for part in parts]
