"""One connection: its deadlines, and how it ends."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from tkserver.web.deadline import Deadline
from tkserver.wire import answer
from tkserver.wire.answer import Answer
from tkserver.wire.refusal import BadRequest, Overloaded, PayloadTooLarge, Refusal, RequestTimeout

if TYPE_CHECKING:
    from tkserver.web.site import ApiSite

LINGER = 5.0
"""Seconds for which a peer may go on sending what is not read, so that it gets to read the answer."""

LAST_REQUEST = 0.5
"""Seconds that a connection without a request is left when the server stops, for one that is on its way already."""

READ_AT_ONCE = 16_384
"""Bytes. What has been read of a body for which there is no room yet is at most this."""

READ_AT_ONCE_IN_A_BODY = 65_536


class Phase(Enum):
    """What a connection is busy with."""

    IDLE = "idle"
    HEADERS = "receiving headers"
    WAITING = "waiting for room for a body"
    BODY = "receiving a body"
    HANDLING = "handling a request"
    ENDING = "ending"


class ApiChannel(HTTPChannel):
    """A connection that no peer can hold open for longer than it should.

    The deadlines are absolute: twisted.web's own timeout starts anew with every byte. They end when a request has
    arrived; how long it then takes is not the peer's doing.
    """

    maxHeaders = 100
    totalHeadersSize = 16_384
    """Bytes of a request's first line and headers together."""

    site: ApiSite
    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.phase = Phase.HEADERS
        self._unread = False
        self._congested = False
        self._anything_received = False
        self._deadline: Deadline
        self._socket: Any
        self._host: IAddress | None = None
        self._peer: IAddress | None = None

    # --- what arrives

    def connectionMade(self) -> None:
        self._deadline = Deadline(self.site.reactor, self._too_late)
        super().connectionMade()
        self._socket = _socket_below(self.transport)
        self._socket.logstr = "http"  # Twisted's own holds the peer's address, and stands in front of log lines
        self.site.connected(self)
        self._direct = isinstance(self.transport, tcp.Connection) and not self.transport.TLS
        self._enter(Phase.HEADERS)

    def getHost(self) -> IAddress:
        """The address that was connected to: asked of the kernel once, not with each request."""
        if self._host is None:
            self._host = self.transport.getHost()
        return self._host

    def getPeer(self) -> IAddress:
        """The address at the other end, once a request is there: a proxy may say before it whom it forwards for."""
        if self._peer is None:
            self._peer = self.transport.getPeer()
        return self._peer

    def dataReceived(self, data: bytes) -> None:
        if data:
            self._anything_received = True
        if self.phase is Phase.IDLE and (data or self._buffer):
            self._enter(Phase.HEADERS)
        if self.phase is not Phase.ENDING:
            super().dataReceived(data)

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:  # a Content-Length with more digits than Python converts
            self._respondToBadRequestAndDisconnect()
            return False

    def allHeadersReceived(self) -> None:
        self._enter(Phase.BODY)
        super().allHeadersReceived()  # which may find that there is no room for the body yet

    def rawDataReceived(self, data: bytes) -> None:
        if self.phase is Phase.ENDING:
            return
        try:
            super().rawDataReceived(data)
        except PayloadTooLarge as refusal:
            self.requests[-1].leave_body(refusal)
            self.allContentReceived()

    def wait(self) -> None:
        """Read no further until there is room for the body."""
        self._enter(Phase.WAITING)
        self.paused = True
        self.transport.pauseProducing()

    def go_on(self) -> None:
        """There is room."""
        if self.phase is Phase.WAITING:
            self._enter(Phase.BODY)
            self.paused = False
            self.transport.resumeProducing()
            self.dataReceived(b"")

    def pauseProducing(self) -> None:
        """Called by the transport when the peer does not read what is written."""
        self._congested = True
        super().pauseProducing()
        self.transport.pauseProducing()  # also while a request is being handled, when twisted.web would read on

    def resumeProducing(self) -> None:
        """Called by the transport when it can be written to again, which alone is no reason to read."""
        self._congested = False
        super().resumeProducing()
        if self.phase is Phase.WAITING:
            self.transport.pauseProducing()
        elif self.paused:
            self.paused = False
            self.dataReceived(b"")

    def allContentReceived(self) -> None:
        self._enter(Phase.HANDLING)
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        """A request has been answered. What was sent after it is looked at next, once the peer reads its answers."""
        self._enter(Phase.IDLE)
        self.paused = self._congested
        super().requestDone(request)

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Whether the connection outlives this request (RFC 9112, section 9.3)."""
        values = request.requestHeaders.getRawHeaders(b"Connection")
        if values and b"close" in [option.strip().lower() for value in values for option in value.split(b",")]:
            return False
        return version == b"HTTP/1.1" and not self.site.draining

    # --- how it ends

    def leave_unread(self) -> None:
        """What the peer is still sending will not be read: answer, and end."""
        self._unread = True
        self.paused = False
        self.persistent = False

    def wind_down(self) -> None:
        """End after the request that is arriving or being handled, or that comes in a moment."""
        if self.phase is Phase.IDLE or not self._anything_received:
            self._enter(Phase.IDLE)
            self._deadline.set(LAST_REQUEST)
        elif self.phase is not Phase.HEADERS:  # twisted.web would drop a request whose first line is not whole yet
            self.persistent = False

    def abort(self) -> None:
        """End now, whatever is under way."""
        self.transport.abortConnection()

    def loseConnection(self) -> None:
        self._enter(Phase.ENDING)
        if self._unread:
            # Closing a socket with unread data in it resets the connection, and the answer may never be seen.
            self.transport.unregisterProducer()
            self.transport.resumeProducing()
            # TLS says by itself that nothing follows, and goes on reading until the peer says so, too.
            (self.transport.loseConnection if self.isSecure() else self.transport.loseWriteConnection)()
        else:
            super().loseConnection()
            self._socket.loseConnection()  # where TLS would wait for the peer

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._deadline.stop()
        self.phase = Phase.ENDING
        super().connectionLost(reason)
        self.site.disconnected(self)

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Called by twisted.web for what is no HTTP, or has too much before its body."""
        if self._receivedHeaderSize > self.totalHeadersSize:
            self._refuse(BadRequest(f"the headers are longer than {self.totalHeadersSize} bytes"))
        elif self._receivedHeaderCount > self.maxHeaders:
            self._refuse(BadRequest(f"there are more than {self.maxHeaders} headers"))
        else:
            self._refuse(BadRequest("this is not a well-formed HTTP/1.1 request"))

    def lineLengthExceeded(self, _: bytes) -> None:
        self._refuse(BadRequest(f"a line of the headers is longer than {self.MAX_LENGTH} bytes"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that has not arrived whole, and never will."""
        self.leave_unread()
        self.clearLineBuffer()
        for request in self.requests:
            request.give_back()
        exchange = self.site.begin(self.requests[-1].sent_id() if self.requests else None)
        to_send = answer.refused(refusal, exchange.request_id)
        exchange.status, exchange.code = to_send.status, to_send.code
        self.send(to_send, exchange.request_id)
        self.loseConnection()
        self.site.finished(exchange)

    def send(self, to_send: Answer, request_id: str, *, origin: str | None = None, with_body: bool = True) -> None:
        """Send an answer.

        :param origin: the request's ``Origin`` header, where it has one.
        :param with_body: not so for ``HEAD``.
        """
        head = self.site.head(to_send, request_id, origin, closes=not self.persistent)
        self._write(head + to_send.body if to_send.body and with_body else head)

    def _send100Continue(self) -> None:
        """Called by twisted.web where a client waits for the invitation to send its body."""
        self._write(b"HTTP/1.1 100 Continue\r\n\r\n")  # or an answer that is sent at once would overtake it

    def _write(self, data: bytes) -> None:
        """Write at once what can be: to have the reactor say when is two system calls more, and a turn of its own."""
        if self._direct:
            sent = self.transport.writeSomeData(data)
            if sent == len(data):
                return
            self._direct = False
            if isinstance(sent, int):
                data = data[sent:]
        self.transport.write(data)

    # --- deadlines

    def _enter(self, phase: Phase) -> None:
        if self.phase is not Phase.ENDING:
            self.phase = phase
            self._socket.bufferSize = READ_AT_ONCE_IN_A_BODY if phase is Phase.BODY else READ_AT_ONCE
            self._deadline.set(self.site.deadlines[phase])

    def _too_late(self) -> None:
        if self.phase is Phase.ENDING:
            self.abort()
        elif self.phase is Phase.IDLE or not self._anything_received:
            self.loseConnection()
        else:
            late = f"the request did not arrive in time, while {self.phase.value}"
            self._refuse(Overloaded(late) if self.phase is Phase.WAITING else RequestTimeout(late))


def _socket_below(transport: Any) -> Any:
    """The transport that reads and writes, below TLS and whatever else there may be around it."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport
