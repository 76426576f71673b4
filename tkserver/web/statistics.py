"""The statistics as JSON, on the admin port (``docs/openapi-insight.yaml``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any

import msgspec

from tkserver.insight.catalog import AppState
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.insight.panels import PANELS
from tkserver.storage.errors import StorageError
from tkserver.web.entity_tags import conditional, is_current
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response
from tkserver.web.panel_reader import PanelReader
from tkserver.web.read_access import ReadAccess
from tkserver.web.requested import find_app, query_parameters
from tkserver.wire.api_errors import ApiError, InvalidParameter, NotFound, StorageUnavailable

CACHE_CONTROL = "private, no-cache"
"""A browser may keep a response, and must ask with its entity tag whether it is still current."""

HEADERS = {
    "Vary": "Authorization",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",  # no web page of another site can embed a response
}


class StatisticsApi:
    """Handles requests for statistics.

    :param observe: called with the panel, or ``apps``, and the status of each response.
    """

    def __init__(
        self,
        watch: CatalogWatch,
        access: ReadAccess,
        panels: PanelReader,
        observe: Callable[[str, int], None],
    ) -> None:
        self._watch = watch
        self._access = access
        self._panels = panels
        self._observe = observe

    async def apps(self, request: ApiRequest) -> Response:
        """List the applications whose statistics the client may read."""
        return await self._observed("apps", self._apps(request))

    async def panel(self, request: ApiRequest, app: str, panel: str) -> Response:
        """Return a panel of an application.

        :param app: see :func:`~tkserver.web.requested.find_app`.
        """
        response = self._panel(request, app, panel)
        return await self._observed(panel if panel in PANELS else "unknown", response)

    async def _observed(self, panel: str, response: Awaitable[Response]) -> Response:
        try:
            result = await response
        except StorageError:
            self._observe(panel, StorageUnavailable.status)
            raise StorageUnavailable("the database is not available at the moment: try again later") from None
        except ApiError as error:
            self._observe(panel, error.status)
            raise
        self._observe(panel, result.status)
        return result

    async def _apps(self, request: ApiRequest) -> Response:
        catalog, scope = await self._access.authorize(request, self._watch.current)
        if parameters := query_parameters(request):
            raise InvalidParameter(f"unknown parameter {next(iter(parameters))!r}: there are none")
        body = msgspec.json.encode({"apps": [_description(app) for app in catalog.visible(scope)]})
        tag = f'"{blake2b(body, digest_size=15).hexdigest()}"'
        return conditional(request, Response(200, body, HEADERS, cache_control=CACHE_CONTROL), tag)

    async def _panel(self, request: ApiRequest, name: str, panel: str) -> Response:
        catalog, scope = await self._access.authorize(request, self._watch.current)
        app = find_app(catalog, name, scope)
        if panel not in PANELS:
            raise NotFound(f"there is no panel {panel!r}: use {', '.join(PANELS)}")
        current = await self._panels.read(
            catalog, app, panel, query_parameters(request), lambda tag: is_current(request, tag)
        )
        headers = {**HEADERS, **({"X-Summed-Until": current.summed_until} if current.summed_until else {})}
        body = None if current.panel is None else current.body
        return conditional(request, Response(200, body, headers, cache_control=CACHE_CONTROL), current.tag)


def _description(app: AppState) -> dict[str, Any]:
    return {
        "app": app.label,
        "name": app.name,
        "org": app.org,
        "app_id": app.app_id,
        "org_id": app.org_id,
        "timezone": app.timezone,
        "staging": app.staging,
    }
