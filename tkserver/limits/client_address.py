"""The address of the client of a request, also behind proxies. Addresses must never be logged or stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNIX = "unix"
"""In a list of trusted proxies: proxies that connect to a Unix socket."""

MAX_HOPS = 50
"""The maximum number of addresses that are read from ``X-Forwarded-For``."""

_MAX_ADDRESS_LENGTH = 80
"""Characters of an IPv6 address in brackets with a zone and a port."""

_IPV6_NETWORK_BYTES = 8
"""The length of a /64. A single customer has at least that many addresses, and can use any of them."""


@dataclass(frozen=True)
class TrustedProxies:
    """Proxies whose ``X-Forwarded-For`` is trusted.

    :ivar unix: whether proxies that connect to a Unix socket are trusted.
    """

    networks: tuple[Network, ...] = ()
    unix: bool = False

    @classmethod
    def from_names(cls, names: Sequence[str]) -> TrustedProxies:
        """Create from addresses, networks such as ``10.0.0.0/8``, and :data:`UNIX`."""
        return cls(tuple(ip_network(name) for name in names if name != UNIX), UNIX in names)

    def client_of(self, peer: str | None, forwarded: Sequence[str]) -> Address | None:
        """Return the address of the client that sent a request, or of the last proxy that is known.

        Each proxy appends the address of its own client to ``X-Forwarded-For``. The addresses are read from the right
        up to the first that is not a trusted proxy: that client may have invented everything to the left of it. What
        clients that are not trusted proxies send does not matter. If a trusted proxy sends no address, or something
        that is no address, the request counts as its own.

        :param peer: the remote address of the connection; ``None`` for a Unix socket.
        :param forwarded: the values of ``X-Forwarded-For``.
        :return: ``None`` if nothing but the Unix socket is known.
        """
        address = None if peer is None else parse_address(peer)
        if not forwarded or not (self.unix if address is None else self.contains(address)):
            return address
        for text in reversed(",".join(forwarded).rsplit(",", MAX_HOPS)):
            hop = parse_address(text)
            if hop is None:
                break
            address = hop
            if not self.contains(address):
                break
        return address

    def is_unnamed(self, peer: str | None, forwarded: Sequence[str]) -> bool:
        """Return whether a request seems to come from a proxy that is not configured.

        :param peer: as for :meth:`client_of`; the same applies to ``forwarded``.
        """
        address = None if peer is None else parse_address(peer)
        if address is None:
            return not (self.unix and forwarded)
        return not forwarded if self.contains(address) else bool(forwarded) and not address.is_global

    def contains(self, address: Address) -> bool:
        """Return whether an address is the one of a trusted proxy."""
        return any(address in network for network in self.networks)


def bucket_key(address: Address | None) -> bytes:
    """Return the key of the token bucket of an address: an IPv4 address, or an IPv6 network.

    All clients of a Unix socket whose addresses are not known share one bucket.
    """
    if address is None:
        return b""
    return address.packed if address.version == 4 else address.packed[:_IPV6_NETWORK_BYTES]


def parse_address(text: str) -> Address | None:
    """Return an address, without the port that some proxies append, or ``None`` if the text is not an address."""
    text = text.strip(" \t")
    return _parse(text) if len(text) <= _MAX_ADDRESS_LENGTH else None


@lru_cache(4096)
def _parse(text: str) -> Address | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])  # without the zone, which has a meaning on one machine only
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
