"""The routes, and the one map from errors to answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from werkzeug import exceptions as werkzeug

from tkserver import __version__, log
from tkserver.ingest.ingestion import Ingestion
from tkserver.ingest.verification import IngestRequest
from tkserver.storage.errors import StorageError
from tkserver.web.request import ApiRequest
from tkserver.wire import answer
from tkserver.wire.refusal import (
    RETRY_AFTER,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Refusal,
    StorageUnavailable,
)

_log = log.logger(__name__)

_Handler = TypeVar("_Handler")

Probe = Callable[[], Awaitable[None]]
"""Returns when the database accepts writes; raises a :class:`StorageError` where it does not."""


class Api:
    """The public HTTP interface.

    :param ingestion: takes requests in.
    :param probe: asks the database whether it would store them.
    :param clock: gives seconds, on any scale.
    """

    _router = Klein()
    _router.url_map.merge_slashes = False  # no redirects: what is not a route is a 404
    _handles = cast("Callable[[type[Exception]], Callable[[_Handler], _Handler]]", _router.handle_errors)

    def __init__(self, ingestion: Ingestion, probe: Probe, clock: Callable[[], float]) -> None:
        self._ingestion = ingestion
        self._probe = probe
        self._complaints = log.Throttle(clock)

    def resource(self) -> IResource:
        return self._router.resource()

    @_router.route("/health", methods=["GET"])
    def health(self, request: ApiRequest) -> bytes:
        """Liveness. Never touches the database."""
        return request.respond(answer.json_answer(200, {"status": "healthy", "version": __version__}))

    @_router.route("/health/ready", methods=["GET"])
    async def ready(self, request: ApiRequest) -> bytes:
        """Readiness: the database accepts writes."""
        try:
            await self._probe()
        except StorageError:
            headers = {"Retry-After": str(RETRY_AFTER)}
            return request.respond(answer.json_answer(503, {"status": "unavailable"}, headers))
        return request.respond(answer.json_answer(200, {"status": "ready"}))

    @_router.route("/v1/ingest/<org_id>/<app_id>", methods=["POST"])
    async def ingest(self, request: ApiRequest, org_id: str, app_id: str) -> bytes:
        if request.unread is not None:
            raise request.unread
        incoming = IngestRequest(org_id, app_id, request.headers_by_name(), request.body())
        return request.respond(await self._ingestion.take(incoming))

    @_router.route("/health", methods=["OPTIONS"])
    @_router.route("/health/ready", methods=["OPTIONS"])
    @_router.route("/v1/ingest/<org_id>/<app_id>", methods=["OPTIONS"])
    def preflight(self, request: ApiRequest, **_: str) -> bytes:
        """CORS. No body: browsers look at the headers only."""
        asked = (request.header(f"access-control-request-{what}") for what in ("method", "headers"))
        return request.respond(answer.no_content(request.site.cors.preflight(*asked)))

    # --- errors to answers, the specific first

    @_handles(Refusal)
    def refused(self, request: ApiRequest, failure: Failure) -> bytes:
        refusal = failure.value
        assert isinstance(refusal, Refusal)
        return request.respond(answer.refused(refusal))

    @_handles(StorageError)
    def unavailable(self, request: ApiRequest, failure: Failure) -> bytes:
        problem = str(failure.value)
        if self._complaints.lets_pass(problem):
            _log.warn("requests are answered 503: {problem}", problem=problem)
        return request.respond(answer.refused(StorageUnavailable("the database cannot take events now: try again")))

    @_handles(werkzeug.MethodNotAllowed)
    def method_not_allowed(self, request: ApiRequest, failure: Failure) -> bytes:
        error = failure.value
        assert isinstance(error, werkzeug.MethodNotAllowed)
        allowed = sorted(error.valid_methods or ())
        return request.respond(answer.refused(MethodNotAllowed("use one of the allowed methods", allowed)))

    @_handles(werkzeug.HTTPException)
    def not_found(self, request: ApiRequest, _: Failure) -> bytes:
        return request.respond(answer.refused(NotFound("there is nothing here: events go to /v1/ingest/{org}/{app}")))

    @_handles(CancelledError)
    def hung_up(self, _request: ApiRequest, _: Failure) -> bytes:
        """The client is gone, and so is everyone who could read an answer."""
        return b""

    @_handles(Exception)
    def failed(self, request: ApiRequest, failure: Failure) -> bytes:
        _log.failure("a request failed", failure)
        return request.respond(answer.refused(InternalError("something went wrong on this server")))
