"""Who may open the dashboard: browsers that are signed in, and the users of an authenticating proxy."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol
from urllib.parse import parse_qsl, urlsplit

from cachetools import TTLCache

from tkserver.insight.catalog import EVERYTHING, Scope
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.storage.sign_in import (
    DELETE_SESSION,
    SELECT_KEY,
    SELECT_SESSION,
    SESSION_LIFETIME,
    SESSION_PREFIX,
    USE_LINK,
    hash_token,
    is_token,
    new_token,
)
from tkserver.web.admission import IngestAdmission
from tkserver.web.http.request import ApiRequest
from tkserver.wire.api_errors import ApiError, BadRequest, Unauthorized, UnsupportedMediaType

COOKIE = "tkserver"
"""The name of the cookie with the token of the session."""

SECURE_COOKIE = f"__Secure-{COOKIE}"
"""Its name under TLS: browsers accept it only through TLS."""

PATH = "/dashboard"
"""The path of all pages, and of the cookie."""

SESSION_CACHE_SECONDS = 1.0
"""Seconds for which a session is not looked up again. A session that has ended is valid no longer than that."""

KNOWN_SECONDS = 3600.0
"""Seconds for which a session that was valid is not affected by failures of others at the same address."""

MAX_SESSIONS = 1000
"""The maximum number of sessions that are remembered for each of these purposes."""

MAX_USER_LENGTH = 255
MAX_FORM_FIELDS = 50
FORM_TYPE = "application/x-www-form-urlencoded"
CSRF_FIELD = "csrf"

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


class SignInRequired(Unauthorized):
    """Nobody is signed in."""

    code = "sign_in_required"


class InvalidLink(Unauthorized):
    """The sign-in link is not valid, or not anymore."""

    code = "invalid_link"


class Forbidden(ApiError):
    """A form that was not sent by a page of the dashboard, or to which the viewer has no right."""

    status: ClassVar[int] = 403
    code: ClassVar[str] = "forbidden"


@dataclass(frozen=True)
class Viewer:
    """Somebody who may see the dashboard.

    :ivar scope: the applications that they may see.
    :ivar can_share: true if they may share numbers with others.
    :ivar csrf_token: must be in all of their forms, in the field :data:`CSRF_FIELD`.
    :ivar user: the name of the user at the proxy; ``None`` for a session.
    """

    scope: Scope
    can_share: bool
    csrf_token: str
    user: str | None = None


class AccessOptions(Protocol):
    """The settings of the dashboard. See :class:`tkserver.config.Dashboard`."""

    @property
    def url(self) -> str | None: ...

    @property
    def user_header(self) -> str | None: ...

    @property
    def users_share(self) -> bool: ...


class DashboardAccess:
    """Finds out who sends a request, and creates and ends sessions.

    :param watch: its connection is used, and never one of ingest.
    :param admission: limits failed attempts, and knows the trusted proxies.
    :param clock: returns seconds, on any scale.
    """

    def __init__(
        self, watch: CatalogWatch, admission: IngestAdmission, options: AccessOptions, clock: Callable[[], float]
    ) -> None:
        self._watch = watch
        self._admission = admission
        self._url = urlsplit(options.url or "")
        self._user_header = options.user_header
        self._users_share = options.users_share
        self._sessions: TTLCache[bytes, Viewer] = TTLCache(MAX_SESSIONS, SESSION_CACHE_SECONDS, clock)
        self._known: TTLCache[bytes, None] = TTLCache(MAX_SESSIONS, KNOWN_SECONDS, clock)
        self._key: bytes | None = None

    async def viewer(self, request: ApiRequest) -> Viewer:
        """Return who sends a request.

        :raise SignInRequired: if nobody is signed in.
        :raise RateLimited: if the address of the client has failed too often.
        :raise StorageError: if the database is not available.
        """
        user = self._proxy_user(request)
        if user is not None:
            return Viewer(EVERYTHING, self._users_share, await self._csrf_token_of_user(user), user)
        token = self._session_token(request)
        if token is None:
            raise SignInRequired("sign in to see this page")
        return await self._viewer_of_session(request, token)

    async def submission(self, request: ApiRequest) -> tuple[Viewer, dict[str, str]]:
        """Return who sends a form, and its fields.

        Every request that changes something must pass this check.

        :raise Forbidden: if the form was not sent by a page of the dashboard that this viewer has opened.
        :raise ApiError: for other reasons, as :meth:`viewer` and :meth:`form` do.
        """
        self.check_origin(request)
        viewer = await self.viewer(request)
        fields = await self.form(request)
        if not hmac.compare_digest(fields.get(CSRF_FIELD, "").encode(), viewer.csrf_token.encode()):
            raise Forbidden("this form is not valid anymore: go back, reload the page, and try again")
        return viewer, fields

    async def form(self, request: ApiRequest) -> dict[str, str]:
        """Return the fields of a form.

        :raise ApiError: if the body cannot be received, or is no form.
        """
        content_type = (request.header("content-type") or "").partition(";")[0]
        if content_type.strip().lower() != FORM_TYPE:
            raise UnsupportedMediaType(f"send the form as {FORM_TYPE}")
        body = await request.read_body(lambda: self._admission.client_of(request))
        try:
            text = body.decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS)
        except ValueError:
            raise BadRequest(f"the form is not UTF-8, or has more than {MAX_FORM_FIELDS} fields") from None
        return dict(pairs)

    def check_origin(self, request: ApiRequest) -> None:
        """Check that a page of this dashboard has sent a request.

        Pages have no referrer, so that browsers send ``Origin: null`` with their forms. Then ``Sec-Fetch-Site`` says
        where a form comes from. Browsers do not send that without TLS, except to loopback: only the token of the form
        protects it then.

        :raise Forbidden: otherwise.
        """
        site, origin = request.header("sec-fetch-site"), request.header("origin")
        is_foreign_site = site not in (None, "same-origin")
        is_foreign_origin = origin is not None and origin != "null" and not self._is_own(origin, request)
        if is_foreign_site or is_foreign_origin or (site is None and origin is None):
            raise Forbidden("this form was not sent by a page of the dashboard: open the dashboard, and try again")

    def origin(self, request: ApiRequest) -> str:
        """Return the scheme, host and port by which the browser reaches the dashboard."""
        scheme = "https" if self._is_secure(request) else "http"
        return self._url.geturl() or f"{scheme}://{request.header('host')}"

    async def sign_in(self, request: ApiRequest, link_token: str) -> str:
        """Use a link, and return the cookie of the new session.

        :raise InvalidLink: if the link is unknown, used or expired.
        :raise RateLimited: if the address of the client has failed too often.
        :raise StorageError: if the database is not available. The link may have been used.
        """
        self._admission.check_address(request)
        session = new_token(SESSION_PREFIX)
        parameters = hash_token(link_token), hash_token(session), SESSION_LIFETIME
        if not await self._watch.query(USE_LINK, parameters):
            self._admission.record_auth_failure(request)
            raise InvalidLink("this link was already used, or is older than five minutes")
        return self._cookie(request, session, int(SESSION_LIFETIME.total_seconds()))

    async def sign_out(self, request: ApiRequest) -> str:
        """End the session of a request if it has one, and return a cookie that removes that of the session.

        :raise StorageError: if the database is not available.
        """
        token = self._session_token(request)
        if token is not None:
            await self._watch.query(DELETE_SESSION, (hash_token(token),))
            self._sessions.pop(hash_token(token), None)
        return self._cookie(request, "", 0)

    # --- sessions

    async def _viewer_of_session(self, request: ApiRequest, token: str) -> Viewer:
        hashed = hash_token(token)
        if (viewer := self._sessions.get(hashed)) is not None:
            return viewer
        if hashed not in self._known:
            self._admission.check_address(request)
        rows = await self._watch.query(SELECT_SESSION, (hashed,))
        if not rows:
            self._known.pop(hashed, None)
            self._admission.record_auth_failure(request)
            raise SignInRequired("this session has ended: sign in again")
        ((org_id, app_id, can_share),) = rows
        viewer = Viewer(Scope(app_id, org_id), can_share, _csrf_token(token.encode(), b"session"))
        self._sessions[hashed], self._known[hashed] = viewer, None
        return viewer

    def _session_token(self, request: ApiRequest) -> str | None:
        """Return the token in the cookie of a request; ``None`` if there is none that could be valid."""
        name = SECURE_COOKIE if self._is_secure(request) else COOKIE
        headers = request.requestHeaders.getRawHeaders(b"cookie", ())
        for pair in b";".join(headers).decode("latin-1").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == name and is_token(value, SESSION_PREFIX):
                return value
        return None

    def _cookie(self, request: ApiRequest, value: str, max_age: int) -> str:
        secure = self._is_secure(request)
        name, suffix = (SECURE_COOKIE, "; Secure") if secure else (COOKIE, "")
        return f"{name}={value}; Path={PATH}; Max-Age={max_age}; HttpOnly; SameSite=Lax{suffix}"

    def _is_secure(self, request: ApiRequest) -> bool:
        """True if the browser uses TLS."""
        if self._admission.comes_from_trusted_proxy(request):
            scheme = request.header("x-forwarded-proto")
            if scheme is not None:
                return scheme.rpartition(",")[2].strip().lower() == "https"
        return self._url.scheme == "https" and self._url.netloc == (request.header("host") or "").lower()

    # --- users of a proxy

    def _proxy_user(self, request: ApiRequest) -> str | None:
        """Return the user that a trusted proxy has authenticated.

        :raise BadRequest: if the name cannot be shown, or is not unique.
        """
        if self._user_header is None or not self._admission.comes_from_trusted_proxy(request):
            return None
        values = request.requestHeaders.getRawHeaders(self._user_header.encode(), ())
        if len(values) > 1:
            raise BadRequest("the proxy must send the name of the user once, and remove it from requests of clients")
        if not values or not values[0]:
            return None
        return _user_name(values[0])

    async def _csrf_token_of_user(self, user: str) -> str:
        if self._key is None:
            ((key,),) = await self._watch.query(SELECT_KEY)
            self._key = bytes.fromhex(key)
        return _csrf_token(self._key, f"user {user}".encode())

    def _is_own(self, origin: str, request: ApiRequest) -> bool:
        """True if an origin is that of the dashboard, as the browser or the settings know it."""
        host = request.header("host") or ""
        return origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower(), self._url.geturl() or None)


def _user_name(value: bytes) -> str:
    try:
        name = value.decode()
    except UnicodeDecodeError:
        name = "\0"
    if len(value) > MAX_USER_LENGTH or _UNPRINTABLE.search(name):
        raise BadRequest(f"the name of the user is not UTF-8, not printable, or longer than {MAX_USER_LENGTH} bytes")
    return name


def _csrf_token(key: bytes, subject: bytes) -> str:
    """Return the token of forms. It does not reveal the key."""
    return hmac.digest(key, b"tkserver dashboard form, " + subject, "sha256").hex()
