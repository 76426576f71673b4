"""The line of a request."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import pytest
from twisted.logger import LogEvent, formatEvent

from tkserver import log
from tkserver.log.access import CLIENT_CLOSED_REQUEST, AccessLog, RequestRecord


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    log.set_level("debug")
    yield []
    log.set_level("info")


def access_log(events: list[LogEvent], sample: float = 1) -> AccessLog:
    fractions = cycle([0.0, 0.25, 0.5, 0.75])
    return AccessLog(events.append, sample, lambda: next(fractions), lambda: 1.0)


@pytest.mark.parametrize(
    ("status", "route", "level"),
    [
        (200, "/v1", "info"),
        (401, "/v1", "info"),
        (CLIENT_CLOSED_REQUEST, "/v1", "info"),
        (500, "/v1", "error"),
        (503, "/v1", "warn"),
        (200, "/health", "debug"),
        (503, "/health/ready", "debug"),
        (500, "/health/ready", "error"),
        (405, "/health", "info"),
    ],
)
def test_level(events: list[LogEvent], status: int, route: str, level: str) -> None:
    """Faults of the server stand out, mistakes of clients do not, and probes are no news."""
    access_log(events)(RequestRecord(route=route, status=status))
    assert events[0]["log_level"].name == level


def test_below_the_level(events: list[LogEvent]) -> None:
    """Nothing is made of what would not be written."""
    log.set_level("error")
    access_log(events)(RequestRecord(status=503))
    assert not events


@pytest.mark.parametrize(
    ("status", "sample", "logged"), [(200, 0.5, 4), (204, 0, 0), (207, 1, 8), (304, 0, 8), (401, 0, 8), (503, 0, 8)]
)
def test_sample(events: list[LogEvent], status: int, sample: float, logged: int) -> None:
    """Only of what succeeds some is left out."""
    write = access_log(events, sample)
    for _ in range(8):
        write(RequestRecord(status=status))
    assert len(events) == logged


def test_any_observer_can_read_it(events: list[LogEvent]) -> None:
    """Twisted's own formatting works on it; what is not known is not there."""
    access_log(events)(
        RequestRecord("r", method="POST", route="/{org_id}", status=400, code="odd", seconds=0.0123, received=2)
    )
    assert formatEvent(events[0]) == "POST /{org_id} 400 12.3ms odd received=2"
    fields = events[0]["record"].fields()
    assert fields["code"] == "odd"
    assert "accepted" not in fields
