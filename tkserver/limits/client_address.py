"""The address of the client of a request, also behind proxies. Addresses must never be logged or stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNIX = "unix"
"""In a list of trusted proxies: proxies that connect to a Unix socket."""

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
        """Return the address of the client that sent a request, or ``None`` if it is not known.

        Each proxy appends the address of its own client to ``X-Forwarded-For``. The addresses are read from the right
        up to the first that is not a trusted proxy: that client may have invented everything to the left of it.

        :param peer: the remote address of the connection; ``None`` for a Unix socket.
        :param forwarded: the values of ``X-Forwarded-For``.
        """
        address = None if peer is None else _parse(peer)
        if not (self.unix if address is None else self._contains(address)):
            # A private address that forwards requests is not a client, but a proxy that is not configured.
            return None if address is None or (forwarded and not address.is_global) else address
        if not forwarded:
            return None
        for text in reversed(",".join(forwarded).split(",")):
            address = _parse(text)
            if address is None or not self._contains(address):
                break
        return address

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def bucket_key(address: Address) -> bytes:
    """Return the key of the token bucket of an address: an IPv4 address, or an IPv6 network."""
    return address.packed if address.version == 4 else address.packed[:_IPV6_NETWORK_BYTES]


def _parse(text: str) -> Address | None:
    """Return an address, without the port that some proxies append, or ``None`` if the text is not an address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
