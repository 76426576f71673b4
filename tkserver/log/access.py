"""One line for each request that was answered."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import LogEvent, LogLevel

from tkserver.exchange import Exchange
from tkserver.log import passes

NAMESPACE = "tkserver.access"
EVENT = "request"

Write = Callable[[Exchange, str], None]

PROBES = frozenset(("/health", "/health/ready"))
"""Routes that are asked every few seconds, for ever: said at level debug, whether the server is ready or not."""

_PROBED = (200, 503)

_LEVELS = {level.name: level for level in LogLevel.iterconstants()}


class AccessLog:
    """Logs exchanges. What is refused or fails is always logged; of what succeeds perhaps only a sample.

    They are events as all others are, but for whom :meth:`write_to` names: a server that writes its own lines need not
    make an event of each request first, which costs more than the line.

    :param publish: takes the events. Of each request the exchange is one value, to be put into words by who needs them.
    :param sample: the share of the successes that is logged, from 0 to 1.
    :param random_fraction: a number from 0 to 1, anew with each call.
    :param now: gives seconds since 1970.
    """

    def __init__(
        self,
        publish: Callable[[LogEvent], None],
        sample: float,
        random_fraction: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._publish = publish
        self._sample = sample
        self._random_fraction = random_fraction
        self._now = now
        self._write: Write = self._publish_event

    def write_to(self, write: Write) -> None:
        """Have exchanges written by this from now on, which is given the level too, and publish no events of them."""
        self._write = write

    def __call__(self, exchange: Exchange) -> None:
        level = level_of(exchange)
        if passes(level) and (self._sample >= 1 or exchange.status >= 300 or self._is_chosen()):
            self._write(exchange, level)

    def _publish_event(self, exchange: Exchange, level: str) -> None:
        self._publish(
            {
                "log_level": _LEVELS[level],
                "log_namespace": NAMESPACE,
                "log_time": self._now(),
                "log_format": "{exchange}",
                "event": EVENT,
                "request_id": exchange.request_id,
                "exchange": exchange,
            }
        )

    def _is_chosen(self) -> bool:
        return self._random_fraction() < self._sample


def level_of(exchange: Exchange) -> str:
    """How severe what became of a request is: a client's mistake is none of the server's."""
    if exchange.route in PROBES and exchange.status in _PROBED:
        return "debug"
    if exchange.status < 500:
        return "info"
    return "warn" if exchange.status == 503 else "error"
