"""The load generator: a separate process that sends prepared requests over many connections."""

from __future__ import annotations

import re
import selectors
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

_CONTENT_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """The result of one or more runs. Times are in seconds.

    :ivar latencies: the time from the first byte of each request to the last byte of its response.
    :ivar errors: the number of responses with a status other than 200.
    :ivar cpu: processor time that the generator itself used.
    """

    latencies: list[float]
    seconds: float
    errors: int
    cpu: float

    def __add__(self, other: Result) -> Result:
        return Result(
            self.latencies + other.latencies,
            self.seconds + other.seconds,
            self.errors + other.errors,
            self.cpu + other.cpu,
        )

    @property
    def requests(self) -> int:
        return len(self.latencies)

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def p50(self) -> float:
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.latencies, n=100)[98]


def run(port: int, requests: list[bytes], clients: int) -> Result:
    """Send all requests from a new process.

    Each client sends its next request as soon as it has received the response to the previous one.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(port, requests, clients, sender))
    process.start()
    sender.close()
    try:
        result: Result = receiver.recv()
    except EOFError:
        raise SystemExit("The load generator failed.") from None
    process.join()
    return result


class _Client:
    """A connection with at most one request in flight."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.sent_at = 0.0
        self.unsent = memoryview(b"")
        self.received = b""

    def start(self, request: bytes) -> None:
        self.unsent, self.received, self.sent_at = memoryview(request), b"", time.perf_counter()

    def write(self) -> bool:
        """Send as much as possible. Return true when the complete request is sent."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return False
        return not self.unsent

    def read(self) -> bool:
        """Read what has arrived. Return true when the response is complete."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("The server closed a connection.")
        self.received += data
        length = _CONTENT_LENGTH.search(self.received)
        end = self.received.find(b"\r\n\r\n")
        return length is not None and end >= 0 and len(self.received) >= end + 4 + int(length[1])


def _send_all(port: int, requests: list[bytes], clients: int, results: Connection) -> None:
    results.send(send_all(port, requests, clients))


def send_all(port: int, requests: list[bytes], clients: int) -> Result:
    """Send all requests from this process."""
    return _Generator(port, requests, clients).run()


class _Generator:
    """Sends requests until every request has a response."""

    def __init__(self, port: int, requests: list[bytes], clients: int) -> None:
        self._count = len(requests)
        self._waiting: Iterator[bytes] = iter(requests)
        self._clients = [_Client(port) for _ in range(min(clients, len(requests)))]
        self._selector = selectors.DefaultSelector()
        self._latencies: list[float] = []
        self._errors = 0

    def run(self) -> Result:
        started, cpu = time.perf_counter(), time.process_time()
        for client in self._clients:
            self._selector.register(client.socket, selectors.EVENT_WRITE, client)
            self._start_next(client)
        while len(self._latencies) < self._count:
            for key, _ in self._selector.select():
                self._continue(key.data)
        seconds = time.perf_counter() - started
        return Result(self._latencies, seconds, self._errors, time.process_time() - cpu)

    def _continue(self, client: _Client) -> None:
        if client.unsent:
            if client.write():
                self._selector.modify(client.socket, selectors.EVENT_READ, client)
        elif client.read():
            self._latencies.append(time.perf_counter() - client.sent_at)
            self._errors += not client.received.startswith(b"HTTP/1.1 200 ")
            self._start_next(client)

    def _start_next(self, client: _Client) -> None:
        request = next(self._waiting, None)
        if request is None:
            self._selector.unregister(client.socket)
            client.socket.close()
            return
        client.start(request)
        event = selectors.EVENT_READ if client.write() else selectors.EVENT_WRITE
        self._selector.modify(client.socket, event, client)
