"""Token buckets that all servers share, in a Redis or Valkey server."""

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
from twisted.python.failure import Failure

from tkserver import log
from tkserver.limits.token_bucket import Decision, Rate

_log = log.logger(__name__)

RESPONSE_TIMEOUT = 0.25
"""Seconds that a request waits for Redis. After that, the connection is closed, and requests stop waiting."""

CONNECT_TIMEOUT = 2.0
"""Seconds until a new connection must be ready. No request waits for that."""

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
"""The atomic equivalent of :func:`tkserver.limits.token_bucket.take`, with the clock of Redis.

A key expires when its bucket is full."""


class RedisUnavailable(Exception):
    """There is no connection to Redis, or Redis does not respond in time."""

    holds_no_values = True


class MissingExtra(Exception):
    """The Redis client library is not installed."""


@dataclass(frozen=True)
class RedisServer:
    """The address of a Redis server, and the credentials.

    :ivar database: the number of the database.
    """

    host: str
    port: int
    tls: bool
    database: int
    user: str | None
    password: str | None = field(repr=False)

    @classmethod
    def from_url(cls, url: str) -> RedisServer:
        """Create from a valid URL such as ``rediss://user:password@host:6379/0``."""
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
        """Return the endpoint to connect to."""
        plain = HostnameEndpoint(reactor, self.host, self.port, timeout=CONNECT_TIMEOUT)
        return wrapClientTLS(optionsForClientTLS(self.host), plain) if self.tls else plain


class RedisTokenBuckets:
    """Token buckets in a Redis server, over one connection that is re-established when it is lost.

    :raise MissingExtra: if txredisapi is not installed.
    """

    def __init__(self, server: RedisServer, reactor: Any) -> None:
        try:
            import txredisapi
        except ImportError:
            raise MissingExtra("the Redis client is not installed: run pip install 'tkserver[redis]'") from None
        self._redis_error: type[Exception] = txredisapi.RedisError
        self._response_error: type[Exception] = txredisapi.ResponseError
        self._server = server
        self._reactor = reactor
        self._connection: Any = None
        self._preparation: Deferred[None] | None = None
        self._problem_logged = False
        # Only the protocol: txredisapi's pools use the global reactor, and wait if there is no connection.
        factory = Factory.forProtocol(txredisapi.RedisProtocol)
        factory.noisy = False
        self._service = ClientService(
            server.endpoint(reactor),
            factory,
            retryPolicy=backoffPolicy(initialDelay=0.2, maxDelay=5.0, factor=1.5),
            clock=reactor,
            prepareConnection=self._connected,
        )

    @property
    def available(self) -> bool:
        """Whether there is a connection that is not known to be dead."""
        return self._connection is not None

    def start(self) -> None:
        """Connect, and reconnect whenever the connection is lost."""
        self._service.startService()
        self._service.whenConnected(failAfterFailures=1).addErrback(self._first_attempt_failed)

    async def stop(self) -> None:
        self._connection = None
        if self._preparation is not None:
            self._preparation.cancel()
        if self._service.running:
            await self._service.stopService()

    async def take(self, key: str, rate: Rate) -> Decision:
        """Take a token if one is available.

        :raise RedisUnavailable: if Redis does not respond within :data:`RESPONSE_TIMEOUT`.
        """
        connection = self._connection
        try:
            if connection is None:
                raise RedisUnavailable
            response = connection.eval(TAKE, [KEY_PREFIX + key], [rate.interval, rate.limit])
            allowed, full_at, now = await response.addTimeout(RESPONSE_TIMEOUT, self._reactor)
        except defer.TimeoutError:
            self._lost(connection, f"no response within {RESPONSE_TIMEOUT:g} s")
            connection.transport.abortConnection()
            raise RedisUnavailable from None
        except self._redis_error as error:
            self._log_problem(str(error))
            raise RedisUnavailable from None
        return Decision(rate, bool(allowed), full_at, now)

    def _connected(self, connection: Any) -> None:
        # Returns no Deferred: ClientService does not handle a connection that is lost while it waits for one.
        self._preparation = ensureDeferred(self._prepare(connection))

    async def _prepare(self, connection: Any) -> None:
        """Log in on a new connection. If that fails, close the connection, and ClientService reconnects."""
        try:
            await ensureDeferred(self._log_in(connection)).addTimeout(CONNECT_TIMEOUT, self._reactor)
        except Exception as error:
            connection.transport.abortConnection()
            if not isinstance(error, CancelledError):  # by stop()
                timed_out = isinstance(error, defer.TimeoutError)
                self._log_problem(f"no response within {CONNECT_TIMEOUT:g} s" if timed_out else str(error))
            return
        connection.whenDisconnected().addCallback(lambda _: self._lost(connection, "the connection was lost"))
        self._connection = connection
        _log.info("connected to Redis: all servers share the rate limits", event="redis_connected")
        self._problem_logged = False

    async def _log_in(self, connection: Any) -> None:
        server = self._server
        try:
            if server.password is not None:
                await connection.auth(server.password, server.user)
            await connection.select(server.database)
        except self._response_error:  # its text may contain the password
            raise RedisUnavailable("Redis rejects the user, the password or the database number") from None
        await connection.ping()

    def _lost(self, connection: Any, problem: str) -> None:
        if self._connection is connection:
            self._connection = None
            self._log_problem(problem)

    def _first_attempt_failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log_problem(failure.getErrorMessage())

    def _log_problem(self, problem: str) -> None:
        """Log that Redis is not available, once until the next connection."""
        if not self._problem_logged:
            self._problem_logged = True
            _log.warn(
                "Redis is not available, each server applies its own rate limits: {problem}",
                problem=problem,
                event="redis_lost",
            )
