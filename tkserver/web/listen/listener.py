"""A listener accepts connections on the address that an endpoint string describes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import tcp
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import ILogObserver, LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from tkserver import log
from tkserver.web.listen.proxy_protocol import ProxyProtocol
from tkserver.web.listen.sockets import ListeningReactor, keep_socket_file, set_log_observer

_log = log.logger(__name__)

_TLS = re.compile(r"(haproxy:)*(ssl|tls):")
_PROXY = "haproxy:"
_PROXY_IN_TLS = re.compile(r"(haproxy:)+(ssl|tls):")


class InvalidEndpoint(Exception):
    """An endpoint string is invalid. The text is the reason."""


class CannotListen(Exception):
    """An address cannot be used. The text is the address and the reason."""


def tcp_endpoint(host: str, port: int) -> str:
    """Return the endpoint string for an address and a port."""
    return f"tcp:{port}:interface={quoteStringArgument(host)}"


_ALL_ADDRESSES = re.compile(r"://(0\.0\.0\.0|\[::\])(?=:)")

EXAMPLE_ENDPOINT = "https://telemetry.example.org"
"""Stands for the URL of the proxy before a Unix socket, which is not known."""


def endpoint_for_clients(url: str) -> str:
    """Return the URL of a listener as an example for clients: SERVER stands for its name if that is not known."""
    return EXAMPLE_ENDPOINT if url.startswith("unix:") else _ALL_ADDRESSES.sub("://SERVER", url)


class Listener:
    """Accepts connections on one endpoint.

    :param endpoint: an endpoint string for Twisted's ``serverFromString``.
    :param factory: creates the protocol of each connection.
    :param accepts: returns whether a new connection is accepted, otherwise it is closed immediately. Takes the address
        of the client, or ``None`` if a PROXY header will follow.
    :raise InvalidEndpoint: if the string is invalid, or if the files that it names cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: str,
        factory: IProtocolFactory,
        accepts: Callable[[IAddress | None], bool] = lambda _: True,
    ) -> None:
        self._reactor = reactor
        self._endpoint_string = endpoint
        self._factory = factory
        self._accepts = accepts
        if _PROXY_IN_TLS.match(endpoint):
            raise InvalidEndpoint(
                "Twisted expects the PROXY header inside TLS, but proxies send it before: use haproxy:tcp instead"
            )
        while endpoint.startswith(_PROXY):
            self._factory = ProxyProtocol(self._factory, reactor.seconds)
            endpoint = endpoint.removeprefix(_PROXY)
        self._listening = ListeningReactor(reactor, endpoint)
        self._endpoint = _parse_endpoint(self._listening, endpoint)
        self._port: tcp.Port | None = None
        self._pause: IDelayedCall | None = None

    def open(self) -> None:
        """Bind the address. Connections are accepted as soon as the reactor runs.

        :raise CannotListen: if the address cannot be used.
        """
        results: list[Any] = []
        self._endpoint.listen(self._factory).addBoth(results.append)
        if not results:
            raise CannotListen(f"{self._endpoint_string}: endpoints that do not listen immediately are not supported")
        (port,) = results
        if isinstance(port, Failure):
            raise CannotListen(self._describe(port.value))  # type: ignore[arg-type]
        if not isinstance(port, tcp.Port):
            raise CannotListen(f"{self._endpoint_string}: this endpoint is not a socket")
        port.factory = _ConnectionLimit(port.factory, self._accepts_peer)  # type: ignore[assignment]
        set_log_observer(port, _AcceptErrorLog(self._reactor))
        self._port = port

    @property
    def address(self) -> Any:
        """The address of the socket, as an ``IAddress`` of Twisted."""
        assert self._port is not None
        return self._port.getHost()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.address.port)

    @property
    def url(self) -> str:
        """The URL for clients: ``http://…``, ``https://…``, or ``unix:`` and a path."""
        address = self.address
        if isinstance(address, UNIXAddress):
            return f"unix:{os.fsdecode(address.name or b'')}"
        scheme = "https" if _TLS.match(self._endpoint_string) else "http"
        host = address.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True if only programs on this machine can connect.

        That is not known for a Unix socket, which is made for proxies, and not true if a proxy announces its clients.
        """
        host = getattr(self.address, "host", None)
        if host is None or self._endpoint_string.startswith(_PROXY):
            return False
        address = ip_address(host.partition("%")[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    def check_certificate(self) -> None:
        """Read the certificate again, if there is one, and log if that is not possible."""
        if self._listening.certificate is not None:
            self._listening.certificate.reload()

    def pause_accepting(self, seconds: float) -> None:
        """Let new connections wait in the kernel for some time, or until :meth:`resume_accepting`."""
        assert self._port is not None
        self._port.stopReading()
        self._pause = self._reactor.callLater(seconds, self.resume_accepting)

    def resume_accepting(self) -> None:
        """Accept the waiting connections, and new ones."""
        if self._end_pause():
            self._port.startReading()  # type: ignore[union-attr]

    async def close(self) -> None:
        """Stop accepting connections. An inherited socket stays open for the other processes that use it."""
        self._end_pause()
        if self._port is not None:
            self._remove_socket(self._port)
            await maybeDeferred(self._port.stopListening)

    def _remove_socket(self, port: tcp.Port) -> None:
        """Remove the file of a Unix socket, if this process has created it."""
        path = keep_socket_file(port)
        try:
            if path is not None:
                Path(os.fsdecode(path)).unlink()
        except OSError as error:
            _log.warn(
                "the socket cannot be removed: {path}: {error}; the next server removes it",
                path=os.fsdecode(path or b""),
                error=error.strerror,
                event="socket_not_removed",
            )

    def _accepts_peer(self, address: IAddress) -> bool:
        return self._accepts(None if self._endpoint_string.startswith(_PROXY) else address)

    def _end_pause(self) -> bool:
        """Return whether there was a pause."""
        pause, self._pause = self._pause, None
        if pause is not None and pause.active():
            pause.cancel()
        return pause is not None

    def _describe(self, error: BaseException) -> str:
        if isinstance(error, CannotListenError):
            address = error.port if error.interface is None else f"{error.interface} port {error.port}"
            return f"{os.fsdecode(address) if isinstance(address, bytes) else address}: {error.socketError}"
        return f"{self._endpoint_string}: {_reason(error)}"


class _ConnectionLimit:
    """A factory that rejects connections beyond the limit.

    It wraps the factories of TLS and of the PROXY protocol, which could close a connection only after their handshakes.
    """

    def __init__(self, factory: Any, accepts: Callable[[IAddress], bool]) -> None:
        self._factory = factory
        self._accepts = accepts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def buildProtocol(self, address: IAddress) -> IProtocol | None:
        return self._factory.buildProtocol(address) if self._accepts(address) else None


@implementer(ILogObserver)
class _AcceptErrorLog:
    """Logs connections that could not be accepted, without the addresses that Twisted's messages contain."""

    def __init__(self, reactor: Any) -> None:
        self._throttle = log.Throttle(reactor.seconds)

    def __call__(self, event: LogEvent) -> None:
        if "EMFILE" in event["log_format"]:
            problem = "this process has reached its limit of open files"
        else:
            problem = str(event.get("acceptError", "unknown"))
        if self._throttle.allows(problem):
            _log.error("connections cannot be accepted: {problem}", problem=problem, event="connections_closed")


def _parse_endpoint(reactor: Any, endpoint: str) -> IStreamServerEndpoint:
    try:
        parsed: IStreamServerEndpoint = serverFromString(reactor, endpoint)
    except Exception as error:  # each type of endpoint has a parser of its own
        raise InvalidEndpoint(_reason(error)) from None
    return parsed


def _reason(error: BaseException) -> str:
    """Return what is wrong with an endpoint, in terms of its string."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, (SSL.Error, crypto.Error)):
        return f"the key or the certificate cannot be used: {error}"
    if isinstance(error, (IndexError, KeyError)):
        return (
            "there is no such inherited socket: a systemd socket unit passes LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES"
        )
    if isinstance(error, TypeError):
        return str(error).partition("() ")[2] or str(error)
    return str(error) or type(error).__name__
