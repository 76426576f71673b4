"""Who may read statistics and metrics: programs on this machine, and everyone with a token."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable
from typing import Protocol

from tkserver.insight.catalog import EVERYTHING, Catalog, Scope
from tkserver.web.admission import IngestAdmission
from tkserver.web.allowed_hosts import AllowedHosts
from tkserver.web.http.request import ApiRequest
from tkserver.wire.api_errors import InvalidToken, MissingAuthorization, Unauthorized

MAX_TOKEN_LENGTH = 255

_FORWARDING_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers of proxies: the client of a proxy may be anywhere."""

_OWN_SITES = (None, "none", "same-origin")
"""Values of ``Sec-Fetch-Site`` in requests that no page of another site has caused (Fetch Metadata)."""


class CurrentCatalog(Protocol):
    """Returns the catalog. See :meth:`tkserver.insight.catalog_watch.CatalogWatch.current`."""

    def __call__(self, *, grace: bool) -> Awaitable[Catalog]: ...


class ReadAccess:
    """Checks requests for statistics.

    :param admission: limits failed authentications.
    :param hosts: tells the names of this machine from others.
    :param trusts_this_machine: true if programs on this machine need no token.
    """

    def __init__(self, admission: IngestAdmission, hosts: AllowedHosts, *, trusts_this_machine: bool) -> None:
        self._admission = admission
        self._hosts = hosts
        self._trusts_this_machine = trusts_this_machine

    async def authorize(self, request: ApiRequest, current_catalog: CurrentCatalog) -> tuple[Catalog, Scope]:
        """Return the catalog, and what the client may read.

        A token that is sent is checked, even if none is needed.

        :raise Unauthorized: if a token is missing or not valid.
        :raise RateLimited: if the address of the client has failed to authenticate too often.
        """
        authorization = request.header("authorization")
        if authorization is None and self._is_trusted(request):
            return await current_catalog(grace=True), EVERYTHING
        self._admission.check_address(request)
        try:
            catalog, scope = await self._authenticate(authorization, current_catalog)
        except Unauthorized:
            self._admission.record_auth_failure(request)
            raise
        self._admission.record_auth_success(request)
        return catalog, scope

    async def _authenticate(self, authorization: str | None, current_catalog: CurrentCatalog) -> tuple[Catalog, Scope]:
        if authorization is None:
            raise MissingAuthorization(
                "send Authorization: Bearer <token>; to create a token, run: tkserver tokens create APP --read"
            )
        scheme, _, token = authorization.partition(" ")
        catalog = await current_catalog(grace=False)
        scope = catalog.scope_of(token.strip()) if len(token) <= MAX_TOKEN_LENGTH else None
        if scheme.lower() != "bearer" or scope is None:
            raise InvalidToken("this is not a valid token to read statistics")
        return catalog, scope

    def _is_trusted(self, request: ApiRequest) -> bool:
        """True if the client is a program on this machine, as far as that can be known."""
        own = request.header("sec-fetch-site") in _OWN_SITES
        return self._trusts_this_machine and own and is_direct(request) and self._hosts.is_local(request)


class MetricsAccess:
    """Checks requests for metrics while the dashboard is enabled, so that whoever can reach it cannot read them.

    :param admission: limits failed authentications.
    :param hosts: tells the names of this machine from others.
    :param token: allows others to read metrics; ``None`` if nobody else may.
    """

    def __init__(self, admission: IngestAdmission, hosts: AllowedHosts, token: str | None) -> None:
        self._admission = admission
        self._hosts = hosts
        self._expected = None if token is None else f"bearer {token}".encode()

    def check(self, request: ApiRequest) -> None:
        """Check that a program on this machine sends a request, or somebody with the token.

        :raise Unauthorized: otherwise.
        :raise RateLimited: if the address of the client has failed to authenticate too often.
        """
        if is_direct(request) and self._hosts.is_local(request):
            return
        self._admission.check_address(request)
        if not self._is_valid(request.header("authorization")):
            self._admission.record_auth_failure(request)
            raise (InvalidToken if request.header("authorization") else MissingAuthorization)(
                "while the dashboard is enabled, metrics are for programs on the machine of the server; others must"
                " send Authorization: Bearer <token> with the token in TK__ADMIN__METRICS_TOKEN"
            )
        self._admission.record_auth_success(request)

    def _is_valid(self, authorization: str | None) -> bool:
        scheme, _, token = (authorization or "").partition(" ")
        sent = f"{scheme.lower()} {token.strip()}".encode("utf-8", "replace")
        return self._expected is not None and hmac.compare_digest(sent, self._expected)


def is_direct(request: ApiRequest) -> bool:
    """True if no header shows that a proxy has forwarded a request."""
    return not any(request.requestHeaders.hasHeader(name) for name in _FORWARDING_HEADERS)
