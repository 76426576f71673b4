"""Sample data: its application, the events as clients send them, and their storage without a server."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

import msgspec

from tkserver.demo import Origin, Parameters, Population, SampleEvent
from tkserver.operations.apps import create_app, find_app
from tkserver.operations.exceptions import InvalidArgument, UnknownObject
from tkserver.operations.models import App
from tkserver.storage.blocking import Connection, copy_in, rows, transaction, value
from tkserver.storage.erasures import LOAD_ERASED_USERS, ErasedUsers
from tkserver.storage.errors import Collision

APP_NAME = "sample-cli"
"""Name of the application, and ``service.name`` of its events."""

LANGUAGE, LANGUAGE_VERSION, SCHEMA_VERSION, SDK_VERSION = "rust", "1.85.0", "1.0.0", "0.3.0"

MAX_AGE = timedelta(days=90)
"""Statistics ignore the timestamps of events that are older when the server receives them."""

_TRANSMISSION_TIME = timedelta(hours=1)
"""Time within which the events of a population should be sent."""

CHUNK = 20_000
"""Events that are stored in one transaction."""

_CREATE_TABLE = """
CREATE TEMPORARY TABLE IF NOT EXISTS demo_events (
    event_id UUID, timestamp TIMESTAMPTZ, received_at TIMESTAMPTZ,
    service_version TEXT, user_id TEXT, os TEXT, arch TEXT, ci BOOLEAN, shell TEXT,
    session_id TEXT, event_type TEXT, event_category TEXT, event_data JSONB
) ON COMMIT DELETE ROWS
"""

_COPY = "COPY pg_temp.demo_events FROM STDIN (FORMAT binary)"

_INSERT = """
WITH stored AS (
    INSERT INTO events (
        org_id, app_id, schema_version, service_name, service_language, service_language_version, sdk_version,
        batch_size, retry_count, event_id, timestamp, received_at, transmission_timestamp,
        service_version, user_id, os, arch, ci, shell, session_id, event_type, event_category, event_data
    )
    SELECT
        %s, %s, %s, %s, %s, %s, %s, 1, 0, event_id, timestamp, received_at, received_at,
        service_version, user_id, os, arch, ci, shell, session_id, event_type, event_category, event_data
    FROM pg_temp.demo_events
    ON CONFLICT (event_id) DO NOTHING
    RETURNING true
)
SELECT count(*) FROM stored
"""

# The binary format of COPY: https://www.postgresql.org/docs/current/sql-copy.html
_HEADER, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_FIRST_COLUMNS = struct.Struct(">hi16siqiq")
_COLUMNS = 13
_NULL = b"\xff\xff\xff\xff"
_POSTGRES_EPOCH = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970."""

_JSONB_VERSION = b"\1"


def check_parameters(parameters: Parameters) -> None:
    """Check that there can be such a population.

    :raise InvalidArgument: if not.
    """
    if parameters.users > parameters.events:
        raise InvalidArgument(f"{parameters.users:,} users need at least as many events")


def check_age(population: Population, now: datetime) -> None:
    """Check that the timestamps of a population are recent enough to be sent to a server.

    :raise InvalidArgument: if they are too old, or in the future.
    """
    days = MAX_AGE.days
    if population.start < now - MAX_AGE + _TRANSMISSION_TIME:
        raise InvalidArgument(
            f"a server treats the timestamps of events that are more than {days} days old as wrong:"
            f" choose a period within the last {days} days, or store the events with --direct"
        )
    if population.until > now:
        raise InvalidArgument("the period ends in the future: --until must not be later than now")


def find_or_create_app(connection: Connection, name: str = APP_NAME) -> App:
    """Return the application for sample data. If there is none, create it with a token of the highest tier."""
    try:
        return find_app(connection, name)
    except UnknownObject:
        create_app(connection, name, tier="enterprise")
        return find_app(connection, name)


def as_json(event: SampleEvent) -> dict[str, Any]:
    """Return an event as a client sends it."""
    origin = event.origin
    environment = {"os": origin.os, "arch": origin.arch, "ci": origin.ci, "shell": origin.shell}
    return {
        "schema_version": SCHEMA_VERSION,
        "event_id": UUID(int=event.event_id),
        "timestamp": event.happened,
        "service": {
            "name": APP_NAME,
            "version": origin.version,
            "language": LANGUAGE,
            "language_version": LANGUAGE_VERSION,
        },
        "user_id": origin.user_id,
        "session_id": event.session_id,
        "environment": environment,
        "event": {"type": event.type, "category": event.category, "data": msgspec.Raw(event.data.encode())},
        "metadata": {
            "sdk_version": SDK_VERSION,
            "transmission_timestamp": event.received,
            "batch_size": 1,
            "retry_count": 0,
        },
    }


