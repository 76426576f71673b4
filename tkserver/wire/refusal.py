"""Every way in which a request is refused, as typed errors.

Handlers raise these; :mod:`tkserver.wire.answer` alone turns them into answers. The message of a refusal goes to
the client, so it says what to do and never holds what a stranger should not learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

RETRY_AFTER = 5
"""Seconds after which a client may try again when the server cannot say better."""


class Refusal(Exception):
    """A request that is answered with an error: an HTTP ``status`` and a stable, machine-readable ``code``."""

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        """
        :param message: for a human who reads the client's log.
        :param retry_after: whole seconds; every 429 and 503 has it.
        """
        super().__init__(message)
        self.message = message
        if retry_after is None and self.status in (429, 503):
            retry_after = RETRY_AFTER
        self.retry_after = retry_after


class NotFound(Refusal):
    status, code = 404, "not_found"


class MethodNotAllowed(Refusal):
    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class BadRequest(Refusal):
    status, code = 400, "bad_request"


class RequestTimeout(Refusal):
    status, code = 408, "request_timeout"


class PayloadTooLarge(Refusal):
    status, code = 413, "payload_too_large"


class InvalidId(Refusal):
    status, code = 400, "invalid_id"


class Unauthorized(Refusal):
    """Any 401: the client did not prove who it is."""

    status = 401


class MissingSignature(Unauthorized):
    code = "missing_signature"


class MissingTimestamp(Unauthorized):
    code = "missing_timestamp"


class MissingAuthorization(Unauthorized):
    code = "missing_authorization"


class InvalidToken(Unauthorized):
    code = "invalid_token"


class InvalidSignature(Unauthorized):
    code = "invalid_signature"


class InvalidTimestamp(Refusal):
    status, code = 400, "invalid_timestamp"


class TimestampOutOfWindow(Refusal):
    status, code = 403, "timestamp_out_of_window"


class InvalidNonce(Refusal):
    status, code = 400, "invalid_nonce"


class TokenMismatch(Refusal):
    status, code = 403, "token_mismatch"


class UnsupportedMediaType(Refusal):
    status, code = 415, "unsupported_media_type"


class UnsupportedEncoding(Refusal):
    status, code = 415, "unsupported_encoding"


class InvalidEncoding(Refusal):
    status, code = 400, "invalid_encoding"


class InvalidJson(Refusal):
    status, code = 400, "invalid_json"


class EmptyBatch(Refusal):
    status, code = 400, "empty_batch"


class BatchTooLarge(Refusal):
    status, code = 400, "batch_too_large"


class BatchSizeMismatch(Refusal):
    status, code = 400, "batch_size_mismatch"


INVALID_SCHEMA = "invalid_schema"
EVENT_ID_CONFLICT = "event_id_conflict"

EVENT_CODES = (INVALID_SCHEMA, "unsupported_schema", "event_too_large", EVENT_ID_CONFLICT)
"""Why one event is refused for ever."""


@dataclass(frozen=True)
class EventRefusal:
    """One event that is refused for ever.

    :ivar index: its place in the batch, from 0.
    :ivar event_id: the nil UUID where the event has none that parses.
    :ivar code: one of :data:`EVENT_CODES`.
    """

    index: int
    event_id: UUID
    code: str
    message: str


class AllEventsRejected(Refusal):
    status, code = 400, "all_events_rejected"

    def __init__(self, message: str, refusals: Sequence[EventRefusal]) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)


class RateLimited(Refusal):
    status, code = 429, "rate_limited"


class Overloaded(Refusal):
    status, code = 503, "overloaded"


class StorageUnavailable(Refusal):
    status, code = 503, "storage_unavailable"


class QuotaExceeded(Refusal):
    status, code = 429, "quota_exceeded"


class NonceReused(Refusal):
    status, code = 409, "nonce_reused"


class InternalError(Refusal):
    status, code = 500, "internal_error"


class DoNotTrack(Exception):
    """The client asked not to be tracked: its events are only counted, nothing is stored, the answer is 204."""
