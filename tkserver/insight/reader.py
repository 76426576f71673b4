"""Reads aggregates for a query."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from datetime import date
from functools import cached_property
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from tkserver.insight.cells import DAY, ONE_ITEM, WEEK, WITH_CI, WITHOUT_CI, LastTimes
from tkserver.insight.changes import DETAILED
from tkserver.insight.days import iso, number_of, week_of
from tkserver.insight.dictionary import all_segments, decode_key
from tkserver.insight.facts import ItemKey, Segment, Topic
from tkserver.insight.groups import Ints, decode
from tkserver.insight.histograms import decode as decode_histogram
from tkserver.insight.histograms import decode_sum
from tkserver.insight.query import Query
from tkserver.insight.selection import Row, Selection, Sum, union
from tkserver.insight.stored import AppKey, count_duplicates, count_quarantined, measure_space
from tkserver.insight.version_use import Users, assign, overlap
from tkserver.storage.blocking import Connection, binary_rows, rows

_CELLS = """
SELECT start - date '1970-01-01', item, segment, events, outcomes, failures, user_count, {columns} FROM insight_cells
WHERE app = %s AND topic = %s AND period = %s AND segment = ANY (%s) AND start >= %s AND start <= %s
"""
_ONLY_ITEMS = "AND item = ANY (%s)"

_DETAILS = """
SELECT start - date '1970-01-01', counts, {columns} FROM insight_details
WHERE app = %s AND topic = %s AND period = %s AND start >= %s AND start <= %s ORDER BY start
"""
_DAYS_OF = """
SELECT segment, start - date '1970-01-01' FROM insight_cells
WHERE app = %s AND topic = %s AND period = %s AND segment = ANY (%s) AND start >= %s AND start <= %s
"""

LOOKBACK = 28
"""Days that are read first to find when something occurred last. Of earlier times, weeks are read."""

_ITEMS = "SELECT item, key FROM insight_items WHERE app = %s AND topic = %s"

_FIRST_DAYS = """
SELECT day - date '1970-01-01', users FROM insight_first_days
WHERE app = %s AND day >= %s AND day <= %s AND users IS NOT NULL
"""
_LAST_TIMES = """
SELECT segment, last_times FROM insight_cells
WHERE app = %s AND topic = %s AND period = %s AND segment = ANY (%s) AND start = %s AND item = %s
"""
_SEEN = """
SELECT segment, seen.first - date '1970-01-01', seen.last - date '1970-01-01' FROM unnest(%s::int[]) AS segment
CROSS JOIN LATERAL (
    SELECT (SELECT start {cells} ORDER BY start LIMIT 1) AS first,
           (SELECT start {cells} AND start <= %s ORDER BY start DESC LIMIT 1) AS last
) AS seen
WHERE seen.first <= %s
"""
_SEEN = _SEEN.format(
    cells="FROM insight_cells AS c WHERE app = %s AND topic = %s AND period = %s AND c.segment = segment.segment"
)


# Weekly cells are fewer than daily ones, so they show in which week the last day is. Frozen days have no weekly cells.
_LAST_DAYS = """
WITH cells AS (
    SELECT period, item, start FROM insight_cells
    WHERE app = %s AND topic = %s AND segment = ANY (%s) AND item = ANY (%s)
), candidates AS (
    SELECT item, start FROM cells WHERE period = 1 AND (start BETWEEN %s AND %s OR start < %s AND start <= %s)
    UNION ALL
    SELECT item, day.start
    FROM (SELECT item, max(start) AS start FROM cells WHERE period = 7 AND start < %s GROUP BY item) AS w
    CROSS JOIN LATERAL (
        SELECT c.start FROM insight_cells AS c
        WHERE c.app = %s AND c.topic = %s AND c.segment = ANY (%s) AND c.period = 1 AND c.item = w.item
            AND c.start BETWEEN w.start AND w.start + 6
        ORDER BY start DESC LIMIT 1
    ) AS day
)
SELECT item, max(start) - date '1970-01-01' FROM candidates GROUP BY item
"""

# One value contains all rows, because each row and each column takes longer to read than a small set of users.
_VERSION_DAYS = """
SELECT string_agg(
    int4send(start - date '1970-01-01') || int4send(segment) || int4send(events)
        || int4send(octet_length(users)) || int4send(coalesce(octet_length(superseded), 0))
        || users || coalesce(superseded, ''), '')
