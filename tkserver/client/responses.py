"""Parsing of responses into results and exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timezone
from email.utils import parsedate_to_datetime

import msgspec
from msgspec import Struct

from tkserver.wire.api_errors import AllEventsRejected, EventError, RateLimited, RequestTimeout

UNREACHABLE = "unreachable"
UNEXPECTED_ANSWER = "unexpected_answer"


@dataclass(frozen=True)
class Result:
    """The result of sending events.

    :ivar accepted: the number of events that are stored, including ``duplicates``.
    :ivar rejected: the number of events that are permanently rejected.
    :ivar duplicates: the number of events that were already stored.
    :ivar errors: one for each rejected event.
    """

    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    errors: tuple[EventError, ...] = ()

    @property
    def events(self) -> int:
        """Number of events for which the server has responded."""
        return self.accepted + self.rejected

    def followed_by(self, other: Result) -> Result:
        """Return the sum of both results, where ``other`` is the result of the events that follow."""
        shifted = tuple(msgspec.structs.replace(error, index=error.index + self.events) for error in other.errors)
        return Result(
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.duplicates + other.duplicates,
            self.errors + shifted,
        )


@dataclass(eq=False)
class SendError(Exception):
    """A batch was not accepted, for a reason that does not depend on a single event.

    :ivar code: the ``error.code`` of the response, ``unreachable`` if there was no response, or ``unexpected_answer``
        if the response is not from a tkserver.
    :ivar status: the HTTP status, or ``None`` if there was no response.
    :ivar retry_after: the number of seconds after which the server permits another attempt, if it sent one.
    :ivar so_far: the result of the batches that were sent before this one.
    """

    code: str
    message: str
    status: int | None = None
    retry_after: float | None = None
    so_far: Result = field(default_factory=Result)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class NotNow(SendError):
    """A temporary error: another attempt with the same events can succeed.

    Examples are rate limits, an overloaded server, and network errors.
    """


class Refused(SendError):
    """A permanent error, such as wrong credentials: another attempt fails too."""


class _SuccessBody(Struct):
    accepted: int
    rejected: int = 0
    duplicates: int = 0
    errors: list[EventError] = []


class _ErrorDetail(Struct):
    code: str
    message: str = ""


class _ErrorBody(Struct):
    error: _ErrorDetail
    retry_after: float | None = None
    errors: list[EventError] = []


def parse_response(status: int, retry_after: str | None, body: bytes, now: float) -> Result:
    """Return the result that a response contains.

    :param retry_after: the ``Retry-After`` header, if there is one.
    :param now: Unix time, for a header that contains a date.
    :raise SendError: if the whole batch was not accepted, except if all of its events are invalid.
    """
    if status in (200, 207):
        return _parse_success(status, body)
    try:
        content = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = _ErrorBody(
            _ErrorDetail(UNEXPECTED_ANSWER, f"HTTP status {status} without an error message of tkserver")
        )
    if content.error.code == AllEventsRejected.code:
        return Result(rejected=len(content.errors), errors=tuple(content.errors))
    is_temporary = status >= 500 or status in (RequestTimeout.status, RateLimited.status)
    seconds = content.retry_after if content.retry_after is not None else _parse_retry_after(retry_after, now)
    raise (NotNow if is_temporary else Refused)(content.error.code, content.error.message, status, seconds)


def unreachable(problem: str) -> NotNow:
    """Return the error of a request without a response. The server may have received the request."""
    return NotNow(UNREACHABLE, problem)


def with_result(error: SendError, so_far: Result) -> SendError:
    """Return the same error, with the result of the earlier batches."""
    return replace(error, so_far=so_far)


def _parse_success(status: int, body: bytes) -> Result:
    try:
        content = msgspec.json.decode(body, type=_SuccessBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(UNEXPECTED_ANSWER, "the response is not from a tkserver", status) from None
    return Result(content.accepted, content.rejected, content.duplicates, tuple(content.errors))


def _parse_retry_after(header: str | None, now: float) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which proxies may send as a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, then.replace(tzinfo=then.tzinfo or timezone.utc).timestamp() - now)
