"""Log records, and their formats: text for people, JSON for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure
from twisted.python.log import textFromEventDict

from tkserver.log import access
from tkserver.log.access import RequestRecord
from tkserver.log.tracebacks import format_failure, redacted, type_name

_DEFERREDS = "twisted.internet.defer"
_UNHANDLED_IN_DEFERRED = "Unhandled error in Deferred"
_UNHANDLED = "Unhandled error"

_NOT_FIELDS = frozenset(
    (
        *("time", "level", "event", "message", "logger", "exception", "traceback"),  # names of other JSON keys
        *("log_level", "log_namespace", "log_time", "log_format", "log_text", "log_failure", "log_logger"),
        *("log_source", "log_legacy", "system", "format", "isError", "failure", "why"),
    )
)

_PACKAGE = "tkserver."

_ACCESS_SYSTEM = access.NAMESPACE.removeprefix(_PACKAGE)

_DIM, _NORMAL = "\x1b[2m", "\x1b[0m"
_COLOURS = {"warn": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[1;31m"}
"""Sequences that select the colour of a level on terminals (ECMA-48, "select graphic rendition")."""

_JSON_TYPES = frozenset((str, int, float, bool, UUID))
"""Types of values that JSON lines contain unchanged. All others are converted to text, so that the object is flat."""

_IDS = ("org_id", "app_id", "request_id")
"""Fields that appear at the end of a text line."""

_encode = msgspec.json.Encoder().encode


class LogRecord(Struct, gc=False):
    """A log event from any source: this server, Twisted, the legacy ``log.msg``, or ``print``.

    :ivar time: Unix time.
    :ivar level: one of :data:`tkserver.log.LEVELS`.
    :ivar event: the name of the event, for programs.
    :ivar message: text for people; may contain line breaks.
    :ivar logger: a dotted name.
    :ivar system: a short name of the logger, as shown in brackets in text lines.
    :ivar fields: other values of the event; only for events of this server.
    :ivar failure: the error, if the event reports one.
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
    def from_event(cls, event: LogEvent, level: str) -> LogRecord:
        logger: str = event.get("log_namespace") or "-"
        failure: Failure | None = event.get("log_failure") or event.get("failure")
        return cls(
            event.get("log_time") or event.get("time") or 0.0,
            level,
            event.get("event") or _default_name(event, logger, failure),
            _message(event, logger, failure),
            logger,
            event.get("log_system") or logger.removeprefix(_PACKAGE),
            _fields(event, logger),
            failure,
        )

    @classmethod
    def from_request(cls, record: RequestRecord, level: str) -> LogRecord:
        ended = record.began + record.seconds
        return cls(ended, level, access.EVENT, str(record), access.NAMESPACE, _ACCESS_SYSTEM, record.fields())


Formatter = Callable[[LogRecord], bytes]
"""Returns the line of a record, without the line break at its end."""


def format_text(record: LogRecord) -> bytes:
    """Format a record for people: local time, level, message, ids, logger. Further lines begin with a tab."""
    return _encoded(f"{_local_time(int(record.time))} {record.level:5} {_text(record)}")


def format_text_without_time(record: LogRecord) -> bytes:
    """Format a record for syslog, which adds the time itself."""
    return _encoded(f"{record.level} {_text(record)}")


def format_coloured_text(record: LogRecord) -> bytes:
    """Format a record for a terminal, as :func:`format_text` does, with the most important parts highlighted."""
    colour = _COLOURS.get(record.level, "")
    level = f"{colour}{record.level:5}{_NORMAL}" if colour else f"{record.level:5}"
    return _encoded(f"{_DIM}{_local_time(int(record.time))}{_NORMAL} {level} {_text(record, _DIM, _NORMAL)}")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def format_json(record: LogRecord) -> bytes:
    """Format a record as a flat JSON object."""
    content = {
        "time": f"{_utc_time(int(record.time))}.{int(record.time % 1 * 1e6):06}Z",
        "level": record.level,
        "event": record.event,
        "message": record.message,
        "logger": record.logger,
        **record.fields,
    }
    if record.failure is not None:
        content["exception"] = type_name(record.failure.value)
        content["traceback"] = format_failure(record.failure)
    try:
        return _encode(content)
    except UnicodeEncodeError:  # lone surrogates
        return _encode({key: str(value).encode("utf-8", "backslashreplace").decode() for key, value in content.items()})


def level_of(event: LogEvent) -> str:
    """Return the level of an event; legacy events have none."""
    level = event.get("log_level")
    if level is not None:
        return str(level.name)
    return "critical" if event.get("isError") else "info"


def is_unhandled_error(event: LogEvent) -> bool:
    """Return whether an event is an unhandled error, found when its Deferred was garbage-collected."""
    return event.get("log_namespace") == _DEFERREDS and "log_failure" in event


def is_announcement(event: LogEvent) -> bool:
    """Return whether an event only announces the next one: Twisted logs two events for each unhandled error."""
    return (
        event.get("log_namespace") == _DEFERREDS
        and "log_failure" not in event
        and str(event.get("log_format")).startswith("Unhandled error in Deferred")
    )


def _text(record: LogRecord, before_details: str = "", after_details: str = "") -> str:
    fields = record.fields
    ids = "".join([f" {name}={fields[name]}" for name in _IDS if name in fields])
    text = f"{record.message}{before_details}{ids} [{record.system}]{after_details}"
    if record.failure is not None:
        text = f"{text}\n{format_failure(record.failure)}"
    return text.replace("\n", "\n\t") if "\n" in text else text


def _fields(event: LogEvent, logger: str) -> Mapping[str, Any]:
    if not logger.startswith(_PACKAGE):  # events of other programs may contain anything
        return {"request_id": event["request_id"]} if event.get("request_id") is not None else {}
    return {
        key: value if type(value) in _JSON_TYPES else str(redacted(value))
        for key, value in event.items()
        if key not in _NOT_FIELDS and value is not None
    }


_DEFAULT_NAMES = {"stdout": "output", "stderr": "output", _DEFERREDS: "unhandled_error"}


def _default_name(event: LogEvent, logger: str, failure: Failure | None) -> str:
    """Return a name for an event that has none."""
    if "warning" in event and "category" in event:
        return "warning"
    return _DEFAULT_NAMES.get(logger) or ("message" if failure is None else "failure")


def _message(event: LogEvent, logger: str, failure: Failure | None) -> str:
    """Return the text of an event, without texts of exceptions that may contain values."""
    values = {key: redacted(value) for key, value in event.items()}
    if logger == "log_legacy":
        return str(textFromEventDict(values) or "") if failure is None else str(values.get("why") or _UNHANDLED)
    if logger == _DEFERREDS:
        return _UNHANDLED_IN_DEFERRED
    return formatEvent(values) or ("" if failure is None else _UNHANDLED)


@lru_cache(2)
def _local_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(second))


@lru_cache(2)
def _utc_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
