"""Where connections come from: what an endpoint string opens, and how it is closed again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import tcp
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tkserver import log
from tkserver.web.listen.sockets import Sockets

_log = log.logger(__name__)

_TLS = re.compile(r"(haproxy:)*(ssl|tls):")
_PROXY_WITHIN_TLS = re.compile(r"(haproxy:)+(ssl|tls):")


class InvalidEndpoint(Exception):
    """An endpoint string that nothing can be made of. The text says why."""


class CannotListen(Exception):
    """An address that cannot be had. The text begins with it, and says why."""


def tcp_endpoint(host: str, port: int) -> str:
    """The endpoint string for an address and a port."""
    return f"tcp:{port}:interface={quoteStringArgument(host)}"


class Listener:
    """Takes connections from one endpoint.

    :param description: an endpoint string, as Twisted's ``serverFromString`` takes it.
    :param factory: builds a protocol for each connection.
    :param is_full: whether there are too many connections already, so that a new one is closed at once.
    :ivar rejected_connections: how many connections were closed at once, for there were too many.
    :raise InvalidEndpoint: when the string cannot be understood, or the files that it names cannot be used.
    """

    def __init__(
        self, reactor: Any, description: str, factory: IProtocolFactory, is_full: Callable[[], bool] = lambda: False
    ) -> None:
        self._reactor = reactor
        self._description = description
        self._factory = factory
        self._is_full = is_full
        self.rejected_connections = 0
        self._endpoint = _endpoint(Sockets(reactor, description), description)
        self._port: tcp.Port | None = None
        self._held: Any = None

    def open(self) -> None:
        """Take the address. It takes connections as soon as the reactor runs.

        :raise CannotListen: when it cannot be had.
        """
        outcome: list[Any] = []
        self._endpoint.listen(self._factory).addBoth(outcome.append)
        if not outcome:
            raise CannotListen(f"{self._description}: it is not ready at once")
        (port,) = outcome
        if isinstance(port, Failure):
            raise CannotListen(self._why(port.value))  # type: ignore[arg-type]
        if not isinstance(port, tcp.Port):
            raise CannotListen(f"{self._description}: it is no socket")
        port.factory = _Entrance(port.factory, self._lets_in)  # type: ignore[assignment]
        port._logger = Logger(namespace=__name__, observer=_Refusals(self._reactor))
        self._port = port

    @property
    def address(self) -> Any:
        """Twisted's address object of the socket."""
        assert self._port is not None
        return self._port.getHost()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.address.port)

    @property
    def url(self) -> str:
        """Where it is reached: ``http://…``, ``https://…``, or ``unix:`` and a path."""
        address = self.address
        if isinstance(address, UNIXAddress):
            return f"unix:{os.fsdecode(address.name or b'')}"
        scheme = "https" if _TLS.match(self._description) else "http"
        host = address.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def pause_accepting(self, seconds: float) -> None:
        """Accept no connections until :meth:`resume_accepting`; they wait in the kernel."""
        assert self._port is not None
        self._port.stopReading()
        self._held = self._reactor.callLater(seconds, self.resume_accepting)

    def resume_accepting(self) -> None:
        """Accept what waits, and what comes."""
        if self._release():
            self._port.startReading()  # type: ignore[union-attr]

    async def close(self) -> None:
        """Accept no more. A socket that was handed over stays open for those who share it."""
        self._release()
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)

    def _lets_in(self) -> bool:
        full = self._is_full()
        self.rejected_connections += full
        return not full

    def _release(self) -> bool:
        held, self._held = self._held, None
        if held is not None and held.active():
            held.cancel()
        return held is not None

    def _why(self, error: BaseException) -> str:
        if isinstance(error, CannotListenError):
            place = error.port if error.interface is None else f"{error.interface} port {error.port}"
            return f"{os.fsdecode(place) if isinstance(place, bytes) else place}: {error.socketError}"
        return f"{self._description}: {_reason(error)}"


class _Entrance:
    """A factory that lets in only so many. It stands before TLS and the like, which need a protocol to close one."""

    def __init__(self, factory: Any, lets_in: Callable[[], bool]) -> None:
        self._factory = factory
        self._lets_in = lets_in

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def buildProtocol(self, address: IAddress) -> IProtocol | None:
        return self._factory.buildProtocol(address) if self._lets_in() else None


@implementer(ILogObserver)
class _Refusals:
    """Tells of connections that could not be accepted, without the addresses that Twisted names."""

    def __init__(self, reactor: Any) -> None:
        self._throttle = log.Throttle(reactor.seconds)

    def __call__(self, event: LogEvent) -> None:
        if "EMFILE" in event["log_format"]:
            problem = "this process has no open files left"
        else:
            problem = str(event.get("acceptError", "unknown"))
        if self._throttle.allows(problem):
            _log.error("connections are closed unheard: {problem}", problem=problem, event="connections_closed")


def _endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    if _PROXY_WITHIN_TLS.match(description):
        raise InvalidEndpoint(
            "Twisted looks for the PROXY protocol within TLS, and proxies speak it before: use haproxy:tcp"
        )
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except Exception as error:  # whatever the parser of its kind may raise
        raise InvalidEndpoint(_reason(error)) from None
    return endpoint


def _reason(error: BaseException) -> str:
    """What is wrong, for whoever wrote the string."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, (SSL.Error, crypto.Error)):
        return f"the key or the certificate cannot be used: {error}"
    if isinstance(error, (IndexError, KeyError)):
        return "no such socket was handed over: a socket unit does so, with LISTEN_FDS, _PID and _FDNAMES"
    if isinstance(error, TypeError):
        return str(error).partition("() ")[2] or str(error)
    return str(error) or type(error).__name__
