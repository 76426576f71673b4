"""The admin port: metrics for operators, statistics, and the dashboard. Strangers must not be able to reach it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar, cast

from klein import Klein
from twisted.web.resource import IResource

from tkserver import __version__
from tkserver.storage.errors import StorageError
from tkserver.web.allowed_hosts import AllowedHosts
from tkserver.web.api import Probe
from tkserver.web.error_responses import ErrorResponses
from tkserver.web.http.connections import ApiSite, HttpLimits
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import CorsPolicy, Response, json_response
from tkserver.web.http.routing import ByPrefix, Routes
from tkserver.web.listen.listener import Listener, tcp_endpoint
from tkserver.web.requested import ENCODED_SLASH
from tkserver.web.statistics import StatisticsApi
from tkserver.wire.api_errors import RETRY_AFTER

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

Exposition = Callable[["str | None"], tuple[bytes, str]]
"""Takes the ``Accept`` header, and returns the metrics as text and their content type."""

LIMITS = HttpLimits(max_body_bytes=65_536, max_body_memory=1_048_576, max_connections=64)

DRAIN_TIMEOUT = 1.0
"""Seconds for which requests in progress can continue when the server stops."""


class AdminApi:
    """The routes of the admin port.

    :param clock: returns seconds, on any scale.
    :param hosts: the hosts in whose name requests are allowed.
    :param statistics: handles requests for statistics.
    :param check_metrics: called with each request for metrics; raises an ``ApiError`` to reject it.
    :param dashboard: serves all paths below ``/dashboard``; ``None`` if there is no dashboard.
    :param probe: checks whether the database accepts writes.
    """

    _router = Klein()
    _router.url_map.merge_slashes = False
    _route = cast("Callable[..., Callable[[_Handler], _Handler]]", _router.route)

    def __init__(
        self,
        exposition: Exposition,
        clock: Callable[[], float],
        hosts: AllowedHosts,
        statistics: StatisticsApi,
        check_metrics: Callable[[ApiRequest], None],
        dashboard: IResource | None,
        probe: Probe,
    ) -> None:
        self._probe = probe
        self._exposition = exposition
        self._check_metrics = check_metrics
        self._dashboard = dashboard
        self._statistics = statistics
        self._hosts = hosts
        self._error_responses = ErrorResponses(clock, "GET / lists all paths")

    def resource(self) -> IResource:
        """Return the resource that serves the routes."""
        routes = Routes(self._router, self._error_responses, self._hosts.check, encoded_slash=ENCODED_SLASH)
        return routes if self._dashboard is None else ByPrefix(b"/dashboard", self._dashboard, routes)

    @_route("/", methods=["GET"])
    def index(self, _: ApiRequest) -> Response:
        """List the paths."""
        paths = {"metrics": "/metrics", "ready": "/health/ready", "apps": "/api/v1/apps"}
        if self._dashboard is not None:
            paths["dashboard"] = "/dashboard/"
        return json_response(200, {"version": __version__, **paths})

    @_route("/health/ready", methods=["GET"])
    async def ready(self, _: ApiRequest) -> Response:
        """Report whether the database accepts writes, and if not, why. The public port does not say why."""
        try:
            await self._probe()
        except StorageError as error:
            content = {"status": "unavailable", "cause": error.cause, "message": str(error)}
            return json_response(503, content, {"Retry-After": str(RETRY_AFTER)})
        return json_response(200, {"status": "ready"})

    @_route("/metrics", methods=["GET"])
    def metrics(self, request: ApiRequest) -> Response:
        """Return the metrics for Prometheus."""
        self._check_metrics(request)
        text, content_type = self._exposition(request.header("accept"))
        return Response(200, text, content_type=content_type)

    @_route("/api/v1/apps", methods=["GET"])
    async def apps(self, request: ApiRequest) -> Response:
        """List the applications that have statistics."""
        return await self._statistics.apps(request)

    @_route("/api/v1/apps/<app>/<panel>", methods=["GET"])
    async def panel(self, request: ApiRequest, app: str, panel: str) -> Response:
        """Return a panel of an application."""
        return await self._statistics.panel(request, app, panel)

    @_route("/api/v1/apps/<org>/<app>/<panel>", methods=["GET"])
    async def panel_of_org(self, request: ApiRequest, org: str, app: str, panel: str) -> Response:
        """Return a panel of an application of an organization."""
        return await self._statistics.panel(request, f"{org}/{app}", panel)


class AdminListener(Listener):
    """Serves the admin API on its own port. It is the last part of the server to stop."""

    def __init__(self, api: AdminApi, reactor: Any, host: str, port: int) -> None:
        self._site = ApiSite(api.resource(), LIMITS, CorsPolicy(()), reactor)
        super().__init__(reactor, tcp_endpoint(host, port), self._site, self._site.accepts)

    @property
    def exposed(self) -> bool:
        """True if other machines can reach the port."""
        return not ip_address(self.address.host).is_loopback

    async def close(self) -> None:
        """Close the port, and finish the requests in progress."""
        await super().close()
        await self._site.drain(DRAIN_TIMEOUT)
