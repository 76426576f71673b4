"""A request and its answer, as logs and metrics tell of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec import Struct

NO_ROUTE = "none"
"""The route of what leads nowhere, and of what is no request at all."""

OTHER_METHOD = "other"

CLIENT_GONE = 499
"""The status of a request whose client did not wait for the answer; no answer ever has it. The number is nginx's."""

_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}

_HARMLESS_ID = re.compile(rb"[\x21-\x7e]{1,64}")


_PERHAPS = ("code", "received", "accepted", "duplicates", "rejected", "org_id", "app_id")
"""What is not known of each request."""


class Exchange(Struct, eq=False, gc=False):
    """One request and what became of it: begun when the request has arrived, finished when it is answered.

    Holds nothing that may not be logged. What a client may choose freely (``request_id``, the ids of organisation and
    application) belongs into logs only; ``method``, ``route``, ``status`` and ``code`` have few values.

    :ivar request_id: 1 to 64 visible ASCII characters.
    :ivar began: when the whole request had arrived, on the reactor's clock; ``seconds`` is from then to the answer.
    :ivar route: the path with names for what varies, such as ``/v1/ingest/{org_id}/{app_id}``.
    :ivar org_id: as the path has it, where that is a UUID; ``app_id`` likewise.
    :ivar code: of the error, where the answer is one.
    :ivar received: how many events there were, from when that is known; of these ``accepted`` (``duplicates``
        included) and ``rejected``.
    :ivar answer_headers: what the answer carries besides its own, whatever it will be.
    """

    request_id: str = "-"
    began: float = 0.0
    method: str = OTHER_METHOD
    route: str = NO_ROUTE
    org_id: str | None = None
    app_id: str | None = None
    received: int | None = None
    accepted: int | None = None
    duplicates: int | None = None
    rejected: int | None = None
    status: int = 0
    code: str | None = None
    seconds: float = 0.0
    answer_headers: dict[str, str] = {}

    def __str__(self) -> str:
        """In short, such as ``POST /v1/ingest/{org_id}/{app_id} 200 3.1ms received=1 accepted=1``."""
        text = f"{self.method} {self.route} {self.status} {self.seconds * 1000:.1f}ms"
        if self.code is not None:
            text = f"{text} {self.code}"
        if self.received:
            text = f"{text} received={self.received}"
        if self.accepted:
            text = f"{text} accepted={self.accepted}"
        if self.duplicates:
            text = f"{text} duplicates={self.duplicates}"
        if self.rejected:
            text = f"{text} rejected={self.rejected}"
        return text

    def fields(self) -> dict[str, str | int | float]:
        """What is known of it, by name."""
        known: dict[str, str | int | float] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(self.seconds, 6),
        }
        for name in _PERHAPS:
            value = getattr(self, name)
            if value is not None:
                known[name] = value
        return known


Observer = Callable[[Exchange], None]
"""Is told of each exchange when it is finished."""


def method_of(command: bytes) -> str:
    """The method, if it is a known one: anybody may send any."""
    return _METHODS.get(command, OTHER_METHOD)


def harmless_id(sent: Sequence[bytes]) -> str | None:
    """The id that came with a request, if it is one that may stand in headers, logs and answers.

    :param sent: the values of ``X-Request-ID``; the last one is a proxy's, where there is one.
    """
    return sent[-1].decode("ascii") if sent and _HARMLESS_ID.fullmatch(sent[-1]) else None
