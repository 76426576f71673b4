"""Loggers of this server, with a level of their own, and names for what they tell of.

All of it is :mod:`twisted.logger`. Each call names its event, such as ``event="database_lost"``: texts may change, and
names stay. What an observer makes of it is in the modules beside this one; where the lines go is twistd's to say
(``--logfile``, ``--syslog``, ``--logger``).

What is never logged: secrets, tokens, signatures, nonces, user ids, addresses, bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger, globalLogPublisher

from tkserver.log.context import outside_requests, request_id

__all__ = ["LEVELS", "Throttle", "logger", "outside_requests", "passes", "request_id", "set_level"]

LEVELS = ("debug", "info", "warn", "error", "critical")

_SEVERITIES = {name: severity for severity, name in enumerate(LEVELS)}
_least = _SEVERITIES["info"]


def set_level(name: str) -> None:
    """Drop what is less severe than ``name``, one of :data:`LEVELS`."""
    global _least
    _least = _SEVERITIES[name]


def passes(level: str) -> bool:
    """Whether what is as severe as this is logged."""
    return _SEVERITIES[level] >= _least


class _Logger(Logger):
    """A logger that keeps to the level, and says which request it speaks of."""

    def emit(self, level: Any, format: str | None = None, **values: object) -> None:
        if passes(level.name):
            of_request = request_id.get()
            if of_request is not None:
                values.setdefault("request_id", of_request)
            super().emit(level, format, **values)


def logger(namespace: str) -> Logger:
    """A logger that keeps to the level of :func:`set_level`, and adds the id of the request that is being handled."""
    return _Logger(namespace=namespace, observer=globalLogPublisher)


class Throttle:
    """Says of a complaint that comes again and again when it is worth another line.

    :param clock: gives seconds, on any scale.
    :param interval: seconds between two lines.
    """

    def __init__(self, clock: Callable[[], float], interval: float = 10.0) -> None:
        self._clock = clock
        self._interval = interval
        self._quiet_until: dict[str, float] = {}

    def lets_pass(self, complaint: str) -> bool:
        """Whether this complaint was not let pass within the interval."""
        now = self._clock()
        if now < self._quiet_until.get(complaint, now):
            return False
        self._quiet_until[complaint] = now + self._interval
        return True
