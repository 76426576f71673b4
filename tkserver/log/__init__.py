"""Logging, on top of :mod:`twisted.logger`.

Each call names its event, such as ``event="database_lost"``. Message texts may change, event names do not.
:mod:`tkserver.log.observer` writes the log to the place that the options of ``twistd`` name (``--logfile``,
``--syslog``, ``--logger``).

Secrets, tokens, signatures, nonces, user ids, addresses and bodies are never logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger, globalLogPublisher

from tkserver.log.context import request_id

__all__ = ["LEVELS", "Throttle", "logger", "request_id", "severity"]

LEVELS = ("debug", "info", "warn", "error", "critical")
"""The names of the log levels, least severe first."""

_SEVERITIES = {name: number for number, name in enumerate(LEVELS)}


def severity(level: str) -> int:
    """Return a number for a level; more severe levels have larger numbers."""
    return _SEVERITIES[level]


class _Logger(Logger):
    def emit(self, level: Any, format: str | None = None, **values: object) -> None:
        current = request_id.get()
        if current is not None:
            values.setdefault("request_id", current)
        super().emit(level, format, **values)


def logger(namespace: str) -> Logger:
    """Return a logger whose events contain the id of the current request."""
    return _Logger(namespace=namespace, observer=globalLogPublisher)


class Throttle:
    """Limits how often the same problem is logged.

    :param clock: returns seconds, on any scale.
    :param interval: seconds between two messages about the same problem.
    """

    def __init__(self, clock: Callable[[], float], interval: float = 10.0) -> None:
        self._clock = clock
        self._interval = interval
        self._silent_until: dict[str, float] = {}

    def allows(self, problem: str) -> bool:
        """Return whether a problem was not logged within the interval. If so, the interval starts again."""
        now = self._clock()
        if now < self._silent_until.get(problem, now):
            return False
        self._silent_until[problem] = now + self._interval
        return True
