"""The record of a request, and the access log, which consists of these records."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec import Struct
from twisted.logger import LogEvent, LogLevel

from tkserver.log import severity

NO_ROUTE = "none"
"""The route of requests whose path does not exist, and of input that is not a request."""

OTHER_METHOD = "other"
"""Stands for methods that are not standard ones."""

CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client disconnected before the response, as in nginx. It is never sent."""

NAMESPACE = "tkserver.access"
EVENT = "request"

PROBES = frozenset(("/health", "/health/ready"))
"""Routes that are requested every few seconds. They are logged at level debug if they report that the server is ready,
and also if they report that it is not."""

_PROBE_STATUSES = (200, 503)

_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,64}")

_OPTIONAL = ("code", "cause", "received", "accepted", "duplicates", "rejected", "quarantined", "org_id", "app_id")

_LEVELS = {level.name: level for level in LogLevel.iterconstants()}


class RequestRecord(Struct, eq=False, gc=False):
    """A request and its result, for logs and metrics.

    Created when the request has been received, and complete when the response has been sent. Contains nothing that must
    not be logged. ``request_id``, ``org_id`` and ``app_id`` are chosen by the client and must not become labels of
    metrics; ``method``, ``route``, ``status`` and ``code`` have few values.

    :ivar request_id: 1 to 64 visible ASCII characters.
    :ivar began: when the complete request had been received, by the clock of the reactor.
    :ivar seconds: from then to the response.
    :ivar route: the path with names of its variable parts, such as ``/v1/ingest/{org_id}/{app_id}``.
    :ivar org_id: the UUID in the path, or the one for which the slug in the path stands if the client is authenticated.
        The same applies to ``app_id``.
    :ivar code: of the error, if there is one.
    :ivar cause: of an error of the database, see :attr:`tkserver.storage.errors.StorageError.cause`.
    :ivar received: the number of events, if known.
    :ivar accepted: the number of events that are stored now, including ``duplicates``.
    :ivar rejected: the number of invalid events.
    :ivar quarantined: the number of invalid events that are in quarantine; not known if there are none.
    """

    request_id: str = "-"
    began: float = 0.0
    method: str = OTHER_METHOD
    route: str = NO_ROUTE
    org_id: str | None = None
    app_id: str | None = None
    received: int | None = None
    accepted: int | None = None
    duplicates: int | None = None
    rejected: int | None = None
    quarantined: int | None = None
    status: int = 0
    code: str | None = None
    cause: str | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return a summary such as ``POST /v1/ingest/{org_id}/{app_id} 200 3.1ms received=1 accepted=1``."""
        text = f"{self.method} {self.route} {self.status} {self.seconds * 1000:.1f}ms"
        if self.code is not None:
            text = f"{text} {self.code}"
        if self.cause is not None:
            text = f"{text} ({self.cause})"
        if self.received:
            text = f"{text} received={self.received}"
        if self.accepted:
            text = f"{text} accepted={self.accepted}"
        if self.duplicates:
            text = f"{text} duplicates={self.duplicates}"
        if self.rejected:
            text = f"{text} rejected={self.rejected}"
        if self.quarantined:
            text = f"{text} quarantined={self.quarantined}"
        return text

    def fields(self) -> dict[str, str | int | float]:
        """Return the known values by name."""
        known: dict[str, str | int | float] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(self.seconds, 6),
        }
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is not None:
                known[name] = value
        return known

    @property
    def level(self) -> str:
        """The log level. Errors of clients have level info."""
        if self.route in PROBES and self.status in _PROBE_STATUSES:
            return "debug"
        if self.status < 500:
            return "info"
        return "warn" if self.status == 503 else "error"


RequestObserver = Callable[[RequestRecord], None]
"""Called with the record of each finished request."""

Write = Callable[[RequestRecord, str], None]
"""Writes a record at a log level."""


def known_method(command: bytes) -> str:
    """Return the method if it is a standard one, otherwise :data:`OTHER_METHOD`."""
    return _METHODS.get(command, OTHER_METHOD)


def valid_request_id(values: Sequence[bytes]) -> str | None:
    """Return the request id that a client or proxy sent, or ``None`` if it must not be used in headers and logs.

    :param values: the values of ``X-Request-ID``. The last one is used, because proxies append theirs.
    """
    return values[-1].decode("ascii") if values and _REQUEST_ID.fullmatch(values[-1]) else None


class AccessLog:
    """Logs requests: all errors, and a sample of the successful requests.

    Each record is published as a log event. After :meth:`write_to`, it is passed to a function instead: to create an
    event costs more than to write a line.

    :param publish: takes a log event, whose value ``record`` is the record.
    :param level: records of less severe levels are not logged.
    :param sample: the share of successful requests that is logged, from 0 to 1.
    :param random_fraction: returns a random number from 0 to 1.
    :param now: returns Unix time.
    """

    def __init__(
        self,
        publish: Callable[[LogEvent], None],
        level: str,
        sample: float,
        random_fraction: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._publish = publish
        self._levels = frozenset(name for name in _LEVELS if severity(name) >= severity(level))
        self._sample = sample
        self._random_fraction = random_fraction
        self._now = now
        self._write: Write = self._publish_event

    def write_to(self, write: Write) -> None:
        """Call ``write`` with each record from now on instead of publishing an event."""
        self._write = write

    def __call__(self, record: RequestRecord) -> None:
        level = record.level
        if level in self._levels and (self._sample >= 1 or record.status >= 300 or self._is_sampled()):
            self._write(record, level)

    def _publish_event(self, record: RequestRecord, level: str) -> None:
        self._publish(
            {
                "log_level": _LEVELS[level],
                "log_namespace": NAMESPACE,
                "log_time": self._now(),
                "log_format": "{exchange}",
                "event": EVENT,
                "request_id": record.request_id,
                "exchange": record,  # a documented key: observers of operators (--logger) read it
            }
        )

    def _is_sampled(self) -> bool:
        return self._random_fraction() < self._sample