FROM insight_cells
WHERE app = %s AND topic = %s AND period = %s AND segment = ANY (%s) AND start >= %s AND start <= %s
    AND item = %s AND users IS NOT NULL
"""
_VERSION_DAY = Struct(">iiiii")

_SUMS = """
SELECT int4send(item) || int4send(events) || int4send(outcomes) || int4send(failures) || int4send(user_count),
    users, {durations}
FROM insight_cells
WHERE app = %s AND topic = %s AND period = %s AND segment = ANY (%s) AND start >= %s AND start <= %s
    AND item = ANY (%s)
"""
_SUM = Struct(">iiiii")


class Span(NamedTuple):
    """Days or weeks, the first and the last of which begin on the given days."""

    period: int
    first: int
    last: int


class Reader:
    """Reads the aggregates of one application within a transaction.

    :param app: its number in ``insight_apps``.
    :param today: in the time zone of the application.
    :ivar frozen_before: the first day that is not frozen.
    """

    def __init__(
        self, connection: Connection, key: AppKey, app: int, query: Query, today: int, frozen_before: int
    ) -> None:
        self._connection = connection
        self._key = key
        self._app = app
        self.frozen_before = frozen_before
        self.query = query
        self.today = today

    # --- what is not aggregated

    def duplicates(self) -> int:
        """Return the number of duplicates that were received in the period."""
        return count_duplicates(self._connection, self._key, self.query.first, self.query.last)

    def quarantined(self) -> dict[str, int]:
        """Return the number of events in quarantine that were received in the period, by code."""
        return count_quarantined(self._connection, self._key, self.query.first, self.query.last)

    def space(self) -> tuple[int, int]:
        """Return the number of stored events of days that are not frozen, and their bytes."""
        return measure_space(self._connection, self._key)

    # --- segments

    def all_segments(self) -> Collection[Segment]:
        """Return all segments, whatever the filters are."""
        return all_segments(self._connection, self._app).values()

    @cached_property
    def segments(self) -> dict[int, Segment]:
        """The segments that match the filters."""
        return self._matching(self.query.ci)

    def _matching(self, ci: str) -> dict[int, Segment]:
        filters = {name: value for name, value in self.query.filters.items() if name != "name"}
        return {
            number: segment
            for number, segment in all_segments(self._connection, self._app).items()
            if ci in ("include", "only" if segment.ci else "exclude")
            and all(getattr(segment, name) == value for name, value in filters.items())
        }

    def totals(self, ci: str | None = None) -> list[int]:
        """Return the segments whose sum contains all events that match the filters.

        :param ci: replaces the parameter of the query.
        """
        ci = ci or self.query.ci
        if self.query.filters.keys() - {"name"}:
            return list(self._matching(ci))
        return {"exclude": [WITHOUT_CI], "only": [WITH_CI], "include": [WITHOUT_CI, WITH_CI]}[ci]

    # --- counts

    def daily(
        self,
        topic: Topic,
        first: int,
        last: int,
        segments: Collection[int],
        items: Collection[int] | None = None,
        *,
        durations: bool = False,
    ) -> Iterator[Row]:
        """Yield the counts of each day of a period."""
        return self._rows(topic, [Span(DAY, first, last)], segments, items, durations=durations)

    def covering(
        self,
        topic: Topic,
        first: int,
        last: int,
        segments: Collection[int],
        items: Collection[int] | None = None,
        *,
        durations: bool = False,
    ) -> Iterator[Row]:
        """Yield counts of days and weeks that together cover a period once."""
        return self._rows(topic, self._spans(first, last), segments, items, durations=durations)

    def weekly(
        self, topic: Topic, first: int, last: int, segments: Collection[int], items: Collection[int]
    ) -> Iterator[Row]:
        """Yield the counts of weeks, the first and the last of which begin on the given days."""
        return self._rows(topic, [Span(WEEK, first, last)], segments, items, durations=False)

    def _spans(self, first: int, last: int) -> list[Span]:
        """Return days and weeks that together cover a period once. Frozen weeks do not exist."""
        first_week, end = week_of(max(first, self.frozen_before) + 6), week_of(last + 1)
        if first_week >= end:
            return [Span(DAY, first, last)]
        return [Span(DAY, first, first_week - 1), Span(WEEK, first_week, end - 7), Span(DAY, end, last)]

    def _rows(
        self,
        topic: Topic,
        spans: list[Span],
        segments: Collection[int],
        items: Collection[int] | None,
        *,
        durations: bool,
    ) -> Iterator[Row]:
        if _are_details(topic, segments):
            yield from self.select(topic, spans, segments, items, durations=durations).rows()
        elif segments:
            for span in spans:
                yield from self._cells(topic, span, segments, items, durations=durations)

    def _cells(
        self, topic: Topic, span: Span, segments: Collection[int], items: Collection[int] | None, *, durations: bool
    ) -> Iterator[Row]:
        for row in self._stored_cells(topic, span, segments, items, durations=durations):
            users, histogram = row[-2:]
            bitmap = None if users is None else BitMap.deserialize(bytes(users))
            yield Row._make((*row[:-2], bitmap, decode_histogram(bytes(histogram)) if histogram else Counter()))

    def _stored_cells(
        self, topic: Topic, span: Span, segments: Collection[int], items: Collection[int] | None, *, durations: bool
    ) -> list[tuple[Any, ...]]:
        sql = _CELLS.format(columns="users, durations" if durations else "users, NULL")
        parameters: list[Any] = [self._app, topic, span.period, list(segments), iso(span.first), iso(span.last)]
        if items is not None:
            sql += _ONLY_ITEMS
            parameters.append(list(items))
        return rows(self._connection, sql, *parameters)

    def select(
        self,
        topic: Topic,
        spans: Iterable[Span],
        segments: Collection[int],
        items: Collection[int] | None,
        *,
        only: Collection[int] | None = None,
        users: bool = True,
        durations: bool = False,
    ) -> Selection:
        """Return the counts of single segments.

        :param only: the days or weeks that count; by default, all.
        """
        columns = f"{'users' if users else 'NULL'}, {'histograms' if durations else 'NULL'}"
        sql = _DETAILS.format(columns=columns)
        starts, selected = [], []
        is_wanted_segment, is_wanted_item = _Members(segments), None if items is None else _Members(items)
        for span in spans:
            scope = (self._app, topic, span.period, iso(span.first), iso(span.last))
            for day, counts, *contents in binary_rows(self._connection, sql, *scope):
                start = int.from_bytes(day or b"", "big", signed=True)
                if only is not None and start not in only:
                    continue
                groups = decode(counts or b"", *(content or b"" for content in contents))
                mask = is_wanted_segment(groups.keys & 0xFFFFFFFF)
                if is_wanted_item is not None:
                    mask &= is_wanted_item(groups.keys >> 32)
                starts.append(start)
                selected.append(groups.selected(mask))
        return Selection.of_parts(starts, selected, has_users=users)

    # --- items

    def items(self, topic: Topic) -> dict[int, ItemKey]:
        """Return the keys of the items of a topic, by number."""
        return {number: decode_key(key) for number, key in rows(self._connection, _ITEMS, self._app, topic)}

    @cached_property
    def names(self) -> dict[int, ItemKey]:
        """The kinds and names that match the filters."""
        wanted = self.query.filters.get("name")
        return {number: key for number, key in self.items(Topic.NAME).items() if wanted in (None, key[1])}

    def sums(
        self, topic: Topic, segments: Collection[int], items: Collection[int], *, durations: bool = False
    ) -> dict[int, Sum]:
        """Return the sums over the period by item."""
        spans = self._spans(self.query.first, self.query.last)
        if _are_details(topic, segments):
            selection = self.select(topic, spans, segments, items, durations=durations)
            return selection.sums_by(selection.items)
        return self._sums_of_cells(topic, spans, segments, items, durations=durations)

    def _sums_of_cells(
        self, topic: Topic, spans: list[Span], segments: Collection[int], items: Collection[int], *, durations: bool
    ) -> dict[int, Sum]:
        result: defaultdict[int, Sum] = defaultdict(Sum)
        users: defaultdict[int, list[BitMap]] = defaultdict(list)
        histograms: defaultdict[int, list[bytes]] = defaultdict(list)
        for span in spans:
            sql = _SUMS.format(durations="durations" if durations else "NULL")
            scope = self._app, topic, span.period, list(segments), iso(span.first), iso(span.last)
            for numbers, own_users, histogram in binary_rows(self._connection, sql, *scope, list(items)):
                item, events, outcomes, failures, user_count = _SUM.unpack(numbers or b"")
                total = result[item]
                total.events += events
                total.outcomes += outcomes
                total.failures += failures
                if own_users is None:
                    total.frozen.append(user_count)
                else:
                    users[item].append(BitMap.deserialize(bytes(own_users)))
                if histogram:
                    histograms[item].append(bytes(histogram))
        for item, total in result.items():
            total.users = BitMap.union(*users[item]) if users[item] else BitMap()
            total.durations = decode_sum(histograms[item])
        return result

    def sums_by_day(
        self, topic: Topic, first: int, last: int, segments: Collection[int], items: Collection[int]
    ) -> dict[int, Sum]:
        """Return the sums of each day of a period."""
        if _are_details(topic, segments):
            selection = self.select(topic, [Span(DAY, first, last)], segments, items)
            return selection.sums_by(selection.starts)
        days: defaultdict[int, Sum] = defaultdict(Sum)
        for row in self.daily(topic, first, last, segments, items):
            days[row.start].add(row)
        return days

    def active_users(self, segments: Collection[int], first: int, last: int) -> BitMap:
        """Return the users with an event in a period."""
        topic, items = self.activity
        return union(row.users for row in self.covering(topic, first, last, segments, items))

    @cached_property
    def activity(self) -> tuple[Topic, list[int]]:
        """The topic and the items whose cells contain each event that matches the filters."""
        return (Topic.NAME, list(self.names)) if "name" in self.query.filters else (Topic.ALL, [ONE_ITEM])

    def last_days(self, topic: Topic, segments: Collection[int], items: Collection[int]) -> dict[int, int]:
        """Return the last day of each item, up to the end of the period."""
        if _are_details(topic, segments):
            return self._last_days_of_details(topic, segments, set(items))
        last, week = iso(self.query.last), iso(week_of(self.query.last))
        scope = (self._app, topic, list(segments))
        days = week, last, iso(self.frozen_before), last, week
        return dict(rows(self._connection, _LAST_DAYS, *scope, list(items), *days, *scope))

    def _last_days_of_details(self, topic: Topic, segments: Collection[int], missing: set[int]) -> dict[int, int]:
        """Look at the latest days first, then at the weeks before, and finally at frozen days."""
        recent = self.query.last - LOOKBACK + 1
        found = self._last_starts(topic, Span(DAY, recent, self.query.last), segments, missing)
        weeks = Span(WEEK, week_of(self.frozen_before + 6), week_of(recent - 1))
        by_week = self._last_starts(topic, weeks, segments, missing - found.keys())
        days = {week + day for week in by_week.values() for day in range(WEEK)}
        period = Span(DAY, min(days, default=0), max(days, default=-1))
        found |= self._last_starts(topic, period, segments, by_week.keys(), only=days)
        frozen = Span(DAY, number_of(date.min), min(self.frozen_before, recent) - 1)
        return found | self._last_starts(topic, frozen, segments, missing - found.keys())

    def _last_starts(
        self,
        topic: Topic,
        span: Span,
        segments: Collection[int],
        items: Collection[int],
        only: Collection[int] | None = None,
    ) -> dict[int, int]:
        if not items or span.first > span.last:
            return {}
        selection = self.select(topic, [span], segments, items, only=only, users=False)
        return {item: last for item, (_, last) in selection.first_and_last().items()}

    # --- users

    def first_days(self, first: int, last: int) -> dict[int, BitMap]:
        """Return the users whose first event was on a day, by day."""
        found = rows(self._connection, _FIRST_DAYS, self._app, iso(first), iso(last))
        return {day: BitMap.deserialize(bytes(users)) for day, users in found}

    def seen(self) -> dict[str, tuple[int, int]]:
        """Return the days of the first and the last event of each version, up to the end of the period."""
        cells = (self._app, Topic.ALL, DAY)
        last = iso(self.query.last)
        found: dict[str, tuple[int, int]] = {}
        for segment, *days in rows(self._connection, _SEEN, list(self.segments), *cells, *cells, last, last):
            version = self.segments[segment].version
            first_day, last_day = found.get(version, days)
            found[version] = min(first_day, days[0]), max(last_day, days[1])
        return found

    def version_days(self, first: int) -> tuple[Counter[str], dict[int, Users]]:
        """Return the events of the period by version, and the users by day and the version of their last event.

        :param first: the first day of the users; the last one is that of the period.
        """
        parameters = (self._app, Topic.ALL, DAY, list(self.segments), iso(first), iso(self.query.last), ONE_ITEM)
        filtered = "version" in self.query.filters  # then other versions do not supersede it
        events: Counter[str] = Counter()
        by_day: defaultdict[int, dict[int, BitMap]] = defaultdict(dict)
        ((data,),) = binary_rows(self._connection, _VERSION_DAYS, *parameters)
        for day, segment, count, own, hidden in _version_days(bytes(data or b"")):
            by_day[day][segment] = own if filtered or hidden is None else own - hidden
            if day >= self.query.first:
                events[self.segments[segment].version] += count
        versions = {number: segment.version for number, segment in self.segments.items()}
        return events, {
            day: assign(users, versions, shared, self.last_times(day, users) if shared else {})
            for day, users in by_day.items()
            for shared in [overlap(users)]
        }

    def days_of(self, segments: Collection[int]) -> list[tuple[int, int]]:
        """Return segments with each day of the period on which they have events."""
        scope = (self._app, Topic.ALL, DAY, list(segments), iso(self.query.first), iso(self.query.last))
        return [(segment, day) for segment, day in rows(self._connection, _DAYS_OF, *scope)]

    def last_times(self, day: int, segments: Collection[int]) -> dict[int, LastTimes]:
        """Return the times of the last events of the users of segments on a day."""
        parameters = (self._app, Topic.ALL, DAY, list(segments), iso(day), ONE_ITEM)
        return {
            segment: LastTimes.decode(bytes(data or b""))
            for segment, data in rows(self._connection, _LAST_TIMES, *parameters)
        }


def _version_days(data: bytes) -> Iterator[tuple[int, int, int, BitMap, BitMap | None]]:
    """Yield the day, the segment, the number of events, the users and the superseded users of each row."""
    header, read, end = _VERSION_DAY, BitMap.deserialize, 0
    while end < len(data):
        day, segment, events, user_bytes, hidden_bytes = header.unpack_from(data, end)
        start = end + header.size
        end = start + user_bytes
        users, hidden = read(data[start:end]), None
        if hidden_bytes:
            start, end = end, end + hidden_bytes
            hidden = read(data[start:end])
        yield day, segment, events, users, hidden


def _are_details(topic: Topic, segments: Collection[int]) -> bool:
    """Return whether counts are details, because cells contain only all segments together."""
    return topic in DETAILED and not {WITHOUT_CI, WITH_CI}.issuperset(segments)


class _Members:
    """Finds which numbers belong to a set of small numbers; for many of them faster than :func:`numpy.isin`."""

    def __init__(self, numbers: Collection[int]) -> None:
        self._is_member = np.zeros(max(numbers, default=-1) + 2, np.bool_)
        self._is_member[list(numbers)] = True

    def __call__(self, numbers: Ints) -> npt.NDArray[np.bool_]:
        return self._is_member[np.minimum(numbers, len(self._is_member) - 1)]
