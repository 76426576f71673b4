"""Events as they arrive: those that are stored, and those that are quarantined, with the reasons."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tkserver.operations.models import App
from tkserver.storage.arrivals import HIGHEST_IDS, SETTLING_TIME, TABLES, Arrival
from tkserver.storage.blocking import Connection, rows

RECENT = 100_000
"""The latest events of all applications together, among which the latest ones of an application are looked for."""

MAX_EVENTS = 1000
"""Events of an application that are read at once. If more arrive, the oldest are left out."""


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
        (highest,) = rows(connection, HIGHEST_IDS)
        self._positions = {
            table: _Position(max(0, number - RECENT)) for (_, table, _), number in zip(TABLES, highest, strict=True)
        }

    def read(self, limit: int = MAX_EVENTS) -> list[Arrival]:
        """Return the latest events that have not been returned yet, oldest first.

        :param limit: the maximum number. Earlier events are not returned later.
        """
        now = self._clock()
        arrivals = [
            arrival
            for outcome, table, sql in TABLES
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
