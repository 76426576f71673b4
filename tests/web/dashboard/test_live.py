"""Positions of the live page: each event is returned, also if it is committed late."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest_twisted
from twisted.internet.task import Clock

from tkserver.insight.catalog import AppState
from tkserver.storage.arrivals import HIGHEST_IDS, SETTLING_TIME
from tkserver.web.dashboard.live import LiveEvents

APP = AppState("a", "o", "my-cli", None, None, None, "UTC", None, None)
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Tables:
    """Answers queries about events with these ids."""

    def __init__(self) -> None:
        self.events: list[int] = []

    async def query(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        if sql == HIGHEST_IDS:
            return [(max(self.events, default=0), 0)]
        if "FROM quarantine" in sql:
            return []
        found = sorted((number for number in self.events if number > parameters[0]), reverse=True)
        return [
            (number, NOW, f"event {number}", "client_a", "type", "1.0", "linux", None, None, None) for number in found
        ]


@pytest_twisted.ensureDeferred
async def test_position_stays_behind_transactions_in_progress() -> None:
    """An id that is committed within the settling time is returned, and the position advances afterwards."""
    tables, clock = Tables(), Clock()
    live = LiveEvents(tables.query, clock.seconds)
    tables.events = [1, 3]
    position, events = await live.read(APP, "", "", None)
    assert [event[0] for event in events] == ["events 3", "events 1"]
    tables.events.append(2)
    clock.advance(SETTLING_TIME - 1)
    position, events = await live.read(APP, "", "", position)
    assert "events 2" in [event[0] for event in events]
    clock.advance(2)
    position, _ = await live.read(APP, "", "", position)
    assert position == "3-0"
    tables.events.append(4)
    _, events = await live.read(APP, "", "", position)
    assert [event[0] for event in events] == ["events 4"]


@pytest_twisted.ensureDeferred
async def test_memory_is_bounded() -> None:
    """Only the highest ids of the settling time are remembered."""
    tables, clock = Tables(), Clock()
    live = LiveEvents(tables.query, clock.seconds)
    for number in range(1000):
        tables.events = [number]
        await live.read(APP, "", "", None)
        clock.advance(1)
    assert len(live._settled_ids._highest) <= SETTLING_TIME + 2
