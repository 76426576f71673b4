"""The sockets that endpoints open: as a server in production needs them, and not quite as Twisted makes them."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from OpenSSL.SSL import Context
from twisted.internet import unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure

from tkserver.web.listen.certificates import RenewingCertificate

BACKLOG = 1024
"""Connections that may wait to be accepted, where the endpoint does not say how many."""

_TWISTEDS_BACKLOG = 50


class Sockets:
    """The reactor as endpoints see it.

    :param description: the endpoint string, from which a certificate is read again.
    """

    def __init__(self, reactor: Any, description: str) -> None:
        self._reactor = reactor
        self._description = description

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, *arguments: Any, **options: Any) -> IListeningPort:
        return self._reactor.listenTCP(*arguments, **_patient(options))  # type: ignore[no-any-return]

    def listenSSL(self, *arguments: Any, **options: Any) -> IListeningPort:
        context = options["contextFactory"].getContext()
        options["contextFactory"] = RenewingCertificate(context, self._read_certificate, self._reactor.seconds)
        return self._reactor.listenSSL(*arguments, **_patient(options))  # type: ignore[no-any-return]

    def listenUNIX(self, path: str, factory: IProtocolFactory, **options: Any) -> IListeningPort:
        """Twisted's lock file is not used: it holds a process id, which in a container is always the same."""
        _remove_left_behind(path)
        return self._reactor.listenUNIX(path, factory, **_patient({**options, "wantPID": False}))  # type: ignore[no-any-return]

    def adoptStreamPort(self, fileno: int, _family: int, factory: IProtocolFactory) -> IListeningPort:
        """Of whatever family the socket is: of a mere port systemd makes one for IPv6, which takes IPv4 too."""
        with socket.socket(fileno=os.dup(fileno)) as inherited:
            family = inherited.family
            if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError("the socket that was handed over does not listen: systemd needs Accept=no")
        if family != socket.AF_UNIX:
            return self._reactor.adoptStreamPort(fileno, family, factory)  # type: ignore[no-any-return]
        port: IListeningPort = _InheritedUnixPort._fromListeningDescriptor(self._reactor, fileno, factory)
        port.startListening()
        return port

    def _read_certificate(self) -> Context:
        class Files(Sockets):
            def listenSSL(self, *_: Any, **options: Any) -> Any:
                return options["contextFactory"].getContext()

        read: list[Any] = []
        endpoint = serverFromString(Files(self._reactor, self._description), self._description)
        endpoint.listen(None).addBoth(read.append)
        if isinstance(read[0], Failure):
            read[0].raiseException()
        context: Context = read[0]
        return context


class _InheritedUnixPort(unix.Port):
    """A Unix socket that was handed over, whose file is somebody else's.

    As its own Twisted would set the file's mode, remove it at the end, and shut the socket down for everybody.
    """

    def startListening(self) -> None:
        self._bindPath = b"\0"  # no file
        self.backlog = BACKLOG
        super().startListening()
        self._shouldShutdown = False


def _patient(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "backlog": BACKLOG} if options.get("backlog") == _TWISTEDS_BACKLOG else options


def _remove_left_behind(path: str) -> None:
    """Remove the socket of a server that was killed: one that nobody listens on."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if not Path(path).is_socket():
            return
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
