"""The time limits of the phases of a connection, with a simulated clock."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from tkserver.web.http.connections import LINGER, MAX_LINGER, MAX_LINGER_BYTES, ApiChannel, ApiSite, HttpLimits, Phase
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import CorsPolicy, error_response, no_content
from tkserver.wire.api_errors import ApiError

START_OF_REQUEST = b"POST / HTTP/1.1\r\n"
HEADERS = b"Host: x\r\nContent-Length: 2\r\n\r\n"
BODY = b"{}"
REQUEST = START_OF_REQUEST + HEADERS + BODY

DAY = 86_400


class Transport(StringTransport):
    """A connection to a client that never closes it.

    :ivar closed: when the server closed the connection, and how.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.closed: list[tuple[float, str]] = []

    def loseConnection(self) -> None:
        self.closed.append((self._clock.seconds(), "close"))

    def loseWriteConnection(self) -> None:
        self.closed.append((self._clock.seconds(), "close for writing"))

    def abortConnection(self) -> None:
        self.closed.append((self._clock.seconds(), "abort"))


class Requests(Resource):
    """Accepts requests, reads their bodies, and does not respond to them."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[ApiRequest] = []

    def render(self, request: ApiRequest) -> int:
        self.received.append(request)
        request.handling = ensureDeferred(self._read(request))
        return NOT_DONE_YET

    async def _read(self, request: ApiRequest) -> None:
        try:
            await request.read_body(lambda: None)
        except ApiError as error:
            request.respond(error_response(error, request.record.request_id))


class Connection:
    """A connection to a server."""

    def __init__(self, **limits: float) -> None:
        self.clock = Clock()
        self.transport = Transport(self.clock)
        self.requests = Requests()
        self.site = ApiSite(self.requests, HttpLimits(**cast(Any, limits)), CorsPolicy(), self.clock)
        self.channel = cast(ApiChannel, self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)))
        self.channel.makeConnection(cast(Any, self.transport))

    def receive(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def phase(self) -> Phase:
        return self.channel.phase

    def respond(self) -> None:
        """Respond to the last request."""
        self.requests.received[-1].respond(no_content())

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    @property
    def timed_out_at(self) -> list[float]:
        """When the server began to close the connection, or responded with 408."""
        return [time for time, action in self.transport.closed if action != "abort"]


def test_time_limit_is_reached_once() -> None:
    """A time limit is reached when its time is over, and only once."""
    connection = Connection(header_timeout=5)
    connection.receive(START_OF_REQUEST)
    connection.wait(100)
    assert connection.timed_out_at == [5]
    assert connection.transport.value().count(b"HTTP/1.1 408 ") == 1
    assert connection.transport.closed == [(5, "close for writing"), (5 + LINGER, "abort")]


def test_silent_connection_is_closed_once() -> None:
    """A connection without any request is closed without a response, and aborted if the client does not close it."""
    connection = Connection(header_timeout=5)
    connection.wait(100)
    assert connection.transport.value() == b""
    assert connection.transport.closed[0] == (5, "close")
    assert connection.transport.closed[-1] == (5 + LINGER, "abort")
    assert set(connection.timed_out_at) == {5}


def test_next_phase_has_a_later_time_limit() -> None:
    """When a phase ends before its time limit, the time limit of the next phase starts then."""
    connection = Connection(header_timeout=5, body_timeout=5)
    connection.receive(START_OF_REQUEST)
    connection.wait(3)
    connection.receive(HEADERS)
    assert connection.phase() is Phase.BODY
    connection.wait(100)
    assert connection.timed_out_at == [8]


def test_next_phase_has_an_earlier_time_limit() -> None:
    """The time limit of a phase applies even if the one of the previous phase would be reached later."""
    connection = Connection(header_timeout=10, idle_timeout=75)
    connection.wait(8)
    connection.receive(REQUEST)
    connection.respond()
    assert connection.phase() is Phase.IDLE
    connection.receive(START_OF_REQUEST)
    assert connection.phase() is Phase.HEADERS
    connection.wait(100)
    assert connection.timed_out_at == [18]


def test_earlier_time_limit_after_the_timer_was_postponed() -> None:
    """A timer that was postponed, and whose first time has passed, can still be moved to an earlier time."""
    connection = Connection(header_timeout=5, idle_timeout=75)
    connection.receive(REQUEST)
    connection.respond()
    connection.wait(10)
    connection.receive(START_OF_REQUEST)
    connection.wait(100)
    assert connection.timed_out_at == [15]


@pytest.mark.parametrize("seconds", [20, 3 * DAY])
def test_no_time_limit_while_a_request_is_handled(seconds: int) -> None:
    """While a request is handled, no time limit applies; the next phase has one again."""
    connection = Connection(header_timeout=5, body_timeout=5, idle_timeout=5)
    connection.receive(REQUEST)
    assert connection.phase() is Phase.HANDLING
    connection.clock.advance(seconds)
    assert connection.transport.closed == []
    connection.respond()
    connection.wait(20)
    assert connection.timed_out_at[0] == seconds + 5


def test_closed_connection_leaves_no_timer() -> None:
    """A connection that has been closed leaves nothing in the reactor."""
    connection = Connection(header_timeout=5)
    connection.channel.connectionLost(connectionDone)
    assert connection.clock.getDelayedCalls() == []


def test_later_time_limits_do_not_move_the_timer_in_the_queue() -> None:
    """However many requests a connection has, there is one timer, which stays in its place in the reactor's queue."""
    connection = Connection(header_timeout=10, body_timeout=60, idle_timeout=75)
    (timer,) = connection.clock.getDelayedCalls()
    for _ in range(100):
        connection.receive(REQUEST)
        connection.respond()
    assert connection.clock.getDelayedCalls() == [timer]
    assert cast(Any, timer).time == 10


