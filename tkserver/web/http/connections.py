"""Connections of HTTP clients: time limits of a connection, and the maximum number of connections."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import getrandbits
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import IResource
from twisted.web.server import Site
from zope.interface import implementer

from tkserver.log.access import OTHER_METHOD, RequestObserver, RequestRecord
from tkserver.web.http.body_budget import BodyBudget
from tkserver.web.http.chunks import ChunkDecoder, MalformedChunks
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import NO_CORS, CorsPolicy, Response, error_response, serialize_head
from tkserver.web.http.transfer_rate import CHECK_INTERVAL, TransferRate
from tkserver.wire.api_errors import ApiError, BadRequest, Overloaded, PayloadTooLarge, RequestTimeout

LINGER = 5.0
"""Seconds without input after which a connection is closed after a response to an incomplete request. Until then, input
is discarded, because many clients read the response only after they have sent all of the request."""

MAX_LINGER = 30.0
"""Seconds after which such a connection is closed in any case."""

MAX_LINGER_BYTES = 33_554_432
"""Bytes that are discarded at most."""

MAX_CLOSING = 128
"""The maximum number of idle connections that are being closed to make room for others: they may need a moment."""

LAST_REQUEST = 0.5
"""Seconds that an idle connection stays open when the server stops, because a request may be on its way."""

READ_SIZE = 16_384
"""Bytes to read at once. A body can exceed its memory by this much."""

BULK_READ_SIZE = 262_144
"""Bytes to read at once from a body of which as much has been received, and of input that is discarded."""


_LATE = "the request did not arrive in time"


class Phase(Enum):
    """The phase of a connection: what it is waiting for."""

    IDLE = "idle"
    HEADERS = "receiving headers"
    CHECKING = "checking the headers"
    WAITING = "waiting for memory for the body"
    BODY = "receiving the body"
    HANDLING = "handling a request"
    CLOSING = "closing"


@dataclass(frozen=True)
class HttpLimits:
    """Limits of the HTTP server. Times are in seconds.

    :ivar max_connections_per_client: 0 means that there is no limit.
    :ivar max_body_memory: bytes of all bodies that are being received or handled.
    :ivar memory_timeout: for a body to wait for memory.
    :ivar header_timeout: from the first byte of a request, or from the start of the connection, to the last header.
    :ivar body_timeout: from the end of the headers to the end of the body.
    :ivar min_body_rate: bytes per second at which a body must arrive; 0 allows any rate.
    :ivar idle_timeout: from the end of a request to the first byte of the next one.
    """

    max_body_bytes: int = 12_582_912
    max_connections: int = 4096
    max_connections_per_client: int = 0
    max_body_memory: int = 134_217_728
    header_timeout: float = 10.0
    body_timeout: float = 600.0
    min_body_rate: float = 500.0
    idle_timeout: float = 75.0
    memory_timeout: float = 10.0

    def by_phase(self) -> dict[Phase, float]:
        """Return the time limit of each phase. While the server handles a request, there is none."""
        return {
            Phase.IDLE: self.idle_timeout,
            Phase.HEADERS: self.header_timeout,
            Phase.WAITING: self.memory_timeout,
            Phase.BODY: min(self.body_timeout, CHECK_INTERVAL),
            Phase.CLOSING: LINGER,
        }


@implementer(IHalfCloseableProtocol)
class ApiChannel(HTTPChannel):
    """A connection, with an absolute time limit for each phase.

    The timeout of twisted.web restarts with every byte, so that a slow client could keep a connection open forever.

    A request is handled when its headers have been received. Its body is read when the handler asks for it. If the
    handler responds without it, the connection is closed.
    """

    maxHeaders = 100
    totalHeadersSize = 16_384
    """Bytes of the request line and the headers together."""

    site: ApiSite
    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.phase = Phase.HEADERS
        self._is_counted = False
        self._ignores_input = False
        self._has_received = False
        self._write_paused = False
        self._expects_continue = False
        self._chunks: ChunkDecoder | None = None
        self._rate: TransferRate
        self._discarded = 0
        self._linger_until = 0.0
        self._timer: IDelayedCall | None = None
        self._socket: Any
        self._host: IAddress | None = None
        self._peer: IAddress | None = None

    # --- receiving

    def connectionMade(self) -> None:
        super().connectionMade()
        self._socket = _innermost(self.transport)
        self._socket.logstr = "http"  # Twisted's own contains the address of the peer, and appears in log lines
        self.site.add(self)
        if getattr(self.transport, "peer_known", True):
            self._is_counted = True
            self.site.idle_connections.add_client(self, self.site.client_of(self.getPeer()))
        self._writes_directly = isinstance(self.transport, tcp.Connection) and not self.transport.TLS
        self._enter(Phase.HEADERS)

    def getHost(self) -> IAddress:
        """Return the local address, from a cache: each query is a system call."""
        if self._host is None:
            self._host = self.transport.getHost()
        return self._host

    def getPeer(self) -> IAddress:
        """Return the address of the client, from a cache. Do not call this method before a PROXY header has arrived."""
        if self._peer is None:
            self._peer = self.transport.getPeer()
        return self._peer

    def dataReceived(self, data: bytes) -> None:
        if data and not self._has_received:
            self._has_received = True
            self._count_client()
        if self.phase is Phase.IDLE and (data or self._buffer):
            self._enter(Phase.HEADERS)
        if self.phase is Phase.CLOSING:
            self._discard(len(data))
        else:
            super().dataReceived(data)

    def _count_client(self) -> None:
        """Count the connection of a client whose address has been received in a PROXY header."""
        if not self._is_counted:
            self._is_counted = True
            if not self.site.add_client(self):
                self.loseConnection()

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:  # a Content-Length that has more digits than Python converts
            self._respondToBadRequestAndDisconnect()
            return False

    def allHeadersReceived(self) -> None:
        self._expects_continue = False
        super().allHeadersReceived()
        if self.length is None or self.length > min(len(self._buffer), self.site.max_body_bytes):
            self._chunks = ChunkDecoder() if self.length is None else None
            self._rate = TransferRate(
                self.site.limits.min_body_rate, self.site.limits.body_timeout, self.site.reactor.seconds()
            )
            self._enter(Phase.CHECKING)
            self.requests[-1].begin(self._command, self._path, self._version)
            if self.phase is Phase.CHECKING:
                self._stop_reading(Phase.CHECKING)

    def _send100Continue(self) -> None:
        """Ask the client for the body later. Called by twisted.web after the headers."""
        self._expects_continue = True

    def ask_for_body(self) -> None:
        """Ask the client to send the body, if it waits for that."""
        if self._expects_continue:
            self._expects_continue = False
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def read_body(self) -> None:
        """Read the body of the current request."""
        if self.phase in (Phase.CHECKING, Phase.WAITING):
            self._rate.resume(self.site.reactor.seconds(), self.requests[-1].received)
            self._enter(Phase.BODY)
            if not self._write_paused:
                self.paused = False
                self.transport.resumeProducing()
                self.dataReceived(b"")

    def wait_for_memory(self) -> None:
        """Do not read more of the body of the current request."""
        if self.phase in (Phase.CHECKING, Phase.BODY):
            self._stop_reading(Phase.WAITING)

    def rawDataReceived(self, data: bytes) -> None:
        if self.phase is Phase.BODY:
            self._receive_body(self.requests[-1], data)
        elif self.phase is not Phase.CLOSING:
            super().rawDataReceived(data)

    def _receive_body(self, request: ApiRequest, data: bytes) -> None:
        try:
            if self._chunks is None:
                super().rawDataReceived(data)
            else:
                self._receive_chunks(self._chunks, request, data)
        except MalformedChunks as error:
            request.fail_body(BadRequest(f"the chunked body is not well-formed: {error}"))
        except PayloadTooLarge as error:
            request.fail_body(error)
        if self.phase is Phase.BODY:  # otherwise, the body is complete or has failed
            if request.received >= BULK_READ_SIZE:
                self._socket.bufferSize = BULK_READ_SIZE
            request.charge_body()

    def _receive_chunks(self, chunks: ChunkDecoder, request: ApiRequest, data: bytes) -> None:
        content = chunks.decode(data)
        if content:
            request.handleContentChunk(content)
        if chunks.rest is not None:
            self.allContentReceived()
            self.dataReceived(chunks.rest)  # the next request; it is read after this method

    def _stop_reading(self, phase: Phase) -> None:
        self._enter(phase)
        self.paused = True
        self.transport.pauseProducing()

    def _discard(self, length: int) -> None:
        """Discard input after the last response."""
        self._discarded += length
        if self._discarded > MAX_LINGER_BYTES:
            self.abort()
        elif self.site.reactor.seconds() + LINGER < self._linger_until:
            self._set_timer(LINGER)

    def pauseProducing(self) -> None:
        """Stop reading. Called by the transport when the client does not read its responses."""
        self._write_paused = True
        super().pauseProducing()
        self.transport.pauseProducing()  # twisted.web would continue to read while a request is handled

    def resumeProducing(self) -> None:
        """Continue to read, unless the body must wait. Called by the transport when it can write again."""
        self._write_paused = False
        super().resumeProducing()
        if self.phase in (Phase.CHECKING, Phase.WAITING):
            self.transport.pauseProducing()
        elif self.paused:
            self.paused = False
            self.dataReceived(b"")

    def allContentReceived(self) -> None:
        self._enter(Phase.HANDLING)
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        """Continue with the next request, but not before the client reads its responses."""
        self._enter(Phase.IDLE)
        self.paused = self._write_paused
        super().requestDone(request)

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Return whether the connection stays open after this request (RFC 9112, section 9.3)."""
        values = request.requestHeaders.getRawHeaders(b"Connection")
        if values and b"close" in [option.strip().lower() for value in values for option in value.split(b",")]:
            return False
        return version == b"HTTP/1.1" and not self.site.draining

    # --- sending

    def send(
        self,
        response: Response,
        request_id: str,
        *,
        origin: str | None = None,
        with_body: bool = True,
        with_cors: bool = True,
    ) -> None:
        """Send a response.

        :param origin: the ``Origin`` header of the request, if sent.
        :param with_body: false for ``HEAD``.
        :param with_cors: false if no web page must read the response.
        """
        head = self.site.serialize_head(response, request_id, origin, closes=not self.persistent, with_cors=with_cors)
        self._write(head + response.body if response.body and with_body else head)

    def _write(self, data: bytes) -> None:
        """Write immediately if possible, which saves two system calls and an iteration of the reactor."""
        if self._writes_directly:
            sent = self.transport.writeSomeData(data)
            if sent == len(data):
                return
            self._writes_directly = False
            if isinstance(sent, int):
                data = data[sent:]
        self.transport.write(data)

    # --- closing

    def ignore_input(self) -> None:
        """Ignore further input, and close the connection after the response."""
        self._ignores_input = True
        self.paused = False
        self.persistent = False

    def close_when_idle(self) -> None:
        """Close the connection after the current request, or after one that arrives within a moment."""
        if self.phase is Phase.IDLE or not self._has_received:
            self._enter(Phase.IDLE)
            self._set_timer(LAST_REQUEST)
        elif self.phase is not Phase.HEADERS:  # twisted.web would drop a request whose first line is incomplete
            self.persistent = False

    def abort(self) -> None:
        """Close the connection immediately."""
        self.transport.abortConnection()

    def loseConnection(self) -> None:
        self._enter(Phase.CLOSING)
        self._linger_until = self.site.reactor.seconds() + MAX_LINGER
        if self._ignores_input:
            # Closing a socket that has unread input resets the connection, and the client may never see the response.
            self.transport.unregisterProducer()
            self.transport.resumeProducing()
            # TLS sends its own end of data, and continues to read until the client sends one, too.
            (self.transport.loseConnection if self.isSecure() else self.transport.loseWriteConnection)()
        else:
            super().loseConnection()
            self._socket.loseConnection()  # TLS would wait for the client

    def readConnectionLost(self) -> None:
        """Respond to the current request if it is complete, and otherwise close the connection.

        Called by the transport when the client sends no more; again, when the server continues to read afterwards.
        """
        if self.phase is Phase.CLOSING:
            self.transport.loseConnection()
        elif self.phase is not Phase.HANDLING:
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Called by the transport when the server has ended its output. The client may still send."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.phase = Phase.CLOSING
        super().connectionLost(reason)
        self.site.remove(self)

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Reject input that is not HTTP or has too many headers. Called by twisted.web."""
        if self._receivedHeaderSize > self.totalHeadersSize:
            self._reject(BadRequest(f"the headers are longer than {self.totalHeadersSize} bytes"))
        elif self._receivedHeaderCount > self.maxHeaders:
            self._reject(BadRequest(f"there are more than {self.maxHeaders} headers"))
        else:
            self._reject(BadRequest("the request is not well-formed HTTP/1.1"))

    def lineLengthExceeded(self, _: bytes) -> None:
        self._reject(BadRequest(f"a header line is longer than {self.MAX_LENGTH} bytes"))

    def _reject(self, error: ApiError) -> None:
        """Respond with an error to an incomplete request, and close the connection."""
        self.ignore_input()
        self.clearLineBuffer()
        record = self.site.begin_request(self.requests[-1].sent_request_id() if self.requests else None)
        sdk = self.requests[-1].header("x-sdk-version") if self.requests else None
        response = error_response(error, record.request_id, sdk)
        record.status, record.code = response.status, response.code
        self.send(response, record.request_id)
        self.loseConnection()
        self.site.finish_request(record)

    # --- time limits

    def _enter(self, phase: Phase) -> None:
        if self.phase is not Phase.CLOSING:
            if (phase is Phase.IDLE) != (self.phase is Phase.IDLE):
                self.site.idle_connections.update(self, idle=phase is Phase.IDLE)
            self.phase = phase
            self._socket.bufferSize = BULK_READ_SIZE if phase is Phase.CLOSING else READ_SIZE
            seconds = self.site.timeouts.get(phase)
            if seconds is not None:
                self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        """Restart the timer.

        Postponing a timer is cheap: the reactor moves it in its queue only when its previous time is reached.
        """
        if self._timer is None:
            self._timer = self.site.reactor.callLater(seconds, self._timed_out)
        else:
            self._timer.reset(seconds)

    def _timed_out(self) -> None:
        self._timer = None
        if self.phase is Phase.CLOSING:
            self.abort()
        elif self.phase is Phase.IDLE or not self._has_received:
            self.loseConnection()
        elif self.phase is Phase.HEADERS:
            self._reject(RequestTimeout(f"{_LATE}: timeout while receiving headers"))
        elif self.phase is Phase.WAITING:
            self.requests[-1].fail_body(Overloaded("the server has no memory for this body: try again later"))
        elif self.phase is Phase.BODY:
            self._check_rate(self.requests[-1])

    def _check_rate(self, request: ApiRequest) -> None:
        """Reject the body if it is too slow."""
        now = self.site.reactor.seconds()
        delays_others = request.memory is not None and request.memory.delays_others
        problem = self._rate.problem(now, request.received, delays_others=delays_others)
        if problem is None:
            self._set_timer(self._rate.seconds_to_next_check(now))
        else:
            request.fail_body(RequestTimeout(f"{_LATE}: {problem}"))


class ClientConnections:
    """The connections of one client.

    :ivar idle: the idle ones, in the order in which they became idle.
    """

    def __init__(self) -> None:
        self.count = 0
        self.idle: OrderedDict[ApiChannel, None] = OrderedDict()


class IdleConnections:
    """The idle connections, which are closed when there are too many connections, and the number for each client.

    :param per_client: the maximum number of connections of a client; 0 means that there is no limit.
    :ivar closing: connections that are being closed to make room for others.
    :ivar closed: the number of connections that have been closed for this reason.
    """

    def __init__(self, per_client: int) -> None:
        self._per_client = per_client
        self._all: OrderedDict[ApiChannel, None] = OrderedDict()
        self._clients: dict[bytes, ClientConnections] = {}
        self._client_of: dict[ApiChannel, bytes] = {}
        self.closing: set[ApiChannel] = set()
        self.closed = 0

    def has_room(self, client: bytes | None) -> bool:
        """Return whether a client can have another connection. Close its longest idle one if necessary.

        :param client: ``None`` if its connections are not limited.
        """
        if client is None or not self._per_client:
            return True
        connections = self._clients.get(client)
        return connections is None or connections.count < self._per_client or self._close_first(connections.idle)

    def close_longest_idle(self) -> bool:
        """Close the connection that has been idle longest. Return whether there is one."""
        return self._close_first(self._all)

    def add_client(self, channel: ApiChannel, client: bytes | None) -> None:
        """Count a connection for its client."""
        if client is not None and self._per_client:
            self._client_of[channel] = client
            self._clients.setdefault(client, ClientConnections()).count += 1

    def update(self, channel: ApiChannel, *, idle: bool) -> None:
        """Record that a connection has become idle, or is no longer idle."""
        client = self._clients.get(self._client_of.get(channel, b""))
        for connections in (self._all,) if client is None else (self._all, client.idle):
            if idle:
                connections[channel] = None
            else:
                connections.pop(channel, None)

    def remove(self, channel: ApiChannel) -> None:
        """Remove a closed connection."""
        self.update(channel, idle=False)
        self.closing.discard(channel)
        self._remove_client(channel)

    def _remove_client(self, channel: ApiChannel) -> None:
        client = self._client_of.pop(channel, None)
        if client is not None:
            self._clients[client].count -= 1
            if not self._clients[client].count:
                del self._clients[client]

    def _close_first(self, idle: OrderedDict[ApiChannel, None]) -> bool:
        channel = next(iter(idle), None)
        if channel is None or len(self.closing) >= MAX_CLOSING:
            return False
        self.closed += 1
        self.closing.add(channel)
        channel.loseConnection()  # calls update
        self._remove_client(channel)
        return True


class ApiSite(Site):
    """Serves a resource over HTTP/1.1.

    :param observers: called after each request.
    :param client_of: returns the client with an address; ``None`` if its connections are not limited.
    :param new_request_id: returns an id for a request that was sent without one.
    :ivar bodies: the memory for bodies.
    :ivar draining: true if connections are closed after their current request.
    :ivar rejected_connections: the number of connections that were closed immediately because there were too many.
    """

    protocol = ApiChannel  # type: ignore[assignment]  # not HTTP/2
    requestFactory = ApiRequest  # type: ignore[assignment]  # without sessions
    noisy = False
    resource: IResource

    def __init__(
        self,
        resource: IResource,
        limits: HttpLimits,
        cors: CorsPolicy,
        reactor: Any,
        *,
        observers: Sequence[RequestObserver] = (),
        client_of: Callable[[IAddress], bytes | None] = lambda _: None,
        new_request_id: Callable[[], str] = lambda: f"{getrandbits(128):032x}",  # like a W3C trace id
    ) -> None:
        super().__init__(resource, reactor=reactor, timeout=None)
        self.bodies = BodyBudget(limits.max_body_memory, limits.max_body_bytes, reactor)
        self.limits = limits
        self.timeouts = limits.by_phase()
        self.draining = False
        self._cors = cors
        self._observers = observers
        self._new_request_id = new_request_id
        self.client_of = client_of
        self.idle_connections = IdleConnections(limits.max_connections_per_client)
        self.rejected_connections = 0
        self._channels: set[ApiChannel] = set()
        self._drained: Deferred[None] | None = None

    @property
    def max_body_bytes(self) -> int:
        return self.limits.max_body_bytes

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._channels)

    def accepts(self, address: IAddress | None) -> bool:
        """Return whether a new connection is accepted. If there are too many, close the one that has been idle longest.

        :param address: the address of the client; ``None`` if it is not known yet.
        """
        idle = self.idle_connections
        accepted = (address is None or idle.has_room(self.client_of(address))) and (
            self.connections - len(idle.closing) < self.limits.max_connections or idle.close_longest_idle()
        )
        self.rejected_connections += not accepted
        return accepted

    def add_client(self, channel: ApiChannel) -> bool:
        """Count an accepted connection for its client, and return whether the client can have it."""
        client = self.client_of(channel.getPeer())
        accepted = self.idle_connections.has_room(client)
        self.idle_connections.add_client(channel, client)
        self.rejected_connections += not accepted
        return accepted

    def begin_request(self, request_id: str | None = None, method: str = OTHER_METHOD) -> RequestRecord:
        """Return the record of a request that has just been received.

        :param request_id: the valid id that the client sent, if any.
        """
        return RequestRecord(request_id or self._new_request_id(), self.reactor.seconds(), method)

    def finish_request(self, record: RequestRecord) -> None:
        """Pass the record of a finished request to the observers."""
        record.seconds = max(0.0, self.reactor.seconds() - record.began)  # the clock may have been set back
        for observe in self._observers:
            observe(record)

    def serialize_head(
        self, response: Response, request_id: str, origin: str | None, *, closes: bool, with_cors: bool = True
    ) -> bytes:
        """Return everything that precedes the body of a response."""
        now, cors = self.reactor.seconds(), self._cors if with_cors else NO_CORS
        return serialize_head(response, request_id, now=now, cors=cors, origin=origin, closes=closes)

    def add(self, channel: ApiChannel) -> None:
        """Register an open connection."""
        self._channels.add(channel)

    def remove(self, channel: ApiChannel) -> None:
        """Unregister a closed connection."""
        self._channels.discard(channel)
        self.idle_connections.remove(channel)
        if self._drained is not None and not self._channels:
            if self._abort_call.active():
                self._abort_call.cancel()
            drained, self._drained = self._drained, None
            drained.callback(None)

    def drain(self, timeout: float) -> Deferred[None]:
        """Finish the current requests and close all connections.

        :param timeout: seconds after which the remaining connections are aborted.
        """
        self.draining = True
        for channel in list(self._channels):
            channel.close_when_idle()
        if not self._channels:
            return succeed(None)
        self._drained = Deferred()
        self._abort_call = self.reactor.callLater(timeout, self._abort_all)
        return self._drained

    def _abort_all(self) -> None:
        for channel in list(self._channels):
            channel.abort()

    def log(self, request: Request) -> None:
        """Log nothing: Twisted's access log contains the addresses of clients."""


def _innermost(transport: Any) -> Any:
    """Return the transport that uses the socket, without TLS and other wrappers."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport
