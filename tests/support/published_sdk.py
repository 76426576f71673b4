"""A stand-in for the published SDK: a buffer of events that reacts to responses as the crate (0.3.0) does.

It was compared with the crate. The crate reads at most ``batch_size`` of its oldest events, sends them in one request
without ``Authorization``, and marks all of them as delivered if the response says that at least one was accepted.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.client import SDK, App, Client, Reply

VERSION = "telemetry-kit-rust/0.3.0"

BATCH_SIZE = 100

_SCHEMA = """
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT UNIQUE NOT NULL, event_data TEXT NOT NULL,
    created_at INTEGER NOT NULL, synced_at INTEGER, retry_count INTEGER DEFAULT 0
)
"""


class SyncError(Exception):
    """An error of ``sync()``. Its text is the one that the crate shows.

    :ivar retryable: true if the crate sends the same request again after a pause, up to five times.
    """

    def __init__(self, text: str, *, retryable: bool = False) -> None:
        super().__init__(text)
        self.retryable = retryable


@dataclass(eq=False)
class PublishedSdk:
    """An SDK in a program that sends events of an application.

    :param max_retries: of the crate's configuration. The stand-in does not wait between attempts.
    :ivar replies: all responses.
    """

    client: Client
    app: App
    max_retries: int = 0
    replies: list[Reply] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._buffer = sqlite3.connect(":memory:")
        self._buffer.execute(_SCHEMA)

    def track(self, events: Sequence[dict[str, Any]]) -> None:
        """Add events to the buffer. They must have distinct ids."""
        self._buffer.executemany(
            "INSERT INTO events (event_id, event_data, created_at) VALUES (?, ?, ?)",
            [(event["event_id"], json.dumps(event), int(time.time())) for event in events],
        )

    @property
    def unsynced(self) -> list[str]:
        """The ids of the events that will be sent, oldest first."""
        return [event_id for event_id, _ in self._unsynced(-1)]

    async def sync(self) -> None:
        """Send the oldest events.

        :raise SyncError: if the crate would return an error.
        """
        events = self._unsynced(BATCH_SIZE)
        if not events:
            return
        ids = [(event_id,) for event_id, _ in events]
        body = b'{"events":[%s]}' % ",".join(text for _, text in events).encode()
        try:
            accepted = await self._send(body, len(events))
        except SyncError:
            self._buffer.executemany("UPDATE events SET retry_count = retry_count + 1 WHERE event_id = ?", ids)
            raise
        if accepted > 0:
            self._buffer.executemany("UPDATE events SET synced_at = 1 WHERE event_id = ?", ids)

    def _unsynced(self, limit: int) -> list[tuple[str, str]]:
        sql = "SELECT event_id, event_data FROM events WHERE synced_at IS NULL ORDER BY created_at, id LIMIT ?"
        return self._buffer.execute(sql, (limit,)).fetchall()

    async def _send(self, body: bytes, size: int) -> int:
        """Send a request, repeatedly if it fails, and return the number of accepted events."""
        for attempts_left in reversed(range(self.max_retries + 1)):
            headers = {"X-Batch-Size": str(size), "X-SDK-Version": VERSION, "X-Schema-Version": "1.0.0"}
            reply = await self.client.send(self.app, body, SDK, changes=headers)
            self.replies.append(reply)
            try:
                return _accepted(reply)
            except SyncError as error:
                if not error.retryable or not attempts_left:
                    raise
        raise AssertionError("the last attempt returns or raises")


_PARSED_ERRORS = (400, 401, 403, 409, 413, 422)


def _accepted(reply: Reply) -> int:
    """Return the number of accepted events according to a response.

    :raise SyncError: if the response is an error.
    """
    if reply.status in (200, 207):
        return _parsed_result(reply)
    if reply.status == 429:
        retry_after = _parsed_error(reply).get("retry_after", 60)
        raise SyncError(f"Rate limit exceeded. Retry after {retry_after} seconds.", retryable=True)
    if reply.status in _PARSED_ERRORS:
        error = _parsed_error(reply)
        raise SyncError(f"Server error ({reply.status}): {error['error']}: {error['message']}")
    text = reply.body.decode()
    if reply.status >= 500:
        raise SyncError(f"Server error ({reply.status}): {text}", retryable=True)
    raise SyncError(f"Unexpected status code {reply.status}: {text}")


def _parsed_result(reply: Reply) -> int:
    content = reply.json
    required = {"success": ("message", str), "partial": ("errors", list)}[content["status"]]
    _check_types(content, dict([("accepted", int), ("rejected", int), required]))
    for error in content.get("errors", ()):
        _check_types(error, {"event_id": str, "error": str, "message": str})
    return int(content["accepted"])


def _parsed_error(reply: Reply) -> dict[str, Any]:
    content: dict[str, Any] = reply.json
    _check_types(content, {"error": str, "message": str})
    return content


def _check_types(content: dict[str, Any], types: dict[str, type]) -> None:
    """
    :raise SyncError: with the text that the crate shows if a field is missing or has another type.
    """
    if not all(isinstance(content.get(name), expected) for name, expected in types.items()):
        raise SyncError("HTTP request failed: error decoding response body")
