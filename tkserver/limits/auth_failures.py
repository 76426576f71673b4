"""Limit on failed authentications by address: guessing must cost the client more than the server."""

from __future__ import annotations

from collections.abc import Callable

from tkserver import log
from tkserver.limits.client_address import Address, bucket_key
from tkserver.limits.token_bucket import SECOND, Rate, TokenBuckets
from tkserver.wire.api_errors import RateLimited

_log = log.logger(__name__)

MAX_ADDRESSES = 50_000
"""The maximum number of addresses with recent failures: about ten megabytes."""

LOG_INTERVAL = 600.0
"""Seconds between two log messages of the same kind. They do not contain the address."""


class AuthFailureLimit:
    """A token bucket for each address that has recently failed to authenticate.

    :param clock: returns Unix time.
    :ivar any_recorded: false if no address has a recent failure, so that :meth:`check` is not needed. An attribute,
        because it is read for every request.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._buckets = TokenBuckets(MAX_ADDRESSES, rate.window / SECOND, clock)
        self._throttle = log.Throttle(clock, LOG_INTERVAL)
        self.any_recorded = False

    def check(self, address: Address | None) -> None:
        """Check the address of a client.

        :param address: ``None`` if it is not known.
        :raise RateLimited: if this address has failed too often.
        """
        self.any_recorded = len(self._buckets) > 0
        if address is None:
            return
        decision = self._buckets.peek(bucket_key(address), self._rate)
        if not decision.allowed:
            self._warn(
                "auth_failures_limited",
                "an address has failed to authenticate too often and gets 429; if it is the address of a proxy, list"
                " the proxy in TK__SERVER__TRUSTED_PROXIES",
            )
            raise RateLimited(
                "too many requests from this address failed to authenticate: check the token, the secret and the clock",
                retry_after=decision.retry_after,
            )

    def record(self, address: Address | None) -> None:
        """Record a failure.

        :param address: ``None`` if it is not known.
        """
        if address is None:
            self._warn(
                "proxy_not_named",
                "requests that fail to authenticate come through a proxy and cannot be limited: list the proxy in"
                " TK__SERVER__TRUSTED_PROXIES, and configure it to send X-Forwarded-For",
            )
        else:
            self._buckets.take(bucket_key(address), self._rate)
            self.any_recorded = True

    def _warn(self, event: str, message: str) -> None:
        if self._throttle.allows(event):
            _log.warn(message, event=event)
