"""Limit on failed authentications by address: guessing must cost the client more than the server.

A credential that recently succeeded from an address is not limited there: others who share the address, for example
behind NAT, must not be able to lock it out.
"""

from __future__ import annotations

from collections.abc import Callable

from cachetools import TTLCache

from tkserver import log
from tkserver.limits.client_address import Address, bucket_key
from tkserver.limits.token_bucket import SECOND, Rate, TokenBuckets
from tkserver.wire.api_errors import RateLimited

_log = log.logger(__name__)

MAX_ADDRESSES = 50_000
"""The maximum number of addresses with recent failures: about ten megabytes."""

MAX_SUCCESSES = 50_000
"""The maximum number of pairs of address and credential that recently succeeded: about ten megabytes. Beyond that, the
least recently used pair is removed."""

SUCCESS_LIFETIME = 4200.0
"""Seconds for which such a pair is not limited: an hour, and the time for which a success may not be recorded again."""

LOG_INTERVAL = 600.0
"""Seconds between two log messages of the same kind. They do not contain the address."""


class AuthFailureLimit:
    """A token bucket for each address that has recently failed to authenticate.

    :param clock: returns Unix time.
    :param keyed_hash: returns a hash that cannot be calculated without a key. No credential is stored.
    :ivar any_recorded: false if no address has a recent failure, so that :meth:`check` is not needed. An attribute,
        because it is read for every request.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float], keyed_hash: Callable[[bytes], bytes]) -> None:
        self._rate = rate
        self._keyed_hash = keyed_hash
        self._successes: TTLCache[bytes, None] = TTLCache(MAX_SUCCESSES, SUCCESS_LIFETIME, clock)
        self._buckets = TokenBuckets(MAX_ADDRESSES, rate.window / SECOND, clock)
        self._throttle = log.Throttle(clock, LOG_INTERVAL)
        self.any_recorded = False

    def check(self, address: Address | None, credential: bytes) -> None:
        """Check the address of a client, unless its credential recently succeeded from there.

        :param address: ``None`` for a Unix socket.
        :param credential: as for :meth:`record_success`.
        :raise RateLimited: if this address has failed too often.
        """
        self.any_recorded = len(self._buckets) > 0
        decision = self._buckets.peek(bucket_key(address), self._rate)
        if not decision.allowed and self._pair(address, credential) not in self._successes:
            self._warn(
                "auth_failures_limited",
                "an address has failed to authenticate too often and gets 429; if it is the address of a proxy, list"
                " the proxy in TK__SERVER__TRUSTED_PROXIES",
            )
            raise RateLimited(
                "too many requests from this address failed to authenticate: check the token, the secret and the clock",
                retry_after=decision.retry_after,
            )

    def record_success(self, address: Address | None, credential: bytes) -> None:
        """Record that a request was authenticated.

        :param credential: identifies the credential that the client claims to have.
        """
        self._successes[self._pair(address, credential)] = None

    def record_failure(self, address: Address | None, *, is_proxy: bool) -> None:
        """Record that a request failed to authenticate.

        :param is_proxy: true if the address seems to be the one of a proxy, so that all its clients are limited.
        """
        if is_proxy:
            self._warn(
                "proxy_not_named",
                "requests that fail to authenticate come through a proxy, and all clients of the proxy are limited"
                " together: list the proxy in TK__SERVER__TRUSTED_PROXIES, and configure it to send X-Forwarded-For",
            )
        self._buckets.take(bucket_key(address), self._rate)
        self.any_recorded = True

    def _pair(self, address: Address | None, credential: bytes) -> bytes:
        return self._keyed_hash(bucket_key(address) + b" " + credential)

    def _warn(self, event: str, message: str) -> None:
        if self._throttle.allows(event):
            _log.warn(message, event=event)
