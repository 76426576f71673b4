"""The simulated population is plausible, and the same for the same seed."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkserver.demo import Parameters, Population, SampleEvent, seeded

UNTIL = datetime(2026, 6, 30, 9, 30, tzinfo=timezone.utc)
SIZES = Parameters(events=60_000, users=2_500, days=90, versions=9, commands=20)

Outcomes = dict[tuple[str, str], list[dict[str, Any]]]


def generate(parameters: Parameters, seed: int = 1, until: datetime = UNTIL) -> tuple[Population, list[SampleEvent]]:
    """Return a population and all its events."""
    population = Population(parameters, until, seeded(parameters, seed))
    return population, list(population.events())


@pytest.fixture(scope="module")
def population() -> tuple[Population, list[SampleEvent]]:
    """A population of the usual size."""
    return generate(SIZES)


@pytest.fixture(scope="module")
def events(population: tuple[Population, list[SampleEvent]]) -> list[SampleEvent]:
    """The events of :func:`population`."""
    return population[1]


@pytest.fixture(scope="module")
def people(events: list[SampleEvent]) -> list[SampleEvent]:
    """The events that do not come from CI machines."""
    return [event for event in events if not event.origin.ci]


@pytest.fixture(scope="module")
def runs(events: list[SampleEvent]) -> Outcomes:
    """The data of all runs by command and version."""
    found = defaultdict(list)
    for event in events:
        if event.type == "command_execution":
            data = json.loads(event.data)
            found[command_of(data), event.origin.version].append(data)
    return found


def command_of(data: dict[str, str]) -> str:
    """Return the command of a run, with its subcommand."""
    return f"{data['command']} {data.get('subcommand', '')}".strip()


def test_sizes_are_exact(events: list[SampleEvent], runs: Outcomes) -> None:
    """There are exactly as many events, users, versions and commands as asked for, and no id occurs twice."""
    assert len(events) == len({event.event_id for event in events}) == SIZES.events
    assert len({event.origin.user_id for event in events}) == SIZES.users
    assert len({event.origin.version for event in events}) == SIZES.versions
    assert len({command for command, _ in runs}) == SIZES.commands


@given(
    days=st.integers(1, 5),
    users=st.integers(1, 50),
    further=st.integers(0, 500),
    versions=st.integers(1, 30),
    commands=st.integers(1, 70),
    until=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(timezone.utc)),
)
@settings(max_examples=60, deadline=None)
def test_every_size_is_possible(
    days: int, users: int, further: int, versions: int, commands: int, until: datetime
) -> None:
    """For all parameters, the numbers are exact, and all events happen and are received within the period."""
    population, events = generate(Parameters(users + further, users, days, versions, commands), until=until)
    assert len(events) == users + further
    assert len({event.origin.user_id for event in events}) == users
    assert until - timedelta(days=days) < population.start < until
    assert all(population.start <= event.happened <= event.received < until for event in events)


def test_events_are_in_order_of_arrival(events: list[SampleEvent]) -> None:
    """Events are sorted by the time at which they are received."""
    assert all(first.received_at <= second.received_at for first, second in pairwise(events))


def test_same_seed_gives_same_events(events: list[SampleEvent]) -> None:
    """The same seed gives equal events; another seed, or another size, gives events and users with other ids."""
    assert generate(SIZES)[1] == events
    smaller = Parameters(5_000, 500)
    first, other, larger = generate(smaller)[1], generate(smaller, seed=2)[1], generate(Parameters(5_001, 500))[1]
    for different in (other, larger):
        assert not {event.event_id for event in first} & {event.event_id for event in different}
        assert not {event.origin.user_id for event in first} & {event.origin.user_id for event in different}


def test_ids_do_not_depend_on_the_time() -> None:
    """If the same command runs on another day, the events have the same ids."""
    sizes = Parameters(5_000, 500)
    first, later = generate(sizes)[1], generate(sizes, until=UNTIL + timedelta(days=2, hours=5))[1]
    assert {event.event_id for event in first} == {event.event_id for event in later}
    assert first != later


def test_retention_declines(people: list[SampleEvent]) -> None:
    """Fewer and fewer users of the first four weeks come back, but not all leave."""
    weeks = defaultdict(set)
    for event in people:
        weeks[event.origin.user_id].add(event.timestamp // (7 * 86_400_000_000))
    begun = min(min(active) for active in weeks.values())
    cohort = [active for active in weeks.values() if min(active) < begun + 4]
    kept = [sum(min(active) + week in active for active in cohort) / len(cohort) for week in (0, 1, 3, 7)]
    assert kept == sorted(kept, reverse=True)
    assert 0.3 < kept[1] < 0.7
    assert 0.1 < kept[3] < kept[1] - 0.1


def test_days_and_weeks_have_a_pattern(people: list[SampleEvent]) -> None:
    """There is less activity at weekends and at night."""
    days, hours = Counter(event.happened.date() for event in people), Counter(event.happened.hour for event in people)
    by_weekday = defaultdict(list)
    for day, number in days.items():
        by_weekday[day.weekday()].append(number)
    assert max(median(by_weekday[day]) for day in (5, 6)) < 0.6 * min(median(by_weekday[day]) for day in range(5))
    assert sum(hours[hour] for hour in range(5)) < 0.2 * sum(hours[hour] for hour in range(13, 18))


def failure_rate(runs: list[dict[str, Any]]) -> tuple[float, int]:
    """Return the share of failed runs, and the number of runs."""
    return sum(not run["success"] for run in runs) / len(runs), len(runs)


def others_of(runs: Outcomes, command: str, version: str) -> list[dict[str, Any]]:
    """Return the runs of a command with the other versions."""
    return [
        run for (name, other), found in runs.items() if (name, other != version) == (command, True) for run in found
    ]


def compared(
    runs: Outcomes, version: str, compare: Callable[[list[dict[str, Any]], list[dict[str, Any]]], bool]
) -> set[str]:
    """Return the frequent commands with outcomes for which the runs of a version and those of the others differ."""
    frequent = {name for (name, of), found in runs.items() if of == version and len(found) > 150} - {"help"}
    assert len(frequent) > 3
    return {name for name in frequent if compare(runs[name, version], others_of(runs, name, version))}


def test_one_command_fails_more_often_in_one_version(
    population: tuple[Population, list[SampleEvent]], runs: Outcomes
) -> None:
    """In one version, exactly one command fails significantly more often than in the other versions."""
    worse = population[0].regression
    assert worse is not None

    def fails_more(these: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
        (rate, number), (usual, usual_number) = failure_rate(these), failure_rate(others)
        deviation = math.sqrt(rate * (1 - rate) / number + usual * (1 - usual) / usual_number)
        return rate - usual > 3.5 * deviation

    found = {(version, name) for version in population[0].versions[1:] for name in compared(runs, version, fails_more)}
    assert found == {(worse.version, worse.failing)}


def test_one_command_is_slower_in_one_version(population: tuple[Population, list[SampleEvent]], runs: Outcomes) -> None:
    """In one version, exactly one command takes much longer than in the other versions."""
    worse = population[0].regression
    assert worse is not None

    def is_slower(these: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
        usual = median(run["duration_ms"] for run in others)
        return bool(median(run["duration_ms"] for run in these) > 1.6 * usual)

    found = {(version, name) for version in population[0].versions[1:] for name in compared(runs, version, is_slower)}
    assert found == {(worse.version, worse.slower)}


def test_some_events_are_weeks_late(people: list[SampleEvent]) -> None:
    """The events of a few users arrive together after days or weeks; all others arrive within minutes."""
    late = [event for event in people if event.received_at - event.timestamp > 86_400_000_000]
    assert 0.003 < len(late) / len(people) < 0.06
    assert max(event.received - event.happened for event in late) > timedelta(days=14)
    assert len({event.origin.user_id for event in late}) > 10
    assert len({event.received.replace(microsecond=0) for event in late}) < len(late) / 3
    punctual = median(event.received_at - event.timestamp for event in people)
    assert 1_000_000 <= punctual < 120_000_000


def test_versions_are_adopted(population: tuple[Population, list[SampleEvent]], people: list[SampleEvent]) -> None:
    """Half of the active users have a version within weeks, a few stay on old ones, and a few go back."""
    versions = population[0].versions
    index = {version: number for number, version in enumerate(versions)}
    used: dict[date, dict[str, int]] = defaultdict(dict)
    history = defaultdict(list)
    for event in sorted(people, key=lambda event: event.timestamp):
        used[event.happened.date()][event.origin.user_id] = index[event.origin.version]
        history[event.origin.user_id].append(index[event.origin.version])
    for number, (_, released) in enumerate(population[0].releases[1:-1], 1):
        on_the_day, weeks_later = (used[(released + timedelta(days=days)).date()].values() for days in (1, 21))
        assert sum(version >= number for version in on_the_day) < len(on_the_day) / 2
        if weeks_later:
            assert sum(version >= number for version in weeks_later) > len(weeks_later) / 2
    at_the_end = Counter(used[UNTIL.date() - timedelta(days=1)].values())
    assert sum(number for version, number in at_the_end.items() if version < len(versions) - 3) > 3
    went_back = {user for user, seen in history.items() if any(new < old for old, new in pairwise(seen))}
    assert 5 < len(went_back) < len(history) / 10


def test_no_version_is_used_before_its_release(
    population: tuple[Population, list[SampleEvent]], events: list[SampleEvent]
) -> None:
    """A version is used only after its release."""
    released = dict(population[0].releases)
    assert all(event.happened >= released[event.origin.version] for event in events)


def test_ci_machines_exist_for_one_job(events: list[SampleEvent]) -> None:
    """A quarter of all user ids are CI machines, each of which is used for at most a few hours."""
    times = defaultdict(list)
    for event in events:
        if event.origin.ci:
            times[event.origin.user_id].append(event.timestamp)
    assert len(times) == SIZES.users // 4
    assert max(max(of_machine) - min(of_machine) for of_machine in times.values()) < 6 * 3_600_000_000


def test_one_command_is_retired(population: tuple[Population, list[SampleEvent]], runs: Outcomes) -> None:
    """One command is not used in the second half of the period."""
    retired = population[0].retired
    last = [event for event in population[1] if event.happened > UNTIL - timedelta(days=40)]
    used = {command_of(json.loads(event.data)) for event in last if event.type == "command_execution"}
    assert retired not in used
    assert {command for command, _ in runs} - used == {retired}


def test_events_are_of_the_kinds_that_sdks_send(events: list[SampleEvent]) -> None:
    """Types, categories and keys are those that the published SDK sends; a run has one session id."""
    keys: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    for event in events:
        keys[event.type, event.category] |= json.loads(event.data).keys()
    assert keys == {
        ("command_execution", "usage"): {"command", "subcommand", "flags", "success", "duration_ms", "exit_code"},
        ("feature_used", "library"): {"feature", "method", "success", "plugins"},
        ("error_occurred", None): {"status", "error_type", "recoverable"},
    }
    commands = Counter(event.session_id for event in events if event.type == "command_execution")
    assert commands.keys() == {event.session_id for event in events}
    assert set(commands.values()) == {1}


def test_durations_are_log_normal(population: tuple[Population, list[SampleEvent]], runs: Outcomes) -> None:
    """The logarithms of the durations of a command are symmetric."""
    durations = [math.log(run["duration_ms"]) for run in others_of(runs, "build", "")]
    mean = sum(durations) / len(durations)
    spread = math.sqrt(sum((duration - mean) ** 2 for duration in durations) / len(durations))
    assert abs(mean - median(durations)) < 0.05
    assert 0.6 < spread < 0.8
