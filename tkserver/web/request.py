"""One HTTP request as twisted.web sees it, with a bound on its body and one way to answer it."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.python.failure import Failure
from twisted.web import server

from tkserver import log
from tkserver.web.budget import Claim
from tkserver.wire import answer
from tkserver.wire.answer import Answer
from tkserver.wire.refusal import InternalError, PayloadTooLarge, Refusal

if TYPE_CHECKING:
    from tkserver.web.channel import ApiChannel
    from tkserver.web.site import ApiSite

_log = log.logger(__name__)

_ABSOLUTE = re.compile(rb"https?://[^/]*", re.IGNORECASE)


class ApiRequest(server.Request):
    """A request whose body is read only where there is room for it, and no longer than is allowed.

    :ivar unread: why the body was not read. The request is handled all the same, so that its route and method are
        looked at first.
    """

    defaultContentType = None
    channel: ApiChannel
    site: ApiSite
    content: Any

    def __init__(self, channel: ApiChannel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, parsePOSTFormSubmission=False, **kwargs)
        self.unread: Refusal | None = None
        self.site = channel.site
        self._body_limit = channel.site.limits.max_body_bytes
        self._room: Claim | None = None

    def gotLength(self, length: int | None) -> None:
        """The headers have arrived. A length of ``None``: chunked."""
        self.content = BytesIO()
        if length == 0:
            return
        try:
            if length is not None and length > self._body_limit:
                raise self._too_large()
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
        self.channel.leave_unread()

    def finish(self) -> None:
        self._give_back()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        self._give_back()
        super().connectionLost(reason)

    def _give_back(self) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is longer than {self._body_limit} bytes: send fewer events at once")

    def process(self) -> None:
        """The whole request has arrived."""
        self.prepath = []
        self.postpath = _segments(self.path)
        self.render(self.site.resource)

    def getRequestHostname(self) -> bytes:
        """Nothing depends on the name by which a client calls this server, and it may be anything."""
        return b"tkserver"

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

    def body(self) -> bytes:
        return bytes(self.content.getvalue())

    def respond(self, to_send: Answer) -> bytes:
        """Set status and headers, and give the body that is still to be written."""
        self.setResponseCode(to_send.status)
        every = self.site.headers(to_send, self.header("origin"))
        if not self.channel.persistent:
            every["Connection"] = "close"
        for name, value in every.items():
            self.responseHeaders.setRawHeaders(name, [value])
        return to_send.body or b""

    def processingFailed(self, reason: Failure) -> Failure:
        """Nothing should come here: errors have their answers in the routes. Twisted would send a page of HTML."""
        _log.failure("a request could not be handled", reason)
        if not self.startedWriting:
            self.write(self.respond(answer.refused(InternalError("something went wrong on this server"))))
        self.finish()
        return reason


_NOWHERE = [b"", b""]
"""A path that no route has."""


def _segments(path: bytes) -> list[bytes]:
    """The segments of a request's target, unquoted, in UTF-8: what is none is part of no route, and no error either.

    Of a target with scheme and host, which servers must understand too (RFC 9112, section 3.2.2), the path counts.
    """
    absolute = _ABSOLUTE.match(path)
    if absolute:
        path = path[absolute.end() :] or b"/"
    if not path.startswith(b"/") or path.startswith(b"//"):
        return _NOWHERE
    return [unquote_to_bytes(part).decode("utf-8", "replace").encode() for part in path[1:].split(b"/")]
