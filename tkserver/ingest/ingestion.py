"""Ingestion of one request: verify it, read its events, and store or quarantine them."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from tkserver.ingest.committer import Committer
from tkserver.ingest.ledger import Ledger
from tkserver.ingest.scheduler import FairScheduler
from tkserver.ingest.verification import IngestRequest, VerificationState, VerifiedRequest, Verifier
from tkserver.storage.caches import LastUsedTimes
from tkserver.storage.events import Outcome, Row, Source, Submission, encode_rows
from tkserver.storage.quarantine import InvalidEvent, invalid_events
from tkserver.storage.quota import Allowance
from tkserver.wire.api_errors import (
    AllEventsRejected,
    ApiError,
    DoNotTrack,
    EventError,
    NonceReused,
    QuotaExceeded,
)
from tkserver.wire.batch import Batch, Steps, count_events, decode_body, read_batch, run_steps

T = TypeVar("T")

TINY_BODY = 2048
"""Bytes. The first step of the work on such a body is always done immediately, and is usually the only one."""

SMALL_BODY = 65_536
"""Bytes. Small bodies do not wait for large ones of the same application."""


class IngestResult(Struct, frozen=True):
    """The result of a batch of which at least one event was accepted.

    :ivar accepted: the number of events that are stored now, including ``duplicates``.
    :ivar duplicates: the number of events that were stored before.
    :ivar errors: the errors of all other events, by their index.
    :ivar quarantined: the number of these events that are in quarantine. The others are of erased users.
    :ivar deletes_only_accepted: true if the client deletes a batch only if at least one event was accepted. Such a
        client would send invalid events forever, so that the response counts them as accepted.
    """

    accepted: int
    duplicates: int
    errors: tuple[EventError, ...] = ()
    quarantined: int = 0
    deletes_only_accepted: bool = False


class Ingestion:
    """Handles ingest requests.

    :param ledger: counts events when they are received; the committer counts the outcomes of those that are submitted.
    :param scheduler: runs long computations.
    :param max_body_bytes: the maximum size of a body after decompression.
    :param keeps_texts: true if the quarantine contains the texts of events.
    """

    def __init__(
        self,
        verifier: Verifier,
        scheduler: FairScheduler,
        committer: Committer,
        last_used: LastUsedTimes,
        ledger: Ledger,
        max_body_bytes: int,
        *,
        keeps_texts: bool = True,
    ) -> None:
        self._verifier = verifier
        self._scheduler = scheduler
        self._committer = committer
        self._last_used = last_used
        self._ledger = ledger
        self._max_body_bytes = max_body_bytes
        self._keeps_texts = keeps_texts

    def identify(self, request: IngestRequest) -> Deferred[VerificationState]:
        """Check the headers of a request.

        :raise ApiError: if its body need not be read.
        :raise StorageError: if the credential cannot be looked up.
        """
        return self._verifier.identify(request)

    async def ingest(self, identified: VerificationState, body: bytes) -> IngestResult:
        """Verify a request, store its valid events, and quarantine the others.

        :param identified: the result of :meth:`identify`.
        :param body: as received, still compressed if it was sent so.
        :raise ApiError: if the whole request is rejected, or all its events are.
        :raise DoNotTrack: if the client sent a do-not-track header. The events are counted, and not stored.
        :raise StorageError: if the events were not stored. A later attempt may succeed.
        """
        request = identified.request
        try:
            verified = await self._verifier.verify(identified, body)
        except DoNotTrack:
            self._ledger.skip(await self._run(identified, body, self._count(request, body)))
            raise
        credential = verified.credential
        self._last_used.record(credential)
        batch, submission = await self._run(identified, body, self._read(verified))
        self._ledger.receive(batch)  # from here to the queue, nothing can be cancelled
        record = request.record
        record.received = batch.size
        result = _result(batch, submission.rows, await self._committer.submit(submission))
        record.accepted, record.duplicates, record.rejected = result.accepted, result.duplicates, len(result.errors)
        if not result.errors:
            return result
        record.quarantined = result.quarantined
        if verified.nonce is not None and "authorization" not in request.headers:
            return replace(result, deletes_only_accepted=True)
        if not result.accepted:
            raise _all_rejected(result)
        return result

    async def ingest_own(self, org_id: UUID, app_id: UUID, body: bytes) -> IngestResult:
        """Store a batch that the server itself has created, as if a program had sent it. It needs no credentials.

        :param body: a short batch of valid events.
        :raise ApiError: if the events were not stored, for example because of the quota.
        :raise StorageError: if the events were not stored. A later attempt may succeed.
        """
        batch = run_steps(read_batch(body))
        rows = run_steps(encode_rows(batch.events))
        # Whether the application has a quota is not known here. If it has none, this only takes another path.
        submission = Submission(org_id, app_id, None, 0, rows, has_quota=True)
        self._ledger.receive(batch)
        return _result(batch, rows, await self._committer.submit(submission))

    async def _run(self, identified: VerificationState, body: bytes, steps: Steps[T]) -> T:
        """Run a computation whose cost depends on the length of the body, and return its result."""
        if len(body) <= TINY_BODY:
            try:
                next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
        application = identified.candidates[0].application
        return await self._scheduler.run(application, steps, small=len(body) <= SMALL_BODY)

    def _read(self, verified: VerifiedRequest) -> Steps[tuple[Batch, Submission]]:
        """Return the batch, and its events as a submission."""
        request, headers = verified.request, verified.request.headers
        body = yield from self._decode(request, verified.body)
        batch = yield from read_batch(body, declared_size=headers.get("x-batch-size"))
        rows = yield from encode_rows(batch.events)
        texts = batch.texts if self._keeps_texts else None
        invalid = (yield from invalid_events(batch.errors, texts)) if batch.errors else _NONE
        return batch, Submission(
            verified.org_id,
            verified.app_id,
            verified.nonce,
            int(headers["x-timestamp"]),
            rows,
            verified.credential.has_quota,
            invalid,
            Source(request.record.request_id, headers.get("x-sdk-version"), texts),
        )

    def _decode(self, request: IngestRequest, body: bytes) -> Steps[bytes]:
        return decode_body(
            body,
            content_type=request.headers.get("content-type"),
            content_encoding=request.headers.get("content-encoding"),
            max_bytes=self._max_body_bytes,
        )

    def _count(self, request: IngestRequest, body: bytes) -> Steps[int]:
        """Return the number of events in the body, or 0 if the body cannot be decoded."""
        try:
            decoded = yield from self._decode(request, body)
        except ApiError:
            return 0
        return (yield from count_events(decoded))


_NONE: dict[int, InvalidEvent] = {}


def _result(batch: Batch, rows: dict[int, Row], outcome: Outcome) -> IngestResult:
    if outcome.problem is not None:
        raise outcome.problem
    if outcome.nonce_reused:
        raise NonceReused(
            "this X-Nonce was used before, or X-Timestamp is too old to find out: sign each request with a new nonce"
            " and the current time"
        )
    if outcome.over_quota is not None:
        raise _quota_exceeded(outcome.over_quota)
    errors = batch.errors
    if outcome.refused:
        errors = tuple(sorted((*errors, *outcome.errors(rows)), key=lambda error: error.index))
    quarantined = sum(error.index not in outcome.erased for error in errors)
    return IngestResult(len(rows) - len(outcome.refused), len(outcome.duplicates), errors, quarantined)


def _quota_exceeded(allowance: Allowance) -> QuotaExceeded:
    quota = f"{allowance.quota} {'event' if allowance.quota == 1 else 'events'}"
    left = f"{allowance.left} {'is' if allowance.left == 1 else 'are'} left"
    return QuotaExceeded(
        f"the monthly quota of this application is {quota}, of which {left}, and this batch has more new events; the"
        f" next month begins at {allowance.resets_at:%Y-%m-%dT%H:%M:%SZ}",
        retry_after=allowance.retry_after,
    )


def _all_rejected(result: IngestResult) -> AllEventsRejected:
    message = f"all events were rejected; the first error is: {result.errors[0].message}"
    return AllEventsRejected(message, result.errors, result.quarantined)
