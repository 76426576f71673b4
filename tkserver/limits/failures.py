"""How often an address may fail to authenticate: guessing must cost the guesser more than the server."""

from __future__ import annotations

from collections.abc import Callable

from tkserver import log
from tkserver.limits.address import Address, sender_key
from tkserver.limits.bucket import SECOND, Rate
from tkserver.limits.buckets import Buckets
from tkserver.wire.refusal import RateLimited

_log = log.logger(__name__)

MAX_ADDRESSES = 50_000
"""Addresses that are kept, as long as they have failed lately: some ten megabytes."""

LOG_INTERVAL = 600.0
"""Seconds between two lines of a kind. Who it is stays unsaid."""

Sender = Callable[[], Address | None]
"""Finds out who sent a request; called only where that matters. ``None``: it cannot be known."""


class AuthFailureLimit:
    """A bucket for each address that has failed to authenticate lately.

    :param clock: gives seconds since 1970.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._buckets = Buckets(MAX_ADDRESSES, rate.window / SECOND, clock)
        self._complaints = log.Throttle(clock, LOG_INTERVAL)

    def check(self, sender: Sender) -> None:
        """
        :raise RateLimited: when this address has failed too often.
        """
        if not self._buckets:  # as a rule nobody has failed, and nobody is asked who they are
            return
        address = sender()
        if address is None:
            return
        seen = self._buckets.look(sender_key(address), self._rate)
        if not seen.allowed:
            self._say(
                "auth_failures_limited",
                "an address has failed to authenticate too often and is answered 429; if it is a proxy's,"
                " name the proxy in TK__SERVER__TRUSTED_PROXIES",
            )
            raise RateLimited(
                "too many requests from this address failed to authenticate: check token, secret and clock",
                retry_after=seen.retry_after,
            )

    def note(self, sender: Sender) -> None:
        """A request has failed to authenticate."""
        address = sender()
        if address is None:
            self._say(
                "proxy_not_named",
                "requests that fail to authenticate come through a proxy and are not limited: name it in"
                " TK__SERVER__TRUSTED_PROXIES, and have it send X-Forwarded-For",
            )
        else:
            self._buckets.take(sender_key(address), self._rate)

    def _say(self, event: str, complaint: str) -> None:
        if self._complaints.lets_pass(event):
            _log.warn(complaint, event=event)
