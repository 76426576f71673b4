"""The public HTTP interface: health checks, and ingestion of events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeVar, cast
from uuid import UUID

import msgspec
from klein import Klein
from twisted.web.resource import IResource

from tkserver import __version__
from tkserver.ingest.ingestion import Ingestion, IngestResult
from tkserver.ingest.verification import IngestRequest
from tkserver.storage.errors import StorageError
from tkserver.web.admission import IngestAdmission
from tkserver.web.error_responses import ErrorResponses
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import CorsPolicy, Response, json_response, no_content
from tkserver.web.http.routing import Routes
from tkserver.wire.api_errors import RETRY_AFTER, ApiError

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

HINT = "send events to /v1/ingest/{org}/{app}"
"""Follows the message about a path that does not exist."""

Probe = Callable[[], Awaitable[None]]
"""Raises a :class:`StorageError` if the database does not accept writes."""


class Api:
    """The routes of the public port.

    :param probe: checks whether the database accepts writes.
    :param clock: returns seconds, on any scale.
    :param closed_to_web_pages: the organization and the application that web pages cannot use, if there is one.
    """

    _router = Klein()
    _router.url_map.merge_slashes = False  # no redirects: a path that is not a route is a 404
    _route = cast("Callable[..., Callable[[_Handler], _Handler]]", _router.route)

    def __init__(
        self,
        ingestion: Ingestion,
        admission: IngestAdmission,
        probe: Probe,
        clock: Callable[[], float],
        closed_to_web_pages: tuple[str, str] | None = None,
    ) -> None:
        self._closed_to_web_pages = closed_to_web_pages
        self._ingestion = ingestion
        self._admission = admission
        self._probe = probe
        self._error_responses = ErrorResponses(clock, HINT)

    def resource(self) -> IResource:
        """Return the resource that serves the routes."""
        return Routes(self._router, self._error_responses)

    @_route("/health", methods=["GET"])
    def health(self, _: ApiRequest) -> Response:
        """Report that the process is alive. Never accesses the database."""
        return json_response(200, {"status": "healthy", "version": __version__})

    @_route("/health/ready", methods=["GET"])
    async def ready(self, _: ApiRequest) -> Response:
        """Report whether the database accepts writes."""
        try:
            await self._probe()
        except StorageError:
            return json_response(503, {"status": "unavailable"}, {"Retry-After": str(RETRY_AFTER)})
        return json_response(200, {"status": "ready"})

    @_route("/v1/ingest/<org_id>/<app_id>", methods=["POST"])
    async def ingest(self, request: ApiRequest, org_id: str, app_id: str) -> Response:
        """Store the events of a batch."""
        request.allows_web_pages = self._allows_web_pages(org_id, app_id)
        admission = self._admission
        received = IngestRequest(
            org_id,
            app_id,
            request.headers_by_name(),
            request.record,
            request.response_headers,
            before_query=lambda: admission.check_address(request),
        )
        try:
            identified = await self._ingestion.identify(received)
            admission.check(request)
            body = await request.read_body(lambda: admission.client_of(request))
            admission.check_address(request)  # again: other requests may have failed while the body arrived
            response = ingest_response(await self._ingestion.ingest(identified, body))
            admission.record_auth_success(request)
            return response
        except ApiError as error:
            if error.status in (401, 403):
                admission.record_auth_failure(request)
            raise

    @_route("/health", methods=["OPTIONS"])
    @_route("/health/ready", methods=["OPTIONS"])
    @_route("/v1/ingest/<org_id>/<app_id>", methods=["OPTIONS"])
    def preflight(self, request: ApiRequest, org_id: str = "", app_id: str = "") -> Response:
        """Respond to a CORS preflight request, of which browsers read only the headers."""
        request.allows_web_pages = self._allows_web_pages(org_id, app_id)
        if not request.allows_web_pages:
            return no_content()
        requested = (request.header(f"access-control-request-{name}") for name in ("method", "headers"))
        return no_content(CorsPolicy.preflight(*requested))

    def _allows_web_pages(self, org_id: str, app_id: str) -> bool:
        return (
            self._closed_to_web_pages is None or (_canonical(org_id), _canonical(app_id)) != self._closed_to_web_pages
        )


@lru_cache(1024)
def _canonical(application_id: str) -> str:
    """Return an id in the form in which UUIDs are usually written, or the text itself if it is no UUID."""
    try:
        return str(msgspec.convert(application_id, UUID))
    except msgspec.ValidationError:
        return application_id


def ingest_response(result: IngestResult) -> Response:
    """Return the response to a batch of which at least one event was accepted or quarantined."""
    accepted, rejected, duplicates = result.accepted, len(result.errors), result.duplicates
    if result.errors:
        if result.deletes_only_accepted:
            accepted, rejected = accepted + rejected, 0
        counts = {"accepted": accepted, "rejected": rejected, "duplicates": duplicates}
        content = {"status": "partial", **counts, "quarantined": result.quarantined, "errors": result.errors}
        return json_response(207, content)
    message = f"{accepted} event{'s' if accepted > 1 else ''} accepted"
    if duplicates:
        message += f", {duplicates} of them already stored"
    counts = {"accepted": accepted, "rejected": 0, "duplicates": duplicates}
    return json_response(200, {"status": "success", **counts, "message": message})
