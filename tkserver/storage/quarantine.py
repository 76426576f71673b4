"""The quarantine: invalid events, with the reasons why they were not stored.

It has limits for each application. The oldest events are deleted to make room for newer ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from tkserver.storage.pool import Execute, JsonLiteral
from tkserver.wire.api_errors import EventError
from tkserver.wire.batch import Steps
from tkserver.wire.event import NIL_UUID
from tkserver.wire.event_text import KeptText, kept_text, may_have_user_id

MAX_EVENTS = 10_000
"""Maximum number of quarantined events of an application."""

MAX_BYTES = 67_108_864
"""Maximum length of all texts of quarantined events of an application."""

_STEP_BYTES = 65_536
_STEP_EVENTS = 64

_SHORT_TEXT = 64
"""Bytes. The average length up to which the texts of events are handled together."""

_CHUNK_EVENTS = 500
_CHUNK_BYTES = 1_048_576
"""Limits of one statement, because the reactor waits while a statement is built."""


class InvalidEvent(Struct, frozen=True, gc=False, array_like=True):
    """An invalid event as it is quarantined. In JSON, it is an array.

    :ivar event_id: ``None`` if the event has no valid id.
    :ivar user_id: the anonymous user id in the text.
    :ivar text: JSON; ``None`` if texts are not kept.
    """

    event_id: UUID | None
    code: str
    message: str
    user_id: str | None
    text: str | None


def size_in_memory(events: Iterable[InvalidEvent]) -> int:
    """Return the approximate size of events in bytes."""
    return sum([200 + len(event.message) + len(event.text or "") for event in events])


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
    if texts is None:
        return {error.index: _invalid_event(error, None) for error in errors}
    events: dict[int, InvalidEvent] = {}
    for start in range(0, len(errors), _STEP_EVENTS):
        part = errors[start : start + _STEP_EVENTS]
        if start:
            yield
        if not _add_short_events(part, texts, events):
            yield from _add_events(part, texts, events)
    return events


def _add_short_events(
    errors: Sequence[EventError], texts: Sequence[bytes | Raw], events: dict[int, InvalidEvent]
) -> bool:
    """Add events to the result if all of them are short and have neither an id nor a user id; otherwise return false.

    A body can have one event for every two of its bytes. Therefore this function does little for each event.
    """
    joined = b"\0".join([texts[error.index] for error in errors])
    if len(joined) > _SHORT_TEXT * len(errors) or may_have_user_id(joined):
        return False
    for error, text in zip(errors, joined.decode().split("\0"), strict=True):
        if error.event_id is not NIL_UUID:
            return False
        events[error.index] = InvalidEvent(None, error.code, error.message, None, text)
    return True


def _add_events(
    errors: Sequence[EventError], texts: Sequence[bytes | Raw], events: dict[int, InvalidEvent]
) -> Steps[None]:
    handled = 0
    for error in errors:
        text = bytes(texts[error.index])
        kept = kept_text(text) if may_have_user_id(text) else KeptText(text)
        events[error.index] = _invalid_event(error, kept)
        handled += len(text)
        if handled >= _STEP_BYTES:
            handled = 0
            yield


def _invalid_event(error: EventError, kept: KeptText | None) -> InvalidEvent:
    event_id = None if error.event_id is NIL_UUID or error.event_id == NIL_UUID else error.event_id
    if kept is None:
        return InvalidEvent(event_id, error.code, error.message, None, None)
    return InvalidEvent(event_id, error.code, error.message, kept.user_id, kept.text.decode())


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

_KEY = """
coalesce(e->>0, encode(substring(sha256(convert_to(coalesce(e->>4, e->>2), 'UTF8')) FOR 16), 'hex'))::uuid
"""
"""The key of an event, which is :class:`InvalidEvent` in JSON."""

_INSERT = f"""
INSERT INTO quarantine AS q (
    app_id, org_id, key, event_id, request_id, batch_index,
    code, message, sdk, sdk_version, user_id, event, bytes, times
)
SELECT
    %s, %s, {_KEY}, (e->>0)::uuid, r->>1, (r->>2)::int,
    e->>1, e->>2, r->>3, r->>4, e->>3, e->>4, coalesce(octet_length(e->>4), 0), coalesce((r->>5)::bigint, 1)
FROM jsonb_array_elements(%s::jsonb) WITH ORDINALITY AS t (r, n), LATERAL (SELECT r->0 AS e) AS event ORDER BY n
ON CONFLICT (app_id, org_id, key) DO UPDATE SET
    request_id = excluded.request_id, batch_index = excluded.batch_index,
    code = excluded.code, message = excluded.message, sdk = excluded.sdk, sdk_version = excluded.sdk_version,
    times = q.times + excluded.times, last_received_at = excluded.last_received_at
"""

_TRIM = f"SELECT tkserver_trim_quarantine(%s, %s, {MAX_EVENTS}, {MAX_BYTES})"

_DELETE = f"""
DELETE FROM quarantine WHERE app_id = %s AND org_id = %s AND user_id = ANY (%s::text[]) AND key = ANY (
    ARRAY(SELECT {_KEY} FROM jsonb_array_elements(%s::jsonb) AS e)
)
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
    for rows in encode_in_chunks(received):
        await execute(_INSERT, (*application, JsonLiteral(rows)))
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
    await execute(_DELETE, (*application, sorted(user_ids), JsonLiteral(msgspec.json.encode(events))))


_Row = tuple[Any, ...]
"""An event, the id of its request, its index in the batch, the SDK and its version, and how often it was received.

The last value can be missing if it is one.
"""


def encode_in_chunks(received: Sequence[Received]) -> Iterator[bytes]:
    """Yield rows for the insert statement as JSON. An event that was received several times is in the same row."""
    rows = _rows(received)
    start = 0
    while start < len(rows):
        sizes = accumulate([len(row[0].text or "") for row in rows[start : start + _CHUNK_EVENTS]])
        length = sum(1 for size in sizes if size <= _CHUNK_BYTES) or 1
        yield msgspec.json.encode(rows[start : start + length])
        start += length


def _rows(received: Sequence[Received]) -> list[_Row]:
    rows = [
        (event, request_id, index, sdk, sdk_version)
        for request_id, sdk, sdk_version, events in received
        for index, event in events.items()
    ]
    keys = _keys(row[0] for row in rows)
    latest: dict[int | str, _Row] = dict(zip(keys, rows, strict=True))
    if len(latest) == len(rows):
        return list(rows)
    times = Counter(keys)
    return [(*row, times[key]) for key, row in latest.items()]


def _keys(events: Iterable[InvalidEvent]) -> list[int | str]:
    """Return what identifies events when they are received again. Without id and text, only the reason does."""
    return [event.text or event.message if event.event_id is None else event.event_id.int for event in events]
