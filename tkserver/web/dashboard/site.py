"""The routes of the dashboard: sign in, sign out, pages, static files, and errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar, cast
from urllib.parse import parse_qs

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from tkserver.storage.sign_in import LINK_PREFIX, is_token
from tkserver.web.dashboard.access import DashboardAccess, InvalidLink, SignInRequired
from tkserver.web.dashboard.html import page, redirect, static_file, static_version
from tkserver.web.dashboard.pages import DashboardPages
from tkserver.web.dashboard.shares import InvalidShareLink, SharedPages, ShareLinks
from tkserver.web.error_responses import ErrorResponses
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response
from tkserver.web.http.routing import Routes
from tkserver.web.requested import ENCODED_SLASH
from tkserver.wire.api_errors import ApiError, MethodNotAllowed, NotFound, StorageUnavailable, Unauthorized

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

HOME = "/dashboard/"
SIGN_IN = "/dashboard/sign-in"

STATIC_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
STATIC_CACHE_CONTROL = "public, max-age=31536000, immutable"

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "woff2": "font/woff2",
}
"""The content types of static files by their endings. Files with other endings are served as text."""

TITLES = {
    400: "This request is not valid",
    403: "Not allowed",
    404: "Page not found",
    405: "This method is not allowed",
    409: "This is not possible now",
    421: "Unknown host name",
    429: "Too many failed attempts",
    500: "The server failed",
    503: "The server is not available",
}


class DashboardSite:
    """Handles requests for the dashboard.

    :param access: finds out who sends a request.
    :param pages: for those who are signed in.
    :param shares: for those who may share pages with others.
    :param shared: for those who have a share link.
    :param check_host: raises an ``ApiError`` if requests for a host are not allowed.
    :param clock: returns seconds, on any scale.
    """

    _router = Klein()
    _router.url_map.merge_slashes = False
    _route = cast("Callable[..., Callable[[_Handler], _Handler]]", _router.route)

    def __init__(
        self,
        access: DashboardAccess,
        pages: DashboardPages,
        shares: ShareLinks,
        shared: SharedPages,
        check_host: Callable[[ApiRequest], None],
        clock: Callable[[], float],
    ) -> None:
        self._access = access
        self._pages = pages
        self._shares = shares
        self._shared = shared
        self._check_host = check_host
        self._errors = ErrorResponses(clock, "/dashboard/ is the first page")

    def resource(self) -> IResource:
        """Return the resource that serves the routes."""
        return Routes(self._router, self._error_page, self._check_host, encoded_slash=ENCODED_SLASH)

    @_route("/dashboard", methods=["GET"])
    def without_slash(self, _: ApiRequest) -> Response:
        """Redirect to the first page."""
        return redirect(HOME)

    @_route(HOME, methods=["GET"])
    async def home(self, request: ApiRequest) -> Response:
        """Return the page that lists the applications."""
        return await self._pages.home(request)

    @_route("/dashboard/apps/<app>/live", methods=["GET"])
    async def live(self, request: ApiRequest, app: str) -> Response:
        """Return the page that shows events as they arrive."""
        return await self._pages.live(request, app)

    @_route("/dashboard/apps/<app>/live/events", methods=["GET"])
    async def live_events(self, request: ApiRequest, app: str) -> Response:
        """Return what has arrived."""
        return await self._pages.live_events(request, app)

    @_route("/dashboard/apps/<app>/share", methods=["GET"])
    async def share_form(self, request: ApiRequest, app: str) -> Response:
        """Return the form that creates a share link."""
        return await self._shares.form(request, app)

    @_route("/dashboard/apps/<app>/share", methods=["POST"])
    async def share(self, request: ApiRequest, app: str) -> Response:
        """Create a share link."""
        return await self._shares.create(request, app)

    @_route("/dashboard/apps/<app>/sample", methods=["POST"])
    async def send_sample(self, request: ApiRequest, app: str) -> Response:
        """Send a sample event."""
        return await self._pages.send_sample(request, app)

    @_route("/dashboard/shares", methods=["GET"])
    async def shares(self, request: ApiRequest) -> Response:
        """Return the page that lists the share links."""
        return await self._shares.list(request)

    @_route("/dashboard/shares/<link>/revoke", methods=["POST"])
    async def revoke(self, request: ApiRequest, link: str) -> Response:
        """Revoke a share link."""
        return await self._shares.revoke(request, link)

    @_route("/dashboard/shared/<token>", methods=["GET"])
    async def shared(self, request: ApiRequest, token: str) -> Response:
        """Return the first page of a share link."""
        return await self._shared.page(request, token)

    @_route("/dashboard/shared/<token>/<name>", methods=["GET"])
    async def shared_page(self, request: ApiRequest, token: str, name: str) -> Response:
        """Return a page of a share link."""
        return await self._shared.page(request, token, name)

    @_route("/dashboard/shared/<token>/export/<panel>/<file>", methods=["GET"])
    async def shared_export(self, request: ApiRequest, token: str, panel: str, file: str) -> Response:
        """Return the numbers of a panel of a share link as a file."""
        return await self._shared.export(request, token, panel, file)

    @_route("/dashboard/apps/<app>/<name>", methods=["GET"])
    async def app_page(self, request: ApiRequest, app: str, name: str) -> Response:
        """Return a page of an application."""
        return await self._pages.page(request, app, name)

    @_route("/dashboard/apps/<app>/export/<panel>/<file>", methods=["GET"])
    async def export(self, request: ApiRequest, app: str, panel: str, file: str) -> Response:
        """Return the numbers of a panel as a file."""
        return await self._pages.export(request, app, panel, file)

    @_route(SIGN_IN, methods=["GET"])
    async def sign_in_page(self, request: ApiRequest) -> Response:
        """Return a page with a button that uses the link. Whoever opens the page does not use it."""
        query = parse_qs(request.uri.partition(b"?")[2].decode("latin-1"))
        token = query.get("token", [""])[0]
        if token and not is_token(token, LINK_PREFIX):
            raise InvalidLink("this link is not complete, or was changed")
        return page("sign_in.html", token=token)

    @_route(SIGN_IN, methods=["POST"])
    async def sign_in(self, request: ApiRequest) -> Response:
        """Use a link, and let the browser open the dashboard with a session."""
        self._access.check_origin(request)
        fields = await self._access.form(request)
        cookie = await self._access.sign_in(request, fields.get("token", ""))
        return redirect(HOME).with_headers({"Set-Cookie": cookie})

    @_route("/dashboard/sign-out", methods=["POST"])
    async def sign_out(self, request: ApiRequest) -> Response:
        """End the session of the browser."""
        await self._access.submission(request)
        cookie = await self._access.sign_out(request)
        return redirect(SIGN_IN).with_headers({"Set-Cookie": cookie})

    @_route("/dashboard/static/<version>/<name>", methods=["GET"])
    def static(self, _: ApiRequest, version: str, name: str) -> Response:
        """Return a static file, which browsers keep, because its URL changes with its contents.

        :raise NotFound: if there is no such file, or only another version.
        """
        if name not in _static_names() or version != static_version(name):
            raise NotFound("this file does not exist")
        content_type = CONTENT_TYPES.get(name.rpartition(".")[2], "text/plain; charset=utf-8")
        body = static_file(name)
        return Response(200, body, STATIC_HEADERS, content_type=content_type, cache_control=STATIC_CACHE_CONTROL)

    def _error_page(self, failure: Failure, request: ApiRequest) -> Response:
        error = self._errors.api_error(failure, request)
        if isinstance(error, InvalidShareLink):
            response = page("invalid_share_link.html", error.status, reason=_sentence(error.message))
        elif isinstance(error, SignInRequired | InvalidLink):
            response = page("sign_in_required.html", error.status, reason=_sentence(error.message))
        else:
            response = page("message.html", error.status, heading=_title(error), text=_sentence(_message(error)))
        return response.with_headers(_headers(error))


@cache
def _static_names() -> frozenset[str]:
    return frozenset(file.name for file in files("tkserver.web.dashboard").joinpath("static").iterdir())


def _title(error: ApiError) -> str:
    return TITLES.get(error.status, "This request failed")


def _message(error: ApiError) -> str:
    """Return what an error says, in the words of the dashboard: most errors are for programs that send events."""
    if isinstance(error, StorageUnavailable):
        return "the database is not available at the moment: try again later"
    if error.status == 404:
        return "this page does not exist, or you may not see it"
    if error.status == 429:
        return f"too many attempts to sign in from your address have failed: try again in {error.retry_after} s"
    return error.message


def _sentence(message: str) -> str:
    return message[:1].upper() + message[1:].removesuffix(".") + "."


def _headers(error: ApiError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Link"
    return headers
