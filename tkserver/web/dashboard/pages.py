"""The pages of the dashboard for somebody who is signed in."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from shlex import quote
from typing import Protocol
from urllib.parse import urlencode

from markupsafe import Markup, escape

from tkserver.insight.catalog import AppState, Catalog, Scope
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.insight.facts import clean
from tkserver.insight.panels import PANELS
from tkserver.web.dashboard import html
from tkserver.web.dashboard.filters import Filters, InvalidFilters
from tkserver.web.dashboard.live import LiveEvents, server_sent
from tkserver.web.dashboard.rendering import DEFAULT_FILTERS, CatalogUrls, PageRenderer, all_of
from tkserver.web.dashboard.status import StatusReader
from tkserver.web.dashboard.views import PAGES
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import NO_STORE, Response
from tkserver.web.requested import find_app, query_parameters
from tkserver.wire.api_errors import InvalidParameter, NotFound

MAX_APPS = 50
"""Applications on the home page."""


class Viewer(Protocol):
    """Somebody who looks at a page, and the applications that they may see."""

    @property
    def scope(self) -> Scope: ...

    @property
    def can_share(self) -> bool: ...

    @property
    def csrf_token(self) -> str: ...

    @property
    def user(self) -> str | None: ...


class Access(Protocol):
    """Finds out who looks at a page; raises an error if nobody is signed in."""

    def viewer(self, request: ApiRequest) -> Awaitable[Viewer]: ...


@dataclass(frozen=True)
class _AppPage:
    """A request for a page of an application.

    :ivar is_short: false if parameters are empty: the form sends all its fields.
    """

    app: AppState
    catalog: Catalog
    filters: Filters
    is_short: bool


class DashboardPages:
    """Handles requests for pages."""

    def __init__(self, access: Access, watch: CatalogWatch, renderer: PageRenderer, live: LiveEvents) -> None:
        self._access = access
        self._watch = watch
        self._renderer = renderer
        self._live = live
        self._status = StatusReader(watch.query)

    async def home(self, request: ApiRequest) -> Response:
        """Return the page that lists the applications."""
        viewer = await self._access.viewer(request)
        catalog = await self._watch.current(grace=True)
        apps = catalog.visible(viewer.scope)
        shown = apps[:MAX_APPS]
        overviews = await all_of(self._renderer.panel(catalog, app, "overview") for app in shown)
        statuses = await self._status.of(shown)
        values = {"apps": list(zip(shown, overviews, statuses, strict=True)), "hidden": len(apps) - len(shown)}
        return await self._renderer.render(request, "home.html", CatalogUrls(catalog), viewer=viewer, **values)

    async def page(self, request: ApiRequest, app: str, page: str) -> Response:
        """Return a page of an application.

        :param app: see :func:`~tkserver.web.requested.find_app`.
        :param page: one of :data:`~tkserver.web.dashboard.views.PAGES`.
        """
        viewer = await self._access.viewer(request)
        asked = await self._asked(request, viewer, app)
        if page not in PAGES or page == "live" or (page == "command" and not asked.filters.name):
            raise NotFound(f"there is no page {page!r}: use {', '.join(PAGES)}")
        urls = CatalogUrls(asked.catalog)
        if not asked.is_short:
            return html.redirect(urls.page(asked.app, page, asked.filters))
        panels = await self._renderer.panels_of(asked.catalog, asked.app, page, asked.filters)
        panels["values"] = await self._renderer.panel(asked.catalog, asked.app, "values")
        values = {"app": asked.app, "page": page, "panels": panels, **panels, "filters": asked.filters}
        if page == "data":
            (app_status,) = await self._status.of([asked.app])
            quarantine, word = await self._status.quarantine(asked.app), shell_word(asked.catalog, asked.app)
            values |= {"app_status": app_status, "quarantine": quarantine, "shell_word": word}
        return await self._renderer.render(request, f"{page}.html", urls, viewer=viewer, **values)

    async def live(self, request: ApiRequest, app: str) -> Response:
        """Return the page that shows events as they arrive."""
        viewer = await self._access.viewer(request)
        catalog = await self._watch.current(grace=True)
        found = find_app(catalog, app, viewer.scope)
        user, event_type = _live_filters(request)
        _, events = await self._live.read(found, user, event_type, None)
        values, urls = await self._renderer.panel(catalog, found, "values"), CatalogUrls(catalog)
        query = urlencode({"user": user, "type": event_type})
        context = {
            "app": found,
            "page": "live",
            "panels": {"values": values},
            "filters": DEFAULT_FILTERS,
            "user": user,
            "type": event_type,
            "events": events,
            "events_url": escape(f"{urls.page(found, 'live')}/events?{query}"),
        }
        return await self._renderer.render(request, "live.html", urls, viewer=viewer, **context)

    async def live_events(self, request: ApiRequest, app: str) -> Response:
        """Return the events since the last request of the same page, as server-sent events."""
        viewer = await self._access.viewer(request)
        found = find_app(await self._watch.current(grace=True), app, viewer.scope)
        position = request.header("last-event-id")
        following, events = await self._live.read(found, *_live_filters(request), position)
        body = server_sent(following, events)
        return Response(200, body, html.HEADERS, content_type="text/event-stream", cache_control=NO_STORE)

    async def export(self, request: ApiRequest, app: str, panel: str, file: str) -> Response:
        """Return a panel as JSON, or one of its lists as CSV.

        :param file: ``panel.json``, or the name of a list and ``.csv``.
        """
        viewer = await self._access.viewer(request)
        asked = await self._asked(request, viewer, app)
        if panel not in PANELS:
            raise NotFound(f"there is no panel {panel!r}: use {', '.join(PANELS)}")
        return await self._renderer.export(asked.catalog, asked.app, panel, file, asked.filters)

    async def _asked(self, request: ApiRequest, viewer: Viewer, name: str) -> _AppPage:
        catalog = await self._watch.current(grace=True)
        app = find_app(catalog, name, viewer.scope)
        parameters = query_parameters(request)
        try:
            filters = Filters.parse(parameters)
            filters.days(app.today(self._renderer.panels.now))
        except InvalidFilters as error:
            raise InvalidParameter(str(error)) from None
        return _AppPage(app, catalog, filters, all(parameters.values()))


def shell_word(catalog: Catalog, app: AppState) -> Markup:
    """Return a word with which a command in a shell selects an application."""
    name = catalog.unique_name(app)
    return escape(quote(app.app_id if name.startswith("-") or clean(name) != name else name))


def _live_filters(request: ApiRequest) -> tuple[str, str]:
    """Return the beginning of user ids, and the event type.

    :raise InvalidParameter: if there are other parameters.
    """
    parameters = query_parameters(request)
    if unknown := parameters.keys() - {"user", "type"}:
        raise InvalidParameter(f"There is no parameter {min(unknown)!r}: use user, type.")
    user, event_type = parameters.get("user", "").strip(), parameters.get("type", "").strip()
    if "\0" in user + event_type:
        raise InvalidParameter("A parameter contains a zero byte.")
    return user, event_type
