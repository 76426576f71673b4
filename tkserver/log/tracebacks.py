"""Formatting of exceptions for the log.

The type of an exception and its traceback describe the code, and are always logged. Its text is logged only if it is
known to contain no data, because it may quote data from clients: PostgreSQL quotes rows, and decoders quote bodies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from traceback import extract_tb, format_list
from types import TracebackType

from twisted.python.failure import Failure

MAX_CAUSES = 5

OMITTED = "text omitted: it may contain data from clients"

_TEXT_IS_CODE = (
    *(NameError, AttributeError, ImportError, ZeroDivisionError, RecursionError),
    *(RuntimeWarning, DeprecationWarning, FutureWarning),
)
"""Exceptions whose texts contain only names from the code."""

_TEXT_IS_ABOUT_CONNECTIONS = ("twisted.internet.error", "twisted.internet.defer")
"""Modules whose exceptions describe connections and Deferreds, never the data."""


def type_name(error: object) -> str:
    """Return the type of an exception, such as ``psycopg2.errors.DiskFull``."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def safe_text(error: object) -> str | None:
    """Return the text of an exception if it may be logged, otherwise ``None``.

    A class declares with an attribute ``holds_no_values`` that its text contains no data.
    """
    if getattr(error, "holds_no_values", False) or isinstance(error, _TEXT_IS_CODE):
        return str(error)
    if type(error).__module__ in _TEXT_IS_ABOUT_CONNECTIONS:
        return str(error)
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return os.strerror(error.errno)  # without the names of files
    return None


def redacted(value: object) -> object:
    """Return a value of a log event, or the type and the loggable text of an exception or ``Failure``."""
    if not isinstance(value, BaseException):
        return value
    error = value.value if isinstance(value, Failure) else value
    text = safe_text(error)
    return f"{type_name(error)} ({OMITTED})" if text is None else text or type_name(error)


def format_failure(failure: Failure) -> str:
    """Format a failure and its causes like Python's own tracebacks, the last error first."""
    lines = _format("Traceback (most recent call last):", failure.value, failure.getTracebackObject())
    for cause in islice(_causes(failure.value), MAX_CAUSES):
        lines += _format("Caused by:", cause, cause.__traceback__)
    return "\n".join(lines)


def _format(heading: str, error: object, frames: TracebackType | None) -> list[str]:
    text = safe_text(error)
    suffix = f" ({OMITTED})" if text is None else f": {text}" if text else ""
    return [heading, *(frame.rstrip("\n") for frame in format_list(extract_tb(frames))), type_name(error) + suffix]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = {id(error)}
    while error is not None:
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if error is None or id(error) in seen:
            return
        seen.add(id(error))
        yield error
