"""The reactor, for a command that needs it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import click
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import react

T = TypeVar("T")


def run(main: Callable[[Any], Coroutine[Deferred[Any], Any, T]]) -> T:
    """Run the reactor until ``main``, which is given it, is done. Once in a process.

    :return: what it returned.
    :raise: what it raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    async def noted(reactor: Any) -> None:
        try:
            results.append(await main(reactor))
        except BaseException as error:
            errors.append(error)

    with suppress(SystemExit):
        react(lambda reactor: ensureDeferred(noted(reactor)))
    if errors:
        raise errors[0]
    if not results:  # Ctrl-C
        raise click.Abort
    return results[0]
