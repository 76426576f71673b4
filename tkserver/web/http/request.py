"""One HTTP request, with a limit on its body and a single way to respond."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource

from tkserver import log
from tkserver.log.access import CLIENT_CLOSED_REQUEST, RequestRecord, known_method, valid_request_id
from tkserver.web.http.body_budget import BodyBudget, Reservation
from tkserver.web.http.response import Response
from tkserver.wire.api_errors import ApiError, InternalError, PayloadTooLarge

_log = log.logger(__name__)


class Admission(Protocol):
    """Decides from the headers of a request whether the server reads its body."""

    def check(self, request: ApiRequest) -> None:
        """
        :raise ApiError: if the body must not be read.
        """


class RequestSite(Protocol):
    """The part of :class:`tkserver.web.http.connections.ApiSite` that a request uses."""

    resource: IResource
    bodies: BodyBudget
    admission: Admission | None

    @property
    def max_body_bytes(self) -> int: ...

    def begin_request(self, request_id: str | None, method: str) -> RequestRecord: ...

    def finish_request(self, record: RequestRecord) -> None: ...


class RequestChannel(Protocol):
    """The part of :class:`tkserver.web.http.connections.ApiChannel` that a request uses."""

    site: RequestSite
    length: int

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def ignore_input(self) -> None: ...

    def send(
        self, response: Response, request_id: str, *, origin: str | None, with_body: bool, with_cors: bool
    ) -> None: ...

    def abort(self) -> None: ...

    def getHost(self) -> IAddress: ...

    def getPeer(self) -> IAddress: ...


class ApiRequest(http.Request):
    """A request whose body is read only if there is memory for it, and only up to the limit.

    :ivar body_error: the reason why the body was not read. The request is routed nevertheless, because errors of its
        path and method have priority.
    :ivar record: for logs and metrics; exists as soon as the request has been received.
    :ivar response_headers: headers that are added to the response.
    :ivar allows_web_pages: false if the response must not have CORS headers.
    :ivar handling: fires when the response has been sent; cancelled if the client disconnects before.
    """

    channel: RequestChannel  # type: ignore[assignment]  # a protocol, because the module of the channel imports this one
    site: RequestSite
    content: Any

    def __init__(self, channel: RequestChannel, queued: object) -> None:
        super().__init__(channel, queued, parsePOSTFormSubmission=False)  # type: ignore[arg-type]
        self.site = channel.site
        self.body_error: ApiError | None = None
        self.record: RequestRecord
        self.response_headers: dict[str, str] = {}
        self.allows_web_pages = True
        self.handling: Deferred[Any] | None = None
        self._max_body_bytes = channel.site.max_body_bytes
        self._memory: Reservation | None = None
        self._connected = True

    # --- receiving

    def parseCookies(self) -> None:
        """Ignore cookies: the API does not use them."""

    def gotLength(self, length: int | None) -> None:
        """Decide whether to read the body. Called by twisted.web after the headers.

        :param length: ``None`` if the body is chunked.
        """
        self.content = BytesIO()
        if length == 0:
            return
        try:
            if length is not None and length > self._max_body_bytes:
                raise self._too_large()
            if self.site.admission is not None:
                self.site.admission.check(self)
        except ApiError as error:
            self.requestHeaders.removeHeader(b"Expect")  # otherwise the channel would ask the client for the body
            self.skip_body(error)
            self.channel.length = 0  # the channel considers the request complete
            return
        self._memory = self.site.bodies.reserve(length or self._max_body_bytes, self.channel.resume_reading)
        if not self._memory.granted:
            self.channel.pause_reading()

    def handleContentChunk(self, data: bytes) -> None:
        """Append a part of the body."""
        if self.content.tell() + len(data) > self._max_body_bytes:
            raise self._too_large()
        self.content.write(data)

    def skip_body(self, error: ApiError) -> None:
        """Do not read the body, and close the connection after the response."""
        self.body_error = error
        self.content = BytesIO()
        self.release_body()
        self.channel.ignore_input()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Handle the complete request. The query string is not part of any route."""
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.record = self.site.begin_request(self.sent_request_id(), known_method(command))
        self.site.resource.render(self)

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

    def body(self) -> bytes:
        return bytes(self.content.getvalue())

    # --- responding

    def respond(self, response: Response) -> None:
        """Send the response, unless the client has disconnected."""
        record = self.record
        if self._connected:
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
        """Return the memory of the body to the budget."""
        if self._memory is not None:
            self._memory.release()
            self._memory = None

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is longer than {self._max_body_bytes} bytes: send fewer events at once")
