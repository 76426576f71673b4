"""Admission control: decides from the headers of an authorized request whether its body is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from cachetools import TTLCache
from twisted.internet.interfaces import IAddress

from tkserver.limits.auth_failures import AuthFailureLimit
from tkserver.limits.client_address import Address, TrustedProxies, bucket_key, parse_address
from tkserver.web.http.request import ApiRequest

RECORD_INTERVAL = 600.0
"""Seconds after which a success of the same client is recorded again."""

MAX_JUST_RECORDED = 10_000


class IngestAdmission:
    """Rejects requests from addresses that failed to authenticate too often, and all requests if the server is busy.

    :param check_load: raises an ``ApiError`` if the server is busy.
    :param auth_failures: ``None`` if failures are not limited.
    :param proxies: proxies whose ``X-Forwarded-For`` is trusted.
    :param clock: returns seconds, on any scale.
    """

    def __init__(
        self,
        check_load: Callable[[], None],
        auth_failures: AuthFailureLimit | None,
        proxies: TrustedProxies,
        clock: Callable[[], float],
    ) -> None:
        self._check_load = check_load
        self._auth_failures = auth_failures
        self._proxies = proxies
        self._just_recorded: TTLCache[int, None] = TTLCache(MAX_JUST_RECORDED, RECORD_INTERVAL, clock)

    def check(self, request: ApiRequest) -> None:
        """Check a request whose headers have been received, and whose credential is known.

        :raise ApiError: if its body must not be read.
        """
        request.check_length()
        self.check_address(request)
        self._check_load()

    def check_address(self, request: ApiRequest) -> None:
        """Check the address of the client.

        :raise RateLimited: if it has failed to authenticate too often.
        """
        if self._auth_failures is not None and self._auth_failures.any_recorded:
            self._auth_failures.check(self._client_address(request), _claimed_credential(request))

    def record_auth_failure(self, request: ApiRequest) -> None:
        """Record that a request failed to authenticate."""
        if self._auth_failures is not None:
            is_proxy = self._proxies.is_unnamed(_peer(request), _forwarded(request))
            self._auth_failures.record_failure(self._client_address(request), is_proxy=is_proxy)

    def record_auth_success(self, request: ApiRequest) -> None:
        """Record that a request was authenticated, unless the same client has just sent another one."""
        if self._auth_failures is not None:
            sender = hash((_peer(request), *_forwarded(request), _claimed_credential(request)))
            if sender not in self._just_recorded:
                self._just_recorded[sender] = None
                self._auth_failures.record_success(self._client_address(request), _claimed_credential(request))

    def comes_from_trusted_proxy(self, request: ApiRequest) -> bool:
        """True if a trusted proxy has sent the request, so that its headers can be believed."""
        peer = _peer(request)
        address = None if peer is None else parse_address(peer)
        return self._proxies.unix if address is None else self._proxies.contains(address)

    def client_of(self, request: ApiRequest) -> bytes | None:
        """Return what identifies the client of a request among others, or ``None`` if its address is not known."""
        address = self._client_address(request)
        return None if address is None else bucket_key(address)

    def _client_address(self, request: ApiRequest) -> Address | None:
        """Return the address of the client if it is known. It must never be logged or stored."""
        return self._proxies.client_of(_peer(request), _forwarded(request))


def clients_of_connections(proxies: TrustedProxies) -> Callable[[IAddress], bytes | None]:
    """Return a function that returns the client with an address, or ``None`` if its connections are not limited."""

    @lru_cache(4096)
    def client_of(host: str | None) -> bytes | None:
        address = None if host is None else parse_address(host)
        return None if address is None or proxies.contains(address) else bucket_key(address)

    return lambda address: client_of(getattr(address, "host", None))


def _peer(request: ApiRequest) -> str | None:
    return getattr(request.channel.getPeer(), "host", None)  # the address of a Unix socket has no host


def _forwarded(request: ApiRequest) -> list[str]:
    return [value.decode("latin-1") for value in request.requestHeaders.getRawHeaders(b"x-forwarded-for", ())]


def _claimed_credential(request: ApiRequest) -> bytes:
    """Return what identifies the credential of a request: the ids in its path, and the token if there is one.

    Without a token, anyone who knows the ids can claim the credential, but nobody else can succeed with it.
    """
    token = request.requestHeaders.getRawHeaders(b"authorization", (b"",))[-1]
    return b"%s %s" % (request.path, token)
