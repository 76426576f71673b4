"""Responses, and their representation in JSON and HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any, TypeGuard

import msgspec
from msgspec.structs import replace
from twisted.web.http import datetimeToString

from tkserver.wire.api_errors import AllEventsRejected, ApiError, MethodNotAllowed, Unauthorized
from tkserver.wire.sdk import reads_flat_errors

NO_HEADERS: Mapping[str, str] = {}

COMMON_HEADERS = {
    "Server": "tkserver",
    "X-Clacks-Overhead": "GNU Terry Pratchett",
}

NO_STORE = "no-store"
"""The ``Cache-Control`` header of responses that no cache must keep."""

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Twisted's own table lacks 429."""

_EXPOSED_HEADERS = ", ".join(
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

_LIST_OF_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+( ?, ?[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
"""Tokens (RFC 9110, section 5.6.2), separated by commas."""


class Response(msgspec.Struct, frozen=True):
    """A response to a request.

    :ivar body: ``None`` if there is none (204, 304).
    :ivar code: the code of the error, if the response is one.
    :ivar cache_control: the value of the ``Cache-Control`` header.
    """

    status: int
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    code: str | None = None
    content_type: str = "application/json"
    cache_control: str = NO_STORE

    def with_headers(self, headers: Mapping[str, str]) -> Response:
        """Return the same response with additional headers."""
        return replace(self, headers={**self.headers, **headers})


def json_response(status: int, content: object, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    """Return a response with this content as JSON."""
    return Response(status, msgspec.json.encode(content), headers)


def no_content(headers: Mapping[str, str] = NO_HEADERS) -> Response:
    """Return a 204."""
    return Response(204, None, headers)


def error_response(error: ApiError, request_id: str, sdk: str | None = None) -> Response:
    """Return the response to a request that failed, in the format that the SDK of the client can parse.

    :param sdk: the ``X-SDK-Version`` header, if sent.
    """
    described = {"code": error.code, "message": error.message}
    flat = reads_flat_errors(sdk)
    content: dict[str, Any] = {"error": error.code, "message": error.message} if flat else {"error": described}
    content["request_id"] = request_id
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        content["retry_after"] = error.retry_after
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, AllEventsRejected):
        content["quarantined"] = error.quarantined
        content["errors"] = error.errors
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    return Response(error.status, msgspec.json.encode(content), headers, error.code)


@dataclass(frozen=True)
class CorsPolicy:
    """The web origins that may read responses (Fetch standard, "CORS protocol").

    :ivar origins: such as ``https://example.com``; ``*`` allows any.
    """

    origins: Sequence[str] = ("*",)

    def headers(self, origin: str | None) -> dict[str, str]:
        """Return the CORS headers of a response.

        :param origin: the ``Origin`` header of the request, if sent.
        """
        if "*" in self.origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED_HEADERS}
        if origin is None or origin not in self.origins:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED_HEADERS,
            "Vary": "Origin",
        }

    def listed(self, origin: str | None) -> str | None:
        """Return the origin if it is listed, otherwise ``None``: all unlisted origins get the same headers."""
        return origin if origin in self.origins else None

    @staticmethod
    def preflight(method: str | None, headers: str | None) -> dict[str, str]:
        """Return the headers of a response to ``OPTIONS``: everything that is requested and well-formed is allowed.

        The headers are listed by name, because ``*`` does not include ``Authorization``. No control characters and no
        other characters that names of methods and headers cannot contain are sent back.

        :param method: the ``Access-Control-Request-Method`` header, if sent.
        :param headers: the ``Access-Control-Request-Headers`` header, if sent.
        """
        return {
            "Access-Control-Allow-Methods": method if _is_list_of_names(method) else "GET, POST, OPTIONS",
            "Access-Control-Allow-Headers": headers if _is_list_of_names(headers) else "*",
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        }


NO_CORS = CorsPolicy(())
"""Lets no web page read responses."""


def _is_list_of_names(text: str | None) -> TypeGuard[str]:
    return text is not None and _LIST_OF_NAMES.fullmatch(text) is not None


def serialize_head(
    response: Response, request_id: str, *, now: float, cors: CorsPolicy, origin: str | None, closes: bool
) -> bytes:
    """Return everything that precedes the body of a response (RFC 9112, section 2.1).

    :param now: Unix time.
    :param origin: the ``Origin`` header of the request, if sent.
    :param closes: true if the server closes the connection after the response.
    """
    start = b"HTTP/1.1 %d %s\r\n%sX-Request-ID: %s\r\n" % (
        response.status,
        _PHRASES[response.status],
        _common_headers(int(now), cors, cors.listed(origin), closes, response.cache_control),
        request_id.encode(),
    )
    own = _serialize(response.headers) if response.headers else b""
    if response.body is None:
        return b"%s%s\r\n" % (start, own)
    content = (start, own, response.content_type.encode(), len(response.body))
    return b"%s%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % content


@lru_cache(maxsize=64)
def _common_headers(second: int, cors: CorsPolicy, origin: str | None, closes: bool, cache_control: str) -> bytes:
    """Return the headers that all responses within one second share."""
    date = str(datetimeToString(second), "ascii")
    headers = {"Date": date, **COMMON_HEADERS, "Cache-Control": cache_control, **cors.headers(origin)}
    if closes:
        headers["Connection"] = "close"
    return _serialize(headers)


def _serialize(headers: Mapping[str, str]) -> bytes:
    """Encode headers as ISO 8859-1.

    No value contains a line break: values that clients send come from headers, in which Twisted allows none.
    """
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1")
