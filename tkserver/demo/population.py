"""Simulated users: they join, use the program, upgrade it, and leave."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from operator import attrgetter
from random import Random
from typing import NamedTuple

from msgspec import Struct

from tkserver.demo.catalog import (
    CI_SYSTEMS,
    ERRORS,
    FEATURES,
    SYSTEMS,
    WITHOUT_OUTCOME,
    Command,
    command_names,
    make_command,
    sampling_table,
)
from tkserver.demo.schedule import DAY, HOUR, SECOND, SURVIVAL, Slot, microseconds, schedule, start_of

_Kind = tuple[str, str | None]

COMMAND: _Kind = ("command_execution", "usage")
FEATURE: _Kind = ("feature_used", "library")
ERROR: _Kind = ("error_occurred", None)
"""Types and categories of events, as the published SDK sends them."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_CI_EVERY = 4
"""Each fourth user id is that of a CI machine, which exists for one job."""

_OFFLINE = 0.03
"""Share of people whose computer is usually offline, so that their events arrive late."""

_OLDER_AT_FIRST = 0.1
"""Share of people who install a version that is not the newest."""

_STAYS, _TOGGLES = 0.06, 0.02
"""Shares of people who never upgrade, and of people who alternate between the two newest versions."""

_RUNS_OF_PERSON, _RUNS_OF_CI = 2.0, 8.0
"""Mean number of runs, one shortly after the other."""

_FEATURE, _ERROR = 0.15, 0.5
"""Share of runs that report a feature, and share of failed runs that report an error."""

_UUID_MASK = ~(0xF << 76 | 0xC << 60)
_UUID_VERSION_4 = 0x4 << 76 | 0x8 << 60


@dataclass(frozen=True)
class Parameters:
    """The size of a population. All user ids count, also those of CI machines.

    :ivar events: at least as many as ``users``.
    """

    events: int = 50_000
    users: int = 2_000
    days: int = 90
    versions: int = 12
    commands: int = 20


class Regression(NamedTuple):
    """The release that made something worse. The next release corrects it.

    :ivar failing: the command that fails more often with this version.
    :ivar slower: the command that takes longer with this version.
    """

    version: str
    failing: str
    slower: str


class Origin(Struct, frozen=True):
    """The user, the system and the version of a run."""

    user_id: str
    version: str
    os: str
    arch: str
    shell: str | None
    ci: bool


class SampleEvent(Struct, frozen=True, gc=False):
    """An event, and when a server receives it.

    :ivar event_id: a UUID (version 4) as an integer.
    :ivar timestamp: when it happened, in microseconds since 1970. The same for ``received_at``.
    :ivar session_id: of the run.
    :ivar data: JSON.
    """

    event_id: int
    timestamp: int
    received_at: int
    origin: Origin
    session_id: str
    type: str
    category: str | None
    data: str

    @property
    def happened(self) -> datetime:
        """``timestamp`` in UTC."""
        return _EPOCH + timedelta(microseconds=self.timestamp)

    @property
    def received(self) -> datetime:
        """``received_at`` in UTC."""
        return _EPOCH + timedelta(microseconds=self.received_at)


class _User(Struct, gc=False):
    """A person or a CI machine.

    :ivar leaves: when the user stops using the program.
    :ivar weight: how often the user uses it, compared with others.
    :ivar first_version: index of the version that the user installed first.
    :ivar upgrade_delay: time from a release to the upgrade; ``None`` if the user never upgrades.
    :ivar sync_period: time between two transmissions of an offline computer; 0 if it is online.
    """

    user_id: str
    system: tuple[str, str, str | None]
    ci: bool
    leaves: float
    weight: float
    first_version: int
    upgrade_delay: float | None
    toggles: bool
    sync_period: int


def seeded(parameters: Parameters, seed: int) -> Random:
    """Return the source of randomness for a population. Populations of different parameters have no ids in common."""
    return Random(f"{parameters} {seed}")  # noqa: S311 -- not for secrets


