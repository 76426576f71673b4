"""What the simulated program offers: its commands and features, its errors, and the systems on which it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")

# fmt: off
NAMES = (
    "build", "test", "run", "check", "deploy", "init", "help", "add", "fmt", "lint", "status", "remote add", "clean",
    "config set", "login", "push", "pull", "config get", "remote list", "watch", "doc", "bench", "publish", "search",
    "update", "remove", "logs", "env list", "env use", "cache clear", "shell", "serve", "plan", "apply", "destroy",
    "import", "export", "validate", "graph", "diff", "rollback", "secrets set", "secrets list", "user add", "user list",
    "tag", "release", "sync", "restore", "backup", "attach", "exec", "stats", "trace", "profile", "upgrade", "logout",
    "whoami", "completions", "doctor",
)
"""The commands from the most to the least frequent, some with a subcommand."""
# fmt: on

WITHOUT_OUTCOME = "help"
"""The command that reports neither success nor duration."""

FLAG_SETS = (
    "",
    "",
    "",
    '"--verbose"',
    '"--release"',
    '"--quiet"',
    '"--release","--jobs=4"',
    '"--jobs=8"',
    '"-v","--dry-run"',
    '"--output=json"',
)
"""Flags of a run, as the elements of a JSON array. Some contain a value."""

FEATURES = (
    '{"feature":"cache","method":"hit","success":true}',
    '{"feature":"cache","method":"hit","success":true}',
    '{"feature":"cache","method":"miss","success":true}',
    '{"feature":"incremental","success":true}',
    '{"feature":"color"}',
    '{"feature":"plugins","method":"load","success":true,"plugins":3}',
    '{"feature":"plugins","method":"load","success":false,"plugins":1}',
)
"""Data of events about features."""

ERRORS = (
    '{"status":"failed","error_type":"NetworkError","recoverable":true}',
    '{"status":"failed","error_type":"NetworkError","recoverable":true}',
    '{"status":"failed","error_type":"ConfigError","recoverable":false}',
    '{"status":"failed","error_type":"PermissionDenied","recoverable":false}',
    '{"status":"failed","error_type":"Timeout","recoverable":true}',
)
"""Data of events about errors."""

EXIT_CODES = (1, 1, 1, 1, 2, 2, 101, 130)
"""Exit codes of runs that fail."""

SYSTEMS = (
    (30, ("linux", "x86_64", "bash")),
    (14, ("linux", "x86_64", "zsh")),
    (5, ("linux", "x86_64", "fish")),
    (4, ("linux", "aarch64", "bash")),
    (24, ("macos", "aarch64", "zsh")),
    (6, ("macos", "x86_64", "zsh")),
    (2, ("macos", "aarch64", "fish")),
    (11, ("windows", "x86_64", "powershell")),
    (4, ("windows", "x86_64", None)),
)
"""Operating system, architecture and shell of people, with weights."""

CI_SYSTEMS = (
    (16, ("linux", "x86_64", "bash")),
    (2, ("linux", "aarch64", "bash")),
    (1, ("macos", "aarch64", "bash")),
    (1, ("windows", "x86_64", "powershell")),
)
"""The same for CI machines."""

_SIGMA = 0.7
"""Standard deviation of the logarithm of a duration."""

_TABLE_SIZE = 4096


@dataclass(frozen=True)
class Command:
    """A command of the program.

    :ivar name: with the subcommand, separated by a space.
    :ivar beginnings: the beginnings of ``event.data``, one for each set of flags.
    :ivar failure_rates: the probability that a run fails, for each version.
    :ivar log_ms: the mean of the logarithm of the duration in milliseconds, for each version.
    """

    name: str
    beginnings: Sequence[str]
    failure_rates: Sequence[float]
    log_ms: Sequence[float]

    def data(self, version: int, fails: bool, rng: Random) -> str:
        """Return ``event.data`` of a run, as JSON."""
        beginning = self.beginnings[int(rng.random() * len(self.beginnings))]
        if self.name == WITHOUT_OUTCOME:
            return f"{beginning}}}"
        milliseconds = int(math.exp(rng.gauss(self.log_ms[version], _SIGMA)))
        if fails:
            exit_code = EXIT_CODES[int(rng.random() * len(EXIT_CODES))]
            return f'{beginning},"success":false,"duration_ms":{milliseconds},"exit_code":{exit_code}}}'
        return f'{beginning},"success":true,"duration_ms":{milliseconds},"exit_code":0}}'


def command_names(number: int) -> list[str]:
    """Return the names of the most frequent commands."""
    further = (f"plugin run-{n}" for n in range(1, number - len(NAMES) + 1))
    return [*NAMES[:number], *further]


def make_command(name: str, failure_rates: Sequence[float], log_ms: Sequence[float]) -> Command:
    """Return a command that is called with different flags."""
    command, _, subcommand = name.partition(" ")
    opening = f'{{"command":"{command}"' + (f',"subcommand":"{subcommand}"' if subcommand else "")
    beginnings = [opening + (f',"flags":[{flags}]' if flags else "") for flags in FLAG_SETS]
    return Command(name, beginnings, failure_rates, log_ms)


def sampling_table(weighted: Sequence[tuple[float, T]]) -> list[T]:
    """Return a list in which each value occurs about as often as its weight says, but at least once.

    Choosing an element of the list with equal probabilities is faster than choosing a value by its weight.
    """
    total = sum(weight for weight, _ in weighted)
    return [value for weight, value in weighted for _ in range(max(1, round(_TABLE_SIZE * weight / total)))]
