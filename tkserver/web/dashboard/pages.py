"""The pages of the dashboard for somebody who is signed in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import msgspec
from markupsafe import Markup, escape
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from tkserver.insight.catalog import AppState, Catalog, Scope
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.insight.panels import APPLICABLE_FILTERS, PANELS
from tkserver.web.dashboard import html
from tkserver.web.dashboard.charts import bar, interval, sparkline
from tkserver.web.dashboard.csv_file import csv_of
from tkserver.web.dashboard.filters import CI_MODES, PERIODS, Filters, InvalidFilters
from tkserver.web.dashboard.formats import Formats
from tkserver.web.dashboard.live import LiveEvents, server_sent
from tkserver.web.dashboard.views import PAGES, Json, charts_of, tables_of
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import NO_STORE, Response
from tkserver.web.panel_reader import PanelReader
from tkserver.web.requested import find_app, query_parameters
from tkserver.wire.api_errors import InvalidParameter, NotFound

MAX_APPS = 50
"""Applications on the home page."""

HOME_FILTERS = Filters()

InThread = Callable[[Callable[[], Response]], Awaitable[Response]]
"""Runs a function in another thread, so that the reactor can go on with other requests."""


class Viewer(Protocol):
    """Somebody who looks at a page, and the applications that they may see."""

    @property
    def scope(self) -> Scope: ...

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
    """Handles requests for pages.

    :param in_thread: renders pages.
    """

    def __init__(
        self, access: Access, watch: CatalogWatch, panels: PanelReader, live: LiveEvents, in_thread: InThread
    ) -> None:
        self._access = access
        self._live = live
        self._watch = watch
        self._panels = panels
        self._in_thread = in_thread

    async def home(self, request: ApiRequest) -> Response:
        """Return the page that lists the applications."""
        viewer = await self._access.viewer(request)
        catalog = await self._watch.current(grace=True)
        apps = catalog.visible(viewer.scope)
        shown = apps[:MAX_APPS]
        overviews = await self._all([self._panel(catalog, app, "overview", HOME_FILTERS) for app in shown])
        qualities = await self._all([self._panel(catalog, app, "quality", HOME_FILTERS) for app in shown])
        values = {"apps": list(zip(shown, overviews, qualities, strict=True)), "hidden": len(apps) - len(shown)}
        return await self._render(request, viewer, catalog, "home.html", values)

    async def page(self, request: ApiRequest, app: str, page: str) -> Response:
        """Return a page of an application.

        :param app: see :func:`~tkserver.web.requested.find_app`.
        :param page: one of :data:`~tkserver.web.dashboard.views.PAGES`.
        """
        viewer = await self._access.viewer(request)
        asked = await self._asked(request, viewer, app)
        if page not in PAGES or page == "live" or (page == "command" and not asked.filters.name):
            raise NotFound(f"there is no page {page!r}: use {', '.join(PAGES)}")
        if not asked.is_short:
            return html.redirect(app_url(asked.catalog, asked.app, page, asked.filters))
        names = PAGES[page].panels
        found = await self._all(
            [self._panel(asked.catalog, asked.app, name, asked.filters) for name in (*names, "values")]
        )
        panels = dict(zip((*names, "values"), found, strict=True))
        values = {"app": asked.app, "page": page, "panels": panels, **panels, "filters": asked.filters}
        return await self._render(request, viewer, asked.catalog, f"{page}.html", values)

    async def live(self, request: ApiRequest, app: str) -> Response:
        """Return the page that shows events as they arrive."""
        viewer = await self._access.viewer(request)
        catalog = await self._watch.current(grace=True)
        found = find_app(catalog, app, viewer.scope)
        user, event_type = _live_filters(request)
        _, events = await self._live.read(found, user, event_type, None)
        values = await self._panel(catalog, found, "values", HOME_FILTERS)
        query = urlencode({"user": user, "type": event_type})
        context = {
            "app": found,
            "page": "live",
            "panels": {"values": values},
            "filters": HOME_FILTERS,
            "user": user,
            "type": event_type,
            "events": events,
            "events_url": escape(f"{app_url(catalog, found, 'live')}/events?{query}"),
        }
        return await self._render(request, viewer, catalog, "live.html", context)

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
        content = await self._panel(asked.catalog, asked.app, panel, asked.filters)
        tables = tables_of(content)
        list_name, _, suffix = file.rpartition(".")
        if file == "panel.json":
            return _download(msgspec.json.encode(content), "application/json", f"{panel}.json")
        if suffix != "csv" or list_name not in tables:
            raise NotFound(f"there is no file {file!r}: use panel.json, {', '.join(f'{name}.csv' for name in tables)}")
        return _download(csv_of(tables[list_name]), "text/csv; charset=utf-8", f"{panel}-{list_name}.csv")

    async def _asked(self, request: ApiRequest, viewer: Viewer, name: str) -> _AppPage:
        catalog = await self._watch.current(grace=True)
        app = find_app(catalog, name, viewer.scope)
        parameters = query_parameters(request)
        try:
            filters = Filters.parse(parameters)
            filters.days(app.today(self._panels.now))
        except InvalidFilters as error:
            raise InvalidParameter(str(error)) from None
        return _AppPage(app, catalog, filters, all(parameters.values()))

    async def _panel(self, catalog: Catalog, app: AppState, name: str, filters: Filters) -> Json:
        today = app.today(self._panels.now)
        parameters = {} if name == "values" else filters.parameters(today, APPLICABLE_FILTERS[name])
        found = await self._panels.read(catalog, app, name, parameters)
        content: Json = msgspec.json.decode(found.body)
        return content

    @staticmethod
    async def _all(reading: Sequence[Awaitable[Json]]) -> list[Json]:
        """Return the results of all computations, which run at the same time; or the error of the first that fails."""
        running: list[Deferred[Json]] = [ensureDeferred(one) for one in reading]  # type: ignore[arg-type]
        results: list[Json] = await gatherResults(running, consumeErrors=True).addErrback(_first_error)
        return results

    async def _render(
        self, request: ApiRequest, viewer: Viewer, catalog: Catalog, template: str, values: dict[str, Any]
    ) -> Response:
        formats = Formats.for_languages(request.header("accept-language"))
        urls = {"app_url": _escaped(partial(app_url, catalog)), "export_url": _escaped(partial(export_url, catalog))}
        context = {**_COMMON, **urls, **values, "viewer": viewer, "f": formats}
        is_compressed = "gzip" in (request.header("accept-encoding") or "")
        return await self._in_thread(partial(_page, template, context, formats, is_compressed=is_compressed))


def _page(template: str, context: dict[str, Any], formats: Formats, *, is_compressed: bool) -> Response:
    if "page" in context:
        context["charts"] = charts_of(context["page"], context["panels"], formats)
    return html.page(template, is_compressed=is_compressed, **context)


def app_url(catalog: Catalog, app: AppState, page: str = "overview", filters: Filters = HOME_FILTERS) -> str:
    """Return the URL of a page of an application."""
    return f"/dashboard/apps/{quote(catalog.unique_name(app), safe='')}/{page}{filters.query}"


def export_url(catalog: Catalog, app: AppState, panel: str, file: str, filters: Filters) -> str:
    """Return the URL of a file with the numbers of a panel."""
    return f"/dashboard/apps/{quote(catalog.unique_name(app), safe='')}/export/{panel}/{file}{filters.query}"


def _escaped(url: Callable[..., str]) -> Callable[..., Markup]:
    """Return a function whose result templates insert as a whole: they cut other long texts off."""
    return lambda *arguments: escape(url(*arguments))


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


def _first_error(failure: Any) -> Any:
    return failure.value.subFailure


def _download(body: bytes, content_type: str, name: str) -> Response:
    headers = {**html.HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(200, body, headers, content_type=content_type, cache_control=NO_STORE)


_COMMON: dict[str, Any] = {
    "PAGES": PAGES,
    "PERIODS": PERIODS,
    "CI_MODES": CI_MODES,
    "bar": bar,
    "interval": interval,
    "sparkline": sparkline,
}
