"""Admission control: rejects requests before their bodies are read."""

from __future__ import annotations

from collections.abc import Callable

from tkserver.limits.auth_failures import AuthFailureLimit
from tkserver.limits.client_address import Address, TrustedProxies
from tkserver.web.http.request import ApiRequest


class IngestAdmission:
    """Rejects requests from addresses that failed to authenticate too often, and all requests if the server is busy.

    :param check_load: raises an ``ApiError`` if the server is busy.
    :param auth_failures: ``None`` if failures are not limited.
    :param proxies: proxies whose ``X-Forwarded-For`` is trusted.
    """

    def __init__(
        self, check_load: Callable[[], None], auth_failures: AuthFailureLimit | None, proxies: TrustedProxies
    ) -> None:
        self._check_load = check_load
        self._auth_failures = auth_failures
        self._proxies = proxies

    def check(self, request: ApiRequest) -> None:
        """Check a request whose headers have been received.

        :raise ApiError: if its body must not be read.
        """
        self.check_address(request)
        self._check_load()

    def check_address(self, request: ApiRequest) -> None:
        """Check the address of the client.

        :raise RateLimited: if it has failed to authenticate too often.
        """
        if self._auth_failures is not None and self._auth_failures.any_recorded:
            self._auth_failures.check(self._client_address(request))

    def record_auth_failure(self, request: ApiRequest) -> None:
        """Record that a request failed to authenticate."""
        if self._auth_failures is not None:
            self._auth_failures.record(self._client_address(request))

    def _client_address(self, request: ApiRequest) -> Address | None:
        """Return the address of the client if it is known. It must never be logged or stored."""
        forwarded = request.requestHeaders.getRawHeaders(b"x-forwarded-for", ())
        peer = getattr(request.channel.getPeer(), "host", None)  # the address of a Unix socket has no host
        return self._proxies.client_of(peer, [value.decode("latin-1") for value in forwarded])
