"""Readiness of the database, checked at most a few times a second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, ensureDeferred

from tkserver.deferreds import SharedDeferred
from tkserver.storage.errors import StorageError, Unavailable

LIFETIME = 0.25
"""Seconds for which a result is reused: anybody can request it, and each check writes to the database."""

TIMEOUT = 2.0
"""Seconds after which a database that does not respond counts as not ready: probes have short timeouts themselves."""


class Readiness:
    """Checks whether the database accepts writes.

    :param probe: returns if the database accepts writes, otherwise raises a ``StorageError``.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], reactor: Any) -> None:
        self._probe = probe
        self._reactor = reactor
        self._valid_until = float("-inf")
        self._check: SharedDeferred[None] | None = None

    def check(self) -> Deferred[None]:
        """Check the database, or return the result of the last check if it is recent.

        :raise StorageError: if the database does not accept writes.
        """
        if self._check is None or self._reactor.seconds() >= self._valid_until:
            self._valid_until = float("inf")  # until there is a result, all callers wait for the same check
            self._check = SharedDeferred(Context().run(ensureDeferred, self._run_probe()), expected=StorageError)
        return self._check.wait().addTimeout(TIMEOUT, self._reactor, _timed_out)

    async def _run_probe(self) -> None:
        try:
            await self._probe()
        finally:
            self._valid_until = self._reactor.seconds() + LIFETIME


def _timed_out(_: object, seconds: float) -> NoReturn:
    raise Unavailable(f"the database did not respond within {seconds:g} s")
