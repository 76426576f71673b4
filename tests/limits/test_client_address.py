"""The address of the client of a request, behind any number of proxies."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tkserver.limits.client_address import TrustedProxies, bucket_key

MALFORMED = [
    *(["x"], [""], [" "], [","], [", ,"], ["x, y"], ["x", "y"], ["", ""], ["_hidden"], ["unknown"], ["for=10.0.0.9"]),
    *(["10.0.0.256"], ["10.0.0"], ["1"], ["10.0.0.1/8"], [":80"], ["[]"], ["[]:80"], ["[x]:80"], ["%eth0"]),
    *(["\xff"], ["\x00"], ["1" * 65_536], ["x, " * 20_000], ["," * 65_536]),
]
"""Values of ``X-Forwarded-For`` that end in something that is no address."""

CLIENT, OTHER, PUBLIC_PROXY, PROXY = "203.0.113.9", "198.51.100.7", "192.0.2.1", "10.0.0.5"


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        # no trusted proxies
        ([], CLIENT, [], CLIENT),
        ([], "8.8.8.8", [OTHER], "8.8.8.8"),
        ([], "127.0.0.1", [], "127.0.0.1"),
        ([], "::ffff:8.8.8.8", [], "8.8.8.8"),
        # a client that is not a trusted proxy counts as itself, whatever it sends
        ([], "127.0.0.1", [CLIENT], "127.0.0.1"),
        ([], PROXY, [CLIENT], PROXY),
        ([], "100.64.0.1", [CLIENT], "100.64.0.1"),
        *(([], "127.0.0.1", forwarded, "127.0.0.1") for forwarded in MALFORMED),
        *(([], PROXY, forwarded, PROXY) for forwarded in MALFORMED),
        # a trusted proxy, by address or network
        ([PROXY], PROXY, [CLIENT], CLIENT),
        (["10.0.0.0/8"], PROXY, [CLIENT], CLIENT),
        (["10.0.0.0/8"], f"::ffff:{PROXY}", [CLIENT], CLIENT),
        (["fd00::/8"], "fd00::1", ["2001:db8::1"], "2001:db8::1"),
        (["10.0.0.0/8"], "8.8.8.8", [CLIENT], "8.8.8.8"),
        # the client has written what precedes its own address
        ([PROXY], PROXY, [f"{OTHER}, {CLIENT}"], CLIENT),
        ([PROXY], PROXY, [OTHER, CLIENT], CLIENT),
        ([PROXY], PROXY, [f"{PROXY}, {CLIENT}"], CLIENT),
        # several proxies
        (["10.0.0.0/8", PUBLIC_PROXY], PROXY, [f"{OTHER},{CLIENT} , {PUBLIC_PROXY}"], CLIENT),
        ([PROXY], PROXY, [f"{CLIENT}, {PUBLIC_PROXY}"], PUBLIC_PROXY),
        (["10.0.0.0/8"], PROXY, ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        # formats of addresses
        ([PROXY], PROXY, [f"{CLIENT}:4711"], CLIENT),
        ([PROXY], PROXY, ["[2001:db8::1]:4711"], "2001:db8::1"),
        ([PROXY], PROXY, [f"::ffff:{CLIENT}"], CLIENT),
        ([PROXY], PROXY, ["2001:db8::1"], "2001:db8::1"),
        ([PROXY], PROXY, ["fe80::1%eth0"], "fe80::1"),
        ([PROXY], PROXY, ["[fe80::1%25eth0]:80"], "fe80::1"),
        ([PROXY], "fe80::1%eth0", [], "fe80::1"),
        # unknown clients count as the last proxy that is known
        ([PROXY], PROXY, [], PROXY),
        *(([PROXY], PROXY, forwarded, PROXY) for forwarded in MALFORMED),
        ([PROXY], PROXY, [f"{CLIENT}, unknown"], PROXY),
        (["10.0.0.0/8"], PROXY, ["unknown, 10.1.1.1"], "10.1.1.1"),
        (["10.0.0.0/8"], PROXY, [f"{CLIENT}, " + "10.1.1.1, " * 100 + "10.2.2.2"], "10.1.1.1"),
        # Unix sockets
        ([], None, [CLIENT], None),
        ([], None, [], None),
        (["unix"], None, [CLIENT], CLIENT),
        (["unix", PROXY], None, [f"{CLIENT}, {PROXY}"], CLIENT),
        (["unix"], PROXY, [CLIENT], PROXY),
    ],
)
def test_client_of(trusted: list[str], peer: str | None, forwarded: list[str], client: str | None) -> None:
    """The header is read from the right, up to the first address that is not a trusted proxy."""
    address = TrustedProxies.from_names(trusted).client_of(peer, forwarded)
    assert address == (client and ip_address(client))


def test_ipv6_networks_share_a_key() -> None:
    """All addresses of an IPv6 /64 have the same key, because a single customer has them; IPv4 addresses do not."""
    first, same_network, other = (
        bucket_key(ip_address(f"2001:db8:0:{suffix}")) for suffix in ("1::1", "1:ffff::2", "2::1")
    )
    assert first == same_network != other
    assert bucket_key(ip_address("203.0.113.1")) != bucket_key(ip_address("203.0.113.2"))