class Population:
    """Users and their events over some days.

    :param until: all events are received before this time.
    :param rng: see :func:`seeded`. Ids do not depend on ``until``.
    :ivar parameters: see above. The same for ``until``.
    :ivar start: the time of the first release; events happen later.
    :ivar versions: from the first to the last.
    :ivar retired: the command that nobody uses in the second half of the time; ``None`` if there are few commands.
    """

    def __init__(self, parameters: Parameters, until: datetime, rng: Random) -> None:
        self.parameters = parameters
        self._event_ids, self._other_ids = (Random(rng.getrandbits(64)) for _ in range(2))  # noqa: S311
        self._rng = rng
        self.start, self.until = start_of(until, parameters.days), until
        self._start, self._end = microseconds(self.start), microseconds(until)
        self.versions = version_numbers(parameters.versions)
        self._releases = self._release_times()
        self._worse = parameters.versions * 2 // 3 if parameters.versions > 1 else None
        self._commands = self._make_commands()
        self.retired = self._commands[-1].name if len(self._commands) > 4 else None
        self._early_commands, self._late_commands = self._command_tables()
        self._systems, self._ci_systems = sampling_table(SYSTEMS), sampling_table(CI_SYSTEMS)
        self._retirement = (self._start + self._end) // 2
        self._created = 0
        self._by_hour: defaultdict[int, list[SampleEvent]] = defaultdict(list)

    @property
    def regression(self) -> Regression | None:
        """The release that made something worse; ``None`` if there is only one release."""
        if self._worse is None:
            return None
        failing, slower = self._commands[0].name, self._commands[min(1, len(self._commands) - 1)].name
        return Regression(self.versions[self._worse], failing, slower)

    @property
    def releases(self) -> list[tuple[str, datetime]]:
        """The versions, each with the time of its release."""
        times = (_EPOCH + timedelta(microseconds=time) for time in self._releases)
        return list(zip(self.versions, times, strict=True))

    def events(self) -> Iterator[SampleEvent]:
        """Yield all events in the order in which they are received. Can be called once."""
        parameters = self.parameters
        hours = schedule(self._start, self._end, parameters.users, parameters.events, self._rng)
        active: list[_User] = []
        newcomers: list[_User] = []
        weights: list[float] = []
        carried = 0
        for hour, slot in enumerate(hours):
            if hour % 24 == 0:
                known = active + newcomers
                active = [user for user in known if user.leaves > slot.start] or known[-1:]
                newcomers.clear()
                weights = list(accumulate(user.weight for user in active))
            carried = self._simulate(slot, slot.events + carried, active, weights, newcomers)
            yield from sorted(self._by_hour.pop(hour, ()), key=attrgetter("received_at"))

    def _simulate(
        self, slot: Slot, events: int, active: Sequence[_User], weights: Sequence[float], newcomers: list[_User]
    ) -> int:
        """Simulate an hour.

        :param events: the number of events that happen.
        :param active: those who may use the program.
        :param weights: the sums of their weights.
        :param newcomers: those who joined on this day. People who join are added.
        :return: the number of events that did not happen, because there are no people yet.
        """
        for left in reversed(range(slot.joining)):
            user = self._join(slot)
            events -= self._use(user, slot, events - left)
            if not user.ci:
                newcomers.append(user)
        random = self._rng.random
        while events and (active or newcomers):
            user = active[bisect_right(weights, random() * weights[-1])] if active else self._rng.choice(newcomers)
            events -= self._use(user, slot, events)
        return events

    def _join(self, slot: Slot) -> _User:
        """Return a new user."""
        rng, number = self._rng, self._created
        self._created += 1
        user_id = f"client_{self._other_ids.getrandbits(128):032x}"
        newest = bisect_right(self._releases, slot.start) - 1
        if number % _CI_EVERY == _CI_EVERY - 1:
            # Most jobs install the newest version, and some a certain one.
            version = newest if rng.random() < 0.7 else max(0, newest - rng.randrange(4))
            return _User(user_id, rng.choice(self._ci_systems), True, slot.end, 0.0, version, None, False, 0)
        version = newest if rng.random() >= _OLDER_AT_FIRST else max(0, newest - 1 - rng.randrange(3))
        stays = rng.random() < _STAYS
        return _User(
            user_id,
            rng.choice(self._systems),
            ci=False,
            leaves=slot.start + self._lifetime(),
            weight=math.exp(rng.gauss(0, 0.8)),
            first_version=version,
            upgrade_delay=None if stays else rng.expovariate(1 / ((2 if rng.random() < 0.5 else 12) * DAY)),
            toggles=rng.random() < _TOGGLES,
            sync_period=int(rng.uniform(3, 28) * DAY) if rng.random() < _OFFLINE else 0,
        )

    def _lifetime(self) -> float:
        """Return for how long a new person uses the program."""
        shares, means = zip(*SURVIVAL, strict=True)
        (mean_days,) = self._rng.choices(means, shares)
        return self._rng.expovariate(1 / mean_days) * DAY if mean_days else 0.0

    def _use(self, user: _User, slot: Slot, limit: int) -> int:
        """Let a user run the program once or several times.

        :param limit: the maximum number of events.
        :return: the number of events.
        """
        rng = self._rng
        time = int(slot.start + rng.random() * (slot.end - slot.start))
        version = self._version(user, time)
        origin = Origin(user.user_id, self.versions[version], *user.system, user.ci)
        runs = 1 + int(rng.expovariate(1 / ((_RUNS_OF_CI if user.ci else _RUNS_OF_PERSON) - 0.5)))
        total = 0
        while runs and total < limit:
            total += self._run(origin, version, time, user.sync_period, limit - total)
            time = min(time + int(rng.expovariate(1 / 60) * SECOND) + SECOND, self._end - SECOND)
            runs -= 1
        return total

    def _version(self, user: _User, time: int) -> int:
        """Return the index of the version that a user has at a time."""
        if user.upgrade_delay is None:
            return user.first_version
        version = max(user.first_version, bisect_right(self._releases, time - user.upgrade_delay) - 1)
        return version - 1 if user.toggles and version and self._rng.random() < 0.5 else version

    def _run(self, origin: Origin, version: int, time: int, sync_period: int, limit: int) -> int:
        """Create the events of a run of the program, at most ``limit``, and return their number."""
        rng = self._rng
        commands = self._early_commands if time < self._retirement else self._late_commands
        command = commands[int(rng.random() * len(commands))]
        fails = rng.random() < command.failure_rates[version]
        received = self._received(time, sync_period)
        session = f"{self._other_ids.getrandbits(128):032x}"
        events = [(COMMAND, command.data(version, fails, rng))]
        if limit > 1 and fails and rng.random() < _ERROR:
            events.append((ERROR, rng.choice(ERRORS)))
        elif limit > 1 and rng.random() < _FEATURE:
            events.append((FEATURE, rng.choice(FEATURES)))
        for (kind, category), data in events:
            self._add(SampleEvent(self._new_id(), time, received, origin, session, kind, category, data))
        return len(events)

    def _received(self, time: int, sync_period: int) -> int:
        """Return when the server receives an event. A computer that does not connect before the end is online."""
        if sync_period and (sync := (time // sync_period + 1) * sync_period + time % SECOND) < self._end:
            return sync
        return min(time + int((1 + self._rng.expovariate(1 / 20)) * SECOND), self._end - 1)

    def _add(self, event: SampleEvent) -> None:
        self._by_hour[(event.received_at - self._start) // HOUR].append(event)

    def _new_id(self) -> int:
        return self._event_ids.getrandbits(128) & _UUID_MASK | _UUID_VERSION_4

    def _release_times(self) -> list[int]:
        """Return when the versions are released, at regular intervals except for a random difference."""
        interval = (self._end - self._start) / self.parameters.versions
        later = (int((n + self._rng.uniform(-0.2, 0.2)) * interval) for n in range(1, self.parameters.versions))
        return [self._start, *(self._start + time for time in later)]

    def _make_commands(self) -> list[Command]:
        """Return the commands from the most to the least frequent, one worse and one slower in one version."""
        rng, versions = self._rng, self.parameters.versions
        commands = []
        for number, name in enumerate(command_names(self.parameters.commands)):
            rate, log_ms = min(0.2, rng.lognormvariate(math.log(0.02), 0.8)), math.log(rng.uniform(20, 3000))
            if name == WITHOUT_OUTCOME:
                rate = 0.0
            rates, means = [0.02 if number == 0 else rate] * versions, [log_ms] * versions
            if number == 0 and self._worse is not None:
                rates[self._worse] = 0.09
            if number == min(1, self.parameters.commands - 1) and self._worse is not None:
                means[self._worse] += math.log(2.5)
            commands.append(make_command(name, rates, means))
        return commands

    def _command_tables(self) -> tuple[list[Command], list[Command]]:
        """Return tables to choose a command from, for the first half of the time and for the second."""
        weighted = [(1 / (rank + 1), command) for rank, command in enumerate(self._commands)]
        return sampling_table(weighted), sampling_table(weighted[:-1] if self.retired else weighted)


def version_numbers(number: int) -> list[str]:
    """Return version numbers in ascending order: usually two patch releases after each minor release."""
    numbers = []
    major, minor, patch = 1, 0, 0
    for _ in range(number):
        numbers.append(f"{major}.{minor}.{patch}")
        if patch < minor % 3:
            patch += 1
        elif minor == 11:
            major, minor, patch = major + 1, 0, 0
        else:
            minor, patch = minor + 1, 0
    return numbers
