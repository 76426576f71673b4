"""Events as they arrive: those that are stored, and those that are quarantined, with the reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tkserver.operations.models import App
from tkserver.storage.arrivals import HIGHEST_IDS, TABLES, Arrival, SettledIds
from tkserver.storage.blocking import Connection, rows

RECENT = 100_000
"""The latest events of all applications together, among which the latest ones of an application are looked for."""

MAX_EVENTS = 1000
"""Events of an application that are read at once. If more arrive, the oldest are left out."""


@dataclass
class _Position:
    """The position up to which a table has been read.

    :ivar read_from: the id after which rows are read again, because transactions may still commit some.
    :ivar seen: the ids after ``read_from`` that have been returned.
    """

    read_from: int
    seen: set[int] = field(default_factory=set)

    def advance(self, number: int) -> None:
        """Do not read ids up to this one again."""
        self.read_from = max(self.read_from, number)
        self.seen = {seen for seen in self.seen if seen > self.read_from}


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
        self._settled = SettledIds()
        self._positions = [_Position(max(0, number - RECENT)) for number in self._highest()]

    def read(self, limit: int = MAX_EVENTS) -> list[Arrival]:
        """Return the latest events that have not been returned yet, oldest first.

        :param limit: the maximum number. Earlier events are not returned later.
        """
        settled = self._settled.after(self._clock(), self._highest())
        arrivals = []
        for (outcome, _, sql), position, number in zip(TABLES, self._positions, settled, strict=True):
            position.advance(number)
            arrivals += self._read_table(position, outcome, sql, limit)
        arrivals.sort(key=lambda arrival: arrival.received_at)
        return arrivals[-limit:] if limit else []

    def _highest(self) -> tuple[int, ...]:
        return rows(self._connection, HIGHEST_IDS)[0]

    def _read_table(self, position: _Position, outcome: str, sql: str, limit: int) -> list[Arrival]:
        most = max(limit, 1) + len(position.seen)
        found = rows(self._connection, sql, position.read_from, *self._filters, most)
        new = [row for row in found if row[0] not in position.seen]
        position.seen.update(row[0] for row in found)
        if len(found) == most:  # there may be earlier ones
            position.advance(found[-1][0] - 1)
        return [Arrival(outcome, *row[1:]) for row in new]