def test_slow_body_gets_408() -> None:
    """A body that arrives more slowly than the minimum rate gets a 408."""
    connection = Connection(min_body_rate=10)
    connection.receive(START_OF_REQUEST + b"Host: x\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(100):
        connection.receive(b"x" * 9)
        connection.wait(1)
    assert connection.transport.value().startswith(b"HTTP/1.1 408 ")
    assert connection.site.bodies.used == 0


def test_body_of_the_minimum_rate_is_received() -> None:
    """A body that arrives at the minimum rate is received, however long that takes."""
    connection = Connection(min_body_rate=10)
    connection.receive(START_OF_REQUEST + b"Host: x\r\nContent-Length: 5500\r\n\r\n")
    for _ in range(500):
        connection.wait(1)
        connection.receive(b"x" * 11)
    assert connection.phase() is Phase.HANDLING
    assert connection.transport.value() == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_body_without_memory_gets_503(chunked: bool) -> None:
    """A body that waits for memory is not read, and gets a 503 after the time limit."""
    connection = Connection(memory_timeout=10)
    connection.site.bodies.begin("oldest", 1, cast(Any, None))
    connection.site.bodies.hold(connection.site.bodies.total)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 2"
    connection.receive(START_OF_REQUEST + b"Host: x\r\n" + length + b"\r\n\r\n")
    assert connection.phase() is Phase.WAITING
    assert connection.transport.producerState == "paused"
    connection.wait(10)
    assert connection.transport.value().startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After" in connection.transport.value()


def test_body_continues_when_there_is_memory() -> None:
    """A body that waits for memory is read when there is some."""
    connection = Connection()
    bodies = connection.site.bodies
    bodies.begin("oldest", 1, cast(Any, None))
    bodies.hold(bodies.total)
    connection.receive(START_OF_REQUEST + HEADERS + BODY[:1])
    assert connection.phase() is Phase.WAITING
    bodies.return_held(bodies.total)
    connection.wait(1)
    assert connection.phase() is Phase.BODY
    assert connection.transport.producerState == "producing"
    connection.receive(BODY[1:])
    assert connection.phase() is Phase.HANDLING


class TestLinger:
    """Input after a response to an incomplete request is discarded, so that the client can read the response."""

    def rejected(self) -> Connection:
        """Return a connection whose request was rejected before its body."""
        connection = Connection(max_body_bytes=10)
        connection.receive(START_OF_REQUEST + b"Host: x\r\nContent-Length: 100000000\r\n\r\n")
        assert connection.transport.value().startswith(b"HTTP/1.1 413 ")
        return connection

    def test_client_that_continues_to_send(self) -> None:
        """While a client sends, the connection stays open for some time."""
        connection = self.rejected()
        for _ in range(int(MAX_LINGER) * 2):
            connection.receive(b"x")
            connection.wait(1)
        assert MAX_LINGER - LINGER <= connection.transport.closed[-1][0] <= MAX_LINGER

    def test_client_that_sends_a_lot(self) -> None:
        """Only a limited amount of input is discarded."""
        connection = self.rejected()
        for _ in range(MAX_LINGER_BYTES // 1_000_000 + 1):
            connection.receive(bytes(1_000_000))
        assert connection.transport.closed[-1] == (0, "abort")
