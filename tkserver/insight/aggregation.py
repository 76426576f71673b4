"""Aggregation: adds events to the cells, or removes the events of a user from them.

All functions block. Those that change aggregates must be called in a transaction that holds the lock of
:func:`lock_progress`. Aggregates and watermark therefore always agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
from pyroaring import BitMap

from tkserver.insight import detail_store
from tkserver.insight.cells import DAY, ONE_ITEM, Cell, Delta, Key, LastTimes, superseded
from tkserver.insight.changes import MAX_EVENTS, batch_of, cell_changes, details, last_times
from tkserver.insight.days import iso, number_of
from tkserver.insight.dictionary import all_segments, item_numbers, load_variety, segment_numbers
from tkserver.insight.facts import SELECT, Facts, Row, Segment, Topic, app_of, day_of, facts_of, user_of
from tkserver.insight.groups import Ints
from tkserver.insight.histograms import decode, encode
from tkserver.storage.blocking import Connection, chunks, copy_rows, rows, value, write_rows

IsErased = Callable[[int, set[str]], set[str]]
"""Returns those users of an application who are erased."""


@dataclass(frozen=True)
class Progress:
    """The progress of the aggregation.

    :ivar watermark: events with ids up to this one are aggregated, except those of applications that are rebuilt.
    :ivar definitions: the version of the definitions.
    """

    watermark: int
    definitions: int


_LOCK = "SELECT watermark, definitions FROM insight_progress FOR UPDATE"
_ADVANCE = "UPDATE insight_progress SET watermark = %s, summed_until = %s"

# Keys are looked up one after another in the index: the planner would otherwise read the whole table for a large batch.
_PLAN = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off"

_ADD_APPS = """
INSERT INTO insight_apps (app_id, org_id, timezone)
SELECT app_id, org_id, coalesce(a.timezone, 'UTC')
FROM (SELECT DISTINCT app_id, org_id FROM events WHERE id > %s AND id <= %s) AS e
LEFT JOIN apps AS a USING (app_id, org_id)
ON CONFLICT DO NOTHING
"""

_BATCH_END = "SELECT max(id) FROM (SELECT id FROM events WHERE id > %s AND id <= %s ORDER BY id LIMIT %s) AS batch"
_RECEIVED = "SELECT received_at FROM events WHERE id = %s"
_BATCH = f"{SELECT} WHERE e.id > %s AND e.id <= %s AND a.watermark IS NULL"

_USERS = """
SELECT user_id, number, first_day - date '1970-01-01', last_day - date '1970-01-01'
FROM insight_users WHERE app = %s AND user_id = ANY (%s)
"""
_WRITE_USERS = """
INSERT INTO insight_users (app, user_id, number, first_day, last_day)
SELECT %s, user_id, number, date '1970-01-01' + first, date '1970-01-01' + last
FROM unnest(%s::text[], %s::int[], %s::int[], %s::int[]) AS u (user_id, number, first, last)
ON CONFLICT (app, user_id) DO UPDATE SET first_day = excluded.first_day, last_day = excluded.last_day
"""
_NEXT_USER = "SELECT next_user FROM insight_apps WHERE app = %s"
_SET_NEXT_USER = "UPDATE insight_apps SET next_user = %s WHERE app = %s"

_FIRST_DAYS = """
SELECT day - date '1970-01-01', users FROM insight_first_days
WHERE app = %s AND day = ANY (%s::date[]) AND users IS NOT NULL
"""
_WRITE_FIRST_DAYS = """
INSERT INTO insight_first_days (app, day, user_count, users) VALUES %s
ON CONFLICT (app, day) DO UPDATE SET user_count = excluded.user_count, users = excluded.users
"""

# LIMIT keeps the planner from reading the whole table and comparing each row with all keys.
_CELLS = """
SELECT c.topic, c.period, day, c.item, c.segment, events, outcomes, failures, user_count, users, durations
FROM unnest(%s::smallint[], %s::smallint[], %s::int[], %s::int[], %s::int[]) AS k (topic, period, day, item, segment)
CROSS JOIN LATERAL (
    SELECT * FROM insight_cells AS c
    WHERE c.app = %s AND c.topic = k.topic AND c.period = k.period AND c.item = k.item AND c.segment = k.segment
        AND c.start = date '1970-01-01' + k.day
    LIMIT 1
) AS c
"""
_COLUMNS = (
    "app", "topic", "period", "start", "item", "segment",
    "events", "outcomes", "failures", "user_count", "users", "durations",
)  # fmt: skip
_CREATE_CHANGES = "CREATE TEMP TABLE IF NOT EXISTS insight_changes (LIKE insight_cells) ON COMMIT DELETE ROWS"
_WRITE_CELLS = f"""
INSERT INTO insight_cells ({", ".join(_COLUMNS)}) SELECT {", ".join(_COLUMNS)} FROM insight_changes
ON CONFLICT (app, topic, period, segment, start, item) DO UPDATE SET events = excluded.events,
    outcomes = excluded.outcomes, failures = excluded.failures, user_count = excluded.user_count,
    users = excluded.users, durations = excluded.durations
