"""Share links: create, list and revoke them, and the pages that they show to whoever has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from tkserver.insight.catalog import AppState, Catalog, Scope
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.insight.query import InvalidQuery, parse
from tkserver.storage.share_links import (
    DEFAULT_LIFETIME,
    DELETE,
    DELETE_EXPIRED,
    INSERT,
    LIFETIMES,
    MAX_ID,
    MAX_NAME,
    PATH,
    SELECT_ALL,
    SELECT_BY_TOKEN,
    SHAREABLE,
    ShareLink,
    is_share_token,
    new_share_token,
    of_app,
)
from tkserver.storage.sign_in import hash_token
from tkserver.web.admission import IngestAdmission
from tkserver.web.dashboard import html
from tkserver.web.dashboard.access import DashboardAccess, Forbidden, Viewer
from tkserver.web.dashboard.filters import Filters, InvalidFilters
from tkserver.web.dashboard.formats import utc
from tkserver.web.dashboard.rendering import DEFAULT_FILTERS, CatalogUrls, PageRenderer
from tkserver.web.dashboard.views import PAGES
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response
from tkserver.web.requested import find_app, query_parameters
from tkserver.wire.api_errors import ApiError, InvalidParameter, NotFound

PAGE_FIELD = "page-"
"""The prefix of the fields of a form that select pages."""

LIST_PATH = "/dashboard/shares"

_SHARED_HEADERS = {"X-Robots-Tag": "noindex, nofollow"}


class InvalidShareLink(ApiError):
    """The link is unknown, has expired, or was revoked."""

    status, code = 404, "invalid_share_link"


@dataclass(frozen=True)
class SharedUrls:
    """The URLs of what a share link shows, with its filters only."""

    token: str
    link: ShareLink
    filters: Filters

    def page(self, _: AppState, page: str = "overview", filters: Filters = DEFAULT_FILTERS) -> str | None:
        """Return the URL of a page; ``None`` if the link does not show it."""
        is_shown = page in self.link.pages and filters == self.filters
        return f"{PATH}{self.token}/{page}" if is_shown else None

    def file(self, _: AppState, panel: str, file: str, __: Filters) -> str:
        """Return the URL of a file."""
        return f"{PATH}{self.token}/export/{panel}/{file}"


class SharedPages:
    """Handles requests of people who have a share link. Each request asks the database whether the link is valid.

    :param admission: limits the attempts to guess a link.
    """

    def __init__(self, watch: CatalogWatch, renderer: PageRenderer, admission: IngestAdmission) -> None:
        self._watch = watch
        self._renderer = renderer
        self._admission = admission

    async def page(self, request: ApiRequest, token: str, page: str | None = None) -> Response:
        """Return a page, by default the first one.

        :raise InvalidShareLink: if the link is not valid.
        :raise NotFound: if it does not show this page.
        """
        link, catalog, app, filters = await self._find(request, token)
        page = page or link.pages[0]
        if page not in link.pages:
            raise NotFound("this link does not show this page")
        panels = await self._renderer.panels_of(catalog, app, page, filters)
        values = {"app": app, "page": page, "panels": panels, **panels, "filters": filters}
        urls = SharedUrls(token, link, filters)
        response = await self._renderer.render(request, f"{page}.html", urls, share=link, **values)
        return response.with_headers(_SHARED_HEADERS)

    async def export(self, request: ApiRequest, token: str, panel: str, file: str) -> Response:
        """Return a panel of one of the pages as JSON, or one of its lists as CSV.

        :raise InvalidShareLink: if the link is not valid.
        :raise NotFound: if it does not show this panel.
        """
        link, catalog, app, filters = await self._find(request, token)
        if not any(panel in PAGES[page].panels for page in link.pages):
            raise NotFound("this link does not show these numbers")
        response = await self._renderer.export(catalog, app, panel, file, filters)
        return response.with_headers(_SHARED_HEADERS)

    async def _find(self, request: ApiRequest, token: str) -> tuple[ShareLink, Catalog, AppState, Filters]:
        """Return a link, the catalog, its application, and its filters.

        :raise InvalidShareLink: if the link is not valid.
        """
        if query_parameters(request):
            raise InvalidParameter("the period and the filters of this link cannot be changed")
        self._admission.check_address(request)
        found = await self._watch.query(SELECT_BY_TOKEN, (hash_token(token),)) if is_share_token(token) else []
        if not found:
            self._admission.record_auth_failure(request)
            raise InvalidShareLink(
                "it has expired, was revoked, or is not complete: ask whoever sent it for another one"
            )
        link = ShareLink.from_row(found[0])
        catalog = await self._watch.current(grace=False)
        app = find_app(catalog, link.app_id, Scope(link.app_id, link.org_id))
        return link, catalog, app, Filters.from_query(link.filters)


class ShareLinks:
    """Handles requests of people who may share."""

    def __init__(self, access: DashboardAccess, watch: CatalogWatch, renderer: PageRenderer) -> None:
        self._access = access
        self._watch = watch
        self._renderer = renderer

    async def form(self, request: ApiRequest, name: str) -> Response:
        """Return the form that creates a link to a page of an application.

        :param name: see :func:`~tkserver.web.requested.find_app`.
        """
        viewer = self._sharer(await self._access.viewer(request))
        catalog = await self._watch.current(grace=True)
        app = find_app(catalog, name, viewer.scope)
        parameters = query_parameters(request)
        page = parameters.pop("page", SHAREABLE[0])
        lifetimes = {"lifetimes": LIFETIMES, "default_lifetime": DEFAULT_LIFETIME}
        values = {"app": app, "shared_page": page, "filters": _filters(parameters), **lifetimes}
        urls = CatalogUrls(catalog)
        return await self._renderer.render(request, "share_form.html", urls, viewer=viewer, max_name=MAX_NAME, **values)

    async def create(self, request: ApiRequest, name: str) -> Response:
        """Create a link, and return a page that shows it."""
        viewer, fields = await self._access.submission(request)
        self._sharer(viewer)
        app = find_app(await self._watch.current(grace=False), name, viewer.scope)
        filters, token = _filters(query_parameters(request)), new_share_token()
        _check_period(filters, app.today(self._renderer.panels.now))
        pages = _pages(fields, filters)
        row = hash_token(token), app.org_id, app.app_id, _name(fields), pages, filters.query, _lifetime(fields)
        await self._watch.query(DELETE_EXPIRED)
        ((expires_at,),) = await self._watch.query(INSERT, row)
        url = f"{self._access.origin(request)}{PATH}{token}"
        return html.page("share_created.html", url=url, expires_at=utc(expires_at))

    async def list(self, request: ApiRequest) -> Response:
        """Return the page that lists the links."""
        viewer = self._sharer(await self._access.viewer(request))
        catalog = await self._watch.current(grace=True)
        rows = await self._watch.query(SELECT_ALL, of_app(viewer.scope.app_id, viewer.scope.org_id))
        shares = [_listed(catalog, ShareLink.from_row(row)) for row in rows]
        urls = CatalogUrls(catalog)
        return await self._renderer.render(request, "shares.html", urls, viewer=viewer, shares=shares)

    async def revoke(self, request: ApiRequest, link_id: str) -> Response:
        """Revoke a link, with immediate effect."""
        viewer, _ = await self._access.submission(request)
        self._sharer(viewer)
        is_id = link_id.isascii() and link_id.isdigit() and int(link_id[:20]) <= MAX_ID
        if not is_id or not await self._watch.query(
            DELETE, (link_id, *of_app(viewer.scope.app_id, viewer.scope.org_id))
        ):
            raise NotFound("there is no such link")
        return html.redirect(LIST_PATH)

    @staticmethod
    def _sharer(viewer: Viewer) -> Viewer:
        """Return a viewer who may share.

        :raise Forbidden: if the viewer may not.
        """
        if not viewer.can_share:
            raise Forbidden("you may see numbers, but not share them: see tkserver dashboard --share")
        return viewer


def _listed(catalog: Catalog, link: ShareLink) -> tuple[ShareLink, str, Filters]:
    apps = catalog.find(link.app_id, Scope(link.app_id, link.org_id))
    return link, apps[0].label if apps else link.app_id, Filters.from_query(link.filters)


def _filters(parameters: Mapping[str, str]) -> Filters:
    try:
        return Filters.parse(parameters)
    except InvalidFilters as error:
        raise InvalidParameter(str(error)) from None


def _check_period(filters: Filters, today: date) -> None:
    """Check that panels can have the period of a link.

    :raise InvalidParameter: if they cannot.
    """
    try:
        parse(filters.parameters(today, ()), today)
    except (InvalidFilters, InvalidQuery) as error:
        raise InvalidParameter(str(error)) from None


def _name(fields: Mapping[str, str]) -> str:
    """Return the name of a link.

    :raise InvalidParameter: if it is not valid.
    """
    name = fields.get("name", "").strip()
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidParameter(f"the name of a link has 1 to {MAX_NAME} printable characters")
    return name


def _pages(fields: Mapping[str, str], filters: Filters) -> list[str]:
    """Return the pages that a form selects.

    :raise InvalidParameter: if there is none.
    """
    pages = [page for page in SHAREABLE if f"{PAGE_FIELD}{page}" in fields and (page != "command" or filters.name)]
    if not pages:
        raise InvalidParameter("select at least one page")
    return pages


def _lifetime(fields: Mapping[str, str]) -> timedelta:
    """Return for how long a link is valid.

    :raise InvalidParameter: if that is not possible.
    """
    days = fields.get("days", "")
    if days not in map(str, LIFETIMES):
        raise InvalidParameter(f"a link is valid for {', '.join(map(str, LIFETIMES))} days")
    return timedelta(int(days))
