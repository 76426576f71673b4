"""A client that sends signed batches over HTTP, and retries after temporary errors."""

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
from tkserver.client.responses import NotNow, Result, SendError, parse_response, unreachable, with_result
from tkserver.wire.ids import PATH_ID
from tkserver.wire.signature import sign, signed_message

FIRST_RETRY_DELAY = 0.5
"""Maximum delay before the first retry, in seconds. It is doubled for each further retry."""

_CONNECTION_LOST = (ConnectionClosed, RequestTransmissionFailed, ResponseFailed)


class Client:
    """A client that sends the events of one application.

    :param endpoint: the URL of the server, such as ``https://telemetry.example.org``.
    :param org_id: the id of the organization, or the slug that stands for it. The same for ``app_id``.
    :param secret: the signing key of the token. Neither of them appears in the representation of the client.
    :param reactor: the Twisted reactor.
    :param compress: true to compress bodies with gzip.
    :param tries: the maximum number of attempts to send a batch.
    :param max_wait: the maximum delay between two attempts, in seconds. If the server asks for a longer delay, the
        client does not try again.
    :param timeout: the maximum time from the start of a request to the end of the response, in seconds.
    :param max_bytes: the maximum size of a body that the server accepts, before compression.
    :param now: returns Unix time.
    :param random_fraction: returns a random number between 0 and 1, so that many clients do not retry simultaneously.
    :param new_nonce: returns a new nonce.
    :raise ValueError: if an id is neither a UUID nor a slug.
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
        if not PATH_ID.fullmatch(str(org_id)) or not PATH_ID.fullmatch(str(app_id)):
            raise ValueError("org_id and app_id are UUIDs or slugs: 1 to 100 characters of A-Z a-z 0-9 . _ -")
        self._url = f"{endpoint.rstrip('/')}/v1/ingest/{org_id}/{app_id}"
        self._token, self._secret = token, secret
        self._reactor = reactor
        self._compress, self._max_bytes = compress, max_bytes
        self._tries, self._max_wait, self._timeout = tries, max_wait, timeout
        self._now, self._random_fraction, self._new_nonce = now, random_fraction, new_nonce
        self._pool = HTTPConnectionPool(reactor)
        self._http = HTTPClient(Agent(reactor, pool=self._pool))

    async def send(self, events: Iterable[Sendable]) -> Result:
        """Send events in batches of up to 1000, one batch after another.

        :param events: any number of events. Only one batch is in memory at a time.
        :return: the sum of the results of all batches. This method also returns if the server rejects all events.
        :raise NotNow: if all attempts to send a batch failed. The server may have stored the events of this batch. Send
            them again with the same ids.
        :raise Refused: if the server rejects a batch permanently.
        """
        result = Result()
        for batch in batches(events, max_bytes=self._max_bytes):
            try:
                result = result.followed_by(await self._send_with_retries(batch))
            except SendError as error:
                raise with_result(error, result) from None
        return result

    async def close(self) -> None:
        """Close idle connections."""
        await self._pool.closeCachedConnections()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send_with_retries(self, batch: Batch) -> Result:
        """Send a batch until an attempt succeeds, with the same event ids and a new nonce for each attempt."""
        retrying = AsyncRetrying(
            sleep=lambda seconds: deferLater(self._reactor, seconds),
            retry=retry_if_exception(self._is_retryable),
            wait=self._retry_delay,
            stop=stop_after_attempt(self._tries),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._send_once(batch, attempt.retry_state.attempt_number - 1)
        raise AssertionError("the last attempt returns or raises")

    async def _send_once(self, batch: Batch, retry: int) -> Result:
        now = self._now()
        body = batch.body(f"tkserver-{__version__}", datetime.fromtimestamp(now, timezone.utc), retry)
        if self._compress:
            body = gzip.compress(body, mtime=0)
        result: Deferred[Result] = ensureDeferred(self._post(body, str(int(now))))
        try:
            return await result.addTimeout(self._timeout, self._reactor, _timed_out)
        except (ConnectError, DNSLookupError) as error:
            raise unreachable(str(error)) from None
        except _CONNECTION_LOST:
            raise unreachable("the connection was lost before the response") from None

    async def _post(self, body: bytes, timestamp: str) -> Result:
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
        retry_after = response.headers.getRawHeaders("Retry-After", [None])[-1]
        return parse_response(response.code, retry_after, content, self._now())

    def _retry_delay(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        retry_after = error.retry_after if isinstance(error, SendError) else None
        return retry_delay(state.attempt_number, retry_after, self._max_wait, self._random_fraction())

    def _is_retryable(self, error: BaseException) -> bool:
        return isinstance(error, NotNow) and (error.retry_after or 0) <= self._max_wait


def retry_delay(attempts: int, retry_after: float | None, max_wait: float, fraction: float) -> float:
    """Return the seconds until the next attempt: exponential backoff, in addition to the delay of the server.

    :param attempts: the number of attempts so far.
    :param retry_after: the delay that the server asked for.
    :param max_wait: the maximum backoff.
    :param fraction: a random number between 0 and 1, by which the backoff is multiplied.
    """
    return (retry_after or 0.0) + fraction * float(min(FIRST_RETRY_DELAY * 2 ** (attempts - 1), max_wait))


def _timed_out(_: object, __: float) -> Failure:
    return Failure(unreachable("no response within the timeout"))
