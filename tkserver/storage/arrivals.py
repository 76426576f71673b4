"""Events of an application in the order in which they arrive: those that are stored, and those that are quarantined."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import NamedTuple

ACCEPTED, QUARANTINED = "accepted", "quarantined"

SETTLING_TIME = 10.0
"""Seconds. A transaction that has begun earlier may commit ids that are lower than the highest one."""

HOUR = "date_bin('1 hour', received_at, '2000-01-01 00:00:00+00')"
"""The hour in which an event was received, as in the index ``events_app_hour_idx``."""

_EVENTS = """
SELECT id, received_at, event_id::text, user_id, event_type, service_version, os,
    coalesce(event_data->>'command', event_data->>'feature'), NULL, NULL
FROM events
WHERE id > %s AND app_id = %s AND org_id = %s AND starts_with(user_id, %s) AND %s IN ('', event_type)
ORDER BY id DESC LIMIT %s
"""
_QUARANTINED = """
SELECT id, received_at, event_id::text, user_id, NULL, NULL, NULL, NULL, code, message
FROM quarantine
WHERE id > %s AND app_id = %s AND org_id = %s AND starts_with(coalesce(user_id, ''), %s) AND %s = ''
ORDER BY id DESC LIMIT %s
"""

TABLES = ((ACCEPTED, "events", _EVENTS), (QUARANTINED, "quarantine", _QUARANTINED))
"""The outcomes, their tables, and statements that select the latest events: the id and the values of :class:`Arrival`.

The parameters of a statement are: the id after which events are read, the ids of the application and its organization,
the beginning of the user id, the type of the event (empty for all types), and the maximum number of events. The latest
event comes first.
"""

HIGHEST_IDS = "SELECT (SELECT coalesce(max(id), 0) FROM events), (SELECT coalesce(max(id), 0) FROM quarantine)"
"""Returns the highest ids in the tables of :data:`TABLES`."""


class SettledIds:
    """Knows up to which ids of the tables no transaction commits anything anymore."""

    def __init__(self) -> None:
        self._highest: deque[tuple[float, tuple[int, ...]]] = deque()
        self._settled: tuple[int, ...] = (0,) * len(TABLES)

    def after(self, now: float, highest: tuple[int, ...]) -> tuple[int, ...]:
        """Return these ids.

        :param now: in seconds, on any scale.
        :param highest: the result of :data:`HIGHEST_IDS`.
        """
        self._highest.append((now, highest))
        while self._highest[0][0] <= now - SETTLING_TIME:
            self._settled = self._highest.popleft()[1]
        return self._settled


class Arrival(NamedTuple):
    """An event that has arrived.

    :ivar outcome: ``accepted`` or ``quarantined``.
    :ivar event_id: ``None`` if the event has no valid id.
    :ivar user_id: of a quarantined event, ``None`` if it is not known.
    :ivar type: the type of the event, its version, operating system, and command or feature: known if it is accepted.
    :ivar code: the error code of a quarantined event; ``message`` is its reason.
    """

    outcome: str
    received_at: datetime
    event_id: str | None
    user_id: str | None
    type: str | None
    version: str | None
    os: str | None
    name: str | None
    code: str | None
    message: str | None
