"""One HTTP request as twisted.web sees it, with a bound on its body and one way to answer it."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web import http

from tkserver import log
from tkserver.exchange import CLIENT_GONE, Exchange, harmless_id, method_of
from tkserver.limits.address import Address
from tkserver.web.budget import Claim
from tkserver.wire.answer import Answer
from tkserver.wire.refusal import InternalError, PayloadTooLarge, Refusal

if TYPE_CHECKING:
    from tkserver.web.channel import ApiChannel
    from tkserver.web.site import ApiSite

_log = log.logger(__name__)


class ApiRequest(http.Request):
    """A request whose body is read only where there is room for it, and no longer than is allowed.

    :ivar unread: why the body was not read. The request is handled all the same, so that its route and method are
        looked at first.
    :ivar exchange: what logs and metrics tell of it; there from when it has arrived.
    :ivar handling: fires when the request has been answered; cancelled when the client is gone before.
    """

    channel: ApiChannel
    site: ApiSite
    content: Any

    def __init__(self, channel: ApiChannel, queued: object) -> None:
        super().__init__(channel, queued, parsePOSTFormSubmission=False)
        self.unread: Refusal | None = None
        self.exchange: Exchange
        self.site = channel.site
        self._body_limit = channel.site.limits.max_body_bytes
        self._room: Claim | None = None
        self.handling: Deferred[Any] | None = None

    def parseCookies(self) -> None:
        """Cookies mean nothing here."""

    def gotLength(self, length: int | None) -> None:
        """The headers have arrived. A length of ``None``: chunked."""
        self.content = BytesIO()
        if length == 0:
            return
        try:
            if length is not None and length > self._body_limit:
                raise self._too_large()
            self.check_sender()
            self.site.check_load()
        except Refusal as refusal:
            self.requestHeaders.removeHeader(b"Expect")  # no invitation to send what will not be read
            self.leave_body(refusal)
            self.channel.length = 0  # to the channel, all of it is here
            return
        self._room = self.site.bodies.claim(length or self._body_limit, self.channel.go_on)
        if not self._room.granted:
            self.channel.wait()

    def handleContentChunk(self, data: bytes) -> None:
        """A part of the body has arrived."""
        if self.content.tell() + len(data) > self._body_limit:
            raise self._too_large()
        self.content.write(data)

    def leave_body(self, refusal: Refusal) -> None:
        """Do without the body, and without the rest of the connection."""
        self.unread = refusal
        self.content = BytesIO()
        self.give_back()
        self.channel.leave_unread()

    def finish(self) -> None:
        self.give_back()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        self.give_back()
        super().connectionLost(reason)
        if self.handling is not None:
            self.handling.cancel()

    def give_back(self) -> None:
        """The body's room in memory is of use to others now."""
        if self._room is not None:
            self._room.release()
            self._room = None

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is longer than {self._body_limit} bytes: send fewer events at once")

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The whole request has arrived. A query is no part of any route."""
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.exchange = self.site.begin(self.sent_id(), method_of(command))
        self.site.resource.render(self)

    def sent_id(self) -> str | None:
        """The id that it was sent with, as far as its headers have arrived."""
        return harmless_id(self.requestHeaders.getRawHeaders(b"x-request-id", ()))

    def header(self, name: str) -> str | None:
        """The last value that was sent for a header, ISO 8859-1."""
        values = self.requestHeaders.getRawHeaders(name.encode())
        return values[-1].decode("latin-1") if values else None

    def headers_by_name(self) -> dict[str, str]:
        """All of them: the last value of each by its lower-case name."""
        return {
            name.lower().decode("latin-1"): values[-1].decode("latin-1")
            for name, values in self.requestHeaders.getAllRawHeaders()
        }

    def check_sender(self) -> None:
        """
        :raise RateLimited: when its sender has failed to authenticate too often.
        """
        if self.site.auth_failures is not None:
            self.site.auth_failures.check(self.sender)

    def note_auth_failure(self) -> None:
        """Its sender has failed to authenticate."""
        if self.site.auth_failures is not None:
            self.site.auth_failures.note(self.sender)

    def sender(self) -> Address | None:
        """Where it comes from, as far as that can be known. Never to be logged or stored."""
        forwarded = self.requestHeaders.getRawHeaders(b"x-forwarded-for", ())
        peer = getattr(self.channel.getPeer(), "host", None)  # which a Unix socket's does not have
        return self.site.proxies.client_of(peer, [value.decode("latin-1") for value in forwarded])

    def body(self) -> bytes:
        return bytes(self.content.getvalue())

    def respond(self, to_send: Answer) -> None:
        """Send the answer, unless nobody is there any more."""
        exchange = self.exchange
        exchange.status, exchange.code = (CLIENT_GONE, None) if self._disconnected else (to_send.status, to_send.code)
        if not self._disconnected:
            self.startedWriting = 1
            if exchange.answer_headers:
                to_send = to_send.carrying(exchange.answer_headers)
            origin = self.header("origin")
            self.channel.send(to_send, exchange.request_id, origin=origin, with_body=self.method != b"HEAD")
            self.finish()
        self.site.finished(exchange)

    def give_up(self, failure: Failure) -> None:
        """There is no way to answer this."""
        request_id = self.exchange.request_id
        _log.failure("a request could not be answered", failure, request_id=request_id, event="answer_failed")
        self.exchange.status, self.exchange.code = InternalError.status, InternalError.code
        self.site.finished(self.exchange)
        if not self._disconnected:
            self.channel.abort()
