"""The public pages on the public port: totals of published applications, as pages, JSON and badges.

A path of an application that is not published gets the response of a path that does not exist.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, TypeVar, cast

import msgspec
from cachetools import LRUCache
from klein import Klein
from markupsafe import Markup
from twisted.web.resource import IResource
from werkzeug import exceptions as werkzeug

from tkserver import __version__
from tkserver.insight.public_numbers import MIN_USERS, PERIODS
from tkserver.log.access import NO_ROUTE
from tkserver.storage.public_pages import PublicPage, PublicPages
from tkserver.web.dashboard import html
from tkserver.web.dashboard.badges import BADGES, badge, shields_badge, svg_badge
from tkserver.web.dashboard.charts import bar
from tkserver.web.dashboard.formats import Formats
from tkserver.web.entity_tags import conditional
from tkserver.web.error_responses import ErrorResponses
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response
from tkserver.web.http.routing import Routes
from tkserver.wire.api_errors import MethodNotAllowed

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

CACHE_SECONDS = 3600
"""Seconds for which browsers and proxies may keep a response. The numbers change once a day."""

CACHE_CONTROL = f"public, max-age={CACHE_SECONDS}"

MAX_RESPONSES = 1000
"""Responses that are kept in memory: pages by language, JSON, and badges."""

PREFIX = b"/public"
"""The path below which all public pages are."""

JSON_SUFFIX = ".json"

CATEGORIES = {"versions": "Versions", "systems": "Operating systems", "commands": "Commands", "features": "Features"}
"""The tables of a page, with their headings."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


@dataclass(frozen=True)
class Row:
    """A row of a table: a version, for example.

    :ivar shares: of all users, for each period; ``None`` where there are too few.
    """

    name: str
    shares: Sequence[float | None]


class PublicSite:
    """Handles requests for public pages.

    :param embedders: the origins whose pages may embed public pages, such as ``https://example.org``.
    :param errors: returns the responses to errors, the same as for other paths of the port.
    """

    _router = Klein()
    _router.url_map.merge_slashes = False
    _route = cast("Callable[..., Callable[[_Handler], _Handler]]", _router.route)

    def __init__(self, pages: PublicPages, embedders: Sequence[str], errors: ErrorResponses) -> None:
        self._pages = pages
        self._embedders = embedders
        self._errors = errors
        self._responses: LRUCache[tuple[object, ...], Response] = LRUCache(MAX_RESPONSES)

    def resource(self) -> IResource:
        """Return the resource that serves the routes."""
        return Routes(self._router, self._errors)

    # The routes accept all methods, so that no method reveals whether there are public pages.

    @_route("/public/<name>")
    async def page(self, request: ApiRequest, name: str) -> Response:
        """Return the page of an application, or its numbers as JSON if the path ends in ``.json``."""
        page = await self._find(request, name.removesuffix(JSON_SUFFIX))
        if name.endswith(JSON_SUFFIX):
            return self._respond(request, page, ("json",), lambda: _json(json_content(page)))
        formats = Formats.for_languages(request.header("accept-language"))
        is_compressed = html.accepts_gzip(request)
        key = ("page", formats, is_compressed)
        return self._respond(request, page, key, lambda: self._page(page, formats, is_compressed=is_compressed))

    @_route("/public/<slug>/badge/<file>")
    async def badge(self, request: ApiRequest, slug: str, file: str) -> Response:
        """Return a badge, such as ``users.svg``, or ``users.json`` for shields.io."""
        page = await self._find(request, slug)
        name, _, suffix = file.rpartition(".")
        if name not in BADGES or suffix not in ("svg", "json"):
            raise werkzeug.NotFound
        shown = badge(name, page.numbers)
        if suffix == "json":
            return self._respond(request, page, (file,), lambda: _json(shields_badge(shown, CACHE_SECONDS)))
        return self._respond(request, page, (file,), lambda: _svg(svg_badge(shown)))

    async def _find(self, request: ApiRequest, slug: str) -> PublicPage:
        """Return a page.

        :raise werkzeug.exceptions.NotFound: if there is none.
        :raise MethodNotAllowed: if there is one, and the client does not want to read it.
        """
        route, request.record.route = request.record.route, NO_ROUTE
        page = await self._pages.find(slug)
        if page is None:
            raise werkzeug.NotFound
        request.record.route = route
        if request.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed("public pages can only be read", ["GET", "HEAD"])
        return page

    def _respond(
        self, request: ApiRequest, page: PublicPage, variant: tuple[object, ...], create: Callable[[], Response]
    ) -> Response:
        """Return a response, which is created once for each version of the page."""
        version = f"{page.version}-{__version__}"
        response = self._responses.get((version, *variant))
        if response is None:
            response = self._responses[(version, *variant)] = create()
        return conditional(request, response, f'W/"{version}"')

    def _page(self, page: PublicPage, formats: Formats, *, is_compressed: bool) -> Response:
        return html.page(
            "public.html",
            is_compressed=is_compressed,
            headers={**_HEADERS, **self._page_policy(), "Vary": "Accept-Language, Accept-Encoding"},
            cache_control=CACHE_CONTROL,
            page=page,
            periods=PERIODS,
            tables={title: rows for name, title in CATEGORIES.items() if (rows := table(page, name))},
            min_users=MIN_USERS,
            f=formats,
            bar=bar,
            css=Markup(html.static_file(html.STYLE).decode()),  # noqa: S704 -- a file of this package
        )

    def _page_policy(self) -> Mapping[str, str]:
        ancestors = " ".join(self._embedders) or "'none'"
        policy = f"default-src 'none'; style-src '{_style_hash()}'; img-src data:; base-uri 'none'; form-action 'none'"
        frames = {} if self._embedders else {"X-Frame-Options": "DENY"}
        return {"Content-Security-Policy": f"{policy}; frame-ancestors {ancestors}", **frames}


@cache
def _style_hash() -> str:
    return f"sha256-{b64encode(sha256(html.static_file(html.STYLE)).digest()).decode()}"


def json_content(page: PublicPage) -> dict[str, object]:
    """Return the numbers of a page with what they mean, similar to those of Homebrew."""
    facts = {"name": page.name, "slug": page.slug, "last_day": page.last_day, "rounded_down_to": MIN_USERS}
    return {**facts, "analytics": page.numbers}


def table(page: PublicPage, category: str) -> list[Row]:
    """Return the rows of a table. Those of the shortest period come first, in their order."""
    periods = [f"{days}d" for days in PERIODS]
    groups, users = page.numbers[category], page.numbers["users"]
    names = dict.fromkeys(name for period in periods for name in groups[period])
    return [Row(name, [_share(groups[period].get(name), users[period]) for period in periods]) for name in names]


def _share(users: int | None, all_users: int | None) -> float | None:
    """Return a share of rounded numbers, so that it says no more than they do."""
    return users / all_users if users and all_users else None


def _json(content: object) -> Response:
    return Response(200, msgspec.json.encode(content), _HEADERS, cache_control=CACHE_CONTROL)


def _svg(text: str) -> Response:
    headers = {**_HEADERS, "Content-Security-Policy": "default-src 'none'"}
    return Response(200, text.encode(), headers, content_type="image/svg+xml", cache_control=CACHE_CONTROL)
