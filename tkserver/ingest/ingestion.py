"""One request, told top to bottom: verify it, read its events, store them, answer."""

from __future__ import annotations

from tkserver.exchange import Exchange
from tkserver.ingest.committer import Committer
from tkserver.ingest.credentials import Usage
from tkserver.ingest.ledger import Ledger
from tkserver.ingest.verification import IngestRequest, Verifier
from tkserver.storage.events import Outcome, Submission
from tkserver.storage.quota import Allowance
from tkserver.wire import answer
from tkserver.wire.answer import Answer
from tkserver.wire.batch import Batch, count_events, read_batch
from tkserver.wire.media import decode_body
from tkserver.wire.refusal import (
    EVENT_ID_CONFLICT,
    INVALID_SCHEMA,
    AllEventsRejected,
    DoNotTrack,
    EventRefusal,
    NonceReused,
    QuotaExceeded,
    Refusal,
)


class Ingestion:
    """Takes requests in.

    :param ledger: where events are entered when they are received; what the committer takes, it settles.
    :param max_body_bytes: the most that a compressed body may inflate to.
    """

    def __init__(
        self, verifier: Verifier, committer: Committer, usage: Usage, ledger: Ledger, max_body_bytes: int
    ) -> None:
        self._verifier = verifier
        self._committer = committer
        self._usage = usage
        self._ledger = ledger
        self._max_body_bytes = max_body_bytes

    async def take(self, request: IngestRequest) -> Answer:
        """
        :raise Refusal: when the request is refused as a whole.
        :raise DoNotTrack: when the client asked for that: its events were counted, and nothing is stored.
        :raise StorageError: when its events could not be stored this time.
        """
        try:
            verified = await self._verifier.verify(request)
        except DoNotTrack:
            self._ledger.leave(self._count(request))
            raise
        self._usage.note(verified.credential)
        batch = read_batch(self._decode(request), declared_size=request.headers.get("x-batch-size"))
        self._ledger.receive(batch)
        exchange = request.exchange
        exchange.received = len(batch.events) + len(batch.refusals)
        if not batch.events:
            exchange.rejected = len(batch.refusals)
            raise _all_rejected(batch.refusals)
        metered = verified.credential.metered
        submission = Submission.of(verified.org_id, verified.app_id, verified.nonce, batch.events, metered=metered)
        return _answer(batch, await self._committer.submit(submission), exchange)

    def _decode(self, request: IngestRequest) -> bytes:
        return decode_body(
            request.body,
            content_type=request.headers.get("content-type"),
            content_encoding=request.headers.get("content-encoding"),
            max_bytes=self._max_body_bytes,
        )

    def _count(self, request: IngestRequest) -> int:
        """How many events a request has, as far as that can be known without a look at them."""
        try:
            return count_events(self._decode(request))
        except Refusal:
            return 0


def _answer(batch: Batch, outcome: Outcome, exchange: Exchange) -> Answer:
    if outcome.problem is not None:
        raise outcome.problem
    if outcome.nonce_reused:
        raise NonceReused("this X-Nonce was used before: sign each request with a new one")
    if outcome.over_quota is not None:
        raise _over(outcome.over_quota)
    refusals = (
        *batch.refusals,
        *_refusals(batch, outcome.conflicts, EVENT_ID_CONFLICT, "event_id: belongs to another application"),
        *_refusals(batch, outcome.unstorable, INVALID_SCHEMA, "event.data: cannot be stored"),
    )
    accepted = len(batch.events) - len(outcome.conflicts) - len(outcome.unstorable)
    duplicates = len(outcome.duplicates)
    exchange.accepted, exchange.duplicates, exchange.rejected = accepted, duplicates, len(refusals)
    if not accepted:
        raise _all_rejected(refusals)
    return answer.stored(accepted=accepted, duplicates=duplicates, refusals=refusals)


def _over(allowance: Allowance) -> QuotaExceeded:
    return QuotaExceeded(
        f"{allowance.left} of the {allowance.quota} events that this application may store in a month are left, and"
        f" this batch has more new ones: the next month begins at {allowance.resets_at:%Y-%m-%dT%H:%M:%SZ}",
        retry_after=allowance.retry_after,
    )


def _refusals(batch: Batch, places: frozenset[int], code: str, message: str) -> list[EventRefusal]:
    return [EventRefusal(place, batch.events[place].event_id, code, message) for place in places]


def _all_rejected(refusals: tuple[EventRefusal, ...]) -> AllEventsRejected:
    first = min(refusals, key=lambda refusal: refusal.index)
    return AllEventsRejected(f"every event was refused, the first for: {first.message}", refusals)
