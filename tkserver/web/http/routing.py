"""Routing: from a request to its handler, and from the handler's result to the response."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from klein import Klein
from twisted.internet.defer import maybeDeferred
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from tkserver import log
from tkserver.deferreds import clear_traceback
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response
from tkserver.wire.api_errors import BadRequest

CACHED_PATHS = 1024
"""SDKs send to the same few paths."""

LONGEST_CACHED_PATH = 256
"""Bytes. A path with two UUIDs has 84."""

_ARGUMENT = re.compile("<([^>]+)>")
_ABSOLUTE = re.compile(rb"https?://[^/]+", re.IGNORECASE)


def check_number_of_hosts(request: ApiRequest) -> None:
    """Check that there is exactly one ``Host`` header, or at most one in HTTP/1.0 (RFC 9112, section 3.2).

    :raise BadRequest: otherwise. The connection is closed after the response.
    """
    hosts = request.requestHeaders.getRawHeaders(b"host", ())
    if len(hosts) != 1 and (hosts or request.clientproto != b"HTTP/1.0"):
        request.channel.ignore_input()
        raise BadRequest(f"HTTP/1.1 requires exactly one Host header, and this request has {len(hosts)}")


class Routes(Resource):
    """Runs the routes of a Klein application. Each route returns a :class:`Response`.

    Klein's own resource matches the path of every request again, and supports many types of results. This class caches
    the route of a path and expects a ``Response``, which saves a large part of the cost of a small request.

    :param error_response: returns the response to an error, including errors of routing.
    :param check: called with each request before its route is looked up; raises an ``ApiError`` to reject it.
    :param encoded_slash: stands in the arguments of routes for a slash that is encoded in a segment of the path. Paths
        that contain it match no route. By default, paths with encoded slashes match no route.
    """

    def __init__(
        self,
        app: Klein,
        error_response: Callable[[Failure, ApiRequest], Response],
        check: Callable[[ApiRequest], None] = check_number_of_hosts,
        *,
        encoded_slash: str | None = None,
    ) -> None:
        super().__init__()
        self._encoded_slash = encoded_slash
        self._check = check
        self._app = app
        self._error_response = error_response
        self._map = app.url_map.bind("")  # no route depends on the host name
        self._cached_match = lru_cache(CACHED_PATHS)(self._match)

    def render(self, request: ApiRequest) -> int:
        previous = log.request_id.set(request.record.request_id)
        try:
            request.handling = maybeDeferred(self._run, request)
            request.handling.addErrback(self._failed, request).addCallback(request.respond).addErrback(request.abort)
        finally:
            log.request_id.reset(previous)
        return NOT_DONE_YET

    def _run(self, request: ApiRequest) -> Any:
        self._check(request)
        match = self._cached_match if len(request.path) <= LONGEST_CACHED_PATH else self._match
        request.record.route, endpoint, arguments = match(request.method, request.path)
        return self._app.execute_endpoint(endpoint, request, **arguments)  # type: ignore[arg-type]

    def _failed(self, failure: Failure, request: ApiRequest) -> Response:
        response = self._error_response(failure, request)
        clear_traceback(failure)
        return response

    def _match(self, method: bytes, path: bytes) -> tuple[str, str, dict[str, Any]]:
        """Return the route in the syntax of OpenAPI, its Klein endpoint, and the arguments of the endpoint.

        :raise werkzeug.exceptions.HTTPException: if there is no such route.
        """
        if method != method.upper():  # methods are case-sensitive, but not in werkzeug
            self._map.match(_text(path, self._encoded_slash), _NO_METHOD)
        text = _text(path, self._encoded_slash)
        rule, arguments = self._map.match(text, method.decode("latin-1"), return_rule=True)
        return _ARGUMENT.sub(r"{\1}", rule.rule), rule.endpoint, dict(arguments)


class ByPrefix(Resource):
    """Lets one resource handle the requests for a path and all paths below it, and another one all others.

    :param prefix: such as ``/dashboard``.
    """

    def __init__(self, prefix: bytes, below: IResource, others: IResource) -> None:
        super().__init__()
        self._prefix = prefix
        self._below = below
        self._others = others

    def render(self, request: ApiRequest) -> Any:
        path = without_host(request.path)
        is_below = path == self._prefix or path.startswith(self._prefix + b"/")
        return (self._below if is_below else self._others).render(request)


_NO_METHOD = "-"
"""A method that no route has."""

_NO_PATH = "/\0"
"""A path that no route has. werkzeug would take ``//`` for ``/``."""


def without_host(path: bytes) -> bytes:
    """Return the path of a request target, which may have a scheme and a host (RFC 9112, section 3.2.2)."""
    if path.startswith(b"/"):
        return path
    absolute = _ABSOLUTE.match(path)
    return path[absolute.end() :] or b"/" if absolute else path


def _text(path: bytes, encoded_slash: str | None) -> str:
    """Return the path of a request target, unquoted. Invalid UTF-8 is replaced, and then matches no route."""
    path = without_host(path)
    segments = [unquote_to_bytes(part).decode("utf-8", "replace") for part in path.split(b"/")]
    unexpected = "/" if encoded_slash is None else encoded_slash
    if not path.startswith(b"/") or path.startswith(b"//") or any(unexpected in part for part in segments):
        return _NO_PATH
    return "/".join(part.replace("/", encoded_slash or "/") for part in segments)
