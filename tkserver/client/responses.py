"""What the server answers, as results and exceptions. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timezone
from email.utils import parsedate_to_datetime
from uuid import UUID

import msgspec
from msgspec import Struct

TIMEOUT, RATE_LIMITED = 408, 429


class EventError(Struct, frozen=True):
    """One event that would be refused again for ever.

    :ivar index: its place among the events that were sent, from 0.
    :ivar event_id: the nil UUID where the event has none that parses.
    :ivar code: such as ``invalid_schema``.
    :ivar message: begins with the path of the field that is wrong, where one is.
    """

    index: int
    event_id: UUID
    code: str = msgspec.field(name="error")
    message: str = ""


@dataclass(frozen=True)
class Result:
    """What became of events that were sent.

    :ivar accepted: how many are stored, now or since earlier.
    :ivar rejected: how many never will be; ``errors`` says which and why.
    :ivar duplicates: how many of the accepted ones had been stored before.
    """

    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    errors: tuple[EventError, ...] = ()

    @property
    def events(self) -> int:
        """How many were answered."""
        return self.accepted + self.rejected

    def followed_by(self, other: Result) -> Result:
        """Both, where the other is of the events that came next."""
        moved = tuple(msgspec.structs.replace(error, index=error.index + self.events) for error in other.errors)
        return Result(
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.duplicates + other.duplicates,
            self.errors + moved,
        )


@dataclass(eq=False)
class SendError(Exception):
    """Events that were not taken, and not for any fault of a single one.

    :ivar code: the server's ``error.code``; ``unreachable`` where there was no answer, ``unexpected_answer`` where it
        was not the server's.
    :ivar status: HTTP's, or ``None`` where there was no answer.
    :ivar retry_after: seconds after which to try again, where the server said so.
    :ivar so_far: what became of the batches before this one.
    """

    code: str
    message: str
    status: int | None = None
    retry_after: float | None = None
    so_far: Result = field(default_factory=Result)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class NotNow(SendError):
    """It may pass later, with the same events: too many requests, the server or the network is having a bad time."""


class Refused(SendError):
    """It would not pass later either: wrong credentials, for one."""


class _Counts(Struct):
    accepted: int
    rejected: int = 0
    duplicates: int = 0
    errors: list[EventError] = []


class _Error(Struct):
    code: str
    message: str = ""


class _Refusal(Struct):
    error: _Error
    retry_after: float | None = None
    errors: list[EventError] = []


def result_of(status: int, retry_after: str | None, body: bytes, now: float) -> Result:
    """Read an answer.

    :param retry_after: the header ``Retry-After``.
    :param now: seconds since 1970, for a header that is a date.
    :raise SendError: when it is not one about the events, each by itself.
    """
    if status in (200, 207):
        return _stored(status, body)
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        refusal = _Refusal(_Error("unexpected_answer", f"HTTP status {status}, and no message of the server's"))
    if refusal.error.code == "all_events_rejected":
        return Result(rejected=len(refusal.errors), errors=tuple(refusal.errors))
    kind = NotNow if status >= 500 or status in (TIMEOUT, RATE_LIMITED) else Refused
    wait = refusal.retry_after if refusal.retry_after is not None else _seconds(retry_after, now)
    raise kind(refusal.error.code, refusal.error.message, status, wait)


def unreachable(problem: str) -> NotNow:
    """For a request that has no answer: whether it arrived is not known."""
    return NotNow("unreachable", problem)


def with_result(error: SendError, so_far: Result) -> SendError:
    """The same error, with what became of the batches before."""
    return replace(error, so_far=so_far)


def _stored(status: int, body: bytes) -> Result:
    try:
        counts = msgspec.json.decode(body, type=_Counts)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused("unexpected_answer", "whatever answers there is no tkserver", status) from None
    return Result(counts.accepted, counts.rejected, counts.duplicates, tuple(counts.errors))


def _seconds(retry_after: str | None, now: float) -> float | None:
    """RFC 9110, section 10.2.3: seconds or a date, which proxies write."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        then = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, then.replace(tzinfo=then.tzinfo or timezone.utc).timestamp() - now)
