"""Signed batches over HTTP, sent again where that may help."""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from types import TracebackType
from typing import Any
from uuid import UUID, uuid4

import treq
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers

from tkserver import __version__
from tkserver.client.batches import MAX_BYTES, Batch, Sendable, batches
from tkserver.client.responses import NotNow, Result, SendError, result_of, unreachable, with_result
from tkserver.wire.signature import sign, signed_message

FIRST_WAIT = 0.5
"""Seconds before the second try; twice as long before each further one."""

_LOST = (ConnectionClosed, RequestTransmissionFailed, ResponseFailed)


class Client:
    """Sends the events of one application.

    :param endpoint: the server's URL, such as ``https://telemetry.example.org``.
    :param secret: the signing key that goes with the token. Neither is ever shown.
    :param reactor: Twisted's.
    :param compress: whether bodies are sent with gzip.
    :param tries: how often a batch is sent at the most.
    :param max_wait: seconds to wait between two tries at the most. A server that asks for more gets no further try.
    :param timeout: seconds for an answer.
    :param max_bytes: the longest body that the server takes, in bytes before compression.
    :param now: seconds since 1970.
    :param random_fraction: a number from 0 to 1, anew with each call; spreads out those who try again.
    :param new_nonce: another one with each call.
    """

    def __init__(
        self,
        endpoint: str,
        org_id: UUID | str,
        app_id: UUID | str,
        token: str,
        secret: str,
        *,
        reactor: Any,
        compress: bool = False,
        tries: int = 5,
        max_wait: float = 60.0,
        timeout: float = 30.0,
        max_bytes: int = MAX_BYTES,
        now: Callable[[], float] = time.time,
        random_fraction: Callable[[], float] = random.random,
        new_nonce: Callable[[], str] = lambda: str(uuid4()),
    ) -> None:
        self._url = f"{endpoint.rstrip('/')}/v1/ingest/{org_id}/{app_id}"
        self._token, self._secret = token, secret
        self._reactor = reactor
        self._compress, self._max_bytes = compress, max_bytes
        self._tries, self._max_wait, self._timeout = tries, max_wait, timeout
        self._now, self._random_fraction, self._new_nonce = now, random_fraction, new_nonce
        self._pool = HTTPConnectionPool(reactor)
        self._http = HTTPClient(Agent(reactor, pool=self._pool))

    async def send(self, events: Iterable[Sendable]) -> Result:
        """Send events, in batches of 1000 at the most, one after another.

        :param events: of any number; those of one batch are held in memory.
        :return: what became of each: also where none of them was accepted.
        :raise NotNow: when a batch could not be sent with all tries. It may have been stored all the same: send it
            again, with the same ids.
        :raise Refused: when the server will not have it.
        """
        result = Result()
        for batch in batches(events, max_bytes=self._max_bytes):
            try:
                result = result.followed_by(await self._persist(batch))
            except SendError as error:
                raise with_result(error, result) from None
        return result

    async def close(self) -> None:
        """Close the connections that are kept open between requests."""
        await self._pool.closeCachedConnections()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _persist(self, batch: Batch) -> Result:
        """Send a batch until it is answered, with the same event ids and a new nonce each time."""
        retrying = AsyncRetrying(
            sleep=lambda seconds: deferLater(self._reactor, seconds),
            retry=retry_if_exception(self._may_pass),
            wait=self._wait,
            stop=stop_after_attempt(self._tries),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._try(batch, attempt.retry_state.attempt_number - 1)
        raise AssertionError("the last try returns or raises")

    async def _try(self, batch: Batch, retry: int) -> Result:
        now = self._now()
        body = batch.body(f"tkserver-{__version__}", datetime.fromtimestamp(now, timezone.utc), retry)
        if self._compress:
            body = gzip.compress(body, mtime=0)
        exchange: Deferred[Result] = ensureDeferred(self._exchange(body, str(int(now))))
        try:
            return await exchange.addTimeout(self._timeout, self._reactor, _no_answer_in_time)
        except (ConnectError, DNSLookupError) as error:
            raise unreachable(str(error)) from None
        except _LOST:
            raise unreachable("the connection was lost before the answer") from None

    async def _exchange(self, body: bytes, timestamp: str) -> Result:
        nonce = self._new_nonce()
        message = signed_message(timestamp.encode(), nonce.encode(), body)
        headers = Headers()
        headers.addRawHeader("Authorization", f"Bearer {self._token}")
        headers.addRawHeader("Content-Type", "application/json")
        headers.addRawHeader("User-Agent", f"tkserver/{__version__}")
        headers.addRawHeader("X-Nonce", nonce)
        headers.addRawHeader("X-Signature", sign(self._secret, message).decode())
        headers.addRawHeader("X-Timestamp", timestamp)
        if self._compress:
            headers.addRawHeader("Content-Encoding", "gzip")
        response = await self._http.post(self._url, headers=headers, data=body, allow_redirects=False)
        content = await treq.content(response)
        return result_of(response.code, response.headers.getRawHeaders("Retry-After", [None])[-1], content, self._now())

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, SendError) else None
        return wait(state.attempt_number, asked, self._max_wait, self._random_fraction())

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, NotNow) and (error.retry_after or 0) <= self._max_wait


def wait(tried: int, asked: float | None, max_wait: float, fraction: float) -> float:
    """Seconds to the next try: what the server asks for, and a random part of twice as long as before.

    :param tried: how often, so far.
    :param asked: ``retry_after`` of the last answer.
    :param max_wait: the most that the second part may be.
    :param fraction: random, from 0 to 1.
    """
    return (asked or 0.0) + fraction * float(min(FIRST_WAIT * 2 ** (tried - 1), max_wait))


def _no_answer_in_time(_: object, __: float) -> Failure:
    return Failure(unreachable("no answer in time"))
