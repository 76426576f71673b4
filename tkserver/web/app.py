"""The public routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from klein import Klein
from twisted.web.resource import IResource

from tkserver import __version__
from tkserver.ingest.ingestion import Ingestion
from tkserver.ingest.verification import IngestRequest
from tkserver.storage.errors import StorageError
from tkserver.web.errors import ErrorAnswers
from tkserver.web.headers import CorsPolicy
from tkserver.web.request import ApiRequest
from tkserver.web.routing import Routes
from tkserver.wire import answer
from tkserver.wire.answer import Answer
from tkserver.wire.refusal import RETRY_AFTER, Refusal

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

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
    _route = cast("Callable[..., Callable[[_Handler], _Handler]]", _router.route)

    def __init__(self, ingestion: Ingestion, probe: Probe, clock: Callable[[], float]) -> None:
        self._ingestion = ingestion
        self._probe = probe
        self._answer_to = ErrorAnswers(clock, "events go to /v1/ingest/{org}/{app}")

    def resource(self) -> IResource:
        return Routes(self._router, self._answer_to)

    @_route("/health", methods=["GET"])
    def health(self, _: ApiRequest) -> Answer:
        """Liveness. Never touches the database."""
        return answer.json_answer(200, {"status": "healthy", "version": __version__})

    @_route("/health/ready", methods=["GET"])
    async def ready(self, _: ApiRequest) -> Answer:
        """Readiness: the database accepts writes."""
        try:
            await self._probe()
        except StorageError:
            return answer.json_answer(503, {"status": "unavailable"}, {"Retry-After": str(RETRY_AFTER)})
        return answer.json_answer(200, {"status": "ready"})

    @_route("/v1/ingest/<org_id>/<app_id>", methods=["POST"])
    async def ingest(self, request: ApiRequest, org_id: str, app_id: str) -> Answer:
        if request.unread is not None:
            raise request.unread
        request.check_sender()  # again: others of the same sender may have failed since its headers came
        headers, body = request.headers_by_name(), request.body()
        try:
            return await self._ingestion.take(IngestRequest(org_id, app_id, headers, body, request.exchange))
        except Refusal as refusal:
            if refusal.status in (401, 403):
                request.note_auth_failure()
            raise

    @_route("/health", methods=["OPTIONS"])
    @_route("/health/ready", methods=["OPTIONS"])
    @_route("/v1/ingest/<org_id>/<app_id>", methods=["OPTIONS"])
    def preflight(self, request: ApiRequest, **_: str) -> Answer:
        """CORS. No body: browsers look at the headers only."""
        asked = (request.header(f"access-control-request-{what}") for what in ("method", "headers"))
        return answer.no_content(CorsPolicy.preflight(*asked))
