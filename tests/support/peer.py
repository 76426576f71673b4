"""A client that uses its socket in ways in which HTTP clients do not."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.support.waiting import until

TIMEOUT = 10.0


class Peer(Protocol):
    """A raw connection.

    :ivar received: all bytes received so far.
    :ivar closed: fires when the server has closed the connection.
    """

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def disconnect(self) -> None:
        """Abort the connection."""
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]

    async def wait_for(self, expected: bytes, count: int = 1) -> None:
        """Wait until the received bytes contain ``expected`` at least ``count`` times."""
        await until(
            lambda: self.received.count(expected) >= count,
            lambda: f"{expected!r} was not received, but {self.received!r}",
            TIMEOUT,
        )

    async def read_all(self) -> bytes:
        """Wait until the server closes the connection, and return everything received."""
        await self.closed.addTimeout(TIMEOUT, reactor)
        return self.received


async def connect(address: int | IStreamClientEndpoint) -> Peer:
    """Connect to a port of this machine, or to an endpoint."""
    peer = Peer()
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", address) if isinstance(address, int) else address
    await connectProtocol(endpoint, peer)
    return peer
