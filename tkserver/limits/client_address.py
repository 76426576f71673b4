"""Which address a request comes from, also behind proxies. Pure; an address is never logged or stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNIX = "unix"
"""Stands in a list of proxies for whoever connects to a Unix socket."""

_IPV6_NETWORK_BYTES = 8
"""A /64: what a single customer has at the least, and chooses addresses from at will."""


@dataclass(frozen=True)
class TrustedProxies:
    """Proxies whose ``X-Forwarded-For`` is believed.

    :ivar unix: whether Unix sockets are among them.
    """

    networks: tuple[Network, ...] = ()
    unix: bool = False

    @classmethod
    def of(cls, names: Sequence[str]) -> TrustedProxies:
        """By addresses, networks such as ``10.0.0.0/8``, and :data:`UNIX`."""
        return cls(tuple(ip_network(name) for name in names if name != UNIX), UNIX in names)

    def client_of(self, peer: str | None, forwarded: Sequence[str]) -> Address | None:
        """Who sent a request, or ``None`` where that cannot be known and many may look like one.

        :param peer: the address at the other end of the connection; ``None`` for a Unix socket.
        :param forwarded: the values of ``X-Forwarded-For``. Each proxy appends whom it was called by, so that it is
            read from the right, as far as those who wrote it are trusted: what stands further left may be invented.
        """
        hop = None if peer is None else _address(peer)
        if not (self.unix if hop is None else self._names(hop)):
            # Somebody on a private network who forwards is a proxy that nobody has named, not a client.
            return None if hop is None or (forwarded and not hop.is_global) else hop
        if not forwarded:
            return None
        for text in reversed(",".join(forwarded).split(",")):
            hop = _address(text)
            if hop is None or not self._names(hop):
                break
        return hop

    def _names(self, hop: Address) -> bool:
        return any(hop in network for network in self.networks)


def bucket_key(address: Address) -> bytes:
    """What stands for an address: itself, or of IPv6 the network that it is in."""
    return address.packed if address.version == 4 else address.packed[:_IPV6_NETWORK_BYTES]


def _address(text: str) -> Address | None:
    """An address, possibly with a port, as some proxies write it; ``None`` for anything else."""
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
