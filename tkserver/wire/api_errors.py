"""The errors of the API. Each class has an HTTP status and an error code.

Handlers raise them, and :mod:`tkserver.web.http.response` turns them into responses. Clients receive the message, so
it says how to correct the request, and never contains secrets or details of the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar
from uuid import UUID

import msgspec
from msgspec import Struct

RETRY_AFTER = 5
"""Seconds after which a client may retry if the server has no better estimate."""


class ApiError(Exception):
    """A request that fails with an HTTP ``status`` and a stable, machine-readable ``code``."""

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        """
        :param message: an explanation for developers, without a final period.
        :param retry_after: in seconds. The default is :data:`RETRY_AFTER` if the status is 429 or 503.
        """
        super().__init__(message)
        self.message = message
        if retry_after is None and self.status in (429, 503):
            retry_after = RETRY_AFTER
        self.retry_after = retry_after


class NotFound(ApiError):
    status, code = 404, "not_found"


class MethodNotAllowed(ApiError):
    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, allowed: Sequence[str]) -> None:
        """
        :param allowed: the methods of the ``Allow`` header.
        """
        super().__init__(message)
        self.allowed = tuple(allowed)


class BadRequest(ApiError):
    status, code = 400, "bad_request"


class InvalidParameter(ApiError):
    status, code = 400, "invalid_parameter"


class MisdirectedRequest(ApiError):
    status, code = 421, "misdirected_request"


class RequestTimeout(ApiError):
    status, code = 408, "request_timeout"


class PayloadTooLarge(ApiError):
    status, code = 413, "payload_too_large"


class InvalidId(ApiError):
    status, code = 400, "invalid_id"


class Unauthorized(ApiError):
    """Any 401: the client is not authenticated."""

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


class InvalidTimestamp(ApiError):
    status, code = 400, "invalid_timestamp"


class TimestampOutOfWindow(ApiError):
    status, code = 403, "timestamp_out_of_window"


class InvalidNonce(ApiError):
    status, code = 400, "invalid_nonce"


class TokenMismatch(ApiError):
    status, code = 403, "token_mismatch"


class UnsupportedMediaType(ApiError):
    status, code = 415, "unsupported_media_type"


class UnsupportedEncoding(ApiError):
    status, code = 415, "unsupported_encoding"


class InvalidEncoding(ApiError):
    status, code = 400, "invalid_encoding"


class InvalidJson(ApiError):
    status, code = 400, "invalid_json"


class EmptyBatch(ApiError):
    status, code = 400, "empty_batch"


class BatchTooLarge(ApiError):
    status, code = 400, "batch_too_large"


class BatchSizeMismatch(ApiError):
    status, code = 400, "batch_size_mismatch"


INVALID_SCHEMA = "invalid_schema"
UNSUPPORTED_SCHEMA = "unsupported_schema"
EVENT_TOO_LARGE = "event_too_large"
EVENT_ID_CONFLICT = "event_id_conflict"

EVENT_CODES = (INVALID_SCHEMA, UNSUPPORTED_SCHEMA, EVENT_TOO_LARGE, EVENT_ID_CONFLICT)
"""The error codes of events that are rejected permanently."""


class EventError(Struct, frozen=True, gc=False):
    """An event that is rejected permanently.

    :ivar index: the position of the event in its batch, starting at 0.
    :ivar event_id: the nil UUID if the event has no valid id.
    :ivar code: one of :data:`EVENT_CODES`. Its name in JSON is ``error``.
    :ivar message: an explanation for developers. If a field is invalid, the message begins with its path.
    """

    index: int
    event_id: UUID
    code: str = msgspec.field(name="error")
    message: str = ""


class AllEventsRejected(ApiError):
    status, code = 400, "all_events_rejected"

    def __init__(self, message: str, errors: Sequence[EventError], quarantined: int = 0) -> None:
        """
        :param errors: one for each event, ordered by index.
        :param quarantined: the number of these events that are in quarantine.
        """
        super().__init__(message)
        self.errors = tuple(errors)
        self.quarantined = quarantined


class RateLimited(ApiError):
    status, code = 429, "rate_limited"


class Overloaded(ApiError):
    status, code = 503, "overloaded"


class StorageUnavailable(ApiError):
    status, code = 503, "storage_unavailable"


class QuotaExceeded(ApiError):
    status, code = 429, "quota_exceeded"


class NonceReused(ApiError):
    status, code = 409, "nonce_reused"


class InternalError(ApiError):
    status, code = 500, "internal_error"


class DoNotTrack(Exception):
    """The client sent a do-not-track header.

    Its events are counted but not stored, and the response is a 204.
    """
