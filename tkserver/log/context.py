"""The id of the request for which the current code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import Context, ContextVar
from traceback import walk_tb

from twisted.python.failure import Failure

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being handled; ``None`` outside of requests.

A coroutine keeps the value that was set when it was started. Work for several requests is started in an empty
``Context``.
"""


def request_id_of(failure: Failure) -> str | None:
    """Return the id of the request that caused a failure, if it can be found in the frames of the traceback.

    An unhandled failure is logged when its Deferred is garbage-collected, possibly while another request is being
    handled. Twisted runs each coroutine in a context that is a local variable of the frame below the coroutine. A plain
    callback often has the request as a local variable. The outermost frame has priority.
    """
    ids = (_id_in(value) for value in _local_variables(failure))
    return next((found for found in ids if found is not None), None)


def _local_variables(failure: Failure) -> Iterator[object]:
    for frame, _ in walk_tb(failure.tb):
        yield from frame.f_locals.values()


def _id_in(value: object) -> str | None:
    """Return the id in a context, in a request record, or in one of our objects that has a request record."""
    if isinstance(value, Context):
        return value.get(request_id)
    if type(value).__module__.startswith("tkserver."):
        found = getattr(getattr(value, "record", value), "request_id", None)
        return found if isinstance(found, str) else None
    return None
