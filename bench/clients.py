"""Simulate clients that connect and disconnect. Some of them send invalid requests or reset the connection.

For each action, exactly one response status is correct.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from socket import SO_LINGER, SOL_SOCKET

from bench.requests import new_bodies, signed_request

MAX_EVENTS = 20
"""Events in a request."""

MAX_REQUESTS = 20
"""Requests on a connection."""

ADDRESSES = 2000
"""Client addresses. With fewer, some addresses would exceed the limit of failed requests."""

_CONTENT_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)

Action = Callable[["_Connection"], Awaitable[bool]]
"""Sends a request and checks the response. Returns true if the connection can be used again."""


class SimulatedClients:
    """A number of clients that send requests at the same time.

    :param pause: the mean time between two requests of a client, in seconds.
    :ivar responses: the number of responses by action and status. The status is ``none`` if there was no response.
    :ivar unexpected: a description of each response with the wrong status.
    :ivar accepted: the ids of the events that the server accepted.
    """

    def __init__(self, clients: int, pause: float, random: Random) -> None:
        self.pause = pause
        self.random = random
        self.responses: Counter[tuple[str, str]] = Counter()
        self.unexpected: list[str] = []
        self.accepted: set[str] = set()
        self._clients = clients

    async def run(self, port: int, seconds: float) -> None:
        """Send requests to a local server for this time. Return when all clients have finished their connections."""
        deadline = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._run_client(port, deadline) for _ in range(self._clients)))

    async def _run_client(self, port: int, deadline: float) -> None:
        while asyncio.get_running_loop().time() < deadline:
            connection = _Connection(self, *await asyncio.open_connection("127.0.0.1", port))
            try:
                for _ in range(self.random.randint(1, MAX_REQUESTS)):
                    await asyncio.sleep(self.random.expovariate(1 / self.pause))
                    (action,) = self.random.choices(ACTIONS, WEIGHTS)
                    if not await action(connection):
                        break
            finally:
                await connection.close()


class _Connection:
    """A connection of a simulated client."""

    def __init__(self, clients: SimulatedClients, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients = clients
        self._reader = reader
        self._writer = writer
        self._last_body = b""

    async def send_valid(self) -> bool:
        """Send a new batch as an SDK sends it."""
        self._last_body = self._new_body()
        return await self._send("valid", signed_request(self._last_body), 200, self._last_body)

    async def send_duplicate(self) -> bool:
        """Send the last batch again, with a new nonce."""
        if not self._last_body:
            return True
        return await self._send("duplicate", signed_request(self._last_body), 200)

    async def send_slowly(self) -> bool:
        """Send a new batch in many small pieces."""
        body = self._new_body()
        request = self._add_address(signed_request(body))
        for start in range(0, len(request), 512):
            self._writer.write(request[start : start + 512])
            await self._writer.drain()
            await asyncio.sleep(0.001)
        return await self._expect("slow", 200, body)

    async def send_partly_invalid(self) -> bool:
        """Send a valid event and an invalid event."""
        body = self._new_body(1)
        return await self._send("partly invalid", signed_request(body[:-2] + b",{}]}"), 207, body)

    async def send_malformed(self) -> bool:
        """Send the first half of a body, with a valid signature."""
        body = self._new_body()
        return await self._send("malformed", signed_request(body[: len(body) // 2]), 400)

    async def send_bad_signature(self) -> bool:
        """Send a body that does not match the signature."""
        request = signed_request(self._new_body())
        return await self._send("bad signature", request[:-2] + b" }", 401)

    async def send_do_not_track(self) -> bool:
        """Send a batch with the ``DNT`` header."""
        return await self._send("do not track", _add_header(signed_request(self._new_body()), b"DNT: 1"), 204)

    async def send_too_large(self) -> bool:
        """Announce a body above the limit, and send only the beginning of it."""
        head, _, _ = signed_request(b"{}").partition(b"\r\n\r\n")
        head = head.replace(b"Content-Length: 2", b"Content-Length: 20000000")
        self._writer.write(self._add_address(head + b"\r\n\r\n") + bytes(10_000))
        await self._expect("too large", 413)
        return False

    async def send_other_protocol(self) -> bool:
        """Send something that is not HTTP."""
        self._writer.write(b"this is no HTTP\r\n\r\n")
        await self._expect("other protocol", 400)
        return False

    async def get_health(self) -> bool:
        """Request the health check."""
        return await self._send("health", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200)

    async def reset_during_request(self) -> bool:
        """Reset the connection before the request is complete."""
        request = signed_request(self._new_body())
        self._writer.write(request[: len(request) // 2])
        return self._reset()

    async def reset_before_response(self) -> bool:
        """Reset the connection before the response arrives."""
        self._writer.write(self._add_address(signed_request(self._new_body())))
        await self._writer.drain()
        return self._reset()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def _reset(self) -> bool:
        """Make :meth:`close` send a reset instead of closing the connection normally."""
        self._writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self._clients.responses["reset", "none"] += 1
        return False

    def _new_body(self, events: int | None = None) -> bytes:
        return next(new_bodies(1, events or self._clients.random.randint(1, MAX_EVENTS)))

    def _add_address(self, request: bytes) -> bytes:
        """Add a client address, as a proxy does."""
        number = self._clients.random.randrange(ADDRESSES)
        return _add_header(request, b"X-Forwarded-For: 198.51.%d.%d" % divmod(number, 256))

    async def _send(self, name: str, request: bytes, expected: int, accepted: bytes = b"") -> bool:
        self._writer.write(self._add_address(request))
        await self._writer.drain()
        return await self._expect(name, expected, accepted)

    async def _expect(self, name: str, expected: int, accepted: bytes = b"") -> bool:
        """Read a response and check its status.

        :param accepted: the body whose events the server has accepted if it responds with the expected status.
        :return: true if the response has the expected status.
        """
        status = await self._read_status()
        self._clients.responses[name, status] += 1
        if status != str(expected):
            self._clients.unexpected.append(f"{name}: {status} instead of {expected}")
            return False
        if accepted:
            self._clients.accepted.update(event["event_id"] for event in json.loads(accepted)["events"])
        return True

    async def _read_status(self) -> str:
        """Read a response. Return ``none`` if the connection ends before."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = _CONTENT_LENGTH.search(head)
            if length:
                await self._reader.readexactly(int(length[1]))
            return head[9:12].decode()
        except (OSError, asyncio.IncompleteReadError):
            return "none"


def _add_header(request: bytes, line: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)


_ACTION_WEIGHTS: dict[Action, int] = {
    _Connection.send_valid: 50,
    _Connection.send_duplicate: 8,
    _Connection.send_slowly: 5,
    _Connection.send_partly_invalid: 5,
    _Connection.send_malformed: 8,
    _Connection.send_bad_signature: 8,
    _Connection.send_do_not_track: 4,
    _Connection.send_too_large: 2,
    _Connection.send_other_protocol: 2,
    _Connection.get_health: 4,
    _Connection.reset_during_request: 2,
    _Connection.reset_before_response: 2,
}
ACTIONS, WEIGHTS = tuple(_ACTION_WEIGHTS), tuple(_ACTION_WEIGHTS.values())
