"""The quarantine: invalid events, with the reasons why they were not stored.

It has limits for each application. The oldest events are deleted to make room for newer ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import msgspec
from msgspec import Raw

from tkserver.storage.pool import Execute
from tkserver.wire.api_errors import EventError
from tkserver.wire.batch import Steps
from tkserver.wire.event import NIL_UUID
from tkserver.wire.event_text import kept_text

MAX_EVENTS = 10_000
"""Maximum number of quarantined events of an application."""

MAX_BYTES = 67_108_864
"""Maximum length of all texts of quarantined events of an application."""

_STEP_BYTES = 65_536
_STEP_EVENTS = 64

_SHORT_TEXT = 64
"""Bytes. A batch can contain hundreds of equal texts that are shorter."""

_CHUNK_EVENTS = 500
_CHUNK_BYTES = 1_048_576
"""Limits of one statement, because the reactor waits while a statement is built."""


class InvalidEvent(NamedTuple):
    """An invalid event as it is quarantined.

    :ivar key: identifies the event when it is sent again, as text of the type ``uuid``.
    :ivar event_id: ``None`` if the event has no valid id.
    :ivar user_id: the anonymous user id in the text.
    :ivar text: JSON; ``None`` if texts are not kept.
    """

    key: str
    event_id: UUID | None
    code: str
    message: str
    user_id: str | None
    text: str | None

    @property
    def bytes(self) -> int:
        """The approximate size in memory."""
        return 200 + len(self.message) + len(self.text or "")


class Received(NamedTuple):
    """Invalid events of one request.

    :ivar sdk: name of the SDK that sent them, if known; the same for ``sdk_version``.
    :ivar events: by their index in the batch.
    """

    request_id: str
    sdk: str | None
    sdk_version: str | None
    events: Mapping[int, InvalidEvent]


def invalid_events(errors: Sequence[EventError], texts: Sequence[bytes | Raw] | None) -> Steps[dict[int, InvalidEvent]]:
    """Return the events that have errors, by their index, in steps.

    :param texts: the texts of all events of the batch; ``None`` if texts are not kept.
    """
    events: dict[int, InvalidEvent] = {}
    short: dict[tuple[bytes, str], InvalidEvent] = {}
    handled = 0
    for error in errors:
        text = None if texts is None else bytes(texts[error.index])
        if text is None or len(text) > _SHORT_TEXT:
            event = _invalid_event(error, text)
        elif (known := short.get((text, error.message))) is None:
            event = short[text, error.message] = _invalid_event(error, text)
        else:
            event = known
        events[error.index] = event
        handled += len(text or b"")
        if handled >= _STEP_BYTES or len(events) % _STEP_EVENTS == 0:
            handled = 0
            yield
    return events


def _invalid_event(error: EventError, text: bytes | None) -> InvalidEvent:
    kept = None if text is None else kept_text(text)
    event_id = None if error.event_id is NIL_UUID or error.event_id == NIL_UUID else error.event_id
    if event_id is not None:
        key = str(event_id)
    else:  # without a text, nothing distinguishes events that have the same error
        key = blake2b(error.message.encode() if kept is None else kept.text, digest_size=16).hexdigest()
    if kept is None:
        return InvalidEvent(key, event_id, error.code, error.message, None, None)
    return InvalidEvent(key, event_id, error.code, error.message, kept.user_id, kept.text.decode())


# --- in the database

LOCK = """
INSERT INTO quarantine_usage AS u (app_id, org_id) VALUES (%s, %s)
ON CONFLICT (app_id, org_id) DO UPDATE SET dropped = u.dropped
"""
"""Wait until no other transaction changes the quarantine of an application, and prevent it until this one ends."""

_USE_NONCE = """
INSERT INTO nonces (app_id, org_id, nonce, sent_at)
SELECT r.app_id, r.org_id, r.nonce, to_timestamp(r.sent_at)
FROM (VALUES (%s::uuid, %s::uuid, %s, %s)) AS r (app_id, org_id, nonce, sent_at)
WHERE (to_timestamp(r.sent_at) <= (SELECT deleted_until FROM nonce_window WHERE id)) IS NOT TRUE
ON CONFLICT (app_id, org_id, nonce) DO NOTHING
RETURNING true
"""

_FORGET_NONCE = "DELETE FROM nonces WHERE app_id = %s AND org_id = %s AND nonce = %s"

_INSERT = """
INSERT INTO quarantine AS q (
    app_id, org_id, key, event_id, request_id, batch_index,
    code, message, sdk, sdk_version, user_id, event, bytes, times
)
SELECT
    %s, %s, (e->>0)::uuid, (e->>1)::uuid, e->>2, (e->>3)::int,
    e->>4, e->>5, e->>6, e->>7, e->>8, e->>9, coalesce(octet_length(e->>9), 0), (e->>10)::bigint
