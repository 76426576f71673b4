"""From a request to its route, and from what comes of that to the one answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from klein import Klein
from klein.resource import KleinResource
from twisted.internet.defer import maybeDeferred
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from tkserver import log
from tkserver.failures import drop_frames
from tkserver.web.request import ApiRequest
from tkserver.wire.answer import Answer

REMEMBERED_PATHS = 1024
"""SDKs send to the same few paths for ever."""

LONGEST_REMEMBERED_PATH = 256
"""Bytes. A path with two ids in it has 84."""

_ARGUMENT = re.compile("<([^>]+)>")
_ABSOLUTE = re.compile(rb"https?://[^/]+", re.IGNORECASE)


class Routes(KleinResource):
    """Runs the routes of a Klein application, each of which gives an :class:`Answer`.

    Klein's own ``render`` looks up the route with each request anew, and is ready for whatever a route may give. This
    one remembers where a path leads, and knows what it gets: a good part of what a small request costs.

    :param answer_to: the answer to an error, those of routing included.
    """

    def __init__(self, app: Klein, answer_to: Callable[[Failure, ApiRequest], Answer]) -> None:
        super().__init__(app)
        self._app = app
        self._answer_to = answer_to
        self._map = app.url_map.bind("")  # no route depends on the host's name, which may be anything
        self._recall = lru_cache(REMEMBERED_PATHS)(self._match)

    def render(self, request: ApiRequest) -> int:  # type: ignore[override]
        outer = log.request_id.set(request.exchange.request_id)
        try:
            request.handling = maybeDeferred(self._run, request)
            request.handling.addErrback(self._failed, request).addCallback(request.respond).addErrback(request.give_up)
        finally:
            log.request_id.reset(outer)
        return NOT_DONE_YET

    def _run(self, request: ApiRequest) -> Any:
        match = self._recall if len(request.path) <= LONGEST_REMEMBERED_PATH else self._match
        request.exchange.route, endpoint, arguments = match(request.method, request.path)
        return self._app.execute_endpoint(endpoint, request, **arguments)  # type: ignore[arg-type]

    def _failed(self, failure: Failure, request: ApiRequest) -> Answer:
        answer = self._answer_to(failure, request)
        drop_frames(failure)
        return answer

    def _match(self, method: bytes, path: bytes) -> tuple[str, str, dict[str, Any]]:
        """The route, written as in OpenAPI, its endpoint, and the arguments of that.

        :raise werkzeug.exceptions.HTTPException: where there is none.
        """
        if method != method.upper():  # methods are case-sensitive, and werkzeug's are not
            self._map.match(_text(path), _NO_METHOD)
        rule, arguments = self._map.match(_text(path), method.decode("latin-1"), return_rule=True)
        return _ARGUMENT.sub(r"{\1}", rule.rule), rule.endpoint, dict(arguments)


_NO_METHOD = "-"
"""A method that no route has."""

_NOWHERE = "//"
"""A path that no route has."""


def _text(path: bytes) -> str:
    """The path of a request's target, unquoted, in UTF-8: what is none is part of no route, and no error either.

    Of a target with scheme and host, which servers must understand too (RFC 9112, section 3.2.2), the path counts.
    """
    absolute = _ABSOLUTE.match(path)
    if absolute:
        path = path[absolute.end() :] or b"/"
    segments = [unquote_to_bytes(part).decode("utf-8", "replace") for part in path.split(b"/")]
    if not path.startswith(b"/") or path.startswith(b"//") or any("/" in part for part in segments):
        return _NOWHERE
    return "/".join(segments)
