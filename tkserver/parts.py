"""The composition root: the only place that knows every concrete class, and what the settings mean to each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.logger import globalLogPublisher

from tkserver.config import InvalidSettings, Settings, variable
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
from tkserver.storage.erasures import CHANNEL as ERASURES
from tkserver.storage.erasures import ErasureStore
from tkserver.storage.events import PREPARE_STORE, EventStore
from tkserver.storage.metered import MeteredStore
from tkserver.storage.pool import Pool
from tkserver.storage.sweeper import Sweeper
from tkserver.storage.tokens import CHANNEL as CREDENTIALS
from tkserver.storage.tokens import ChangeListener, TokenStore
from tkserver.web.admin import AdminApi, AdminListener
from tkserver.web.app import Api
from tkserver.web.headers import CorsPolicy
from tkserver.web.listening import InvalidEndpoint, Listener, tcp_endpoint
from tkserver.web.site import ApiSite, Limits


class Parts:
    """All parts of a server, put together; nothing runs yet.

    :param dsn: of the database.
    :ivar changes: hears from the database what other servers and commands have changed.
    :ivar public: where clients are let in; ``admin`` where operators are, if they are.
    :raise InvalidSettings: when a part cannot be made of them.
    """

    def __init__(self, settings: Settings, reactor: Any, dsn: str) -> None:
        self._settings = settings
        self._reactor = reactor
        self._clock = reactor.seconds
        self._metrics = Metrics(CollectorRegistry(), self._clock)

        self.pool = Pool(reactor, dsn, settings.database.max_connections, prepare=PREPARE_STORE)
        self.events = EventStore(self.pool)
        tokens, erasures = TokenStore(self.pool), ErasureStore(self.pool)
        credentials = CredentialCache(tokens, self._clock)
        erased = ErasedUsers(erasures, self._clock)
        self.changes = ChangeListener(reactor, dsn, {CREDENTIALS: credentials.forget, ERASURES: erased.forget})
        credentials.attach(self.changes)
        erased.attach(self.changes)
        self.usage = Usage(tokens, reactor)
        self.sweeper = Sweeper(reactor, dsn, settings.retention.days)
        self.shared_buckets = _shared_buckets(settings, reactor)

        self.access_log = AccessLog(globalLogPublisher, settings.server.log_sample, random.random, self._clock)
        ledger = Ledger()
        committer = self._committer(erasures, erased, ledger)
        limit = _request_limit(settings, self.shared_buckets, self._clock)
        verifier = Verifier(credentials, self._clock, settings.ingest.timestamp_tolerance, limit)
        ingestion = Ingestion(verifier, committer, self.usage, ledger, settings.ingest.max_body_bytes)
        self.site = self._site(ingestion, committer.check_load)
        self.public = _public_listener(settings, reactor, self.site)
        self.admin = _admin_listener(settings, reactor, self._metrics)
        self.lag_meter = LagMeter(reactor, self._metrics.observe_lag)

        self._metrics.watch_events(ledger, committer.load, _bounds(settings))
        self._metrics.watch_database(self.pool)
        self._metrics.watch_clients(self.site, self.public)
        self._metrics.watch_redis(self.shared_buckets)

    def _committer(self, erasures: ErasureStore, erased: ErasedUsers, ledger: Ledger) -> Committer:
        def store(written_by: Store) -> Store:
            return ErasingStore(ObservedStore(written_by, self._clock, self._metrics.observe_commit), erasures, erased)

        events, metered = store(self.events), store(MeteredStore(self.pool))
        return Committer(events, self._reactor, _bounds(self._settings), metered, ledger=ledger)

    def _site(self, ingestion: Ingestion, check_load: Callable[[], None]) -> ApiSite:
        settings = self._settings
        api = Api(ingestion, Readiness(self.events.probe, self._reactor).check, self._clock)
        return ApiSite(
            api.resource(),
            _limits(settings),
            CorsPolicy(settings.server.cors_origins),
            check_load,
            self._reactor,
            auth_failures=_auth_failures(settings, self._clock),
            proxies=TrustedProxies.of(settings.server.trusted_proxies),
            observers=[self._metrics.observe, self.access_log],
        )


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


def _admin_listener(settings: Settings, reactor: Any, metrics: Metrics) -> AdminListener | None:
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
