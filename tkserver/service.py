"""The composition root: the only place that knows every concrete class, and in which order they start and stop."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import globalLogPublisher

from tkserver import __version__, log
from tkserver.config import InvalidSettings, Settings, variable
from tkserver.database import dsn_of, embedded_by
from tkserver.ingest.commits import ObservedStore
from tkserver.ingest.committer import Bounds, Committer, Store
from tkserver.ingest.credentials import CredentialCache, Usage
from tkserver.ingest.erasures import ErasedUsers, ErasingStore
from tkserver.ingest.ingestion import Ingestion
from tkserver.ingest.ledger import Ledger
from tkserver.ingest.readiness import Readiness
from tkserver.ingest.verification import Verifier
from tkserver.lag import LagMeter
from tkserver.limits.address import TrustedProxies
from tkserver.limits.bucket import Rate
from tkserver.limits.failures import AuthFailureLimit
from tkserver.limits.requests import RequestLimit
from tkserver.limits.shared import MissingExtra, RedisServer, SharedBuckets
from tkserver.log.access import AccessLog
from tkserver.metrics import Metrics
from tkserver.storage import demo, migrations
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.embedded import EmbeddedError
from tkserver.storage.erasures import CHANNEL as ERASURES
from tkserver.storage.erasures import ErasureStore
from tkserver.storage.errors import StorageError
from tkserver.storage.events import PREPARE_STORE, EventStore
from tkserver.storage.metered import MeteredStore
from tkserver.storage.migrations import IncompatibleDatabase
from tkserver.storage.pool import Pool
from tkserver.storage.sweeper import Sweeper
from tkserver.storage.tokens import CHANNEL as CREDENTIALS
from tkserver.storage.tokens import ChangeListener, TokenStore
from tkserver.web.admin import AdminApi, AdminListener
from tkserver.web.app import Api
from tkserver.web.headers import CorsPolicy
from tkserver.web.listening import CannotListen, InvalidEndpoint, Listener, tcp_endpoint
from tkserver.web.site import ApiSite, Limits

_log = log.logger(__name__)

T = TypeVar("T")

FORGET_NONCES_INTERVAL = 60.0
"""Seconds."""

LOOK_AFTER_EMBEDDED_INTERVAL = 5.0
"""Seconds."""

HELD = 5.0
"""Seconds for which connections wait, at the most, for a server that has just begun to start."""

GC_THRESHOLD = 20_000
"""New objects between two looks for garbage in cycles: a request makes some hundred, and hardly ever a cycle."""

FIRST_EVENT = Path(__file__).parent / "examples" / "first_event.sh"


class _Stopping(Exception):
    """The server is stopped before it has started."""


class TkServer(Service):
    """The whole server.

    :param fail: called with a line of text when it cannot go on; ends the process.
    """

    name = "tkserver"

    def __init__(self, settings: Settings, reactor: Any, fail: Callable[[str], None]) -> None:
        self._settings = settings
        self._reactor = reactor
        self._fail = fail
        self._embedded = embedded_by(settings)
        dsn = self._dsn = dsn_of(settings, self._embedded)

        self._pool = Pool(reactor, dsn, settings.database.max_connections, prepare=PREPARE_STORE)
        events, tokens = EventStore(self._pool), TokenStore(self._pool)
        credentials = CredentialCache(tokens, reactor.seconds)
        erasures = ErasureStore(self._pool)
        erased = ErasedUsers(erasures, reactor.seconds)
        changed = {CREDENTIALS: credentials.forget, ERASURES: erased.forget}
        self._listener = ChangeListener(reactor, dsn, changed)
        credentials.attach(self._listener)
        erased.attach(self._listener)
        self._usage = Usage(tokens, reactor)
        self._sweeper = Sweeper(reactor, dsn, settings.retention.days)
        self._forget_nonces = _periodically(reactor, events.forget_nonces)
        self._look_after_embedded = _periodically(reactor, self._look_after)
        self._looking_after: Deferred[LoopingCall]
        self._connections = BlockingConnections()

        self._shared_buckets = _shared_buckets(settings, reactor)
        limit = _request_limit(settings, self._shared_buckets, reactor.seconds)
        verifier = Verifier(credentials, reactor.seconds, settings.ingest.timestamp_tolerance, limit)
        metrics = Metrics(CollectorRegistry(), reactor.seconds)
        ledger, bounds = Ledger(), _bounds(settings)

        def store(written_by: Store) -> Store:
            return ErasingStore(ObservedStore(written_by, reactor.seconds, metrics.observe_commit), erasures, erased)

        committer = Committer(store(events), reactor, bounds, store(MeteredStore(self._pool)), ledger=ledger)
        ingestion = Ingestion(verifier, committer, self._usage, ledger, settings.ingest.max_body_bytes)
        readiness = Readiness(events.probe, reactor)
        api = Api(ingestion, readiness.check, reactor.seconds)
        cors = CorsPolicy(settings.server.cors_origins)
        access_log = AccessLog(globalLogPublisher, settings.server.log_sample, random.random, reactor.seconds)
        self._site = ApiSite(
            api.resource(),
            _limits(settings),
            cors,
            committer.check_load,
            reactor,
            auth_failures=_auth_failures(settings, reactor.seconds),
            proxies=TrustedProxies.of(settings.server.trusted_proxies),
            observers=[metrics.observe, access_log],
        )
        self._public = _public_listener(settings, reactor, self._site)
        metrics.watch_events(ledger, committer.load, bounds)
        metrics.watch_database(self._pool)
        metrics.watch_clients(self._site, self._public)
        metrics.watch_redis(self._shared_buckets)
        self._lag_meter = LagMeter(reactor, metrics.observe_lag)
        self._admin = _admin_listener(settings, metrics, reactor)

        self._starting: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None
        self._listens = False
        self._stopping = False

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self._public.port

    @property
    def admin_port(self) -> int:
        """The private port that it listens on."""
        assert self._admin is not None
        return self._admin.port

    def privilegedStartService(self) -> None:
        """Take the ports, while still allowed to take any."""
        try:
            self._public.open()
        except CannotListen as error:
            self._fail(f"cannot listen on {error}")
            return
        try:
            if self._admin is not None:
                self._admin.open()
        except CannotListen as error:
            self._fail(
                f"cannot listen on {error}: this is for /metrics, at {variable('admin', 'host')} and"
                f" {variable('admin', 'port')}, which may be empty for none"
            )
            return
        self._listens = True

    def startService(self) -> None:
        super().startService()
        _calm_garbage_collector()
        if self._listens:
            url = self._public.url
            _log.info("tkserver {version} listens on {url}", version=__version__, url=url, event="listening")
            self._say_where_metrics_are()
            self._lag_meter.start()
            self._public.hold(HELD)
            self._starting = ensureDeferred(self._start_storage())

    def stopService(self) -> Deferred[None]:
        """Stop in the order in which the parts lean on each other, each after the one before has ended."""
        super().stopService()
        return ensureDeferred(self._stop())

    def _say_where_metrics_are(self) -> None:
        if self._admin is None:
            return
        _log.info("metrics on {url}/metrics", url=self._admin.url, event="metrics_listening")
        if self._admin.exposed:
            host = self._settings.admin.host
            _log.warn(
                "other machines may reach {host}, where metrics are: see that strangers do not",
                host=host,
                event="metrics_exposed",
            )

    async def _start_storage(self) -> None:
        try:
            if self._embedded is not None:
                await self._in_thread(self._embedded.start)
                data_dir = str(self._embedded.data_dir)
                _log.info("embedded PostgreSQL, its data in {data_dir}", data_dir=data_dir, event="embedded_database")
            await self._patiently(migrations.migrate)
            if self._embedded is not None:
                await self._patiently(demo.install)
        except _Stopping:
            return
        except (EmbeddedError, IncompatibleDatabase) as error:
            self._fail(str(error))
            return
        except Exception:
            _log.failure("the start failed", event="start_failed")
            self._fail("cannot start: see above")
            return
        self._start_using_storage()
        if self._embedded is not None:
            script, url = str(FIRST_EVENT), self._public.url
            _log.info("to send a first event: sh {script} {url}", script=script, url=url, event="first_event")

    def _start_using_storage(self) -> None:
        self._pool.start().addCallback(lambda _: self._public.admit())
        self._listener.start()
        self._usage.start()
        self._sweeper.start()
        if self._shared_buckets is not None:
            self._shared_buckets.start()
        self._forget_nonces.start(FORGET_NONCES_INTERVAL)
        if self._embedded is not None:
            self._looking_after = self._look_after_embedded.start(LOOK_AFTER_EMBEDDED_INTERVAL, now=False)

    async def _patiently(self, work: Callable[[str, BlockingConnections], None]) -> None:
        """Do what needs the database, as soon as there is one.

        :raise _Stopping: when the server is stopped before.
        """
        backoff = backoffPolicy(initialDelay=0.2, maxDelay=2.0, factor=1.5)
        for failures in count():
            try:
                if not self._stopping:
                    await self._in_thread(work, self._dsn, self._connections)
                    return
            except StorageError as error:
                if failures == 0 and not self._stopping:
                    _log.warn(
                        "the database cannot be used yet, trying until it can: {error}",
                        error=error,
                        event="database_awaited",
                    )
                    self._public.admit()
            if self._stopping:
                raise _Stopping
            self._pause = deferLater(self._reactor, backoff(failures))
            with suppress(CancelledError):
                await self._pause

    async def _look_after(self) -> None:
        """Start the embedded database again, should it have died."""
        if self._embedded is not None and not self._pool.connected:
            try:
                await self._in_thread(self._embedded.start)
            except EmbeddedError as error:
                _log.error(
                    "the embedded database cannot be started again: {error}",
                    error=error,
                    event="embedded_database_lost",
                )

    async def _stop(self) -> None:
        self._stopping = True
        await self._without_fail(self._public.close)
        await self._site.drain(self._settings.server.shutdown_timeout)
        loops = (self._end_start, self._end_loops, self._sweeper.stop)
        for part in (*loops, self._usage.stop, self._listener.stop, self._pool.stop):
            await self._without_fail(part)
        if self._shared_buckets is not None:
            await self._without_fail(self._shared_buckets.stop)
        if self._embedded is not None:
            await self._without_fail(partial(self._in_thread, self._embedded.stop))
        self._lag_meter.stop()
        if self._admin is not None:  # which shows how all of that went
            await self._without_fail(self._admin.close)
        gc.collect()  # an error in a Deferred that nobody has looked at is logged when that is thrown away
        _log.info("stopped", event="stopped")

    async def _without_fail(self, part: Callable[[], Awaitable[None]]) -> None:
        """Whatever goes wrong with one part, the next one is to be stopped too."""
        try:
            await part()
        except Exception:
            _log.failure("a part of the server could not be stopped", event="stop_failed")

    async def _end_start(self) -> None:
        self._connections.stop()
        if self._pause is not None:
            self._pause.cancel()
        if self._starting is not None:
            await self._starting

    async def _end_loops(self) -> None:
        if self._forget_nonces.running:
            self._forget_nonces.stop()
        if self._look_after_embedded.running:
            self._look_after_embedded.stop()
            await self._looking_after  # or it would start the database again after that was stopped

    def _in_thread(self, work: Callable[..., T], *arguments: object) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work, *arguments)


def _bounds(settings: Settings) -> Bounds:
    ingest = settings.ingest
    return Bounds(events=ingest.max_queue_events, bytes=ingest.max_queue_bytes, timeout=ingest.commit_timeout)


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_body_bytes=settings.ingest.max_body_bytes,
        max_body_memory=settings.ingest.max_body_memory,
        max_connections=settings.server.max_connections,
        header_timeout=settings.server.header_timeout,
        body_timeout=settings.server.body_timeout,
        idle_timeout=settings.server.idle_timeout,
    )


def _public_listener(settings: Settings, reactor: Any, site: ApiSite) -> Listener:
    """
    :raise InvalidSettings: when nothing can be made of its endpoint.
    """
    server = settings.server
    endpoint = server.endpoint or tcp_endpoint(server.host, server.port)
    try:
        return Listener(reactor, endpoint, site, site.is_full)
    except InvalidEndpoint as error:
        raise InvalidSettings(f"{variable('server', 'endpoint')}: {endpoint}: {error}") from None


def _admin_listener(settings: Settings, metrics: Metrics, reactor: Any) -> AdminListener | None:
    host, port = settings.admin.host, settings.admin.port
    return None if port is None else AdminListener(AdminApi(metrics.exposition, reactor.seconds), reactor, host, port)


def _shared_buckets(settings: Settings, reactor: Any) -> SharedBuckets | None:
    """``None`` without a Redis, and where nothing is to be shared.

    :raise InvalidSettings: when what it needs is not installed.
    """
    if settings.redis.url is None or not settings.rate_limit.per_minute():
        return None
    try:
        return SharedBuckets(RedisServer.of(settings.redis.url.get_secret_value()), reactor)
    except MissingExtra as error:
        raise InvalidSettings(f"{variable('redis', 'url')}: {error}") from None


def _request_limit(settings: Settings, shared: SharedBuckets | None, clock: Callable[[], float]) -> RequestLimit | None:
    per_minute = settings.rate_limit.per_minute()
    return RequestLimit(per_minute, shared, clock) if per_minute else None


def _auth_failures(settings: Settings, clock: Callable[[], float]) -> AuthFailureLimit | None:
    failures, burst = settings.rate_limit.auth_failures_per_minute, settings.rate_limit.auth_failures_burst
    return AuthFailureLimit(Rate.per_minute(failures, burst=burst), clock) if failures else None


def _calm_garbage_collector() -> None:
    """Have it look less often, and never again at what stays for as long as the process does, the modules above all."""
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


def _periodically(reactor: Any, work: Callable[[], Any]) -> LoopingCall:
    """A call to be made again and again, whose failures are for the next one to mend."""

    async def once() -> None:
        try:
            await work()
        except StorageError as error:
            _log.debug("put off: {error}", error=error, event="put_off")

    loop = LoopingCall(lambda: ensureDeferred(once()))
    loop.clock = reactor
    return loop
