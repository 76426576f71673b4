"""A peer that does with its socket what a well-behaved HTTP client would not."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

PATIENCE = 10.0


class Peer(Protocol):
    """A raw connection.

    :ivar received: all bytes that came, so far.
    :ivar closed: fires when the server has ended the connection.
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

    def hang_up(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]

    async def wait_for(self, expected: bytes, count: int = 1) -> None:
        """Until these bytes have come this often."""
        waited = 0.0
        while self.received.count(expected) < count:
            assert waited < PATIENCE, f"{expected!r} did not come, but {self.received!r}"
            await deferLater(reactor, 0.01)
            waited += 0.01

    async def end(self) -> bytes:
        """All that has come, when the server has ended the connection."""
        await self.closed.addTimeout(PATIENCE, reactor)
        return self.received


async def connect(where: int | IStreamClientEndpoint) -> Peer:
    """A connection to a server: to a port of this machine, or anywhere else."""
    peer = Peer()
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", where) if isinstance(where, int) else where
    await connectProtocol(endpoint, peer)
    return peer
