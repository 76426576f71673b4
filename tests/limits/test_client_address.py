"""Whose request it is, behind any number of proxies."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tkserver.limits.client_address import TrustedProxies, bucket_key

GUESSER, OTHER, PUBLIC_PROXY, PROXY = "203.0.113.9", "198.51.100.7", "192.0.2.1", "10.0.0.5"


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        # nobody is trusted
        ([], GUESSER, [], GUESSER),
        ([], "8.8.8.8", [OTHER], "8.8.8.8"),
        ([], "127.0.0.1", [], "127.0.0.1"),
        ([], "::ffff:8.8.8.8", [], "8.8.8.8"),
        # a proxy that nobody has named
        ([], "127.0.0.1", [GUESSER], None),
        ([], PROXY, [GUESSER], None),
        ([], "100.64.0.1", [GUESSER], None),
        # one that is named, as an address or as a network
        ([PROXY], PROXY, [GUESSER], GUESSER),
        (["10.0.0.0/8"], PROXY, [GUESSER], GUESSER),
        (["10.0.0.0/8"], f"::ffff:{PROXY}", [GUESSER], GUESSER),
        (["fd00::/8"], "fd00::1", ["2001:db8::1"], "2001:db8::1"),
        (["10.0.0.0/8"], "8.8.8.8", [GUESSER], "8.8.8.8"),
        # what stands left of the client was written by it
        ([PROXY], PROXY, [f"{OTHER}, {GUESSER}"], GUESSER),
        ([PROXY], PROXY, [OTHER, GUESSER], GUESSER),
        ([PROXY], PROXY, [f"{PROXY}, {GUESSER}"], GUESSER),
        # several proxies in a row
        (["10.0.0.0/8", PUBLIC_PROXY], PROXY, [f"{OTHER},{GUESSER} , {PUBLIC_PROXY}"], GUESSER),
        ([PROXY], PROXY, [f"{GUESSER}, {PUBLIC_PROXY}"], PUBLIC_PROXY),
        (["10.0.0.0/8"], PROXY, ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        # forms that proxies write
        ([PROXY], PROXY, [f"{GUESSER}:4711"], GUESSER),
        ([PROXY], PROXY, ["[2001:db8::1]:4711"], "2001:db8::1"),
        ([PROXY], PROXY, [f"::ffff:{GUESSER}"], GUESSER),
        # what cannot be known
        ([PROXY], PROXY, [], None),
        ([PROXY], PROXY, [""], None),
        ([PROXY], PROXY, [f"{GUESSER}, unknown"], None),
        # Unix sockets
        ([], None, [GUESSER], None),
        ([], None, [], None),
        (["unix"], None, [GUESSER], GUESSER),
        (["unix", PROXY], None, [f"{GUESSER}, {PROXY}"], GUESSER),
        (["unix"], PROXY, [GUESSER], None),
    ],
)
def test_client(trusted: list[str], peer: str | None, forwarded: list[str], client: str | None) -> None:
    """The header is read from the right, as far as those who wrote it are trusted."""
    found = TrustedProxies.of(trusted).client_of(peer, forwarded)
    assert found == (client and ip_address(client))


def test_networks_of_ipv6() -> None:
    """All addresses of a /64 are one sender, for one customer has them all; IPv4 addresses are one each."""
    a, b, c = (bucket_key(ip_address(f"2001:db8:0:{tail}")) for tail in ("1::1", "1:ffff::2", "2::1"))
    assert a == b != c
    assert bucket_key(ip_address("203.0.113.1")) != bucket_key(ip_address("203.0.113.2"))