FROM jsonb_array_elements(%s::jsonb) WITH ORDINALITY AS t (e, n) ORDER BY n
ON CONFLICT (app_id, org_id, key) DO UPDATE SET
    request_id = excluded.request_id, batch_index = excluded.batch_index,
    code = excluded.code, message = excluded.message, sdk = excluded.sdk, sdk_version = excluded.sdk_version,
    times = q.times + excluded.times, last_received_at = excluded.last_received_at
"""

_TRIM = f"SELECT tkserver_trim_quarantine(%s, %s, {MAX_EVENTS}, {MAX_BYTES})"

_DELETE = """
DELETE FROM quarantine WHERE app_id = %s AND org_id = %s AND key = ANY (%s::uuid[]) AND user_id = ANY (%s::text[])
"""


async def use_nonce(execute: Execute, org_id: UUID, app_id: UUID, nonce: str, sent_at: int) -> bool:
    """Mark the nonce of a request as used, and return false if another request has used it, or may have.

    :param sent_at: the timestamp of the request, in seconds of Unix time.
    """
    return bool(await execute(_USE_NONCE, (str(app_id), str(org_id), nonce, sent_at)))


async def forget_nonce(execute: Execute, org_id: UUID, app_id: UUID, nonce: str) -> None:
    """Let a nonce be used again that :func:`use_nonce` has used in the same transaction."""
    await execute(_FORGET_NONCE, (str(app_id), str(org_id), nonce))


async def quarantine(execute: Execute, org_id: UUID, app_id: UUID, received: Sequence[Received]) -> int:
    """Quarantine invalid events of an application.

    :param execute: executes statements in a READ COMMITTED transaction.
    :return: the number of older events that were deleted to make room.
    """
    application = str(app_id), str(org_id)
    await execute(LOCK, application)
    for rows in _chunks(received):
        await execute(_INSERT, (*application, msgspec.json.encode(rows).decode()))
    ((dropped,),) = await execute(_TRIM, (str(org_id), str(app_id)))
    return int(dropped)


async def delete_quarantined(execute: Execute, org_id: UUID, app_id: UUID, events: Sequence[InvalidEvent]) -> None:
    """Delete events of erased users from the quarantine of an application; those that are not there are ignored.

    An event with the same id can be of another user, and is not deleted.

    :param execute: see :func:`quarantine`.
    """
    application = str(app_id), str(org_id)
    await execute(LOCK, application)
    user_ids = {event.user_id for event in events if event.user_id is not None}
    await execute(_DELETE, (*application, [event.key for event in events], sorted(user_ids)))


_Row = tuple[str, "UUID | None", str, int, str, str, "str | None", "str | None", "str | None", "str | None", int]


def _chunks(received: Sequence[Received]) -> Iterator[list[_Row]]:
    """Yield rows for the insert statement. An event that was received several times is in the same row."""
    rows: list[_Row] = []
    size = 0
    for row in _rows(received):
        length = len(row[9] or "")
        if rows and (len(rows) == _CHUNK_EVENTS or size + length > _CHUNK_BYTES):
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += length
    if rows:
        yield rows


def _rows(received: Sequence[Received]) -> Iterator[_Row]:
    latest: dict[str, tuple[Received, int]] = {}
    times: dict[str, int] = {}
    for request in received:
        for index, event in request.events.items():
            latest[event.key] = request, index
            times[event.key] = times.get(event.key, 0) + 1
    for key, (request, index) in latest.items():
        _, event_id, code, message, user_id, text = request.events[index]
        sdk = request.sdk, request.sdk_version
        yield key, event_id, request.request_id, index, code, message, *sdk, user_id, text, times[key]
