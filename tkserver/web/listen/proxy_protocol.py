"""The PROXY protocol, versions 1 and 2: a header before the data of a connection names the client of the proxy.

Twisted has an implementation, too. It raises exceptions on some malformed headers, accepts text that is no address, and
closes connections whose header arrives in parts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from tkserver import log

_log = log.logger(__name__)

V1_START = b"PROXY "
V1_MAX_LENGTH = 107
"""Bytes, including the line break."""

V2_START = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED_LENGTH = 16
V2_MAX_LENGTH = 16_384
"""Bytes after the fixed part. The protocol allows 65535, and addresses need at most 216."""

_PORT = re.compile(r"[0-9]{1,5}")

Parsed = tuple[IAddress | None, int]
"""The address of the client, or ``None`` if the proxy does not tell it, and the length of the header."""


class MalformedHeader(Exception):
    """A connection does not begin with a valid header. The text is the reason, and contains no received data."""


def parse_header(data: bytes) -> Parsed | None:
    """Return the result for the header with which ``data`` begins, or ``None`` if the header is not complete yet.

    :raise MalformedHeader: if no header can begin in this way.
    """
    if data.startswith(V1_START):
        return _parse_v1(data)
    if data.startswith(V2_START):
        return _parse_v2(data)
    if V1_START.startswith(data) or V2_START.startswith(data):
        return None
    raise MalformedHeader("no PROXY header")


def _parse_v1(data: bytes) -> Parsed | None:
    line, end, _ = data[:V1_MAX_LENGTH].partition(b"\r\n")
    if not end:
        if len(data) >= V1_MAX_LENGTH:
            raise MalformedHeader("the header is too long")
        return None
    try:
        _, protocol, *fields = line.decode("ascii").split(" ")
        client = None if protocol == "UNKNOWN" else _v1_client(protocol, *fields)
    except (TypeError, ValueError):
        raise MalformedHeader("invalid header of version 1") from None
    return client, len(line) + len(end)


def _v1_client(protocol: str, source: str, destination: str, source_port: str, destination_port: str) -> IAddress:
    """
    :raise ValueError: if a field is invalid.
    """
    version = {"TCP4": 4, "TCP6": 6}.get(protocol)
    addresses = [ip_address(source), ip_address(destination)]
    ports = [int(port) for port in (source_port, destination_port) if _PORT.fullmatch(port)]
    if {address.version for address in addresses} != {version} or len(ports) != 2 or max(ports) > 65_535:
        raise ValueError
    return _address(source, ports[0])


def _parse_v2(data: bytes) -> Parsed | None:
    if len(data) < V2_FIXED_LENGTH:
        return None
    version_and_command, family, length = struct.unpack_from("!BBH", data, len(V2_START))
    if version_and_command not in (0x20, 0x21):
        raise MalformedHeader("unknown version or command in a header of version 2")
    if length > V2_MAX_LENGTH:
        raise MalformedHeader("the header is too long")
    if len(data) < V2_FIXED_LENGTH + length:
        return None
    content = data[V2_FIXED_LENGTH : V2_FIXED_LENGTH + length]
    try:
        client = _v2_client(family, content) if version_and_command == 0x21 else None
    except struct.error:
        raise MalformedHeader("invalid address in a header of version 2") from None
    return client, V2_FIXED_LENGTH + length


def _v2_client(family: int, content: bytes) -> IAddress | None:
    """
    :raise struct.error: if the content is too short.
    """
    if family in (0x11, 0x12):
        source, _, port, _ = struct.unpack_from("!4s4sHH", content)
    elif family in (0x21, 0x22):
        source, _, port, _ = struct.unpack_from("!16s16sHH", content)
    elif family in (0x31, 0x32):
        return UNIXAddress(None)
    elif family & 0xF0 == 0x00 or family in (0x10, 0x20, 0x30):
        return None
    else:
        raise MalformedHeader("unknown address family in a header of version 2")
    return _address(str(ip_address(source)), port)


def _address(host: str, port: int) -> IAddress:
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)


class ProxiedConnection(ProtocolWrapper):
    """A connection of a proxy, whose peer is the client of the proxy."""

    factory: ProxyProtocol

    def __init__(self, factory: WrappingFactory[ProxiedConnection], wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)
        self._header: bytearray | None = bytearray()
        self._client: IAddress | None = None

    def dataReceived(self, data: bytes) -> None:
        if self._header is None:
            super().dataReceived(data)
            return
        self._header += data
        try:
            parsed = parse_header(bytes(self._header))
        except MalformedHeader as error:
            self._header.clear()
            self.factory.log_malformed(str(error))
            self.loseConnection()
            return
        if parsed is not None:
            self._client, length = parsed
            rest, self._header = bytes(self._header[length:]), None
            if rest:
                super().dataReceived(rest)

    @property
    def peer_known(self) -> bool:
        """True if the header has been received."""
        return self._header is None

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return self._client or super().getPeer()


class ProxyProtocol(WrappingFactory[ProxiedConnection]):
    """A factory for connections that begin with a header of the PROXY protocol. Others are closed.

    :param clock: returns seconds, on any scale.
    """

    protocol = ProxiedConnection
    noisy = False

    def __init__(self, wrapped: Any, clock: Callable[[], float]) -> None:
        super().__init__(wrapped)
        self._throttle = log.Throttle(clock)

    def log_malformed(self, problem: str) -> None:
        """Log that a connection was closed."""
        if self._throttle.allows(problem):
            _log.warn(
                "a connection was closed, because it does not begin as the PROXY protocol requires: {problem}",
                problem=problem,
                event="proxy_header_malformed",
            )
