"""The applications that send requests at the moment. Work for one of them delays only requests of the others."""

from __future__ import annotations

import math
from collections.abc import Callable

ACTIVE_TIME = 1.0
"""Seconds for which an application is active after a request."""

Application = tuple[int, int]
"""The ids of an organization and of its application as integers: UUIDs are slower keys."""


class ActiveApplications:
    """Knows whether an application is the only active one.

    :param clock: returns seconds, on any scale.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._latest: Application | None = None
        self._latest_since = -math.inf

    def note_request(self, application: Application) -> None:
        """Note a request whose signature is right."""
        if application != self._latest:
            self._latest_since = -math.inf if self._latest is None else self._clock()
            self._latest = application

    def is_alone(self, application: Application) -> bool:
        """Return true if no other application is active."""
        return self._latest in (application, None) and self._clock() - self._latest_since > ACTIVE_TIME
