"""The headers that every answer carries, and those by which browsers let pages read it (CORS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from tkserver.wire.answer import Answer

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Twisted's own have no 429."""

COMMON = {
    "Server": "tkserver",
    "X-Clacks-Overhead": "GNU Terry Pratchett",
    "Cache-Control": "no-store",
}

_EXPOSED = "Retry-After, X-Clacks-Overhead, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
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


def of_answer(answer: Answer) -> dict[str, str]:
    """The headers of an answer, wherever it is written."""
    headers = {**COMMON, **answer.headers}
    if answer.body is not None:
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(answer.body))
    return headers


def head(status: int, fields: Mapping[str, str]) -> bytes:
    """A status line and header fields as they are sent (RFC 9112, section 2.1).

    :param fields: ISO 8859-1, without line breaks: what comes from a request has none, or is no request.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, _PHRASES[status], lines.encode("latin-1"))
