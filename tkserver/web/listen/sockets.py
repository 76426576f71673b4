"""Listening sockets with the options that a server in production needs."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from OpenSSL.SSL import Context
from twisted.internet import tcp, unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from tkserver.web.listen.certificates import ReloadingCertificate

BACKLOG = 1024
"""The number of connections that can wait to be accepted, unless the endpoint sets another."""

_DEFAULT_BACKLOG_OF_TWISTED = 50


class ListeningReactor:
    """A wrapper of the reactor for endpoints, which creates listening sockets with other options than Twisted's.

    :param endpoint: the endpoint string, from which a certificate is loaded again.
    :ivar certificate: the certificate, if the endpoint listens and has one.
    """

    def __init__(self, reactor: Any, endpoint: str) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self.certificate: ReloadingCertificate | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, *arguments: Any, **options: Any) -> IListeningPort:
        return self._reactor.listenTCP(*arguments, **_with_backlog(options))  # type: ignore[no-any-return]

    def listenSSL(self, *arguments: Any, **options: Any) -> IListeningPort:
        context = options["contextFactory"].getContext()
        self.certificate = ReloadingCertificate(context, self._load_certificate, self._reactor.seconds)
        options["contextFactory"] = self.certificate
        return self._reactor.listenSSL(*arguments, **_with_backlog(options))  # type: ignore[no-any-return]

    def listenUNIX(self, path: str, factory: IProtocolFactory, **options: Any) -> IListeningPort:
        """Listen on a Unix socket.

        Twisted's lock file is not used, because it contains a process id, which in a container is always the same.
        """
        _remove_stale_socket(path)
        return self._reactor.listenUNIX(path, factory, **_with_backlog({**options, "wantPID": False}))  # type: ignore[no-any-return]

    def adoptStreamPort(self, fileno: int, _family: int, factory: IProtocolFactory) -> IListeningPort:
        """Listen on an inherited socket.

        The address family is read from the socket: for a port without an address, systemd creates an IPv6 socket that
        also accepts IPv4.
        """
        with socket.socket(fileno=os.dup(fileno)) as inherited:
            family = inherited.family
            if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError("the inherited socket does not listen: the systemd unit needs Accept=no")
        if family != socket.AF_UNIX:
            return self._reactor.adoptStreamPort(fileno, family, factory)  # type: ignore[no-any-return]
        port: IListeningPort = _InheritedUnixPort._fromListeningDescriptor(self._reactor, fileno, factory)
        port.startListening()
        return port

    def _load_certificate(self) -> Context:
        class CertificateLoader(ListeningReactor):
            def listenSSL(self, *_: Any, **options: Any) -> Any:
                return options["contextFactory"].getContext()

        results: list[Any] = []
        endpoint = serverFromString(CertificateLoader(self._reactor, self._endpoint), self._endpoint)
        endpoint.listen(None).addBoth(results.append)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        context: Context = results[0]
        return context


class _InheritedUnixPort(unix.Port):
    """A Unix socket that another process has created and may still use.

    Twisted's class would change the mode of the socket file, delete the file, and shut the socket down for all
    processes.
    """

    def startListening(self) -> None:
        self._bindPath = b"\0"  # no file
        self.backlog = BACKLOG
        super().startListening()
        self._shouldShutdown = False


def keep_socket_file(port: tcp.Port) -> bytes | None:
    """Return the path of the file that Twisted would remove when the port is closed, and make Twisted keep it.

    If Twisted could not remove the file, it would not close the socket.
    """
    if not isinstance(port, unix.Port) or port._bindPath.startswith(b"\0"):
        return None
    path, port._bindPath = port._bindPath, b"\0"
    return bytes(path)


def set_log_observer(port: tcp.Port, observer: ILogObserver) -> None:
    """Send the log events of a port to an observer: Twisted's messages contain the addresses of clients."""
    port._logger = Logger(namespace=__name__, observer=observer)


def _with_backlog(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "backlog": BACKLOG} if options.get("backlog") == _DEFAULT_BACKLOG_OF_TWISTED else options


def _remove_stale_socket(path: str) -> None:
    """Delete the socket file of a server that was killed, on which no process listens."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if not Path(path).is_socket():
            return
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
