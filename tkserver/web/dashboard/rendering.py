"""What all pages of an application need: its panels, the URLs of its pages and files, and the templates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
from markupsafe import Markup, escape
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from tkserver.insight.catalog import AppState, Catalog
from tkserver.insight.panels import APPLICABLE_FILTERS
from tkserver.storage.share_links import SHAREABLE
from tkserver.web.dashboard import html
from tkserver.web.dashboard.charts import bar, interval, sparkline
from tkserver.web.dashboard.csv_file import csv_of
from tkserver.web.dashboard.filters import CI_MODES, PERIODS, Filters
from tkserver.web.dashboard.formats import Formats, utc
from tkserver.web.dashboard.views import PAGES, RECENT_DAYS, Json, charts_of, tables_of
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import NO_STORE, Response
from tkserver.web.panel_reader import PanelReader
from tkserver.wire.api_errors import NotFound

DEFAULT_FILTERS = Filters()

InThread = Callable[[Callable[[], Response]], Awaitable[Response]]
"""Runs a function in another thread, so that the reactor can go on with other requests."""


class Urls(Protocol):
    """The URLs that whoever sees a page can open."""

    def page(self, app: AppState, page: str = "overview", filters: Filters = DEFAULT_FILTERS) -> str | None:
        """Return the URL of a page of an application; ``None`` if it cannot be opened."""

    def file(self, app: AppState, panel: str, file: str, filters: Filters) -> str:
        """Return the URL of a file with the numbers of a panel."""


class CatalogUrls:
    """The URLs of all pages, for somebody who is signed in."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def page(self, app: AppState, page: str = "overview", filters: Filters = DEFAULT_FILTERS) -> str:
        """Return the URL of a page of an application."""
        return f"/dashboard/apps/{quote(self._catalog.unique_name(app), safe='')}/{page}{filters.query}"

    def file(self, app: AppState, panel: str, file: str, filters: Filters) -> str:
        """Return the URL of a file with the numbers of a panel."""
        return f"/dashboard/apps/{quote(self._catalog.unique_name(app), safe='')}/export/{panel}/{file}{filters.query}"


class PageRenderer:
    """Reads panels, and renders pages.

    :param panels: reads and caches panels.
    :param in_thread: renders pages.
    """

    def __init__(self, panels: PanelReader, in_thread: InThread) -> None:
        self.panels = panels
        self._in_thread = in_thread

    async def panel(self, catalog: Catalog, app: AppState, name: str, filters: Filters = DEFAULT_FILTERS) -> Json:
        """Return the JSON of a panel."""
        today = app.today(self.panels.now)
        parameters = {} if name == "values" else filters.parameters(today, APPLICABLE_FILTERS[name])
        found = await self.panels.read(catalog, app, name, parameters)
        content: Json = msgspec.json.decode(found.body)
        return content

    async def panels_of(
        self, catalog: Catalog, app: AppState, page: str, filters: Filters, others: Sequence[str] = ()
    ) -> dict[str, Json]:
        """Return the panels of a page, and others, by name. They are computed at the same time."""
        own, recent = PAGES[page], filters.end(app.today(self.panels.now), RECENT_DAYS)
        names = (*own.panels, *others)
        found = await all_of(
            self.panel(catalog, app, name, recent if name in own.recent_panels else filters) for name in names
        )
        return dict(zip(names, found, strict=True))

    async def export(self, catalog: Catalog, app: AppState, panel: str, file: str, filters: Filters) -> Response:
        """Return a panel as JSON, or one of its lists as CSV.

        :param file: ``panel.json``, or the name of a list and ``.csv``.
        :raise NotFound: if there is no such file.
        """
        content = await self.panel(catalog, app, panel, filters)
        tables = tables_of(content)
        list_name, _, suffix = file.rpartition(".")
        if file == "panel.json":
            return _download(msgspec.json.encode(content), "application/json", f"{panel}.json")
        if suffix != "csv" or list_name not in tables:
            raise NotFound(f"there is no file {file!r}: use panel.json, {', '.join(f'{name}.csv' for name in tables)}")
        return _download(csv_of(tables[list_name]), "text/csv; charset=utf-8", f"{panel}-{list_name}.csv")

    async def render(self, request: ApiRequest, template: str, urls: Urls, **values: Any) -> Response:
        """Return a page.

        :param template: the name of a file in ``templates/``.
        :param values: of the variables in the template.
        """
        formats = Formats.for_languages(request.header("accept-language"))
        own = {"app_url": _escaped(urls.page), "export_url": _escaped(urls.file), "f": formats}
        is_compressed = html.accepts_gzip(request)
        context = {**_COMMON, **own, **values}
        return await self._in_thread(partial(_page, template, context, formats, is_compressed=is_compressed))


async def all_of(computations: Iterable[Awaitable[Json]]) -> list[Json]:
    """Return the results of computations, which run at the same time; or the error of the first that fails."""
    running: list[Deferred[Json]] = [ensureDeferred(one) for one in computations]  # type: ignore[arg-type]
    results: list[Json] = await gatherResults(running, consumeErrors=True).addErrback(_first_error)
    return results


def _first_error(failure: Any) -> Any:
    return failure.value.subFailure


def _page(template: str, context: dict[str, Any], formats: Formats, *, is_compressed: bool) -> Response:
    if "page" in context and "charts" not in context:
        context["charts"] = charts_of(context["page"], context["panels"], formats)
    return html.page(template, is_compressed=is_compressed, **context)


def _escaped(url: Callable[..., str | None]) -> Callable[..., Markup | None]:
    """Return a function whose result templates insert as a whole: they cut other long texts off."""

    def escaped_url(*arguments: object) -> Markup | None:
        text = url(*arguments)
        return None if text is None else escape(text)

    return escaped_url


def link(text: str, url: Markup | None) -> Markup:
    """Return a link; or the text alone if the page to which it would lead cannot be opened."""
    shown = html.displayed(text)
    return escape(shown) if url is None else Markup('<a href="{}">{}</a>').format(url, shown)


def _download(body: bytes, content_type: str, name: str) -> Response:
    headers = {**html.HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(200, body, headers, content_type=content_type, cache_control=NO_STORE)


_COMMON: dict[str, Any] = {
    "PAGES": PAGES,
    "SHAREABLE": SHAREABLE,
    "PERIODS": PERIODS,
    "CI_MODES": CI_MODES,
    "bar": bar,
    "interval": interval,
    "sparkline": sparkline,
    "link": link,
    "utc": utc,
    "share": None,
}
