"""What may be said of an exception.

Its type, and where it came from, always: these are parts of the code. Its text only where it is known to hold no
values, for it may be made of what a client has sent: PostgreSQL quotes rows, decoders quote bodies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from traceback import extract_tb, format_list
from types import TracebackType

from twisted.python.failure import Failure

MAX_CAUSES = 5

WITHHELD = "its text is not logged: it may hold what a client has sent"

_OF_THE_CODE = (
    *(NameError, AttributeError, ImportError, ZeroDivisionError, RecursionError),
    *(RuntimeWarning, DeprecationWarning, FutureWarning),
)
"""Exceptions whose texts name what is written in the code."""

_OF_THE_CONNECTION = ("twisted.internet.error", "twisted.internet.defer")
"""Modules whose exceptions tell of connections and Deferreds, never of what went over or through them."""


def name_of(error: object) -> str:
    """The type of an exception, such as ``psycopg2.errors.DiskFull``."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def text_of(error: object) -> str | None:
    """What an exception says, where that may be logged.

    Classes say so of themselves by an attribute ``holds_no_values``.
    """
    if getattr(error, "holds_no_values", False) or isinstance(error, _OF_THE_CODE):
        return str(error)
    if type(error).__module__ in _OF_THE_CONNECTION:
        return str(error)
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return os.strerror(error.errno)  # without the names of files
    return None


def summary_of(error: object) -> str:
    """An exception or a ``Failure`` as a part of a sentence."""
    value = error.value if isinstance(error, Failure) else error
    text = text_of(value)
    return f"{name_of(value)} ({WITHHELD})" if text is None else text or name_of(value)


def traceback_of(failure: Failure) -> str:
    """A failure in the form that Python prints, and then what led to it."""
    lines = _lines("Traceback (most recent call last):", failure.value, failure.getTracebackObject())
    for cause in islice(_causes(failure.value), MAX_CAUSES):
        lines += _lines("Because of:", cause, cause.__traceback__)
    return "\n".join(lines)


def _lines(headline: str, error: object, frames: TracebackType | None) -> list[str]:
    text = text_of(error)
    said = f" ({WITHHELD})" if text is None else f": {text}" if text else ""
    return [headline, *(frame.rstrip("\n") for frame in format_list(extract_tb(frames))), name_of(error) + said]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = {id(error)}
    while error is not None:
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if error is None or id(error) in seen:
            return
        seen.add(id(error))
        yield error
