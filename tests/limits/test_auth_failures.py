"""The limit on failed authentications, without a server."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

import pytest
from twisted.internet.task import Clock

from tests.support.logs import logged_lines
from tkserver.limits import auth_failures
from tkserver.limits.auth_failures import AuthFailureLimit
from tkserver.limits.token_bucket import Rate
from tkserver.wire.api_errors import RateLimited

HOUR = 3600.0
SHARED, OTHER = ip_address("203.0.113.9"), ip_address("198.51.100.7")
KNOWN, GUESSED = b"known", b"guessed"


def make_limit(clock: Clock) -> AuthFailureLimit:
    return AuthFailureLimit(Rate.per_minute(1, burst=3), clock.seconds, lambda text: hashlib.sha256(text).digest())


def fail(limit: AuthFailureLimit, count: int = 3) -> None:
    for _ in range(count):
        limit.record_failure(SHARED, is_proxy=False)


def is_limited(limit: AuthFailureLimit, credential: bytes, address: object = SHARED) -> bool:
    try:
        limit.check(address, credential)  # type: ignore[arg-type]
    except RateLimited:
        return True
    return False


def test_known_credential_is_not_limited() -> None:
    """A credential that succeeded from an address is not limited there, however many others fail."""
    limit = make_limit(Clock())
    limit.record_success(SHARED, KNOWN)
    fail(limit, 1000)
    assert not is_limited(limit, KNOWN)
    assert is_limited(limit, GUESSED)
    assert is_limited(limit, b"")


def test_success_counts_for_its_address_only() -> None:
    """A credential that succeeded from one address is limited at another one that fails."""
    limit = make_limit(Clock())
    limit.record_success(OTHER, KNOWN)
    fail(limit)
    assert is_limited(limit, KNOWN)
    assert not is_limited(limit, KNOWN, OTHER)


def test_success_is_remembered_for_an_hour() -> None:
    """A success counts for an hour, and not for two."""
    clock = Clock()
    limit = make_limit(clock)
    limit.record_success(SHARED, KNOWN)
    for wait, limited in ((HOUR, False), (HOUR, True)):
        clock.advance(wait)
        fail(limit)
        assert is_limited(limit, KNOWN) is limited


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of successes is limited, and the oldest ones are removed first."""
    monkeypatch.setattr(auth_failures, "MAX_SUCCESSES", 10)
    limit = make_limit(Clock())
    for number in range(20):
        limit.record_success(SHARED, b"%d" % number)
    fail(limit)
    assert [number for number in range(20) if not is_limited(limit, b"%d" % number)] == list(range(10, 20))


def test_clients_of_an_untrusted_unix_socket_are_limited() -> None:
    """Clients of a Unix socket whose addresses are not known share a limit, and the log says what to configure."""
    limit = make_limit(Clock())
    with logged_lines() as lines:
        for _ in range(3):
            limit.record_failure(None, is_proxy=True)
        assert is_limited(limit, GUESSED, None)
    assert sum("TK__SERVER__TRUSTED_PROXIES, and configure it" in line for line in lines) == 1
