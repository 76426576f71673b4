"""The statistics as JSON, on the admin port (``docs/openapi-insight.yaml``)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from cachetools import LRUCache

from tkserver.insight.catalog import AppState, Catalog, Scope, Version, entity_tag, rfc3339
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.insight.panels import APPLICABLE_FILTERS, PANELS
from tkserver.insight.query import InvalidQuery, parse
from tkserver.insight.query_process import Computed, Invalid, Job, Outcome, Task, Unavailable, Unknown
from tkserver.storage.errors import StorageError
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response
from tkserver.web.read_access import ReadAccess
from tkserver.wire.api_errors import ApiError, InternalError, InvalidParameter, NotFound, StorageUnavailable

CACHE_CONTROL = "private, no-cache"
"""A browser may keep a response, and must ask with its entity tag whether it is still current."""

HEADERS = {
    "Vary": "Authorization",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",  # no web page of another site can embed a response
}

ENTRY_BYTES = 2048
"""What an entry of the cache takes in addition to the JSON of its panel, about."""

MAX_PARAMETERS = 20

ENCODED_SLASH = "\0"
"""What routing passes for a slash that is encoded in a segment of the path."""

_TAG = re.compile(r'(?:W/)?("[^"]*")')


Compute = Callable[[Task], Awaitable[Outcome]]
"""Computes a panel. See :class:`tkserver.server.query_processes.QueryProcesses`."""


class PanelCache:
    """Panels by their entity tags; those that were not used for longest are dropped first.

    :param max_bytes: of all panels together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._panels: LRUCache[str, Computed] = LRUCache(max_bytes, lambda panel: len(panel.content) + ENTRY_BYTES)

    @property
    def bytes(self) -> int:
        """The size of all panels, about."""
        return int(self._panels.currsize)

    @property
    def max_bytes(self) -> int:
        """The maximum size."""
        return int(self._panels.maxsize)

    def get(self, tag: str) -> Computed | None:
        """Return a panel."""
        return self._panels.get(tag)

    def put(self, tag: str, panel: Computed) -> None:
        """Store a panel, unless it alone is larger than the cache."""
        if len(panel.content) + ENTRY_BYTES <= self._panels.maxsize:
            self._panels[tag] = panel


class StatisticsApi:
    """Handles requests for statistics.

    :param now: returns Unix time.
    :param observe: called with the panel, or ``apps``, and the status of each response.
    """

    def __init__(
        self,
        watch: CatalogWatch,
        access: ReadAccess,
        compute: Compute,
        cache: PanelCache,
        now: Callable[[], float],
        observe: Callable[[str, int], None],
    ) -> None:
        self._watch = watch
        self._access = access
        self._compute = compute
        self._cache = cache
        self._now = now
        self._observe = observe

    async def apps(self, request: ApiRequest) -> Response:
        """List the applications whose statistics the client may read."""
        return await self._observed("apps", self._apps(request))

    async def panel(self, request: ApiRequest, app: str, panel: str) -> Response:
        """Return a panel of an application.

        :param app: an id, a name or a slug, or one of these after that of the organization and a slash.
        """
        response = self._panel(request, app.replace(ENCODED_SLASH, "/"), panel)
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
        if parameters := _parameters(request):
            raise InvalidParameter(f"unknown parameter {next(iter(parameters))!r}: there are none")
        body = msgspec.json.encode({"apps": [_description(app) for app in catalog.visible(scope)]})
        return _response(request, f'"{blake2b(body, digest_size=15).hexdigest()}"', lambda: body, {})

    async def _panel(self, request: ApiRequest, name: str, panel: str) -> Response:
        catalog, scope = await self._access.authorize(request, self._watch.current)
        app = _find(catalog, name, scope)
        if panel not in PANELS:
            raise NotFound(f"there is no panel {panel!r}: use {', '.join(PANELS)}")
        now = datetime.fromtimestamp(self._now(), timezone.utc)
        parameters = _parameters(request)
        tag = _tag(Version(catalog.definitions, app), panel, parameters, now)
        if (cached := self._cache.get(tag)) is None and not _is_current(request, tag):
            task = self._task(Job(app.app_id, app.org_id, panel, parameters, now), tag)
            cached = _computed(await self._compute(task))
            tag = _tag(cached.version, panel, parameters, now)  # the database may be newer than the catalog
        until = _latest(catalog.summed_until, cached)
        return _response(request, tag, lambda: _body(cached, until), {"X-Summed-Until": until} if until else {})

    def _task(self, job: Job, tag: str) -> Task:
        def keep(panel: Computed) -> None:
            self._cache.put(_tag(panel.version, job.panel, job.parameters, job.now), panel)

        return Task(job, lambda: self._cache.get(tag), keep)


