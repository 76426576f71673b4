"""The hosts in whose name requests to the admin port are allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from tkserver.web.http.request import ApiRequest
from tkserver.web.http.routing import check_number_of_hosts
from tkserver.wire.api_errors import MisdirectedRequest

HostName = str | IPv4Address | IPv6Address

DEFAULT_PORT = 80

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/?#@,]+)(?::([0-9]{0,5}))?")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """True if a host is this machine: ``localhost``, or an address of the loopback interface."""
    return _is_this_machine(_canonical(host))


class AllowedHosts:
    """Allows requests for loopback, for the address of the connection, and for the hosts in a list.

    A web page whose host name resolves to this machine (DNS rebinding) sends its own name.

    :param names: host names and addresses, each with or without a port. Without a port, all ports are allowed.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._allowed = {_split(name) for name in names}

    def check(self, request: ApiRequest) -> None:
        """Check the host of a request, and that there is only one.

        :raise MisdirectedRequest: if it is not allowed.
        """
        check_number_of_hosts(request)
        absolute = _ABSOLUTE.match(request.uri.decode("latin-1"))
        named = [request.header("host"), absolute and absolute[1]]
        if not all(self._allows(text, request) for text in named if text is not None):
            raise MisdirectedRequest("requests for this host name are not allowed: see TK__ADMIN__ALLOWED_HOSTS")

    def is_local(self, request: ApiRequest) -> bool:
        """True if a request comes from this machine, and names it as such."""
        peer = _canonical(str(getattr(request.channel.getPeer(), "host", "")))
        name, _ = _split(request.header("host") or "")
        return _is_this_machine(peer) and _is_this_machine(name)

    def _allows(self, text: str, request: ApiRequest) -> bool:
        if not _HOST.fullmatch(text):
            return False
        name, port = _split(text)
        if _is_this_machine(name):
            return True
        own = _canonical(str(getattr(request.channel.getHost(), "host", "")))
        return name == own or not self._allowed.isdisjoint({(name, None), (name, port or DEFAULT_PORT)})


def _is_this_machine(name: HostName) -> bool:
    return name == "localhost" if isinstance(name, str) else name.is_loopback


def _split(text: str) -> tuple[HostName, int | None]:
    """Return the host and the port of a valid ``Host`` header, or of an IPv6 address without brackets."""
    match = _HOST.fullmatch(text)
    return (_canonical(match[1]), int(match[2]) if match[2] else None) if match else (_canonical(text), None)


def _canonical(name: str) -> HostName:
    """Return an address, or a host name in lower case and without the dot of the root domain."""
    try:
        address = ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return name.lower().removesuffix(".")
    return getattr(address, "ipv4_mapped", None) or address
