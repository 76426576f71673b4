"""The panels: each is computed from the aggregates of one application, and has the form of its JSON.

``docs/insight.md`` defines every number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import numpy as np
from pyroaring import BitMap

from tkserver.insight import version_use
from tkserver.insight.cells import DAY, ONE_ITEM
from tkserver.insight.days import iso, iso_week, week_of
from tkserver.insight.facts import ItemKey, Topic
from tkserver.insight.histograms import Histogram, percentile
from tkserver.insight.reader import Reader, Span
from tkserver.insight.selection import Sum, union
from tkserver.insight.statistics import benjamini_hochberg, newcombe, newcombe_p_value, wilson
from tkserver.insight.versions import in_order

Json = dict[str, Any]
Panel = Callable[[Reader], Json]

MIN_DURATIONS = 20
"""Values of which a percentile is shown."""

UNUSED_DAYS = 30
"""A name is unused if it occurred before, but not in so many days."""

VERDICT_DAYS = 14
"""Days over which a version is compared with the previous one."""

VERDICT_OUTCOMES = 30
"""Outcomes that each side of a comparison needs."""

VERDICT_DURATIONS = 200
"""Durations that each side needs to compare percentiles."""

FALSE_DISCOVERY_RATE = 0.05

MAX_CHOICES = 200
"""Values of a filter that a page offers."""

ADOPTION_WINDOW = 7
ADOPTION_LOOKBACK = 120
"""Days before the period in which a version may have been released to have a number of days to half."""


# --- overview


def overview(reader: Reader) -> Json:
    """Users, events and failures: of the period, of the previous period, and by day."""
    query = reader.query
    previous_first = query.first - query.days
    days = _activity(reader, min(previous_first, query.first - 27), query.last)
    new_users = reader.first_days(previous_first, query.last)
    return {
        "totals": _totals(reader, days, new_users, query.first, query.last),
        "previous": _totals(reader, days, new_users, previous_first, query.first - 1),
        "days": [_day(reader, days, new_users, day) for day in range(query.first, query.last + 1)],
        "releases": [
            {"day": iso(first), "version": version}
            for version, (first, _) in sorted(reader.seen().items(), key=lambda item: (item[1][0], item[0]))
            if query.first <= first
        ],
    }


def _activity(reader: Reader, first: int, last: int) -> dict[int, Sum]:
    topic, items = reader.activity
    return reader.sums_by_day(topic, first, last, reader.totals(), items)


def _totals(reader: Reader, days: dict[int, Sum], new_users: dict[int, BitMap], first: int, last: int) -> Json:
    period = [days[day] for day in range(first, last + 1) if day in days]
    users = union(day.users for day in period)
    new = union(users for day, users in new_users.items() if first <= day <= last)
    return {
        "events": sum(day.events for day in period),
        "users": len(users),
        "new_users": len(users & new),
        "outcomes": sum(day.outcomes for day in period),
        "failures": sum(day.failures for day in period),
        "ci_users": len(reader.active_users(reader.totals("only"), first, last)),
    }


def _day(reader: Reader, days: dict[int, Sum], new_users: dict[int, BitMap], day: int) -> Json:
    own = days.get(day, Sum())
    is_frozen = day < reader.frozen_before
    return {
        "day": iso(day),
        "events": own.events,
        "users": own.user_count,
        "users_7d": _users_of_window(reader, days, day - 6, day),
        "users_28d": _users_of_window(reader, days, day - 27, day),
        "new_users": None if is_frozen else len(own.users & new_users.get(day, BitMap())),
        "failures": own.failures,
    }


def _users_of_window(reader: Reader, days: dict[int, Sum], first: int, last: int) -> int | None:
    """Return the number of users of a number of days; ``None`` if one of them is frozen."""
    if first < reader.frozen_before:
        return None
    return len(union(days[day].users for day in range(first, last + 1) if day in days))


# --- commands


def commands(reader: Reader) -> Json:
    """Names with their users, failures and durations; flags; and names that are not used anymore."""
    query, segments, names = reader.query, reader.totals(), reader.names
    sums = reader.sums(Topic.NAME, segments, names, durations=True)
    users = len(reader.active_users(segments, query.first, query.last))
    last_seen = reader.last_days(Topic.NAME, segments, names)
    items = [_command(names[item], total, users, last_seen[item]) for item, total in sums.items()]
    unused = [(day, names[item]) for item, day in last_seen.items() if day <= query.last - UNUSED_DAYS]
    return {
        "items": sorted(items, key=lambda item: (-item["events"], item["kind"], item["name"])),
        "flags": _flags(reader),
        "unused": [
            {"kind": kind, "name": name, "last_seen": iso(day)}
            for day, (kind, name) in sorted(unused, key=lambda entry: (-entry[0], entry[1]))
        ],
    }


def _command(key: ItemKey, total: Sum, all_users: int, last_seen: int) -> Json:
    return {
        "kind": key[0],
        "name": key[1],
        "events": total.events,
        "users": len(total.users),
        "user_share": len(total.users) / all_users if all_users else None,
        **_failures(total),
        "p50_ms": _percentile(total.durations, 0.5, MIN_DURATIONS),
        "p95_ms": _percentile(total.durations, 0.95, MIN_DURATIONS),
        "last_seen": iso(last_seen),
    }


def _failures(total: Sum) -> Json:
    interval = wilson(total.failures, total.outcomes) if total.outcomes else None
    return {
        "outcomes": total.outcomes,
        "failures": total.failures,
        "failure_rate": total.failures / total.outcomes if total.outcomes else None,
        "failure_low": interval and interval.low,
        "failure_high": interval and interval.high,
    }


def _percentile(histogram: Histogram, fraction: float, minimum: int) -> float | None:
    return round(percentile(histogram, fraction), 3) if histogram.total() >= minimum else None


def _flags(reader: Reader) -> list[Json]:
    name = reader.query.filters.get("name")
    keys = {item: key for item, key in reader.items(Topic.FLAG).items() if name in (None, key[0])}
    sums = reader.sums(Topic.FLAG, reader.totals(), keys)
    flags = [
        {"command": keys[item][0], "flag": keys[item][1], "events": total.events, "users": len(total.users)}
        for item, total in sums.items()
    ]
    return sorted(flags, key=lambda flag: (flag["command"], -flag["events"], flag["flag"]))


# --- versions


def versions(reader: Reader) -> Json:
    """Versions with their users, and the users of each version by day. Each user counts once, for the last version."""
    query, seen = reader.query, reader.seen()
    listed = {version for version, (_, last) in seen.items() if last >= query.first}
    released = [seen[version][0] for version in listed if seen[version][0] >= query.first - ADOPTION_LOOKBACK]
    start = min([query.first, *released])
    events, days = reader.version_days(start - ADOPTION_WINDOW + 1)
    period = {day: users for day, users in days.items() if day >= query.first}
    users = version_use.in_period(period)
    total = sum(map(len, users.values()))
    order = in_order(sorted(seen, key=lambda version: (seen[version][0], version)))
    halves = _days_to_half(days, {version: first for version, (first, _) in seen.items()}, order, start, query.last)
    return {
        "items": [
            {
                "version": version,
                "users": len(users.get(version, ())),
                "share": len(users.get(version, ())) / total if total else None,
                "events": events[version],
                "first_seen": iso(seen[version][0]),
                "last_seen": iso(seen[version][1]),
                "days_to_half": halves.get(version),
            }
            for version in reversed(order)
            if version in listed
        ],
        "days": [
            {
                "day": iso(day),
                "users": {version: len(days[day][version]) for version in order if days[day].get(version)},
            }
            if day in days
            else {"day": iso(day), "users": {}}
            for day in range(query.first, query.last + 1)
        ],
    }


def _days_to_half(
    days: dict[int, version_use.Users], first_days: dict[str, int], order: list[str], first: int, last: int
) -> dict[str, int]:
    """Return after how many days at least half of the active users used a version or a later one."""
    waiting = {rank: version for rank, version in enumerate(order) if first_days[version] >= first}
    result: dict[str, int] = {}
    for day, counts in version_use.rolling(days, order, first, last, ADOPTION_WINDOW):
        later = np.cumsum(counts[::-1])[::-1]  # users of each version or a later one
        for rank, version in waiting.items():
            if version not in result and day >= first_days[version] and 2 * later[rank] >= later[0] > 0:
                result[version] = day - first_days[version]
    return result


# --- releases


def releases(reader: Reader) -> Json:
    """Verdicts on versions: each version that was released in the period, compared with the previous one."""
    query, seen = reader.query, reader.seen()
    order = in_order(sorted(seen, key=lambda version: (seen[version][0], version)))
    pairs = [
        (version, previous)
        for previous, version in pairwise(order)
        if seen[version][0] >= query.first or (version == order[-1] and seen[version][1] >= query.first)
    ]
    days = _days_used(reader, {version for pair in pairs for version in pair})
    common = {(new, old): sorted(days[new] & days[old])[-VERDICT_DAYS:] for new, old in reversed(pairs)}
    usage = VersionUsage(reader, {day for own in common.values() for day in own})
    return {"items": [item for pair, own in common.items() if own for item in _release(reader, usage, *pair, own)]}


def _days_used(reader: Reader, versions: Collection[str]) -> defaultdict[str, set[int]]:
    """Return the days of the period on which versions were used."""
    segments = {number: segment.version for number, segment in reader.segments.items() if segment.version in versions}
    used: defaultdict[str, set[int]] = defaultdict(set)
    for segment, day in reader.days_of(segments):
        used[segments[segment]].add(day)
    return used


class VersionUsage:
    """The outcomes and durations of names by day and version.

    :param days: the days that are compared.
    """

    def __init__(self, reader: Reader, days: Collection[int]) -> None:
        span = Span(DAY, min(days, default=0), max(days, default=-1))
        self._selection = reader.select(
            Topic.NAME, [span], reader.segments, reader.names, only=days, users=False, durations=True
        )
        self._rank = {version: rank for rank, version in enumerate({s.version for s in reader.segments.values()})}
        rank_of_segment = np.zeros(max(reader.segments, default=0) + 1, np.int64)
        for number, segment in reader.segments.items():
            rank_of_segment[number] = self._rank[segment.version]
        self._ranks = rank_of_segment[self._selection.segments]

    def sums(self, version: str, days: list[int]) -> dict[int, Sum]:
        """Return the sums of a version over some days, by name."""
        is_own = (self._ranks == self._rank[version]) & np.isin(self._selection.starts, days)
        own = self._selection.only(is_own)
        return own.sums_by(own.items)


def _release(reader: Reader, usage: VersionUsage, version: str, previous: str, days: list[int]) -> list[Json]:
    """Return the verdict on a version for each name."""
    names = reader.names
    sums, previous_sums = usage.sums(version, days), usage.sums(previous, days)
    compared = [
        (names[item], sums.get(item, Sum()), previous_sums.get(item, Sum()))
        for item in sums.keys() | previous_sums.keys()
    ]
    compared = sorted(entry for entry in compared if entry[1].outcomes or entry[2].outcomes)
    verdicts = _verdicts([(new, old) for _, new, old in compared])
    return [
        {
            "version": version,
            "previous": previous,
            "from": iso(days[0]),
            "to": iso(days[-1]),
            "name": name[1],
            **_comparison(new, old),
            "verdict": verdict,
        }
        for (name, new, old), verdict in zip(compared, verdicts, strict=True)
    ]


def _comparison(new: Sum, old: Sum) -> Json:
    arguments = new.failures, new.outcomes, old.failures, old.outcomes
    interval = newcombe(*arguments) if new.outcomes and old.outcomes else None
    enough = min(new.durations.total(), old.durations.total()) >= VERDICT_DURATIONS
    return {
        "outcomes": new.outcomes,
        "failures": new.failures,
        "previous_outcomes": old.outcomes,
        "previous_failures": old.failures,
        "difference_low": interval and interval.low,
        "difference_high": interval and interval.high,
        "p95_ms": _percentile(new.durations, 0.95, VERDICT_DURATIONS) if enough else None,
        "previous_p95_ms": _percentile(old.durations, 0.95, VERDICT_DURATIONS) if enough else None,
    }


def _verdicts(pairs: list[tuple[Sum, Sum]]) -> list[str]:
    """Return ``worse``, ``better``, ``none`` or ``too_few`` for each pair of a new and an old sum."""
    enough = [min(new.outcomes, old.outcomes) >= VERDICT_OUTCOMES for new, old in pairs]
    tested = [pair for pair, is_enough in zip(pairs, enough, strict=True) if is_enough]
    p_values = [newcombe_p_value(new.failures, new.outcomes, old.failures, old.outcomes) for new, old in tested]
    significant = iter(benjamini_hochberg(p_values, FALSE_DISCOVERY_RATE))
    return [
        _verdict(*pair, next(significant)) if is_enough else "too_few"
        for pair, is_enough in zip(pairs, enough, strict=True)
    ]


def _verdict(new: Sum, old: Sum, significant: bool) -> str:
    if not significant:
        return "none"
    return "worse" if new.failures * old.outcomes > old.failures * new.outcomes else "better"


# --- errors


def errors(reader: Reader) -> Json:
    """Errors with the number of their events and users."""
    query = reader.query
    name = query.filters.get("name")
    keys = {item: key for item, key in reader.items(Topic.ERROR).items() if name in (None, key[0])}
    found = reader.select(Topic.ERROR, [Span(DAY, query.first, query.last)], reader.segments, keys)
    days, segments = found.first_and_last(), found.segments_by_item()
    items = [
        {
            "name": keys[item][0],
            "exit_code": keys[item][1] or None,
            "error_type": keys[item][2] or None,
            "events": total.events,
            "users": len(total.users),
            "versions": in_order(sorted({reader.segments[segment].version for segment in segments[item]})),
            "first_seen": iso(days[item][0]),
            "last_seen": iso(days[item][1]),
        }
        for item, total in found.sums_by(found.items).items()
    ]
    return {"items": sorted(items, key=lambda item: (-item["users"], -item["events"], item["name"], str(item)))}


# --- environment


def environment(reader: Reader) -> Json:
    """Operating systems, architectures, shells, languages and CI, with users and events."""
    query = reader.query
    sums: dict[str, defaultdict[Any, Sum]] = {name: defaultdict(Sum) for name in ("os", "arch", "ci")}
    for row in reader.covering(Topic.ALL, query.first, query.last, reader.segments, [ONE_ITEM]):
        segment = reader.segments[row.segment]
        sums["os"][segment.os].add(row)
        sums["arch"][segment.arch or None].add(row)
    for is_ci, mode in ((False, "exclude"), (True, "only")):
        for row in reader.covering(Topic.ALL, query.first, query.last, reader.totals(mode), [ONE_ITEM]):
            sums["ci"][is_ci].add(row)
    for name, topic in (("shell", Topic.SHELL), ("language", Topic.LANGUAGE)):
        keys = reader.items(topic)
        by_item = reader.sums(topic, reader.totals(), keys)
        sums[name] = defaultdict(Sum, {keys[item][0] or None: total for item, total in by_item.items()})
    return {name: _values(sums[name]) for name in ("os", "arch", "shell", "language", "ci")}


def _values(sums: dict[Any, Sum]) -> list[Json]:
    values = [{"value": value, "users": len(total.users), "events": total.events} for value, total in sums.items()]
    return sorted(values, key=lambda value: (-value["users"], -value["events"], str(value["value"])))


# --- retention


def retention(reader: Reader) -> Json:
    """Cohorts: the users whose first event was in a week, and how many of them were active in each later week."""
    query = reader.query
    first, last = week_of(query.first), week_of(query.last)
    topic, items = reader.activity
    active: defaultdict[int, BitMap] = defaultdict(BitMap)
    for row in reader.weekly(topic, first, last, reader.totals(), items):
        active[row.start] |= row.users or BitMap()
    cohorts: defaultdict[int, BitMap] = defaultdict(BitMap)
    for day, users in reader.first_days(first, last + 6).items():
        cohorts[week_of(day)] |= users
    return {
        "cohorts": [
            {
                "week": iso_week(week),
                "users": len(cohorts[week] & active[week]),
                "active": [
                    _active(cohorts[week] & active[week], active, week, later, reader.today)
                    for later in range(week, last + 7, 7)
                ],
            }
            for week in range(first, last + 7, 7)
        ]
    }


def _active(cohort: BitMap, active: dict[int, BitMap], week: int, later: int, today: int) -> int | None:
    if later != week and later + 7 > today:
        return None
    return len(cohort & active[later])


# --- quality


def quality(reader: Reader) -> Json:
    """Lateness of events, implausible clocks, duplicates, quarantined events, and space."""
    segments = reader.totals()
    lateness = reader.sums(Topic.LATENESS, segments, [ONE_ITEM], durations=True).get(ONE_ITEM, Sum())
    adjusted = reader.sums(Topic.ADJUSTED, segments, [ONE_ITEM]).get(ONE_ITEM, Sum())
    stored, size = reader.space()
    return {
        "received": lateness.events,
        "late_p50_s": _percentile(lateness.durations, 0.5, 1),
        "late_p95_s": _percentile(lateness.durations, 0.95, 1),
        "adjusted": adjusted.events,
        "duplicates": reader.duplicates(),
        "quarantined": reader.quarantined(),
        "rows": stored,
        "bytes": size,
    }


# --- values


def values(reader: Reader) -> Json:
    """The versions, newest first, the operating systems and the architectures, by which events can be filtered."""
    segments = reader.all_segments()
    versions = in_order(sorted({segment.version for segment in segments}))
    return {
        "version": versions[: -MAX_CHOICES - 1 : -1],
        **{
            name: sorted({getattr(segment, name) for segment in segments} - {""})[:MAX_CHOICES]
            for name in ("os", "arch")
        },
    }


PANELS: dict[str, Panel] = {
    "overview": overview,
    "commands": commands,
    "versions": versions,
    "releases": releases,
    "errors": errors,
    "environment": environment,
    "retention": retention,
    "quality": quality,
}

ALL_PANELS = {**PANELS, "values": values}
"""All panels, with those that pages need and that are not a part of the API."""

APPLICABLE_FILTERS: dict[str, tuple[str, ...]] = {
    "overview": ("version", "os", "arch", "name"),
    "commands": ("version", "os", "arch", "name"),
    "versions": ("version", "os", "arch"),
    "releases": ("os", "arch", "name"),
    "errors": ("version", "os", "arch", "name"),
    "environment": ("version", "os", "arch"),
    "retention": ("version", "os", "arch", "name"),
    "quality": (),
    "values": (),
}
"""The filters of each panel."""
