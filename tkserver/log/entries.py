"""What an event of :mod:`twisted.logger` says, whoever it is from: us, Twisted, the legacy ``log.msg``, ``print``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from msgspec import Struct
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure
from twisted.python.log import textFromEventDict

from tkserver.exchange import Exchange
from tkserver.log import LEVELS, access
from tkserver.log.tracebacks import summary_of, traceback_of

_OF_DEFERREDS = "twisted.internet.defer"
_UNHANDLED = "an error in a Deferred that nobody has handled"
_ERROR = "an error that nobody has handled"

_NOT_FIELDS = frozenset(
    (
        *("time", "level", "event", "message", "logger", "exception", "traceback"),  # what an entry has besides
        *("log_level", "log_namespace", "log_time", "log_format", "log_text", "log_failure", "log_logger"),
        *("log_source", "log_legacy", "system", "format", "isError", "failure", "why"),
    )
)

_ACCESS = {level: f"{access.NAMESPACE}#{level}" for level in LEVELS}

_PLAIN = frozenset((str, int, float, bool, UUID))
"""What JSON takes as it is. All else becomes text, so that an entry is flat."""


class Entry(Struct, gc=False):
    """One entry of the log.

    :ivar time: seconds since 1970.
    :ivar level: one of :data:`tkserver.log.LEVELS`.
    :ivar event: its name, which programs may go by.
    :ivar message: for people; may have several lines.
    :ivar logger: who says it, a dotted name.
    :ivar system: the same as text lines show it, between brackets.
    :ivar fields: what else there is to know, of this server's own entries: text, numbers and ids.
    :ivar failure: what went wrong, where the entry tells of a failure.
    """

    time: float
    level: str
    event: str
    message: str
    logger: str
    system: str
    fields: Mapping[str, Any]
    failure: Failure | None = None

    @classmethod
    def of_event(cls, event: LogEvent, level: str) -> Entry:
        logger: str = event.get("log_namespace") or "-"
        failure: Failure | None = event.get("log_failure") or event.get("failure")
        return cls(
            event.get("log_time") or event.get("time") or 0.0,
            level,
            event.get("event") or _name(event, logger, failure),
            _message(event, logger, failure),
            logger,
            f"{event.get('log_system') or logger}#{level}",
            _fields(event, logger),
            failure,
        )

    @classmethod
    def of_exchange(cls, exchange: Exchange, level: str) -> Entry:
        time = exchange.began + exchange.seconds
        return cls(time, level, access.EVENT, str(exchange), access.NAMESPACE, _ACCESS[level], exchange.fields())

    @property
    def traceback(self) -> str | None:
        return None if self.failure is None else traceback_of(self.failure)


def _fields(event: LogEvent, logger: str) -> Mapping[str, Any]:
    if not logger.startswith("tkserver."):  # others may have anything in their events
        return {"request_id": event["request_id"]} if event.get("request_id") is not None else {}
    return {
        key: value if type(value) in _PLAIN else str(sayable(value))
        for key, value in event.items()
        if key not in _NOT_FIELDS and value is not None
    }


def level_of(event: LogEvent) -> str:
    """How severe it is."""
    level = event.get("log_level")
    if level is not None:
        return str(level.name)
    return "critical" if event.get("isError") else "info"


def is_headline(event: LogEvent) -> bool:
    """Whether it only says that the next one tells of an error: Twisted needs two for one unhandled error."""
    return (
        event.get("log_namespace") == _OF_DEFERREDS
        and "log_failure" not in event
        and str(event.get("log_format")).startswith("Unhandled error in Deferred")
    )


def is_unhandled(event: LogEvent) -> bool:
    """Whether it tells of an error in a Deferred that was found when that was thrown away."""
    return event.get("log_namespace") == _OF_DEFERREDS and "log_failure" in event


_NAMES = {"stdout": "output", "stderr": "output", _OF_DEFERREDS: "unhandled_error"}


def _name(event: LogEvent, logger: str, failure: Failure | None) -> str:
    """A name for what has none."""
    if "warning" in event and "category" in event:
        return "warning"
    return _NAMES.get(logger) or ("message" if failure is None else "failure")


def _message(event: LogEvent, logger: str, failure: Failure | None) -> str:
    """The text, with nothing of an exception in it that may not be logged."""
    values = {key: sayable(value) for key, value in event.items()}
    if logger == "log_legacy":
        return str(textFromEventDict(values) or "") if failure is None else str(values.get("why") or _ERROR)
    if logger == _OF_DEFERREDS:
        return _UNHANDLED
    return formatEvent(values) or ("" if failure is None else _ERROR)


def sayable(value: object) -> object:
    """The value, or what may be said of it where it is an exception."""
    return summary_of(value) if isinstance(value, BaseException) else value
