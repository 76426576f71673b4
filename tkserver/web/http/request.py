"""One HTTP request: its headers, its body if the handler asks for it, and its response."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from io import BytesIO
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource

from tkserver import log
from tkserver.log.access import CLIENT_CLOSED_REQUEST, RequestRecord, known_method, valid_request_id
from tkserver.web.http.body_budget import BodyBudget, BodyMemory
from tkserver.web.http.response import Response
from tkserver.wire.api_errors import ApiError, InternalError, Overloaded, PayloadTooLarge

T = TypeVar("T")

_log = log.logger(__name__)


class RequestSite(Protocol):
    """The part of :class:`tkserver.web.http.connections.ApiSite` that a request uses."""

    resource: IResource
    reactor: Any
    bodies: BodyBudget

    @property
    def max_body_bytes(self) -> int: ...

    def begin_request(self, request_id: str | None, method: str) -> RequestRecord: ...

    def finish_request(self, record: RequestRecord) -> None: ...


class RequestChannel(Protocol):
    """The part of :class:`tkserver.web.http.connections.ApiChannel` that a request uses."""

    site: RequestSite

    def ask_for_body(self) -> None: ...

    def read_body(self) -> None: ...

    def wait_for_memory(self) -> None: ...

    def ignore_input(self) -> None: ...

    def send(
        self, response: Response, request_id: str, *, origin: str | None, with_body: bool, with_cors: bool
    ) -> None: ...

    def abort(self) -> None: ...

    def getHost(self) -> IAddress: ...

    def getPeer(self) -> IAddress: ...


class ApiRequest(http.Request):
    """A request that is handled as soon as its headers have been received. Its body is read only if its handler asks.

    :ivar length: the length of the body; ``None`` if it is chunked.
    :ivar received: bytes of the body that have been received.
    :ivar memory: the memory of a body that did not arrive together with the headers.
    :ivar record: for logs and metrics; exists as soon as the headers have been received.
    :ivar response_headers: headers that are added to the response.
    :ivar allows_web_pages: false if the response must not have CORS headers.
    :ivar handling: fires when the response has been sent; cancelled if the client disconnects before.
    """

    channel: RequestChannel  # type: ignore[assignment]  # a protocol, because the module of the channel imports this one
    site: RequestSite
    content: Any

    def __init__(self, channel: RequestChannel, queued: object) -> None:
        super().__init__(channel, queued)  # type: ignore[arg-type]
        self.site = channel.site
        self.length: int | None = 0
        self.received = 0
        self.memory: BodyMemory | None = None
        self.record: RequestRecord
        self.response_headers: dict[str, str] = {}
        self.allows_web_pages = True
        self.handling: Deferred[Any] | None = None
        self._max_body_bytes = channel.site.max_body_bytes
        self._begun = False
        self._complete = False
        self._held = 0
        self._charged = 0
        self._body: Deferred[None] | None = None
        self._connected = True

    # --- receiving

    def parseCookies(self) -> None:
        """Ignore cookies: the API does not use them."""

    def gotLength(self, length: int | None) -> None:
        """Receive the length of the body. Called by twisted.web after the headers."""
        self.length = length
        self.content = BytesIO()

    def begin(self, command: bytes, path: bytes, version: bytes) -> None:
        """Handle the request. The query string is not part of any route."""
        self._begun = True
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.record = self.site.begin_request(self.sent_request_id(), known_method(command))
        self.site.resource.render(self)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Receive the end of the request. Called by twisted.web."""
        self._complete = True
        if not self._begun:  # the body arrived together with the headers
            if self.received:
                self._held = self.received
                self.site.bodies.hold(self._held)
            self.begin(command, path, version)
        elif self._body is not None and self.memory is not None:
            self.memory.finish(self.received - self._charged)
            body, self._body = self._body, None
            body.callback(None)

    def check_length(self) -> None:
        """Check the length of the body, if the headers contain it.

        :raise PayloadTooLarge: if the body is too long.
        """
        if self.length is not None and self.length > self._max_body_bytes:
            raise self._too_large()

    async def read_body(self, client: Callable[[], Hashable]) -> bytes:
        """Receive the body.

        :param client: returns the client, whose bodies have a limited share of the memory; ``None`` if it is not known.
        :raise ApiError: if the body is too long, invalid or too slow, or if there is no memory for it.
        """
        self.check_length()
        self.channel.ask_for_body()
        if not self._complete:
            await self._receive_body(client())
        return bytes(self.content.getvalue())

    def _receive_body(self, client: Hashable) -> Deferred[None]:
        began = self.site.reactor.seconds()
        body: Deferred[None] = Deferred()

        def received(result: T) -> T:
            self.record.began += self.site.reactor.seconds() - began
            return result

        self._body = body
        self.memory = self.site.bodies.begin(client, self.length, self)
        if not self.memory.waits:
            self.channel.read_body()
        return body.addBoth(received)

    def handleContentChunk(self, data: bytes) -> None:
        """Append a part of the body.

        :raise PayloadTooLarge: if the body is too long.
        """
        self.received += len(data)
        if self.received > self._max_body_bytes:
            raise self._too_large()
        self.content.write(data)

    def charge_body(self) -> None:
        """Charge what has been received of a body that is not complete. It may have to wait afterwards."""
        if self.memory is not None:
            charged, self._charged = self._charged, self.received
            self.memory.charge(self.received - charged)

    def fail_body(self, error: ApiError) -> None:
        """Stop to receive the body. Its handler gets the error."""
        self.content = BytesIO()
        self.release_body()
        body, self._body = self._body, None
        if body is not None:
            body.errback(error)

    def stop_reading(self) -> None:
        """See :class:`~tkserver.web.http.body_budget.BodyReceiver`."""
        self.channel.wait_for_memory()

    def continue_reading(self) -> None:
        """See :class:`~tkserver.web.http.body_budget.BodyReceiver`."""
        if self._connected:
            self.channel.read_body()

    def lose_memory(self) -> None:
        """See :class:`~tkserver.web.http.body_budget.BodyReceiver`."""
        self.fail_body(Overloaded("the server has no memory for this body at the moment: try again later"))

    def sent_request_id(self) -> str | None:
        """Return the request id from the headers received so far, if it is valid."""
        return valid_request_id(self.requestHeaders.getRawHeaders(b"x-request-id", ()))

    def header(self, name: str) -> str | None:
        """Return the last value of a header, decoded from ISO 8859-1."""
        values = self.requestHeaders.getRawHeaders(name.encode())
        return values[-1].decode("latin-1") if values else None

    def headers_by_name(self) -> dict[str, str]:
        """Return the last value of each header by its lower-case name."""
        return {
            name.lower().decode("latin-1"): values[-1].decode("latin-1")
            for name, values in self.requestHeaders.getAllRawHeaders()
        }

    # --- responding

    def respond(self, response: Response) -> None:
        """Send the response, unless the client has disconnected."""
        record = self.record
        if self._connected:
            if not self._complete:
                self.channel.ignore_input()  # before the headers are sent, which say that the connection is closed
            record.status, record.code = response.status, response.code
            self.startedWriting = 1
            if self.response_headers:
                response = response.with_headers(self.response_headers)
            self.channel.send(
                response,
                record.request_id,
                origin=self.header("origin"),
                with_body=self.method != b"HEAD",
                with_cors=self.allows_web_pages,
            )
            self.finish()
        else:
            record.status, record.code = CLIENT_CLOSED_REQUEST, None
        self.site.finish_request(record)

    def abort(self, failure: Failure) -> None:
        """Close the connection, because the response failed."""
        record = self.record
        _log.failure("no response could be sent", failure, request_id=record.request_id, event="answer_failed")
        record.status, record.code = InternalError.status, InternalError.code
        self.site.finish_request(record)
        if self._connected:
            self.channel.abort()

    def finish(self) -> None:
        self.release_body()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        self._connected = False
        self.release_body()
        super().connectionLost(reason)
        if self.handling is not None:
            self.handling.cancel()

    def release_body(self) -> None:
        """Return the memory of the body."""
        if self._held:
            self.site.bodies.return_held(self._held)
            self._held = 0
        if self.memory is not None:
            self.memory.release()
            self.memory = None

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is longer than {self._max_body_bytes} bytes: send fewer events at once")
