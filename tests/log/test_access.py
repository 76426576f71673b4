"""The access log."""

from __future__ import annotations

from itertools import cycle

import pytest
from twisted.logger import LogEvent, formatEvent

from tkserver.log.access import CLIENT_CLOSED_REQUEST, AccessLog, RequestRecord


@pytest.fixture
def events() -> list[LogEvent]:
    return []


def access_log(events: list[LogEvent], sample: float = 1, level: str = "debug") -> AccessLog:
    fractions = cycle([0.0, 0.25, 0.5, 0.75])
    return AccessLog(events.append, level, sample, lambda: next(fractions), lambda: 1.0)


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
    """Errors of the server have a higher level than errors of clients, and health checks have a lower one."""
    access_log(events)(RequestRecord(route=route, status=status))
    assert events[0]["log_level"].name == level


def test_requests_below_the_level_are_not_logged(events: list[LogEvent]) -> None:
    """A record that is less severe than the log level is not published."""
    access_log(events, level="error")(RequestRecord(status=503))
    assert not events


@pytest.mark.parametrize(
    ("status", "sample", "logged"), [(200, 0.5, 4), (204, 0, 0), (207, 1, 8), (304, 0, 8), (401, 0, 8), (503, 0, 8)]
)
def test_sample(events: list[LogEvent], status: int, sample: float, logged: int) -> None:
    """A sample of the successful requests is logged, and all other requests."""
    log_request = access_log(events, sample)
    for _ in range(8):
        log_request(RequestRecord(status=status))
    assert len(events) == logged


def test_event_can_be_formatted_by_twisted(events: list[LogEvent]) -> None:
    """Twisted formats the event as text; the fields do not contain values that are not known."""
    access_log(events)(
        RequestRecord("r", method="POST", route="/{org_id}", status=400, code="odd", seconds=0.0123, received=2)
    )
    assert formatEvent(events[0]) == "POST /{org_id} 400 12.3ms odd received=2"
    fields = events[0]["exchange"].fields()
    assert fields["code"] == "odd"
    assert "accepted" not in fields
