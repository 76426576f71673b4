"""The headers that every answer carries, and those by which browsers let pages read it (CORS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

from twisted.web.http import datetimeToString

from tkserver.wire.answer import Answer

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Twisted's own have no 429."""

COMMON = {
    "Server": "tkserver",
    "X-Clacks-Overhead": "GNU Terry Pratchett",
    "Cache-Control": "no-store",
}

_EXPOSED = ", ".join(
    [
        "Retry-After",
        "X-Clacks-Overhead",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
        "X-Request-ID",
    ]
)
_PREFLIGHT_SECONDS = 86_400


@dataclass(frozen=True)
class CorsPolicy:
    """Which web pages may talk to this server (Fetch standard, "CORS protocol").

    :ivar origins: such as ``https://example.com``; ``*`` for any.
    """

    origins: Sequence[str] = ("*",)

    def headers(self, origin: str | None) -> dict[str, str]:
        """For any answer.

        :param origin: the request's ``Origin`` header, where it has one.
        """
        if "*" in self.origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
        if origin is None or origin not in self.origins:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }

    def known(self, origin: str | None) -> str | None:
        """The origin, if it is listed. No other makes a difference."""
        return origin if origin in self.origins else None

    @staticmethod
    def preflight(method: str | None, headers: str | None) -> dict[str, str]:
        """For the answer to ``OPTIONS``: whatever is asked for is allowed.

        Named, for ``*`` does not stand for ``Authorization``.

        :param method: the ``Access-Control-Request-Method`` header; ``headers`` likewise.
        """
        return {
            "Access-Control-Allow-Methods": method or "GET, POST, OPTIONS",
            "Access-Control-Allow-Headers": headers or "*",
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        }


@lru_cache(maxsize=64)
def common(seconds: int, policy: CorsPolicy, origin: str | None, closes: bool) -> bytes:
    """The header fields that all answers of a second have in common, as they are sent.

    :param seconds: since 1970.
    :param origin: as :meth:`CorsPolicy.known` gives it.
    :param closes: whether the connection ends with the answer.
    """
    fields = {"Date": str(datetimeToString(seconds), "ascii"), **COMMON, **policy.headers(origin)}
    if closes:
        fields["Connection"] = "close"
    return _written(fields)


def head(answer: Answer, request_id: str, common: bytes) -> bytes:
    """All that stands before the body of an answer (RFC 9112, section 2.1)."""
    begin = b"HTTP/1.1 %d %s\r\n%sX-Request-ID: %s\r\n" % (
        answer.status,
        _PHRASES[answer.status],
        common,
        request_id.encode(),
    )
    own = _written(answer.headers) if answer.headers else b""
    if answer.body is None:
        return b"%s%s\r\n" % (begin, own)
    content = (begin, own, answer.content_type.encode(), len(answer.body))
    return b"%s%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % content


def _written(fields: Mapping[str, str]) -> bytes:
    """ISO 8859-1. No value has a line break: what comes from a request has none, or is no request."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields.items()]).encode("latin-1")
