"""The reactor, for commands that need it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import click
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import react

T = TypeVar("T")


def run(main: Callable[[Any], Coroutine[Deferred[Any], Any, T]]) -> T:
    """Run the reactor until ``main`` ends, and return its result. A process can do this only once.

    :param main: receives the reactor.
    :raise: what ``main`` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    async def store_result(reactor: Any) -> None:
        try:
            results.append(await main(reactor))
        except BaseException as error:
            errors.append(error)

    with suppress(SystemExit):
        react(lambda reactor: ensureDeferred(store_result(reactor)))
    if errors:
        raise errors[0]
    if not results:  # Ctrl-C
        raise click.Abort
    return results[0]
