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
from tkserver.storage.erased_users import LOAD_ERASED_USERS, ErasedUsers
from tkserver.storage.errors import Collision, DuplicateKey

APP_NAME = "sample-cli"
"""Name of the application, and ``service.name`` of its events."""

LANGUAGE, LANGUAGE_VERSION, SCHEMA_VERSION, SDK_VERSION = "rust", "1.85.0", "1.0.0", "0.3.0"

MAX_AGE = timedelta(days=90)
"""Statistics ignore the timestamps of events that are older when the server receives them."""

CHUNK = 20_000
"""Events that are stored in one transaction."""

_COLUMNS = (
    *("event_id", "timestamp", "received_at", "transmission_timestamp"),
    *("org_id", "app_id", "schema_version", "service_name", "service_language", "service_language_version"),
    *("sdk_version", "batch_size", "retry_count"),
    *("service_version", "user_id", "os", "arch", "ci", "shell"),
    *("session_id", "event_type", "event_category", "event_data"),
)
"""Columns of ``events`` in the order in which they are written."""

_LIST = ", ".join(_COLUMNS)

_COPY = f"COPY events ({_LIST}) FROM STDIN (FORMAT binary)"

_CREATE_TABLE = f"CREATE TEMPORARY TABLE demo_events ON COMMIT DROP AS SELECT {_LIST} FROM events WITH NO DATA"
_COPY_TO_TABLE = "COPY pg_temp.demo_events FROM STDIN (FORMAT binary)"
_INSERT_NEW = f"""
WITH stored AS (
    INSERT INTO events ({_LIST}) SELECT {_LIST} FROM pg_temp.demo_events
    ON CONFLICT (event_id) DO NOTHING RETURNING true
)
SELECT count(*) FROM stored
"""

# The binary format of COPY: https://www.postgresql.org/docs/current/sql-copy.html
_HEADER, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_FIRST_COLUMNS = struct.Struct(">hi16siqiqiq")
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
    """Check that the timestamps of a population are recent enough to be sent to a server, in the next twelve hours.

    :raise InvalidArgument: if they are too old, or in the future.
    """
    if population.until - timedelta(days=population.parameters.days) < now - MAX_AGE:
        raise InvalidArgument(
            f"a server treats the timestamps of events that are more than {MAX_AGE.days} days old as wrong:"
            f" choose a period within the last {MAX_AGE.days} days, or store the events with --direct"
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


class DirectStorage:
    """Stores events with COPY, as if a server had received them when ``received_at`` says.

    Events that are stored already, and events of erased users, are not stored.

    :param connection: used in another thread.
    """

    def __init__(self, connection: Connection, app: App) -> None:
        self._connection = connection
        self._app = app
        self._constants = _encode_constants(app)
        self._none_stored_before = True

    def store(self, events: Iterable[SampleEvent], progress: Callable[[int], object] = lambda _: None) -> int:
        """Store events, which need not fit into memory. One part is stored while the next one is generated.

        :param progress: called with the number of events of each part.
        :return: the number of events that were stored.
        """
        stored = 0
        with ThreadPoolExecutor(1) as executor:
            pending = executor.submit(int)
            for chunk in _chunks(events):
                encoded = _encode(chunk, self._constants)
                stored += pending.result()
                pending = executor.submit(self._store_chunk, chunk, encoded)
                progress(len(chunk))
            return stored + pending.result()

    def _store_chunk(self, chunk: list[SampleEvent], encoded: list[bytes]) -> int:
        """Store events in one transaction, and return how many were stored."""
        erased = self._erased_users(chunk)
        if erased:
            rows_of_users = zip(encoded, (event.origin.user_id for event in chunk), strict=True)
            encoded = [row for row, user_id in rows_of_users if user_id not in erased]
        data = b"".join((_HEADER, *encoded, _END))
        # COPY cannot skip events that are stored already. A temporary table makes that possible, at twice the cost.
        if self._none_stored_before:
            with suppress(DuplicateKey):
                copy_in(self._connection, _COPY, io.BytesIO(data))
                return len(encoded)
            self._none_stored_before = False
        return self._store_new(data)

    def _store_new(self, data: bytes) -> int:
        """Store those events that are not stored yet, and return their number. Repeat this after a deadlock."""
        while True:
            with suppress(Collision), transaction(self._connection):
                rows(self._connection, _CREATE_TABLE)
                copy_in(self._connection, _COPY_TO_TABLE, io.BytesIO(data))
                return int(value(self._connection, _INSERT_NEW))

    def _erased_users(self, chunk: list[SampleEvent]) -> set[str]:
        erased = ErasedUsers.from_rows(rows(self._connection, LOAD_ERASED_USERS))
        application = self._app.org_id.int, self._app.app_id.int
        return erased.intersection(application, {event.origin.user_id for event in chunk})


def _chunks(events: Iterable[SampleEvent]) -> Iterator[list[SampleEvent]]:
    iterator = iter(events)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _encode(chunk: list[SampleEvent], constants: bytes) -> list[bytes]:
    """Return the events as rows of the binary format of COPY."""
    origins: dict[int, bytes] = {}
    kinds: dict[tuple[str, str | None], bytes] = {}
    encoded = []
    for event in chunk:
        origin = event.origin
        # Origins are found by identity: comparing them would take longer than encoding them again.
        if (of_origin := origins.get(id(origin))) is None:
            of_origin = origins[id(origin)] = constants + _encode_origin(origin)
        kind = event.type, event.category
        if (of_kind := kinds.get(kind)) is None:
            of_kind = kinds[kind] = _text(event.type) + _text(event.category)
        encoded.append(_encode_event(event, of_origin, of_kind))
    return encoded


def _encode_event(event: SampleEvent, origin: bytes, kind: bytes) -> bytes:
    happened, received = event.timestamp - _POSTGRES_EPOCH, event.received_at - _POSTGRES_EPOCH
    event_id = event.event_id.to_bytes(16, "big")
    first = _FIRST_COLUMNS.pack(len(_COLUMNS), 16, event_id, 8, happened, 8, received, 8, received)
    data = _JSONB_VERSION + event.data.encode()
    return b"".join((first, origin, _text(event.session_id), kind, len(data).to_bytes(4, "big"), data))


def _encode_constants(app: App) -> bytes:
    """Return the columns that have the same values for all events."""
    ids = (_column(app.org_id.bytes), _column(app.app_id.bytes))
    texts = map(_text, (SCHEMA_VERSION, APP_NAME, LANGUAGE, LANGUAGE_VERSION, SDK_VERSION))
    return b"".join((*ids, *texts, _column(bytes((0, 0, 0, 1))), _column(bytes(4))))


def _encode_origin(origin: Origin) -> bytes:
    texts = map(_text, (origin.version, origin.user_id, origin.os, origin.arch))
    return b"".join((*texts, _column(bytes([origin.ci])), _text(origin.shell)))


def _text(text: str | None) -> bytes:
    return _NULL if text is None else _column(text.encode())


def _column(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content