def store_events(
    connection: Connection,
    app: App,
    events: Iterable[SampleEvent],
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Store events with COPY, as if a server had received them when ``received_at`` says.

    Events that are stored already, and events of erased users, are not stored. The events need not fit into memory.
    While one part of them is stored, the next one is generated.

    :param connection: used in another thread.
    :param progress: called with the number of events of each part.
    :return: the number of events that were stored.
    """
    rows(connection, _CREATE_TABLE)
    stored = 0
    with ThreadPoolExecutor(1) as executor:
        pending = executor.submit(int)
        for chunk in _chunks(events):
            encoded = _encode(chunk)
            stored += pending.result()
            pending = executor.submit(_store_chunk, connection, app, chunk, encoded)
            progress(len(chunk))
        return stored + pending.result()


def _chunks(events: Iterable[SampleEvent]) -> Iterator[list[SampleEvent]]:
    iterator = iter(events)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _store_chunk(connection: Connection, app: App, chunk: list[SampleEvent], encoded: list[bytes]) -> int:
    """Store events in one transaction, and return how many were stored. Repeat it after a deadlock."""
    erased = _erased_users(connection, app, chunk)
    if erased:
        encoded = [row for row, event in zip(encoded, chunk, strict=True) if event.origin.user_id not in erased]
    data = b"".join((_HEADER, *encoded, _END))
    while True:
        with suppress(Collision), transaction(connection):
            copy_in(connection, _COPY, io.BytesIO(data))
            return int(value(connection, _INSERT, *_constants(app)))


def _constants(app: App) -> tuple[str, ...]:
    app_id, org_id = app.key
    return org_id, app_id, SCHEMA_VERSION, APP_NAME, LANGUAGE, LANGUAGE_VERSION, SDK_VERSION


def _erased_users(connection: Connection, app: App, chunk: list[SampleEvent]) -> set[str]:
    erased = ErasedUsers.from_rows(rows(connection, LOAD_ERASED_USERS))
    return erased.intersection((app.org_id.int, app.app_id.int), {event.origin.user_id for event in chunk})


def _encode(chunk: list[SampleEvent]) -> list[bytes]:
    """Return the events as rows of the binary format of COPY."""
    origins: dict[int, bytes] = {}
    kinds: dict[tuple[str, str | None], bytes] = {}
    encoded = []
    for event in chunk:
        origin = event.origin
        # Origins are not compared: that would take longer than encoding them.
        if (of_origin := origins.get(id(origin))) is None:
            of_origin = origins[id(origin)] = _encode_origin(origin)
        kind = event.type, event.category
        if (of_kind := kinds.get(kind)) is None:
            of_kind = kinds[kind] = _text(event.type) + _text(event.category)
        encoded.append(_encode_event(event, of_origin, of_kind))
    return encoded


def _encode_event(event: SampleEvent, origin: bytes, kind: bytes) -> bytes:
    session, data = event.session_id.encode(), event.data.encode()
    times = event.timestamp - _POSTGRES_EPOCH, event.received_at - _POSTGRES_EPOCH
    first = _FIRST_COLUMNS.pack(_COLUMNS, 16, event.event_id.to_bytes(16, "big"), 8, times[0], 8, times[1])
    return b"".join(
        (
            first,
            origin,
            len(session).to_bytes(4, "big"),
            session,
            kind,
            (len(data) + 1).to_bytes(4, "big"),
            _JSONB_VERSION,
            data,
        )
    )


def _encode_origin(origin: Origin) -> bytes:
    ci = b"\0\0\0\1" + (b"\1" if origin.ci else b"\0")
    texts = map(_text, (origin.version, origin.user_id, origin.os, origin.arch))
    return b"".join((*texts, ci, _text(origin.shell)))


def _text(text: str | None) -> bytes:
    """Return a text or NULL as a column."""
    if text is None:
        return _NULL
    encoded = text.encode()
    return len(encoded).to_bytes(4, "big") + encoded
