"""Which request the code that is running works for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from traceback import walk_tb
from typing import ParamSpec, TypeVar

from twisted.python.failure import Failure

from tkserver.exchange import Exchange

P = ParamSpec("P")
T = TypeVar("T")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being handled; ``None`` outside of any, and in what is done for several at once.

A coroutine keeps, for as long as it runs, what this was when it was started.
"""


def outside_requests(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call what is not done for one request alone, so that it does not pass for a part of the one that began it."""
    return Context().run(work, *arguments, **named)


def request_of(failure: Failure) -> str | None:
    """The id of the request that failed so, as far as the frames tell that it went through, the outermost first.

    Wanted where a failure is found too late, when a Deferred is thrown away that nobody has looked at: what is running
    then may be of another request. Twisted runs each coroutine in a context that is a local variable of the frame
    below it; a callback in plain code often holds the request itself.
    """
    ids = (_id_in(value) for value in _locals_of(failure))
    return next((found for found in ids if found is not None), None)


def _locals_of(failure: Failure) -> Iterator[object]:
    for frame, _ in walk_tb(failure.tb):
        yield from frame.f_locals.values()


def _id_in(value: object) -> str | None:
    if isinstance(value, Context):
        return value.get(request_id)
    if type(value).__module__.startswith("tkserver."):
        value = getattr(value, "exchange", value)
    return value.request_id if isinstance(value, Exchange) else None
