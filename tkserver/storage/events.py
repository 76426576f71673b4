"""Events as they are sent to the database, and the outcome of storing them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from typing import NamedTuple
from uuid import UUID

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from tkserver.storage.errors import StorageError
from tkserver.storage.quarantine import InvalidEvent, Received, invalid_events, size_in_memory
from tkserver.storage.quota import Allowance
from tkserver.wire.api_errors import EVENT_ID_CONFLICT, INVALID_SCHEMA, EventError
from tkserver.wire.batch import Steps, run_steps
from tkserver.wire.event import Environment, Event, Service
from tkserver.wire.sdk import name_and_version


class Row(NamedTuple):
    """An event as it is sent to the database: JSON arrays in the order that the store statement expects.

    :ivar origin: the fields that most events of a batch share (program, user, environment), so that a batch contains
        them once. The closing bracket is missing, because the events are the last element.
    :ivar values: the other fields.
    """

    event_id: UUID
    user_id: str
    origin: bytes
    values: bytes


class Source(Struct, frozen=True):
    """The request that contained the events of a submission.

    :ivar sdk: the ``X-SDK-Version`` header, if sent.
    :ivar texts: the JSON texts of all events of the batch; ``None`` if the quarantine does not keep texts.
    """

    request_id: str = "-"
    sdk: str | None = None
    texts: Sequence[bytes | Raw] | None = None


class Submission(Struct, frozen=True):
    """The events of one request that are to be stored or quarantined.

    :ivar nonce: ``None`` if the request has none.
    :ivar sent_at: the timestamp of the request, in seconds of Unix time.
    :ivar rows: the valid events, by the index in the batch.
    :ivar has_quota: true if the application has a monthly quota.
    :ivar invalid: the invalid events, by the index in the batch.
    """

    org_id: UUID
    app_id: UUID
    nonce: str | None
    sent_at: int
    rows: dict[int, Row]
    has_quota: bool = False
    invalid: dict[int, InvalidEvent] = {}
    source: Source = Source()

    @classmethod
    def from_events(
        cls,
        org_id: UUID,
        app_id: UUID,
        nonce: str | None,
        events: Mapping[int, Event],
        *,
        sent_at: int = 0,
        has_quota: bool = False,
    ) -> Submission:
        """Encode events for the database.

        :param events: by their index in the batch; at least one.
        """
        return cls(org_id, app_id, nonce, sent_at, run_steps(encode_rows(events)), has_quota)

    @property
    def application(self) -> tuple[int, int]:
        """A dictionary key for the application. UUIDs are slower keys, because Python code hashes them."""
        return self.org_id.int, self.app_id.int

    @property
    def bytes(self) -> int:
        """The approximate size in memory."""
        size = sum(len(row.origin) + len(row.values) for row in self.rows.values())
        return size + size_in_memory(self.invalid.values()) if self.invalid else size

    @property
    def size(self) -> int:
        """The number of events, including invalid ones."""
        return len(self.rows) + len(self.invalid)

    @property
    def received(self) -> Received:
        """The invalid events and their source, for the quarantine."""
        return Received(self.source.request_id, *name_and_version(self.source.sdk), self.invalid)

    def without(self, indexes: Collection[int]) -> Submission:
        """Return the submission without the events at these indexes."""
        if not indexes:
            return self
        return replace(
            self,
            rows={index: row for index, row in self.rows.items() if index not in indexes},
            invalid={index: event for index, event in self.invalid.items() if index not in indexes},
        )

    def refused(self, outcome: Outcome) -> Submission:
        """Return a submission that quarantines the events that the database has refused.

        It uses the nonce unless a part of the submission was stored, so that the nonce is used already.
        """
        invalid = run_steps(invalid_events(outcome.errors(self.rows), self.source.texts))
        nonce = None if outcome.stores_any_of(self) else self.nonce
        return replace(self, nonce=nonce, rows={}, invalid=invalid)


class Outcome(Struct, frozen=True):
    """The outcome of a committed submission.

    The sets contain indexes of events in the batch. An event can be in several sets.

    :ivar nonce_reused: true if nothing was stored because another request has used the nonce.
    :ivar duplicates: events that this application has sent before, in this batch or in another one.
    :ivar conflicts: events whose id belongs to another application.
    :ivar unstorable: events that the database does not accept.
    :ivar over_quota: the allowance that the submission exceeds, so that nothing was stored; otherwise ``None``.
    :ivar erased: events that are not stored, or were deleted again, because their users are erased.
    :ivar problem: an error after the commit. The response must be an error, although the events are stored.
    """

    nonce_reused: bool = False
    duplicates: frozenset[int] = frozenset()
    conflicts: frozenset[int] = frozenset()
    unstorable: frozenset[int] = frozenset()
    over_quota: Allowance | None = None
    erased: frozenset[int] = frozenset()
    problem: StorageError | None = None

    @property
    def nothing_stored(self) -> bool:
        """True if the whole submission was refused, including its invalid events."""
        return self.nonce_reused or self.over_quota is not None

    @property
    def refused(self) -> frozenset[int]:
        """Events that the database has refused."""
        return self.conflicts | self.unstorable

    def errors(self, rows: Mapping[int, Row]) -> list[EventError]:
        """Return the errors of the events that the database has refused.

        :param rows: of the submission.
        """
        reasons = {
            **dict.fromkeys(self.conflicts, (EVENT_ID_CONFLICT, "event_id: belongs to another application")),
            **dict.fromkeys(self.unstorable, (INVALID_SCHEMA, "event.data: cannot be stored")),
        }
        return [EventError(index, rows[index].event_id, *reason) for index, reason in reasons.items()]

    def stores_any_of(self, submission: Submission) -> bool:
        """Return true if at least one event is stored or quarantined now, and therefore also the nonce."""
        if self.nothing_stored:
            return False
        return bool(submission.invalid) or len(submission.rows) > len(self.refused)

    def newly_stored(self, submission: Submission) -> int:
        """Return the number of events of the submission that were not stored before."""
        if self.nothing_stored:
            return 0
        return len(submission.rows) - len(self.duplicates) - len(self.conflicts) - len(self.unstorable)

    def following(self, previous: Outcome) -> Outcome:
        """Return the outcome of a submission whose events were refused by the database and then quarantined.

        :param previous: the outcome of the first commit. This outcome is that of the quarantine.
        """
        return replace(
            previous,
            nonce_reused=self.nonce_reused,
            erased=previous.erased | self.erased,
            problem=previous.problem or self.problem,
        )

    def merged_with(self, other: Outcome) -> Outcome:
        """Return the outcome of two halves of a submission."""
        return Outcome(
            nonce_reused=self.nonce_reused or other.nonce_reused,
            duplicates=self.duplicates | other.duplicates,
            conflicts=self.conflicts | other.conflicts,
            unstorable=self.unstorable | other.unstorable,
        )


ALL_STORED = Outcome()
"""Every event was stored for the first time."""


_STEP_BYTES = 131_072
_STEP_ROW = 4096
"""Bytes of data that take as much time as an event, in addition to its own data."""


def encode_rows(events: Mapping[int, Event]) -> Steps[dict[int, Row]]:
    """Encode events for the database, in steps.

    :param events: by their index in the batch.
    :return: rows by the same index.
    """
    origins: dict[Origin, bytes] = {}
    rows: dict[int, Row] = {}
    handled = 0
    for index, event in events.items():
        row = rows[index] = _row(event, origins)
        handled += len(row.values) + _STEP_ROW
        if handled >= _STEP_BYTES:
            handled = 0
            yield
    return rows


Origin = tuple[str, Service, str, "str | None", Environment, str]


def _row(event: Event, origins: dict[Origin, bytes]) -> Row:
    """
    :param origins: the encoded origins of this batch. A new one is added.
    """
    occurrence, metadata = event.event, event.metadata
    origin = (
        event.schema_version,
        event.service,
        event.user_id,
        event.session_id,
        event.environment,
        metadata.sdk_version,
    )
    encoded = origins.get(origin)
    if encoded is None:
        encoded = origins[origin] = _encode_origin(*origin)
    values = (
        event.event_id,
        _utc(event.timestamp),
        occurrence.type,
        occurrence.category,
        occurrence.data,
        _utc(metadata.transmission_timestamp),
        metadata.batch_size,
        metadata.retry_count,
    )
    return Row(event.event_id, event.user_id, encoded, msgspec.json.encode(values))


def _encode_origin(
    schema_version: str,
    service: Service,
    user_id: str,
    session_id: str | None,
    environment: Environment,
    sdk_version: str,
) -> bytes:
    values = (
        schema_version,
        service.name,
        service.version,
        service.language,
        service.language_version,
        user_id,
        session_id,
        environment.os,
        environment.os_version,
        environment.arch,
        environment.ci,
        environment.shell,
        sdk_version,
    )
    return msgspec.json.encode(values)[:-1]


def _utc(time: datetime) -> datetime:
    """Return a time in UTC: PostgreSQL rejects offsets of 16 hours and more, which RFC 3339 allows."""
    return time if time.tzinfo is timezone.utc else time.astimezone(timezone.utc)
