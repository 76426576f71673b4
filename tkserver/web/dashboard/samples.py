"""Sample events, which the dashboard sends so that somebody sees whether events arrive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import ClassVar
from uuid import UUID

import msgspec

from tkserver import __version__
from tkserver.insight.catalog import AppState
from tkserver.wire.api_errors import ApiError, QuotaExceeded

SERVICE = "tkserver-dashboard"
TYPE = "sample"
USER_ID = "anon_tkserver_sample"
"""What makes sample events recognizable. They all have the same user, so that they can be erased."""

SELECT_SAMPLE = "SELECT received_at FROM events WHERE event_id = %s AND app_id = %s AND org_id = %s"

StoreEvents = Callable[[str, str, bytes], Awaitable[None]]
"""Stores a batch as if a program had sent it. See :meth:`tkserver.server.worker.Worker.store_events`."""


class SampleRefused(ApiError):
    """The sample event was not stored."""

    status: ClassVar[int] = 409
    code: ClassVar[str] = "sample_refused"


class SampleSender:
    """Sends sample events.

    :param store: takes the ids of an organization and of an application, and a batch.
    :param new_id: returns a new random UUID.
    """

    def __init__(self, store: StoreEvents, new_id: Callable[[], UUID]) -> None:
        self._store = store
        self._new_id = new_id

    async def send(self, app: AppState, now: datetime) -> UUID:
        """Send a sample event of an application, and return its id.

        :raise SampleRefused: if the quota of the application is exhausted.
        :raise ApiError: if the server cannot store events now.
        :raise StorageError: if the event was not stored.
        """
        event_id = self._new_id()
        try:
            await self._store(app.org_id, app.app_id, sample_batch(event_id, now))
        except QuotaExceeded as error:
            raise SampleRefused(error.message) from None
        return event_id


def sample_batch(event_id: UUID, now: datetime) -> bytes:
    """Return a batch with one sample event, as an SDK would send it."""
    event = {
        "schema_version": "1.0.0",
        "event_id": event_id,
        "timestamp": now,
        "service": {"name": SERVICE, "version": __version__, "language": "python"},
        "user_id": USER_ID,
        "environment": {"os": "unknown"},
        "event": {"type": TYPE, "category": TYPE, "data": {"sent_from": "dashboard"}},
        "metadata": {
            "sdk_version": __version__,
            "transmission_timestamp": now,
            "batch_size": 1,
            "retry_count": 0,
        },
    }
    return msgspec.json.encode({"events": [event]})
