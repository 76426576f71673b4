"""Outcomes as answers: status, headers and JSON, in the forms of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from tkserver.wire.refusal import AllEventsRejected, EventRefusal, MethodNotAllowed, Refusal, Unauthorized

NO_HEADERS: Mapping[str, str] = {}


class Answer(msgspec.Struct, frozen=True):
    """What goes back to a client.

    :ivar body: ``None`` where there is none (204).
    :ivar code: of the error that it tells of, where it does.
    """

    status: int
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    code: str | None = None
    content_type: str = "application/json"

    def carrying(self, headers: Mapping[str, str]) -> Answer:
        """The same answer with more headers."""
        return replace(self, headers={**self.headers, **headers})


def json_answer(status: int, content: object, headers: Mapping[str, str] = NO_HEADERS) -> Answer:
    return Answer(status, msgspec.json.encode(content), headers)


def no_content(headers: Mapping[str, str] = NO_HEADERS) -> Answer:
    return Answer(204, None, headers)


def stored(*, accepted: int, duplicates: int, refusals: Iterable[EventRefusal]) -> Answer:
    """The answer to a batch that was committed.

    :param accepted: events of the batch that are now in the table, those that already were (``duplicates``)
        included. At least one.
    """
    errors = _errors(refusals)
    counts = {"accepted": accepted, "rejected": len(errors), "duplicates": duplicates}
    if errors:
        return json_answer(207, {"status": "partial", **counts, "errors": errors})
    return json_answer(200, {"status": "success", **counts, "message": _summary(accepted, duplicates)})


def refused(refusal: Refusal, request_id: str) -> Answer:
    """The answer to a request that is refused as a whole."""
    content: dict[str, Any] = {"error": {"code": refusal.code, "message": refusal.message}, "request_id": request_id}
    headers: dict[str, str] = {}
    if refusal.retry_after is not None:
        content["retry_after"] = refusal.retry_after
        headers["Retry-After"] = str(refusal.retry_after)
    if isinstance(refusal, AllEventsRejected):
        content["errors"] = _errors(refusal.refusals)
    if isinstance(refusal, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(refusal, MethodNotAllowed):
        headers["Allow"] = ", ".join(refusal.allowed)
    return Answer(refusal.status, msgspec.json.encode(content), headers, refusal.code)


def _errors(refusals: Iterable[EventRefusal]) -> list[dict[str, Any]]:
    return [
        {"index": refusal.index, "event_id": refusal.event_id, "error": refusal.code, "message": refusal.message}
        for refusal in sorted(refusals, key=lambda refusal: refusal.index)
    ]


def _summary(accepted: int, duplicates: int) -> str:
    events = "1 event" if accepted == 1 else f"{accepted} events"
    return f"{events} accepted" + (f", {duplicates} of them already stored" if duplicates else "")
