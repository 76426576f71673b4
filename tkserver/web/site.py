"""All connections: how many there may be, and how they come to an end together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import getrandbits
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.web.http import Request
from twisted.web.resource import IResource
from twisted.web.server import Site

from tkserver.exchange import OTHER_METHOD, Exchange, Observer
from tkserver.limits.address import TrustedProxies
from tkserver.limits.failures import AuthFailureLimit
from tkserver.web.budget import Budget
from tkserver.web.channel import LINGER, ApiChannel, Phase
from tkserver.web.headers import CorsPolicy, common, head
from tkserver.web.request import ApiRequest
from tkserver.wire.answer import Answer


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server. Times in seconds.

    :ivar max_body_memory: bytes of all bodies that are being received or handled.
    :ivar room_timeout: for room for a body, before it is read.
    :ivar header_timeout: for all headers of a request, from the first byte or from the connection's begin.
    :ivar body_timeout: for all of a body, from the end of the headers.
    :ivar idle_timeout: between the end of a request and the first byte of the next.
    """

    max_body_bytes: int = 5_242_880
    max_connections: int = 4096
    max_body_memory: int = 67_108_864
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    idle_timeout: float = 75.0
    room_timeout: float = 10.0

    def by_phase(self) -> dict[Phase, float | None]:
        """For how long a connection may be in each phase; ``None`` for as long as it takes."""
        return {
            Phase.IDLE: self.idle_timeout,
            Phase.HEADERS: self.header_timeout,
            Phase.WAITING: self.room_timeout,
            Phase.BODY: self.body_timeout,
            Phase.HANDLING: None,
            Phase.ENDING: LINGER,
        }


def _random_id() -> str:
    """In the form of a trace id (W3C Trace Context, section 3.2.2.3)."""
    return f"{getrandbits(128):032x}"


class ApiSite(Site):
    """Serves one resource over HTTP/1.1.

    :param check_load: raises a ``Refusal`` when there is no use in reading the body of a request.
    :param auth_failures: how often an address may fail to authenticate; ``None`` for as often as it likes.
    :param proxies: those that say whom they forward for.
    :param observers: are told of each request when it is answered.
    :param new_id: an id for a request that was sent without one.
    :ivar bodies: room for bodies.
    :ivar draining: no request is taken after those that are under way.
    """

    protocol = ApiChannel  # type: ignore[assignment]  # HTTP/1.1 and nothing else
    requestFactory = ApiRequest  # type: ignore[assignment]  # needs no sessions, nor anything else of Site's own
    noisy = False

    def __init__(
        self,
        resource: IResource,
        limits: Limits,
        cors: CorsPolicy,
        check_load: Callable[[], None],
        reactor: Any,
        *,
        auth_failures: AuthFailureLimit | None = None,
        proxies: TrustedProxies | None = None,
        observers: Sequence[Observer] = (),
        new_id: Callable[[], str] = _random_id,
    ) -> None:
        super().__init__(resource, reactor=reactor, timeout=None)
        self.check_load = check_load
        self.auth_failures = auth_failures
        self.proxies = proxies or TrustedProxies()
        self._observers = observers
        self._new_id = new_id
        self.bodies = Budget(limits.max_body_memory, reactor)
        self.limits = limits
        self.deadlines = limits.by_phase()
        self.cors = cors
        self.draining = False
        self._channels: set[ApiChannel] = set()
        self._drained: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._channels)

    def is_full(self) -> bool:
        """Whether there are as many connections as there may be."""
        return self.connections >= self.limits.max_connections

    def begin(self, request_id: str | None = None, method: str = OTHER_METHOD) -> Exchange:
        """A request has arrived.

        :param request_id: as it was sent with the request, where it was, and may be repeated.
        """
        return Exchange(request_id or self._new_id(), self.reactor.seconds(), method)

    def finished(self, exchange: Exchange) -> None:
        """A request was answered, or there is nobody left to answer."""
        exchange.seconds = max(0.0, self.reactor.seconds() - exchange.began)  # by a clock that may be set back
        for observe in self._observers:
            observe(exchange)

    def head(self, answer: Answer, request_id: str, origin: str | None, *, closes: bool) -> bytes:
        """All that stands before the body of an answer.

        :param origin: the request's ``Origin`` header, where it has one.
        :param closes: whether the connection ends with this answer.
        """
        return head(answer, request_id, common(int(self.reactor.seconds()), self.cors, self.cors.known(origin), closes))

    def connected(self, channel: ApiChannel) -> None:
        self._channels.add(channel)

    def disconnected(self, channel: ApiChannel) -> None:
        self._channels.discard(channel)
        if self._drained is not None and not self._channels:
            if self._cutting.active():
                self._cutting.cancel()
            drained, self._drained = self._drained, None
            drained.callback(None)

    def drain(self, deadline: float) -> Deferred[None]:
        """Finish the requests under way and end every connection.

        :param deadline: seconds after which connections are cut.
        """
        self.draining = True
        for channel in list(self._channels):
            channel.wind_down()
        if not self._channels:
            return succeed(None)
        self._drained = Deferred()
        self._cutting = self.reactor.callLater(deadline, self._cut)
        return self._drained

    def _cut(self) -> None:
        for channel in list(self._channels):
            channel.abort()

    def log(self, request: Request) -> None:
        """No access log: Twisted's holds the addresses of clients."""
