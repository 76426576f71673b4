"""The private door: what operators may see and strangers must not."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar, cast

from klein import Klein
from twisted.web.resource import IResource

from tkserver import __version__
from tkserver.web.errors import ErrorAnswers
from tkserver.web.headers import CorsPolicy
from tkserver.web.listening import Listener, tcp_endpoint
from tkserver.web.request import ApiRequest
from tkserver.web.routing import Routes
from tkserver.web.site import ApiSite, Limits
from tkserver.wire import answer
from tkserver.wire.answer import Answer

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

Exposition = Callable[["str | None"], tuple[bytes, str]]
"""The metrics as text, and its content type, given what the client accepts."""

LIMITS = Limits(max_body_bytes=65_536, max_body_memory=1_048_576, max_connections=64)

DRAIN = 1.0
"""Seconds for requests in flight to finish when the server stops."""


class AdminApi:
    """The private HTTP interface.

    :param clock: gives seconds, on any scale.
    """

    _router = Klein()
    _router.url_map.merge_slashes = False
    _route = cast("Callable[..., Callable[[_Handler], _Handler]]", _router.route)

    def __init__(self, exposition: Exposition, clock: Callable[[], float]) -> None:
        self._exposition = exposition
        self._answer_to = ErrorAnswers(clock, "GET / lists what is")

    def resource(self) -> IResource:
        return Routes(self._router, self._answer_to)

    @_route("/", methods=["GET"])
    def index(self, _: ApiRequest) -> Answer:
        """What there is."""
        return answer.json_answer(200, {"version": __version__, "metrics": "/metrics"})

    @_route("/metrics", methods=["GET"])
    def metrics(self, request: ApiRequest) -> Answer:
        """For Prometheus."""
        text, content_type = self._exposition(request.header("accept"))
        return Answer(200, text, content_type=content_type)


class AdminListener(Listener):
    """Serves it on a port of its own, until the very end of the server."""

    def __init__(self, api: AdminApi, reactor: Any, host: str, port: int) -> None:
        self._site = ApiSite(api.resource(), LIMITS, CorsPolicy(()), _always, reactor)
        super().__init__(reactor, tcp_endpoint(host, port), self._site, self._site.is_full)

    @property
    def exposed(self) -> bool:
        """Whether other machines may reach it."""
        return not ip_address(self.address.host).is_loopback

    async def close(self) -> None:
        """Accept no more, and finish the requests under way."""
        await super().close()
        await self._site.drain(DRAIN)


def _always() -> None:
    """Nothing is so busy that nobody may look."""