"""
_DELETE_EMPTY = """
DELETE FROM insight_cells
WHERE app = %s AND events = 0 AND (topic, period, start - date '1970-01-01', item, segment) IN (
    SELECT * FROM unnest(%s::smallint[], %s::smallint[], %s::int[], %s::int[], %s::int[])
)
"""
_LAST_TIMES = """
SELECT start - date '1970-01-01', segment, last_times FROM insight_cells
WHERE app = %s AND topic = %s AND period = %s AND start = ANY (%s::date[]) AND item = %s AND segment = ANY (%s)
"""
_WRITE_LAST_TIMES = f"""
UPDATE insight_cells AS c SET last_times = v.last_times, superseded = v.superseded
FROM (VALUES %s) AS v (app, start, segment, last_times, superseded)
WHERE c.app = v.app AND topic = {int(Topic.ALL)} AND period = {DAY} AND c.start = v.start AND item = {ONE_ITEM}
    AND c.segment = v.segment
"""


def lock_progress(connection: Connection) -> Progress:
    """Wait until nobody else changes the aggregates, and keep everybody else from it until the transaction ends."""
    ((watermark, definitions),) = rows(connection, _LOCK)
    return Progress(watermark, definitions)


def add_batch(
    connection: Connection,
    final_id: int,
    final_time: datetime,
    limit: int,
    load_erased: Callable[[Connection], IsErased],
) -> int | None:
    """Aggregate the next events, and advance the watermark.

    :param final_id: all events with ids up to this one are visible.
    :param final_time: all events that were received before this time have ids up to ``final_id``.
    :param limit: the maximum number of events.
    :param load_erased: reads which users are erased. It is called under the lock, so that it sees every erasure whose
        user has been removed from the aggregates.
    :return: the number of events; ``None`` if the watermark was at ``final_id`` already.
    """
    progress = lock_progress(connection)
    end = value(connection, _BATCH_END, progress.watermark, final_id, limit)
    if end is None:
        rows(connection, _ADVANCE, max(final_id, progress.watermark), final_time)
        return None
    rows(connection, _ADD_APPS, progress.watermark, end)
    events = rows(connection, _BATCH, progress.watermark, end)
    add_events(connection, events, load_erased(connection))
    rows(connection, _ADVANCE, end, value(connection, _RECEIVED, end))
    return len(events)


def add_events(connection: Connection, events: Iterable[Row], is_erased: IsErased) -> None:
    """Add events to the aggregates of their applications, except those of erased users."""
    rows(connection, _PLAN)
    by_app: defaultdict[int, list[Row]] = defaultdict(list)
    for event in events:
        by_app[app_of(event)].append(event)
    for app, own in by_app.items():
        if erased := is_erased(app, set(map(user_of, own))):
            own = [event for event in own if user_of(event) not in erased]
        if own:
            facts = facts_of(own)
            _change(connection, app, facts, _number_users(connection, app, facts), 1)


_APP = "SELECT app, coalesce(watermark, %s) FROM insight_apps WHERE app_id = %s AND org_id = %s"
_USER = f"{SELECT} WHERE e.app_id = %s AND e.org_id = %s AND e.user_id = %s AND e.id <= %s ORDER BY e.id"
_DELETE_USER = """
DELETE FROM insight_users WHERE app = %s AND user_id = %s RETURNING number, first_day - date '1970-01-01'
"""


def remove_user(connection: Connection, app_id: str, org_id: str, user_id: str) -> None:
    """Remove the events of a user from the aggregates of an application. The events must still be stored.

    The caller must ensure that no event of the user is aggregated later.
    """
    progress = lock_progress(connection)
    for app, watermark in rows(connection, _APP, progress.watermark, app_id, org_id):
        rows(connection, _PLAN)
        edge = _frozen_before(connection, app)
        for number, first_day in rows(connection, _DELETE_USER, app, user_id):
            parameters = (app_id, org_id, user_id, watermark)
            for chunk in chunks(connection, _USER, *parameters, size=MAX_EVENTS, name="events_of_user"):
                if events := [event for event in chunk if day_of(event) >= edge]:
                    _change(connection, app, facts_of(events), np.full(len(events), number), -1)
            _move_first_days(connection, app, [(number, first_day, None)])


# --- frozen days

_FREEZABLE = """
SELECT app, ((%s + interval '10 minutes') AT TIME ZONE timezone)::date + 1 - date '1970-01-01'
FROM insight_apps WHERE app_id = %s AND org_id = %s
"""
_FREEZE = """
UPDATE insight_cells SET users = NULL, last_times = NULL, superseded = NULL
WHERE app = %s AND period = 1 AND start < %s AND users IS NOT NULL
"""
_DROP_WEEKS = "DELETE FROM insight_cells WHERE app = %s AND period = 7 AND start < %s"
_FREEZE_FIRST_DAYS = "UPDATE insight_first_days SET users = NULL WHERE app = %s AND day < %s AND users IS NOT NULL"
_DROP_USERS = "DELETE FROM insight_users WHERE app = %s AND last_day < %s"
_WATERMARK = "SELECT watermark FROM insight_apps WHERE app_id = %s AND org_id = %s"
_SET_FROZEN = "UPDATE insight_apps SET frozen_before = greatest(frozen_before, %s) WHERE app = %s"


def freeze(connection: Connection, app_id: str, org_id: str, received_before: datetime) -> int:
    """Delete the data of single users of all days of which events will be deleted, and keep the counts.

    :param received_before: events that were received before this time will be deleted.
    :return: the id up to which the events of the application are aggregated. Later ones must not be deleted.
    """
    progress = lock_progress(connection)
    ((watermark,),) = rows(connection, _WATERMARK, app_id, org_id) or [(progress.watermark,)]
    for app, end in rows(connection, _FREEZABLE, received_before, app_id, org_id):
        for statement in (_FREEZE, _DROP_WEEKS, _FREEZE_FIRST_DAYS, _DROP_USERS):
            rows(connection, statement, app, iso(end))
        detail_store.freeze(connection, app, end)
        rows(connection, _SET_FROZEN, iso(end), app)
    return int(progress.watermark if watermark is None else watermark)


def _frozen_before(connection: Connection, app: int) -> int:
    """Return the first day that is not frozen."""
    day = value(connection, "SELECT frozen_before FROM insight_apps WHERE app = %s AND isfinite(frozen_before)", app)
    return number_of(day or date.min)


# --- rebuilding

_CLEAR_CELLS = """
DELETE FROM insight_cells WHERE app = %s AND ((period = 1 AND start >= %s) OR (period = 7 AND start > %s::date - 7))
"""
_CLEAR_FIRST_DAYS = "DELETE FROM insight_first_days WHERE app = %s AND day >= %s"
_CLEAR_USERS = "DELETE FROM insight_users WHERE app = %s AND first_day >= %s"
_RESTART = "UPDATE insight_apps SET watermark = 0, timezone = %s WHERE app = %s"
_REBUILT = "UPDATE insight_apps SET watermark = %s WHERE app = %s"
_REBUILT_BATCH_END = """
SELECT max(id) FROM (
    SELECT e.id FROM events AS e JOIN insight_apps AS a USING (app_id, org_id)
    WHERE a.app = %s AND e.id > %s AND e.id <= %s ORDER BY e.id LIMIT %s
) AS batch
"""
_REBUILT_BATCH = f"{SELECT} WHERE e.id > %s AND e.id <= %s AND a.app = %s"


def restart(connection: Connection, app: int, timezone: str) -> None:
    """Delete the aggregates of an application, except those of frozen days.

    :func:`rebuild_batch` computes them again.
    """
    lock_progress(connection)
    edge = iso(_frozen_before(connection, app))
    rows(connection, _CLEAR_CELLS, app, edge, edge)
    detail_store.clear(connection, app, edge)
    rows(connection, _CLEAR_FIRST_DAYS, app, edge)
    rows(connection, _CLEAR_USERS, app, edge)
    rows(connection, _RESTART, timezone, app)


def rebuild_batch(
    connection: Connection, app: int, limit: int, load_erased: Callable[[Connection], IsErased]
) -> int | None:
    """Aggregate the next events of an application after :func:`restart`.

    :return: the number of events; ``None`` if its aggregates are complete.
    """
    progress = lock_progress(connection)
    done = value(connection, "SELECT watermark FROM insight_apps WHERE app = %s", app)
    if done is None:
        return None
    end = value(connection, _REBUILT_BATCH_END, app, done, progress.watermark, limit)
    if end is None:
        rows(connection, _REBUILT, None, app)
        return None
    edge = _frozen_before(connection, app)
    events = rows(connection, _REBUILT_BATCH, done, end, app)
    add_events(connection, [event for event in events if day_of(event) >= edge], load_erased(connection))
    rows(connection, _REBUILT, end, app)
    return len(events)


# --- users


def _number_users(connection: Connection, app: int, facts: Facts) -> Ints:
    """Return the number of the user of each event, and record the days of the first and last events of users."""
    position = {user: position for position, user in enumerate(dict.fromkeys(facts.users))}
    event_of = np.fromiter(map(position.__getitem__, facts.users), np.int64, len(facts.users))
    first, last = _first_and_last(facts.days, event_of, len(position))
    known = {user: known for user, *known in rows(connection, _USERS, app, list(position))}
    next_number = value(connection, _NEXT_USER, app)
    numbers: list[int] = []
    changed: list[tuple[str, int, int, int]] = []
    moves: list[tuple[int, int | None, int]] = []
    for user, new_first, new_last in zip(position, first, last, strict=True):
        if user not in known:
            numbers.append(next_number)
            moves.append((next_number, None, new_first))
            changed.append((user, next_number, new_first, new_last))
            next_number += 1
            continue
        number, old_first, old_last = known[user]
        numbers.append(number)
        if new_first < old_first:
            moves.append((number, old_first, new_first))
        if new_first < old_first or new_last > old_last:
            changed.append((user, number, min(new_first, old_first), max(new_last, old_last)))
    if changed:
        rows(connection, _WRITE_USERS, app, *map(list, zip(*changed, strict=True)))
        rows(connection, _SET_NEXT_USER, next_number, app)
    _move_first_days(connection, app, moves)
    return np.array(numbers, np.int64)[event_of]


def _first_and_last(days: Ints, group: Ints, groups: int) -> tuple[list[int], list[int]]:
    """Return the first and the last day of each group.

    :param group: of each day; each group has at least one.
    """
    first = np.full(groups, np.iinfo(np.int64).max)
    last = np.full(groups, np.iinfo(np.int64).min)
    np.minimum.at(first, group, days)
    np.maximum.at(last, group, days)
    return first.tolist(), last.tolist()


def _move_first_days(connection: Connection, app: int, moves: Iterable[tuple[int, int | None, int | None]]) -> None:
    """Move users from one day of their first event to another.

    :param moves: users with the old and the new day; ``None`` for no day.
    """
    added: defaultdict[int, BitMap] = defaultdict(BitMap)
    removed: defaultdict[int, BitMap] = defaultdict(BitMap)
    for user, old, new in moves:
        if old is not None:
            removed[old].add(user)
        if new is not None:
            added[new].add(user)
    edge = _frozen_before(connection, app)
    days = {day for day in added.keys() | removed.keys() if day >= edge}
    stored = {day: BitMap.deserialize(users) for day, users in rows(connection, _FIRST_DAYS, app, list(map(iso, days)))}
    written = []
    for day in days:
        users = (stored.get(day, BitMap()) | added[day]) - removed[day]
        written.append((app, iso(day), len(users), users.serialize()))
    if written:
        write_rows(connection, _WRITE_FIRST_DAYS, written, "(%s, %s::date, %s, %s::bytea)")


# --- cells


def _change(connection: Connection, app: int, facts: Facts, users: Ints, sign: int) -> None:
    """Add events to the aggregates, or remove all events of their users from them.

    :param users: the number of the user of each event.
    :param sign: 1 to add, -1 to remove.
    """
    profiles, profile_of = load_variety(connection, app, facts).limit_all(facts)
    segments = segment_numbers(connection, app, {profile.segment for profile in profiles})
    items = item_numbers(connection, app, {item for profile in profiles for item in profile.items})
    batch = batch_of(facts, users, profiles, profile_of, segments, items)
    edge = _frozen_before(connection, app)
    _change_cells(connection, app, cell_changes(batch), sign, edge)
    detail_store.change(connection, app, details(batch), sign, edge)
    times = {key: changed for key, changed in last_times(batch).items() if key[0] >= edge}
    _change_last_times(connection, app, times, sign)


def _change_cells(connection: Connection, app: int, changes: dict[Key, Delta], sign: int, edge: int) -> None:
    """Change cells. On days before ``edge``, which are frozen, only the counts of events change."""
    changes = {key: delta for key, delta in changes.items() if key.period == DAY or key.start >= edge}
    cells = _load_cells(connection, app, changes)
    for key, delta in changes.items():
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = Cell(users=BitMap() if key.start >= edge else None)
        cell.apply(delta, sign)
    rows(connection, _CREATE_CHANGES)
    rows(connection, "DELETE FROM insight_changes")
    copy_rows(connection, "insight_changes", _COLUMNS, (_row(app, key, cell) for key, cell in cells.items()))
    rows(connection, _WRITE_CELLS)
    if sign < 0:
        rows(connection, _DELETE_EMPTY, app, *_columns(key for key, cell in cells.items() if not cell.events))


def _load_cells(connection: Connection, app: int, keys: Iterable[Key]) -> dict[Key, Cell]:
    cells = {}
    for *key, events, outcomes, failures, user_count, users, durations in rows(
        connection, _CELLS, *_columns(keys), app
    ):
        bitmap = None if users is None else BitMap.deserialize(bytes(users))
        cells[Key(*key)] = Cell(events, outcomes, failures, user_count, bitmap, decode(bytes(durations)))
    return cells


def _row(app: int, key: Key, cell: Cell) -> tuple[Any, ...]:
    users = None if cell.users is None else cell.users.serialize()
    start = iso(key.start)
    counts = cell.events, cell.outcomes, cell.failures, cell.user_count
    return (app, key.topic, key.period, start, key.item, key.segment, *counts, users, encode(cell.durations))


def _columns(keys: Iterable[Key]) -> list[list[int]]:
    """Return keys as the arrays that SQL statements take."""
    columns = list(map(list, zip(*keys, strict=True)))
    return columns or [[], [], [], [], []]


# --- the last event of each user on a day


def _change_last_times(
    connection: Connection, app: int, changes: dict[tuple[int, int], tuple[Ints, Ints]], sign: int
) -> None:
    """Record the last events of users, and which versions are superseded by others on the same day.

    :param changes: users, and the times of their last events, by day and segment.
    """
    segments = all_segments(connection, app)
    groups = _groups(segments)
    days = sorted({day for day, _ in changes})
    touched = {number for _, segment in changes for number in groups[_group(segments[segment])]}
    stored: defaultdict[tuple[int, int], LastTimes] = defaultdict(LastTimes)
    parameters = (app, Topic.ALL, DAY, list(map(iso, days)), ONE_ITEM, list(touched))
    for day, segment, data in rows(connection, _LAST_TIMES, *parameters):
        stored[day, segment] = LastTimes.decode(bytes(data or b""))
    for key, (users, times) in changes.items():
        stored[key] = stored[key].with_events(users, times) if sign > 0 else stored[key].without(users)
    by_group: defaultdict[tuple[int, Any], dict[str, tuple[int, LastTimes]]] = defaultdict(dict)
    for (day, segment), last in stored.items():
        by_group[day, _group(segments[segment])][segments[segment].version] = (segment, last)
    changed_groups = {(day, _group(segments[segment])) for day, segment in changes}
    written = [row for day, group in changed_groups for row in _last_times_rows(app, day, by_group[day, group])]
    write_rows(connection, _WRITE_LAST_TIMES, written, "(%s, %s::date, %s, %s::bytea, %s::bytea)")


def _last_times_rows(app: int, day: int, versions: dict[str, tuple[int, LastTimes]]) -> list[tuple[Any, ...]]:
    hidden = superseded({version: last for version, (_, last) in versions.items()})
    return [
        (app, iso(day), segment, last.encode(), hidden[version].serialize() if hidden[version] else None)
        for version, (segment, last) in versions.items()
    ]


def _group(segment: Segment) -> tuple[bool, str, str]:
    """Return what the segments have in common among which a user's versions supersede each other."""
    return segment.ci, segment.os, segment.arch


def _groups(segments: dict[int, Segment]) -> dict[tuple[bool, str, str], list[int]]:
    groups: defaultdict[tuple[bool, str, str], list[int]] = defaultdict(list)
    for number, segment in segments.items():
        groups[_group(segment)].append(number)
    return groups
