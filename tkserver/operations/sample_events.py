"""Sample events, to try an installation."""

from __future__ import annotations

from collections.abc import Iterator

from tkserver import __version__
from tkserver.client.events import Event, EventBuilder, service

SERVICE_NAME = "tkserver-send"
EVENT_TYPE = "sample"


def sample_events(count: int) -> Iterator[Event]:
    """Yield events of one random user. They are numbered from 1."""
    build = EventBuilder(service(SERVICE_NAME, __version__))
    return (build.event(EVENT_TYPE, {"number": number}, category="sample") for number in range(1, count + 1))
