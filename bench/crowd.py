"""Clients that come and go: most behave, some do not, and for how each is answered there is but one right way."""

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

from bench.requests import bodies, request

MOST_EVENTS = 20
MOST_REQUESTS = 20
"""A connection."""

ADDRESSES = 2000
"""From which they say that they come, so that none of them fails too often."""

_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)

Action = Callable[["_Client"], Awaitable[bool]]
"""Sends something. Gives whether the connection may be used again."""


class Crowd:
    """Any number of clients.

    :param pause: seconds between two requests of a client, in the mean.
    :ivar answers: how often each action was answered with each status.
    :ivar wrong: answers that are not as they should be.
    :ivar accepted: the ids of the events that were answered as accepted.
    """

    def __init__(self, clients: int, pause: float, random: Random) -> None:
        self.pause = pause
        self.random = random
        self.answers: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.accepted: set[str] = set()
        self._clients = clients

    async def come_and_go(self, port: int, seconds: float) -> None:
        """Send to a server on this machine for so long, and then let everyone finish."""
        until = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._keep_coming(port, until) for _ in range(self._clients)))

    async def _keep_coming(self, port: int, until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            client = _Client(self, *await asyncio.open_connection("127.0.0.1", port))
            try:
                for _ in range(self.random.randint(1, MOST_REQUESTS)):
                    await asyncio.sleep(self.random.expovariate(1 / self.pause))
                    (action,) = self.random.choices(ACTIONS, WEIGHTS)
                    if not await action(client):
                        break
            finally:
                await client.close()


class _Client:
    """One connection."""

    def __init__(self, crowd: Crowd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._crowd = crowd
        self._reader = reader
        self._writer = writer
        self._last = b""

    async def send_good(self) -> bool:
        """A new batch, as an SDK sends it."""
        self._last = self._new_body()
        return await self._send("good", request(self._last), 200, self._last)

    async def send_again(self) -> bool:
        """The last batch once more, with a new nonce."""
        return await self._send("again", request(self._last), 200) if self._last else True

    async def send_slowly(self) -> bool:
        """In many small pieces."""
        body = self._new_body()
        whole = self._addressed(request(body))
        for start in range(0, len(whole), 512):
            self._writer.write(whole[start : start + 512])
            await self._writer.drain()
            await asyncio.sleep(0.001)
        return await self._expect("slowly", 200, body)

    async def send_partly_wrong(self) -> bool:
        """One good event, and one that is none."""
        body = self._new_body(1)
        return await self._send("partly wrong", request(body[:-2] + b",{}]}"), 207, body)

    async def send_broken(self) -> bool:
        """Half of a body, well signed."""
        body = self._new_body()
        return await self._send("broken", request(body[: len(body) // 2]), 400)

    async def send_bad_signature(self) -> bool:
        """A body that is not the one that was signed."""
        whole = request(self._new_body())
        return await self._send("bad signature", whole[:-2] + b" }", 401)

    async def send_untracked(self) -> bool:
        """With a wish not to be tracked."""
        return await self._send("do not track", _with_header(request(self._new_body()), b"DNT: 1"), 204)

    async def send_large(self) -> bool:
        """More than is taken, most of which is never sent."""
        head, _, _ = request(b"{}").partition(b"\r\n\r\n")
        head = head.replace(b"Content-Length: 2", b"Content-Length: 6000000")
        self._writer.write(self._addressed(head + b"\r\n\r\n") + bytes(10_000))
        await self._expect("too large", 413)
        return False

    async def send_no_http(self) -> bool:
        self._writer.write(b"this is no HTTP\r\n\r\n")
        await self._expect("no HTTP", 400)
        return False

    async def ask_health(self) -> bool:
        return await self._send("health", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200)

    async def hang_up_in_the_middle(self) -> bool:
        """Go without having sent everything."""
        whole = request(self._new_body())
        self._writer.write(whole[: len(whole) // 2])
        return self._hang_up()

    async def hang_up_before_the_answer(self) -> bool:
        """Go without having read anything."""
        self._writer.write(self._addressed(request(self._new_body())))
        await self._writer.drain()
        return self._hang_up()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def _hang_up(self) -> bool:
        """Have the connection reset, where closing would be polite."""
        self._writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self._crowd.answers["hung up", "none"] += 1
        return False

    def _new_body(self, events: int | None = None) -> bytes:
        return next(bodies(1, events or self._crowd.random.randint(1, MOST_EVENTS)))

    def _addressed(self, whole: bytes) -> bytes:
        """As a proxy would forward it."""
        number = self._crowd.random.randrange(ADDRESSES)
        return _with_header(whole, b"X-Forwarded-For: 198.51.%d.%d" % divmod(number, 256))

    async def _send(self, name: str, whole: bytes, expected: int, accepted: bytes = b"") -> bool:
        self._writer.write(self._addressed(whole))
        await self._writer.drain()
        return await self._expect(name, expected, accepted)

    async def _expect(self, name: str, expected: int, accepted: bytes = b"") -> bool:
        """Read an answer.

        :param accepted: the body whose events are accepted by the status that is expected.
        """
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length:
                await self._reader.readexactly(int(length[1]))
            status = head[9:12].decode()
        except (OSError, asyncio.IncompleteReadError):
            status = "none"
        self._crowd.answers[name, status] += 1
        if status == str(expected):
            if accepted:
                self._crowd.accepted.update(event["event_id"] for event in json.loads(accepted)["events"])
            return True
        self._crowd.wrong.append(f"{name}: {status}, not {expected}")
        return False


def _with_header(whole: bytes, line: bytes) -> bytes:
    return whole.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)


_HOW_OFTEN: dict[Action, int] = {
    _Client.send_good: 50,
    _Client.send_again: 8,
    _Client.send_slowly: 5,
    _Client.send_partly_wrong: 5,
    _Client.send_broken: 8,
    _Client.send_bad_signature: 8,
    _Client.send_untracked: 4,
    _Client.send_large: 2,
    _Client.send_no_http: 2,
    _Client.ask_health: 4,
    _Client.hang_up_in_the_middle: 2,
    _Client.hang_up_before_the_answer: 2,
}
ACTIONS, WEIGHTS = tuple(_HOW_OFTEN), tuple(_HOW_OFTEN.values())
