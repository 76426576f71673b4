"""Loggers of this server, with a level of their own.

All of it is :mod:`twisted.logger`; where the lines go is twistd's to say (``--logfile``, ``--syslog``, ``--logger``).
What is never logged: secrets, tokens, signatures, nonces, user ids, addresses, bodies.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogPublisher,
)

LEVELS = ("debug", "info", "warn", "error", "critical")

_threshold = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
_observer: ILogObserver = FilteringLogObserver(globalLogPublisher, [_threshold])


def logger(namespace: str) -> Logger:
    """A logger that keeps to the level of :func:`set_level`."""
    return Logger(namespace=namespace, observer=_observer)


def set_level(name: str) -> None:
    """Drop what is less severe than ``name``, one of :data:`LEVELS`."""
    _threshold.setLogLevelForNamespace("tkserver", LogLevel.levelWithName(name))


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
