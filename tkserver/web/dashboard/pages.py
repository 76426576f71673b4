"""The pages of the dashboard for somebody who is signed in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Any, Protocol
from urllib.parse import urlencode
from uuid import UUID

from markupsafe import Markup, escape

from tkserver.insight.catalog import AppState, Catalog, Scope
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.insight.facts import clean
from tkserver.insight.panels import PANELS
from tkserver.web.dashboard import html, samples
from tkserver.web.dashboard.access import Forbidden
from tkserver.web.dashboard.filters import Filters, InvalidFilters
from tkserver.web.dashboard.live import LiveEvents, server_sent
from tkserver.web.dashboard.rendering import DEFAULT_FILTERS, CatalogUrls, PageRenderer, all_of
from tkserver.web.dashboard.samples import SELECT_SAMPLE, SampleSender
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
    """Finds out who looks at a page, or sends a form; raises an error if nobody is signed in."""

    def viewer(self, request: ApiRequest) -> Awaitable[Viewer]: ...

    def submission(self, request: ApiRequest) -> Awaitable[tuple[Viewer, dict[str, str]]]: ...


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

    :param samples: sends sample events.
    :param endpoint: returns the URL to which programs send events.
    """

    def __init__(
        self,
        access: Access,
        watch: CatalogWatch,
        renderer: PageRenderer,
        live: LiveEvents,
        samples: SampleSender,
        endpoint: Callable[[], str],
    ) -> None:
        self._access = access
        self._samples = samples
        self._endpoint = endpoint
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
            return html.redirect(CatalogUrls(asked.catalog).page(asked.app, page, asked.filters))
        if asked.app.changed_at is None and page != "data":
            return await self._start(request, viewer, asked, page)
        panels = await self._renderer.panels_of(asked.catalog, asked.app, page, asked.filters, ("values",))
        values = {"app": asked.app, "page": page, "panels": panels, **panels, "filters": asked.filters}
        if page == "data":
            (app_status,) = await self._status.of([asked.app])
            values |= {"app_status": app_status, "quarantine": await self._status.quarantine(asked.app)}
        return await self._render(request, viewer, asked.catalog, f"{page}.html", values)

    async def _start(self, request: ApiRequest, viewer: Viewer, asked: _AppPage, page: str) -> Response:
        """Return what to do next, for an application without statistics."""
        (app_status,) = await self._status.of([asked.app])
        panels = {"values": await self._renderer.panel(asked.catalog, asked.app, "values")}
        values = {"app": asked.app, "page": page, "panels": panels, "filters": asked.filters, "app_status": app_status}
        return await self._render(request, viewer, asked.catalog, "start.html", {**values, "charts": {}})

    async def send_sample(self, request: ApiRequest, app: str) -> Response:
        """Send a sample event, and redirect to the page that shows it."""
        viewer, _ = await self._access.submission(request)
        catalog = await self._watch.current(grace=False)
        found = find_app(catalog, app, viewer.scope)
        if not viewer.can_share:
            raise Forbidden("you can only read this dashboard: sign in with a link of tkserver dashboard --share")
        event_id = await self._samples.send(found, self._renderer.panels.now)
        return html.redirect(f"{CatalogUrls(catalog).page(found, 'live')}?sample={event_id}")

    async def live(self, request: ApiRequest, app: str) -> Response:
        """Return the page that shows events as they arrive."""
        viewer = await self._access.viewer(request)
        catalog = await self._watch.current(grace=True)
        found = find_app(catalog, app, viewer.scope)
        user, event_type, sample_id = _live_filters(request)
        _, events = await self._live.read(found, user, event_type, None)
        arrived = await self._watch.query(SELECT_SAMPLE, (str(sample_id), *_key(found))) if sample_id else []
        values = await self._renderer.panel(catalog, found, "values")
        query = urlencode({"user": user, "type": event_type})
        context = {
            "app": found,
            "page": "live",
            "panels": {"values": values},
            "filters": DEFAULT_FILTERS,
            "user": user,
            "type": event_type,
            "events": events,
            "sample_id": sample_id,
            "sample_received_at": arrived[0][0] if arrived else None,
            "events_url": escape(f"{CatalogUrls(catalog).page(found, 'live')}/events?{query}"),
        }
        return await self._render(request, viewer, catalog, "live.html", context)

    async def live_events(self, request: ApiRequest, app: str) -> Response:
        """Return the events since the last request of the same page, as server-sent events."""
        viewer = await self._access.viewer(request)
        found = find_app(await self._watch.current(grace=True), app, viewer.scope)
        position = request.header("last-event-id")
        following, events = await self._live.read(found, *_live_filters(request)[:2], position)
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

    async def _render(
        self, request: ApiRequest, viewer: Viewer, catalog: Catalog, template: str, values: dict[str, Any]
    ) -> Response:
        own = {"viewer": viewer, "endpoint": self._endpoint(), "shell_word": partial(shell_word, catalog)}
        return await self._renderer.render(request, template, CatalogUrls(catalog), sample=samples, **own, **values)


def shell_word(catalog: Catalog, app: AppState) -> Markup:
    """Return a word with which a command in a shell selects an application."""
    name = catalog.unique_name(app)
    return escape(quote(app.app_id if name.startswith("-") or clean(name) != name else name))


def _key(app: AppState) -> tuple[str, str]:
    return app.app_id, app.org_id


def _live_filters(request: ApiRequest) -> tuple[str, str, UUID | None]:
    """Return the beginning of user ids, the event type, and the id of the sample event that was just sent.

    :raise InvalidParameter: if there are other parameters.
    """
    parameters = query_parameters(request)
    if unknown := parameters.keys() - {"user", "type", "sample"}:
        raise InvalidParameter(f"There is no parameter {min(unknown)!r}: use user, type.")
    user, event_type = parameters.get("user", "").strip(), parameters.get("type", "").strip()
    if "\0" in user + event_type:
        raise InvalidParameter("A parameter contains a zero byte.")
    try:
        return user, event_type, UUID(parameters["sample"]) if "sample" in parameters else None
    except ValueError:
        raise InvalidParameter("sample must be the id of an event.") from None
