"""Events as they arrive: those that are stored, and those that are quarantined, with the reasons."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from tkserver.operations.models import App
from tkserver.storage.blocking import Connection, rows, value

ACCEPTED, QUARANTINED = "accepted", "quarantined"

RECENT = 100_000
"""The latest events of all applications together, among which the latest ones of an application are looked for."""

MAX_EVENTS = 1000
"""Events of an application that are read at once. If more arrive, the oldest are left out."""

SETTLING_TIME = 10.0
"""Seconds. A transaction that has begun earlier may commit ids that are lower than the highest one."""

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
_TABLES = ((ACCEPTED, "events", _EVENTS), (QUARANTINED, "quarantine", _QUARANTINED))


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


@dataclass
class _Position:
    """How far a table has been read.

    :ivar read_from: the id after which rows are read again, because transactions may still commit some.
    :ivar highest: recent times, each with the highest id at that time.
    :ivar seen: the ids after ``read_from`` that have been returned.
    """

    read_from: int
    highest: deque[tuple[float, int]] = field(default_factory=deque)
    seen: set[int] = field(default_factory=set)

    def advance(self, now: float) -> None:
        """Forget ids before which nothing can be committed anymore."""
        while self.highest and self.highest[0][0] <= now - SETTLING_TIME:
            self.read_from = max(self.read_from, self.highest.popleft()[1])
        self.seen = {number for number in self.seen if number > self.read_from}


class Tail:
    """Returns the events of an application as they arrive.

    :param user_prefix: only events of users whose ids begin so.
    :param event_type: only accepted events of this type; empty for all types.
    :param clock: returns seconds, on any scale.
    """

    def __init__(
        self,
        connection: Connection,
        app: App,
        clock: Callable[[], float],
        *,
        user_prefix: str = "",
        event_type: str = "",
    ) -> None:
        self._connection = connection
        self._filters = (str(app.app_id), str(app.org_id), user_prefix, event_type)
        self._clock = clock
        self._positions = {
            table: _Position(max(0, value(connection, f"SELECT coalesce(max(id), 0) FROM {table}") - RECENT))
            for _, table, _ in _TABLES
        }

    def read(self, limit: int = MAX_EVENTS) -> list[Arrival]:
        """Return the latest events that have not been returned yet, oldest first.

        :param limit: the maximum number. Earlier events are not returned later.
        """
        now = self._clock()
        arrivals = [
            arrival
            for outcome, table, sql in _TABLES
            for arrival in self._read_table(self._positions[table], outcome, sql, limit, now)
        ]
        arrivals.sort(key=lambda arrival: arrival.received_at)
        return arrivals[-limit:] if limit else []

    def _read_table(self, position: _Position, outcome: str, sql: str, limit: int, now: float) -> list[Arrival]:
        position.advance(now)
        parameters: tuple[Any, ...] = (position.read_from, *self._filters, max(limit, 1) + len(position.seen))
        found = rows(self._connection, sql, *parameters)
        if found:
            position.highest.append((now, found[0][0]))
        new = [row for row in found if row[0] not in position.seen]
        position.seen.update(row[0] for row in found)
        return [Arrival(outcome, *row[1:]) for row in new]
