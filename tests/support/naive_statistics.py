"""The statistics of ``insight.md``, computed from the events in the simplest way, to compare others with."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from operator import attrgetter
from typing import Any
from zoneinfo import ZoneInfo

from tkserver.insight.statistics import benjamini_hochberg, newcombe, newcombe_p_value, wilson
from tkserver.insight.versions import in_order

Json = dict[str, Any]


@dataclass(frozen=True)
class RawEvent:
    """A stored event."""

    id: int
    user_id: str
    timestamp: datetime
    received_at: datetime
    ci: bool | None
    version: str
    os: str
    arch: str | None
    shell: str | None
    language: str
    type: str
    data: Any

    @property
    def values(self) -> Json:
        return self.data if isinstance(self.data, dict) else {}

    @property
    def happened(self) -> datetime:
        late = self.received_at - self.timestamp
        return self.received_at if late < timedelta(minutes=-10) or late > timedelta(days=90) else self.timestamp

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    @property
    def kind_and_name(self) -> tuple[str, str]:
        for kind, first, second in (("command", "command", "subcommand"), ("feature", "feature", "method")):
            if name := self.text(first):
                detail = self.text(second)
                return kind, f"{name} {detail}" if detail else name
        return "custom", self.type

    @property
    def failed(self) -> bool | None:
        success, exit_code = self.values.get("success"), self.number("exit_code")
        if isinstance(success, bool):
            return not success
        return None if exit_code is None else exit_code != 0

    @property
    def error(self) -> tuple[str, str | None, str | None] | None:
        error_type = self.text("error_type")
        if self.failed or (self.failed is None and error_type is not None):
            exit_code = self.values["exit_code"] if self.number("exit_code") is not None else None
            return self.kind_and_name[1], None if exit_code is None else str(exit_code), error_type or None
        return None

    @property
    def duration(self) -> float | None:
        value = self.number("duration_ms")
        return value if value is not None and value >= 0 else None

    @property
    def flags(self) -> set[str]:
        flags = self.values.get("flags")
        if not isinstance(flags, list) or self.kind_and_name[0] != "command":
            return set()
        return {flag.split("=")[0] for flag in flags if isinstance(flag, str) and flag.startswith("-")}


@dataclass(frozen=True)
class NaiveStatistics:
    """Computes panels of the events of one application.

    :ivar first: the first day of the period.
    """

    events: list[RawEvent]
    first: date
    last: date
    today: date
    ci: str = "exclude"
    filters: tuple[tuple[str, str], ...] = ()
    timezone: str = "UTC"

    def day(self, event: RawEvent) -> date:
        return event.happened.astimezone(ZoneInfo(self.timezone)).date()

    def matches(self, event: RawEvent, ci: str | None = None) -> bool:
        ci = ci or self.ci
        values = {"version": event.version, "os": event.os, "arch": event.arch or "", "name": event.kind_and_name[1]}
        return (ci == "include" or bool(event.ci) == (ci == "only")) and all(
            values[name] == value for name, value in self.filters
        )

    def between(self, first: date, last: date, ci: str | None = None) -> list[RawEvent]:
        return [event for event in self.events if first <= self.day(event) <= last and self.matches(event, ci)]

    @property
    def period(self) -> list[RawEvent]:
        return self.between(self.first, self.last)

    @property
    def days(self) -> list[date]:
        return [self.first + timedelta(n) for n in range((self.last - self.first).days + 1)]

    def first_day(self, user: str) -> date:
        return min(self.day(event) for event in self.events if event.user_id == user)

    def panel(self, name: str) -> Json:
        return getattr(self, name)()  # type: ignore[no-any-return]

    # --- panels

    def overview(self) -> Json:
        length = timedelta(len(self.days))
        seen = self._seen()
        return {
            "totals": self._totals(self.first, self.last),
            "previous": self._totals(self.first - length, self.last - length),
            "days": [self._day(day) for day in self.days],
            "releases": [
                {"day": str(first), "version": version}
                for version, (first, _) in sorted(seen.items(), key=lambda item: (item[1][0], item[0]))
                if first >= self.first
            ],
        }

    def _totals(self, first: date, last: date) -> Json:
        events = self.between(first, last)
        return {
            "events": len(events),
            "users": len(users(events)),
            "new_users": sum(first <= self.first_day(user) <= last for user in users(events)),
            "outcomes": sum(event.failed is not None for event in events),
            "failures": sum(event.failed is True for event in events),
            "ci_users": len(users(self.between(first, last, "only"))),
        }

    def _day(self, day: date) -> Json:
        events = self.between(day, day)
        return {
            "day": str(day),
            "events": len(events),
            "users": len(users(events)),
            "users_7d": len(users(self.between(day - timedelta(6), day))),
            "users_28d": len(users(self.between(day - timedelta(27), day))),
            "new_users": sum(self.first_day(user) == day for user in users(events)),
            "failures": sum(event.failed is True for event in events),
        }

    def _seen(self) -> dict[str, tuple[date, date]]:
        seen = {}
        everything = self._without_name().between(date.min, self.last)
        for version, events in grouped(everything, lambda event: event.version).items():
            days = [self.day(event) for event in events]
            seen[version] = min(days), max(days)
        return seen

    def commands(self) -> Json:
        all_users = len(users(self.period))
        items = []
        for (kind, name), events in grouped(self.period, lambda event: event.kind_and_name).items():
            outcomes = [event.failed for event in events if event.failed is not None]
            interval = wilson(sum(outcomes), len(outcomes)) if outcomes else None
            durations = [event.duration for event in events if event.duration is not None]
            items.append(
                {
                    "kind": kind,
                    "name": name,
                    "events": len(events),
                    "users": len(users(events)),
                    "user_share": len(users(events)) / all_users,
                    "outcomes": len(outcomes),
                    "failures": sum(outcomes),
                    "failure_rate": sum(outcomes) / len(outcomes) if outcomes else None,
                    "failure_low": interval and interval.low,
                    "failure_high": interval and interval.high,
                    "p50_ms": percentile(durations, 0.5, 20),
                    "p95_ms": percentile(durations, 0.95, 20),
                    "last_seen": str(max(map(self.day, events))),
                }
            )
        flags = grouped(
            ((event, (event.kind_and_name[1], flag)) for event in self.period for flag in event.flags),
            lambda pair: pair[1],
        )
        before = grouped(self.between(date.min, self.last), lambda event: event.kind_and_name)
        unused = [(max(map(self.day, events)), *key) for key, events in before.items()]
        return {
            "items": sorted(items, key=lambda item: (-item["events"], item["kind"], item["name"])),
            "flags": sorted(
                (
                    {
                        "command": command,
                        "flag": flag,
                        "events": len(pairs),
                        "users": len({e.user_id for e, _ in pairs}),
                    }
                    for (command, flag), pairs in flags.items()
                ),
                key=lambda flag: (flag["command"], -flag["events"], flag["flag"]),
            ),
            "unused": [
                {"kind": kind, "name": name, "last_seen": str(day)}
                for day, kind, name in sorted(unused, key=lambda entry: (-entry[0].toordinal(), *entry[1:]))
                if day <= self.last - timedelta(30)
            ],
        }

    def _version_of_users(self, first: date, last: date) -> Counter[str]:
        by_user = grouped(self.between(first, last), lambda event: event.user_id)
        return Counter(max((event.happened, event.version) for event in events)[1] for events in by_user.values())

    def _order(self) -> list[str]:
        seen = self._seen()
        return in_order(sorted(seen, key=lambda version: (seen[version][0], version)))

    def versions(self) -> Json:
        seen, order = self._seen(), self._order()
        counts = self._version_of_users(self.first, self.last)
        items = [
            {
                "version": version,
                "users": counts[version],
                "share": counts[version] / counts.total() if counts else None,
                "events": sum(event.version == version for event in self.period),
                "first_seen": str(seen[version][0]),
                "last_seen": str(seen[version][1]),
                "days_to_half": self._days_to_half(version, seen[version][0], order),
            }
            for version in reversed(order)
            if seen[version][1] >= self.first
        ]
        return {
            "items": items,
            "days": [{"day": str(day), "users": dict(self._version_of_users(day, day))} for day in self.days],
        }

    def _days_to_half(self, version: str, released: date, order: list[str]) -> int | None:
        if released < self.first - timedelta(120):
            return None
        later = set(order[order.index(version) :])
        for age in range((self.last - released).days + 1):
            day = released + timedelta(age)
            counts = self._version_of_users(day - timedelta(6), day)
            if counts and 2 * sum(counts[other] for other in later) >= counts.total():
                return age
        return None

    def releases(self) -> Json:
        seen, order, items = self._seen(), self._order(), []
        for previous, version in reversed(list(pairwise(order))):
            first, last = seen[version]
            if first >= self.first or (version == order[-1] and last >= self.first):
                items += self._verdicts(version, previous)
        return {"items": items}

    def _verdicts(self, version: str, previous: str) -> list[Json]:
        used = {v: {self.day(e) for e in self._without_name().period if e.version == v} for v in (version, previous)}
        days = sorted(used[version] & used[previous])[-14:]
        groups = grouped([e for e in self.period if self.day(e) in days], lambda e: (e.kind_and_name, e.version))
        items, tested = [], []
        for key in sorted({key for key, _ in groups}):
            sides = [groups.get((key, v), []) for v in (version, previous)]
            outcomes = [[e.failed for e in side if e.failed is not None] for side in sides]
            durations = [[e.duration for e in side if e.duration is not None] for side in sides]
            if not any(outcomes):
                continue
            counts = sum(outcomes[0]), len(outcomes[0]), sum(outcomes[1]), len(outcomes[1])
            interval = newcombe(*counts) if all(outcomes) else None
            enough = min(map(len, durations)) >= 200
            items.append(
                {
                    "version": version,
                    "previous": previous,
                    "from": str(days[0]),
                    "to": str(days[-1]),
                    "name": key[1],
                    "outcomes": counts[1],
                    "failures": counts[0],
                    "previous_outcomes": counts[3],
                    "previous_failures": counts[2],
                    "difference_low": interval and interval.low,
                    "difference_high": interval and interval.high,
                    "p95_ms": percentile(durations[0], 0.95, 200) if enough else None,
                    "previous_p95_ms": percentile(durations[1], 0.95, 200) if enough else None,
                    "verdict": "too_few",
                }
            )
            if min(counts[1], counts[3]) >= 30:
                tested.append((items[-1], counts))
        significant = benjamini_hochberg([newcombe_p_value(*counts) for _, counts in tested], 0.05)
        for (item, counts), is_significant in zip(tested, significant, strict=True):
            worse = counts[0] / counts[1] > counts[2] / counts[3]
            item["verdict"] = ("worse" if worse else "better") if is_significant else "none"
        return items

    def _without_name(self) -> NaiveStatistics:
        return replace(self, filters=tuple((name, value) for name, value in self.filters if name != "name"))

    def errors(self) -> Json:
        items = [
            {
                "name": name,
                "exit_code": exit_code,
                "error_type": error_type,
                "events": len(events),
                "users": len(users(events)),
                "versions": in_order(sorted({event.version for event in events})),
                "first_seen": str(min(map(self.day, events))),
                "last_seen": str(max(map(self.day, events))),
            }
            for (name, exit_code, error_type), events in grouped(
                [event for event in self.period if event.error], lambda event: event.error
            ).items()
        ]
        return {"items": sorted(items, key=lambda item: (-item["users"], -item["events"], item["name"], str(item)))}

    def environment(self) -> Json:
        attributes = {"os": "os", "arch": "arch", "shell": "shell", "language": "language"}
        result = {name: values(self.period, attrgetter(key)) for name, key in attributes.items()}
        result["ci"] = values(self.between(self.first, self.last, "include"), lambda event: bool(event.ci))
        return result

    def retention(self) -> Json:
        first, last = monday(self.first), monday(self.last)
        weeks = [first + timedelta(days) for days in range(0, (last - first).days + 7, 7)]
        active = {week: users(self.between(week, week + timedelta(6))) for week in weeks}
        cohorts = []
        for week in weeks:
            cohort = {user for user in active[week] if monday(self.first_day(user)) == week}
            counts = [
                len(cohort & active[later]) if later == week or later + timedelta(7) <= self.today else None
                for later in weeks
                if later >= week
            ]
            year, number, _ = week.isocalendar()
            cohorts.append({"week": f"{year}-W{number:02}", "users": len(cohort), "active": counts})
        return {"cohorts": cohorts}

    def quality(self) -> Json:
        late = [max(0.0, (event.received_at - event.happened).total_seconds()) for event in self.period]
        return {
            "received": len(late),
            "late_p50_s": percentile(late, 0.5, 1),
            "late_p95_s": percentile(late, 0.95, 1),
            "adjusted": sum(event.happened != event.timestamp for event in self.period),
        }


def users(events: Iterable[RawEvent]) -> set[str]:
    return {event.user_id for event in events}


def monday(day: date) -> date:
    return day - timedelta(day.weekday())


def grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    result: defaultdict[Any, list[Any]] = defaultdict(list)
    for item in items:
        result[key(item)].append(item)
    return result


def values(events: list[RawEvent], key: Callable[[RawEvent], Any]) -> list[Json]:
    items = [
        {"value": value, "users": len(users(own)), "events": len(own)} for value, own in grouped(events, key).items()
    ]
    return sorted(items, key=lambda item: (-item["users"], -item["events"], str(item["value"])))


def percentile(data: list[float], fraction: float, minimum: int) -> float | None:
    if len(data) < minimum:
        return None
    return sorted(data)[math.ceil(round(fraction * len(data), 9)) - 1]
