"""The events of an application as they arrive, as server-sent events.

Each response contains the events since the previous one, and ends. The browser then connects again, as the protocol for
server-sent events lets it do, and says how far it has got. No connection stays open, so that the server can stop at any
time, and many open pages cost little.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from tkserver.insight.catalog import AppState
from tkserver.insight.facts import clean
from tkserver.storage.arrivals import HIGHEST_IDS, TABLES, Arrival, SettledIds

MAX_EVENTS = 100
"""Events of each outcome in a response, the latest ones."""

SHOWN_BEFORE = 2000
"""How many of the latest events of all applications are searched for events to show first."""

RETRY = 1000
"""Milliseconds after which a browser connects again."""

_POSITION = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


class Query(Protocol):
    """Executes a statement, and returns its rows."""

    def __call__(self, sql: str, parameters: Sequence[object] = ()) -> Awaitable[list[tuple[Any, ...]]]: ...


class LiveEvents:
    """Reads the latest events of applications.

    :param clock: returns seconds, on any scale.
    """

    def __init__(self, query: Query, clock: Callable[[], float]) -> None:
        self._query = query
        self._clock = clock
        self._settled_ids = SettledIds()

    async def read(self, app: AppState, user: str, event_type: str, position: str | None) -> tuple[str, list[Any]]:
        """Return a new position, and the events after the previous one, latest first.

        An event can be returned several times, because transactions may commit lower ids later. Its first value is a
        key that shows this.

        :param user: only events of users whose ids begin so.
        :param event_type: only accepted events of this type; empty for all types.
        :param position: that was returned before; ``None`` or an invalid one for the first time.
        """
        (highest,) = await self._query(HIGHEST_IDS)
        settled = self._settled_ids.after(self._clock(), highest)
        match = _POSITION.fullmatch(position or "")
        after = [int(match[1]), int(match[2])] if match else [max(0, number - SHOWN_BEFORE) for number in highest]
        arrivals: list[tuple[str, Arrival]] = []
        for (outcome, table, sql), first in zip(TABLES, after, strict=True):
            rows = await self._query(sql, (first, app.app_id, app.org_id, user, event_type, MAX_EVENTS))
            arrivals += [(f"{table} {row[0]}", Arrival(outcome, *row[1:])) for row in rows]
        arrivals.sort(key=lambda item: item[1].received_at, reverse=True)
        following = "-".join(str(max(pair)) for pair in zip(after, settled, strict=True))
        return following, [[key, *_shown(arrival)] for key, arrival in arrivals]


def _shown(arrival: Arrival) -> list[str]:
    """Return the texts of a row: time, outcome, user, and what is known about the event."""
    known = (arrival.type, arrival.name, arrival.version, arrival.os)
    details = f"{arrival.code}: {arrival.message}" if arrival.code else " · ".join(text for text in known if text)
    moment = arrival.received_at.isoformat(timespec="seconds")
    return [moment, arrival.outcome, clean((arrival.user_id or "-")[:24]), clean(details)]


def server_sent(position: str, events: list[Any]) -> bytes:
    """Return the body of a response (WHATWG HTML, "Server-sent events")."""
    return b"retry: %d\nid: %b\ndata: %b\n\n" % (RETRY, position.encode(), msgspec.json.encode(events))
