"""Functions that wait for a condition. Tests do not wait for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater

TIMEOUT = 30.0
"""Seconds after which a condition counts as never true. Far more than any takes, also on a busy machine."""

INTERVAL = 0.02
"""Seconds between two checks."""


def _no_details() -> str:
    return "the condition did not become true"


def wait_for(condition: Callable[[], Any], explain: Callable[[], str] = _no_details, within: float = TIMEOUT) -> Any:
    """Block until a condition is true, and return its value.

    :param explain: returns the message of the failure.
    :param within: seconds.
    """
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(INTERVAL)
    return result


async def until(
    condition: Callable[[], Any | Awaitable[Any]], explain: Callable[[], str] = _no_details, within: float = TIMEOUT
) -> Any:
    """Wait until a condition is true, while the reactor runs, and return its value.

    :param condition: may be a coroutine function.
    :param explain: returns the message of the failure.
    :param within: seconds.
    """
    deadline = time.monotonic() + within
    while not (result := await _value(condition)):
        assert time.monotonic() < deadline, explain()
        await deferLater(reactor, INTERVAL)
    return result


async def _value(condition: Callable[[], Any | Awaitable[Any]]) -> Any:
    result = condition()
    return await result if isawaitable(result) else result
