"""The load generator: a process of its own that sends ready-made requests over many connections."""

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

_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """What came of a run. Times in seconds.

    :ivar cpu: processor time that the generator itself took.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    refused: int
    cpu: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def run(port: int, requests: list[bytes], clients: int) -> Result:
    """Send all requests, each client the next one as soon as its last one is answered, in a process of its own."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_all, args=(port, requests, clients, theirs))
    process.start()
    result: Result = ours.recv()
    process.join()
    return result


class _Client:
    """One connection, with one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.sent_at = 0.0
        self.unsent = memoryview(b"")
        self.received = b""

    def begin(self, request: bytes) -> None:
        self.unsent, self.received, self.sent_at = memoryview(request), b"", time.perf_counter()

    def write(self) -> bool:
        """Whether all of the request is sent."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return False
        return not self.unsent

    def read(self) -> bool:
        """Whether all of the answer is there."""
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionError("the server has closed a connection")
        self.received += part
        length = _LENGTH.search(self.received)
        end = self.received.find(b"\r\n\r\n")
        return bool(length) and end >= 0 and len(self.received) >= end + 4 + int(length[1])  # type: ignore[index]


def _send_all(port: int, requests: list[bytes], clients: int, result: Connection) -> None:
    result.send(_Generator(port, requests, clients).run())


class _Generator:
    """Sends requests until all are answered."""

    def __init__(self, port: int, requests: list[bytes], clients: int) -> None:
        self._count = len(requests)
        self._waiting: Iterator[bytes] = iter(requests)
        self._clients = [_Client(port) for _ in range(min(clients, len(requests)))]
        self._selector = selectors.DefaultSelector()
        self._latencies: list[float] = []
        self._refused = 0

    def run(self) -> Result:
        began, cpu = time.perf_counter(), time.process_time()
        for client in self._clients:
            self._selector.register(client.socket, selectors.EVENT_WRITE, client)
            self._begin_next(client)
        while len(self._latencies) < self._count:
            for key, _ in self._selector.select():
                self._proceed(key.data)
        seconds = time.perf_counter() - began
        cuts = statistics.quantiles(self._latencies, n=100)
        cpu = time.process_time() - cpu
        return Result(self._count, seconds, cuts[49], cuts[98], self._refused, cpu)

    def _proceed(self, client: _Client) -> None:
        if client.unsent:
            if client.write():
                self._selector.modify(client.socket, selectors.EVENT_READ, client)
        elif client.read():
            self._latencies.append(time.perf_counter() - client.sent_at)
            self._refused += not client.received.startswith(b"HTTP/1.1 200 ")
            self._begin_next(client)

    def _begin_next(self, client: _Client) -> None:
        following = next(self._waiting, None)
        if following is None:
            self._selector.unregister(client.socket)
            client.socket.close()
            return
        client.begin(following)
        event = selectors.EVENT_READ if client.write() else selectors.EVENT_WRITE
        self._selector.modify(client.socket, event, client)
