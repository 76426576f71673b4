"""TokenBuckets that several servers have in common, in a Redis or Valkey."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure

from tkserver import log
from tkserver.limits.token_bucket import Decision, Rate

_log = log.logger(__name__)

PATIENCE = 0.25
"""Seconds that a request waits for an answer; then its connection is given up, and with it all that wait for it."""

CONNECT_TIMEOUT = 2.0
"""Seconds for a new connection to show that it works. No request waits for that."""

KEY_PREFIX = "tkserver:rate:"

DEFAULT_PORT = 6379

TAKE = """
local interval, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now, window = time[1] * 1000000 + time[2], interval * limit
local full_at = tonumber(redis.call('GET', KEYS[1]) or now)
full_at = math.min(math.max(full_at, now), now + window)
local allowed = full_at + interval <= now + window
if allowed then
    full_at = full_at + interval
    redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
end
return {allowed and 1 or 0, full_at, now}
"""
""":func:`tkserver.limits.token_bucket.take` in one step, by the clock of Redis. Keys expire when their buckets are full."""


class RedisUnavailable(Exception):
    """There is no Redis that would answer now."""

    holds_no_values = True


class MissingExtra(Exception):
    """What speaks to a Redis is not installed."""


@dataclass(frozen=True)
class RedisServer:
    """Where a Redis is, and how to log in.

    :ivar database: its number.
    """

    host: str
    port: int
    tls: bool
    database: int
    user: str | None
    password: str | None = field(repr=False)

    @classmethod
    def of(cls, url: str) -> RedisServer:
        """By a URL such as ``rediss://user:password@host:6379/0``, which the settings have checked."""
        parts = urlsplit(url)
        return cls(
            host=parts.hostname or "localhost",
            port=parts.port or DEFAULT_PORT,
            tls=parts.scheme == "rediss",
            database=int(parts.path.strip("/") or 0),
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        plain = HostnameEndpoint(reactor, self.host, self.port, timeout=CONNECT_TIMEOUT)
        return wrapClientTLS(optionsForClientTLS(self.host), plain) if self.tls else plain


class _QuietClientService(ClientService):
    """One that does not log each attempt: what is worth a line, :class:`RedisTokenBuckets` says."""

    _log = Logger(observer=LogPublisher())


class RedisTokenBuckets:
    """TokenBuckets in a Redis, over one connection that heals itself.

    :raise MissingExtra: when txredisapi is not installed.
    """

    def __init__(self, server: RedisServer, reactor: Any) -> None:
        try:
            import txredisapi
        except ImportError:
            raise MissingExtra("install what it needs with pip install 'tkserver[redis]'") from None
        self._redis_error: type[Exception] = txredisapi.RedisError
        self._response_error: type[Exception] = txredisapi.ResponseError
        self._server = server
        self._reactor = reactor
        self._connection: Any = None
        self._preparing: Deferred[None] | None = None
        self._complained = False
        # Of txredisapi the protocol only: its pools take the global reactor, and wait where there is no connection.
        factory = Factory.forProtocol(txredisapi.RedisProtocol)
        factory.noisy = False
        self._service = _QuietClientService(
            server.endpoint(reactor),
            factory,
            retryPolicy=backoffPolicy(initialDelay=0.2, maxDelay=5.0, factor=1.5),
            clock=reactor,
            prepareConnection=self._connected,
        )

    @property
    def available(self) -> bool:
        """Whether there is a connection that works, as far as is known."""
        return self._connection is not None

    def start(self) -> None:
        """Connect, and again whenever the connection is lost."""
        self._service.startService()
        self._service.whenConnected(failAfterFailures=1).addErrback(self._not_there)

    async def stop(self) -> None:
        self._connection = None
        if self._preparing is not None:
            self._preparing.cancel()
        if self._service.running:
            await self._service.stopService()

    async def take(self, key: str, rate: Rate) -> Decision:
        """Take a token, where there is one, within :data:`PATIENCE`.

        :raise RedisUnavailable: when there is no Redis that would say so.
        """
        connection = self._connection
        try:
            if connection is None:
                raise RedisUnavailable
            asked = connection.eval(TAKE, [KEY_PREFIX + key], [rate.interval, rate.limit])
            allowed, full_at, now = await asked.addTimeout(PATIENCE, self._reactor)
        except defer.TimeoutError:
            self._lose(connection, f"no answer within {PATIENCE:g} s")
            connection.transport.abortConnection()
            raise RedisUnavailable from None
        except self._redis_error as error:
            self._complain(str(error))
            raise RedisUnavailable from None
        return Decision(rate, bool(allowed), full_at, now)

    def _connected(self, connection: Any) -> None:
        # Twisted's service does not wait for it: where that fails, it stumbles over the connection's end.
        self._preparing = ensureDeferred(self._prepare(connection))

    async def _prepare(self, connection: Any) -> None:
        """See that a new connection works. Ended, it is made anew after a while."""
        try:
            await ensureDeferred(self._log_in(connection)).addTimeout(CONNECT_TIMEOUT, self._reactor)
        except Exception as error:
            connection.transport.abortConnection()
            if not isinstance(error, CancelledError):  # which is what comes of stopping
                late = isinstance(error, defer.TimeoutError)
                self._complain(f"no answer within {CONNECT_TIMEOUT:g} s" if late else str(error))
            return
        connection.whenDisconnected().addCallback(lambda _: self._lose(connection, "the connection was lost"))
        self._connection = connection
        _log.info("connected to Redis: limits hold for all servers together", event="redis_connected")
        self._complained = False

    async def _log_in(self, connection: Any) -> None:
        server = self._server
        try:
            if server.password is not None:
                await connection.auth(server.password, server.user)
            await connection.select(server.database)
        except self._response_error:  # whose text may have the password in it
            raise RedisUnavailable("it refuses the user, the password or the number of the database") from None
        await connection.ping()

    def _lose(self, connection: Any, problem: str) -> None:
        if self._connection is connection:
            self._connection = None
            self._complain(problem)

    def _not_there(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._complain(failure.getErrorMessage())

    def _complain(self, problem: str) -> None:
        """Once for each connection that worked, however many requests find out."""
        if not self._complained:
            self._complained = True
            _log.warn(
                "Redis cannot be used, each server limits by itself meanwhile: {problem}",
                problem=problem,
                event="redis_lost",
            )