def _description(app: AppState) -> dict[str, Any]:
    return {
        "app": app.label,
        "name": app.name,
        "org": app.org,
        "app_id": app.app_id,
        "org_id": app.org_id,
        "timezone": app.timezone,
    }


def _find(catalog: Catalog, name: str, scope: Scope) -> AppState:
    """Return the application with a name.

    :raise NotFound: if there is none that the client may read, or if there are several.
    """
    found = catalog.find(name, scope)
    if len(found) > 1:
        raise NotFound("several applications have this name: use the organization and the name, or the id")
    if not found:
        raise NotFound("there is no such application: /api/v1/apps lists those that you may read")
    return found[0]


def _parameters(request: ApiRequest) -> dict[str, str]:
    """Return the parameters of the query string.

    :raise InvalidParameter: if it is not valid, or if a parameter is repeated.
    """
    text = request.uri.partition(b"?")[2].decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise InvalidParameter(f"the query string is not UTF-8, or has more than {MAX_PARAMETERS} parameters") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise InvalidParameter("a parameter is repeated: use each one at most once")
    return parameters


def _tag(version: Version, panel: str, parameters: Mapping[str, str], now: datetime) -> str:
    """Return the entity tag of a panel.

    :raise InvalidParameter: if a parameter is not valid.
    """
    try:
        query = parse(parameters, version.app.today(now), APPLICABLE_FILTERS[panel])
    except InvalidQuery as error:
        raise InvalidParameter(str(error)) from None
    return entity_tag(version, panel, query, now)


def _computed(outcome: Outcome) -> Computed:
    """Return a panel.

    :raise ApiError: if it could not be computed.
    """
    if isinstance(outcome, Computed):
        return outcome
    if isinstance(outcome, Unknown):
        raise NotFound("there is no such application: it has just been deleted")
    if isinstance(outcome, Invalid):
        raise InvalidParameter(outcome.message)
    if isinstance(outcome, Unavailable):
        raise StorageUnavailable("the database is not available at the moment: try again later")
    raise InternalError("the statistics could not be computed")


def _latest(summed_until: datetime | None, panel: Computed | None) -> str | None:
    """Return the time up to which events are in the numbers. It advances even if no events arrive."""
    times = [rfc3339(summed_until) if summed_until else None, panel and panel.facts["summed_until"]]
    return max((time for time in times if time), default=None)


def _body(panel: Computed | None, summed_until: str | None) -> bytes:
    assert panel is not None, "a response that is current needs no body"
    facts = msgspec.json.encode({**panel.facts, "summed_until": summed_until})
    return facts[:-1] + b"," + bytes(panel.content)[1:]


def _is_current(request: ApiRequest, tag: str) -> bool:
    """True if the client has the response with this entity tag, by the weak comparison (RFC 9110, section 13.1.2)."""
    values = b",".join(request.requestHeaders.getRawHeaders(b"if-none-match", ())).decode("latin-1")
    return values.strip() == "*" or tag.removeprefix("W/") in _TAG.findall(values)


def _response(request: ApiRequest, tag: str, body: Callable[[], bytes], headers: Mapping[str, str]) -> Response:
    all_headers = {"ETag": tag, **HEADERS, **headers}
    if _is_current(request, tag):
        return Response(304, None, all_headers, cache_control=CACHE_CONTROL)
    return Response(200, body(), all_headers, cache_control=CACHE_CONTROL)
