"""The composition root: creates all components from the settings, and starts none of them."""

from __future__ import annotations

import hmac
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry
from twisted.internet.threads import deferToThreadPool
from twisted.logger import globalLogPublisher

from tkserver.config import InvalidSettings, Settings, variable
from tkserver.ingest.active_applications import ActiveApplications
from tkserver.ingest.committer import Committer, QueueLimits
from tkserver.ingest.ingestion import Ingestion
from tkserver.ingest.ledger import Ledger
from tkserver.ingest.readiness import Readiness
from tkserver.ingest.scheduler import FairScheduler
from tkserver.ingest.verification import Verifier
from tkserver.insight.catalog_watch import CatalogWatch
from tkserver.limits.auth_failures import AuthFailureLimit
from tkserver.limits.client_address import TrustedProxies
from tkserver.limits.redis import MissingExtra, RedisServer, RedisTokenBuckets
from tkserver.limits.request_rate import RequestRateLimit
from tkserver.limits.token_bucket import Rate
from tkserver.log.access import AccessLog
from tkserver.server.aggregation import Aggregation
from tkserver.server.metrics import Metrics
from tkserver.server.query_processes import QueryLimits, QueryProcesses
from tkserver.server.reactor_lag import ReactorLagMeter
from tkserver.server.worker import Components, Worker
from tkserver.storage.caches import CredentialCache, ErasedUserCache, LastUsedTimes
from tkserver.storage.changes import ChangeListener
from tkserver.storage.credentials import CredentialStore
from tkserver.storage.duplicates import DuplicateCounts
from tkserver.storage.embedded import demo
from tkserver.storage.erasures import ErasureStore
from tkserver.storage.event_store import EventStore
from tkserver.storage.pool import Pool
from tkserver.storage.public_pages import PublicPages
from tkserver.storage.store_statement import PREPARE_STORE
from tkserver.web.admin import AdminApi, AdminListener
from tkserver.web.admission import IngestAdmission, clients_of_connections
from tkserver.web.allowed_hosts import AllowedHosts, is_loopback
from tkserver.web.api import HINT, Api
from tkserver.web.dashboard.access import DashboardAccess
from tkserver.web.dashboard.live import LiveEvents
from tkserver.web.dashboard.pages import DashboardPages
from tkserver.web.dashboard.public_site import PREFIX, PublicSite
from tkserver.web.dashboard.rendering import PageRenderer
from tkserver.web.dashboard.samples import SampleSender
from tkserver.web.dashboard.shares import SharedPages, ShareLinks
from tkserver.web.dashboard.site import DashboardSite
from tkserver.web.error_responses import ErrorResponses
from tkserver.web.http.connections import ApiSite, HttpLimits
from tkserver.web.http.response import CorsPolicy
from tkserver.web.http.routing import ByPrefix
from tkserver.web.listen.listener import InvalidEndpoint, Listener, endpoint_for_clients, tcp_endpoint
from tkserver.web.panel_reader import PanelCache, PanelReader
from tkserver.web.read_access import MetricsAccess, ReadAccess
from tkserver.web.statistics import StatisticsApi


def create_worker(settings: Settings, reactor: Any, dsn: str) -> Worker:
    """Return a worker that serves requests with these settings.

    :param dsn: the connection string of the database.
    :raise InvalidSettings: if a component cannot be created.
    """
    clock = reactor.seconds
    metrics = Metrics(CollectorRegistry(), clock)
    access_log = _access_log(settings, clock)

    pool = Pool(reactor, dsn, settings.database.max_connections, prepare=PREPARE_STORE)
    changes = ChangeListener(reactor, dsn)
    credential_store, erasure_store = CredentialStore(pool), ErasureStore(pool)
    credentials = CredentialCache(credential_store, changes, clock)
    erased_users = ErasedUserCache(erasure_store, changes, clock)
    last_used = LastUsedTimes(credential_store, reactor)
    events = EventStore(pool, erasure_store, erased_users, clock, metrics.observe_commit)
    redis = _redis(settings, reactor)

    duplicates = DuplicateCounts(pool, reactor)
    ledger, queue_limits = Ledger(duplicates.add), _queue_limits(settings)
    active = ActiveApplications(clock)
    committer = Committer(events, reactor, queue_limits, ledger, active)
    scheduler, max_bytes = FairScheduler(reactor, time.thread_time, active), settings.ingest.max_body_bytes
    tolerance, limit = settings.ingest.timestamp_tolerance, _rate_limit(settings, redis, clock)
    verifier = Verifier(credentials, clock, tolerance, scheduler, limit)
    keeps_texts = settings.quarantine.days > 0
    ingestion = Ingestion(verifier, scheduler, committer, last_used, ledger, max_bytes, keeps_texts=keeps_texts)
    proxies = TrustedProxies.from_names(settings.server.trusted_proxies)
    admission = IngestAdmission(committer.check_load, _auth_failures(settings, clock), proxies, clock)
    readiness = Readiness(events.probe, reactor)
    api = Api(ingestion, admission, readiness.check, clock, _closed_to_web_pages(settings))
    public = PublicSite(PublicPages(pool, changes, clock), settings.public.embed_origins, ErrorResponses(clock, HINT))
    site = ApiSite(
        ByPrefix(PREFIX, public.resource(), api.resource()),
        _http_limits(settings),
        CorsPolicy(settings.server.cors_origins),
        reactor,
        observers=[metrics.observe_request, access_log],
        client_of=clients_of_connections(proxies),
    )
    listener = _public_listener(settings, reactor, site)

    metrics.watch_events(ledger, committer.load, queue_limits, lambda: events.dropped)
    metrics.watch_database(pool)
    metrics.watch_clients(site)
    metrics.watch_redis(redis)
    lag_meter = ReactorLagMeter(reactor, metrics.observe_lag)
    components = Components(
        listener,
        site,
        ingestion,
        readiness,
        pool,
        changes,
        last_used,
        duplicates,
        redis,
        lag_meter,
        metrics,
        access_log,
    )
    return Worker(components, settings.server.shutdown_timeout)


@dataclass(frozen=True)
class Admin:
    """The parts of the admin port.

    :ivar watch: knows the state of the statistics that the port serves; ``queries`` computes them.
    """

    listener: AdminListener
    watch: CatalogWatch
    queries: QueryProcesses


def create_admin(settings: Settings, reactor: Any, dsn: str, worker: Worker) -> Admin | None:
    """Return the parts of the admin port, or ``None`` if the port is disabled.

    :param dsn: the connection string of the database.
    :param worker: stores the sample events of the dashboard.
    """
    metrics = worker.components.metrics
    host, port, insight = settings.admin.host, settings.admin.port, settings.insight
    if port is None:
        return None
    clock = reactor.seconds
    limits = QueryLimits(insight.connections, insight.query_timeout, insight.max_waiting)
    queries = QueryProcesses(reactor, dsn, limits, metrics.observe_query)
    watch, cache = CatalogWatch(reactor, dsn, clock), PanelCache(insight.cache_bytes)
    metrics.watch_statistics(queries, cache)
    hosts = AllowedHosts([host, *settings.admin.allowed_hosts, *_dashboard_hosts(settings)])
    proxies = TrustedProxies.from_names(settings.server.trusted_proxies)
    admission = IngestAdmission(lambda: None, _auth_failures(settings, clock), proxies, clock)
    access = ReadAccess(admission, hosts, trusts_this_machine=is_loopback(host) and not settings.insight.require_token)
    panels = PanelReader(queries.compute, cache, clock)
    statistics = StatisticsApi(watch, access, panels, metrics.observe_statistics)
    dashboard = None
    if settings.dashboard_enabled:
        sign_in = _dashboard_access(settings, watch, admission, clock)
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
        renderer = PageRenderer(panels, in_thread)
        live, samples = LiveEvents(watch.query, clock), SampleSender(worker.store_events, uuid4)
        pages = DashboardPages(sign_in, watch, renderer, live, samples, lambda: endpoint_for_clients(worker.url))
        shares, shared = ShareLinks(sign_in, watch, renderer), SharedPages(watch, renderer, admission)
        dashboard = DashboardSite(sign_in, pages, shares, shared, hosts.check, clock).resource()
    check_metrics = _metrics_access(settings, admission, hosts).check if dashboard is not None else lambda _: None
    probe = worker.components.readiness.check
    api = AdminApi(metrics.exposition, clock, hosts, statistics, check_metrics, dashboard, probe)
    return Admin(AdminListener(api, reactor, host, port), watch, queries)


def _dashboard_access(
    settings: Settings, watch: CatalogWatch, admission: IngestAdmission, clock: Callable[[], float]
) -> DashboardAccess:
    """Return what knows who may open the dashboard.

    :raise InvalidSettings: if nobody could send the header with the name of the user.
    """
    options = settings.dashboard
    if options.user_header is not None and not settings.server.trusted_proxies:
        name, proxies = variable("dashboard", "user_header"), variable("server", "trusted_proxies")
        raise InvalidSettings(f"{name}: set {proxies} to the addresses of the proxy, from which the header is accepted")
    return DashboardAccess(watch, admission, options, clock)


def _dashboard_hosts(settings: Settings) -> list[str]:
    """Return the host of the URL of the dashboard, if there is one."""
    return [settings.dashboard.url.partition("://")[2]] if settings.dashboard.url else []


def _metrics_access(settings: Settings, admission: IngestAdmission, hosts: AllowedHosts) -> MetricsAccess:
    token = settings.admin.metrics_token
    return MetricsAccess(admission, hosts, None if token is None else token.get_secret_value())


def create_aggregation(settings: Settings, reactor: Any, dsn: str, metrics: Metrics) -> Aggregation | None:
    """Return what aggregates events in the background, or ``None`` if this server does not."""
    enabled, interval = settings.insight.enabled, settings.insight.interval
    aggregation = Aggregation(reactor, dsn, interval, metrics.observe_aggregation) if enabled else None
    metrics.watch_aggregation(aggregation)
    return aggregation


def _access_log(settings: Settings, clock: Callable[[], float]) -> AccessLog:
    server = settings.server
    return AccessLog(globalLogPublisher, server.log_level, server.log_sample, random.random, clock)


def _queue_limits(settings: Settings) -> QueueLimits:
    ingest = settings.ingest
    return QueueLimits(events=ingest.max_queue_events, bytes=ingest.max_queue_bytes, timeout=ingest.commit_timeout)


def _closed_to_web_pages(settings: Settings) -> tuple[str, str] | None:
    """Return the ids of the demo application: any web page that is open on this machine could send events to it."""
    is_closed = settings.database.url is None and "cors_origins" not in settings.server.model_fields_set
    return (demo.ORG_ID, demo.APP_ID) if is_closed else None


def _http_limits(settings: Settings) -> HttpLimits:
    return HttpLimits(
        max_body_bytes=settings.ingest.max_body_bytes,
        max_body_memory=settings.ingest.max_body_memory,
        max_connections=settings.server.max_connections,
        max_connections_per_client=settings.server.max_connections_per_address,
        header_timeout=settings.server.header_timeout,
        body_timeout=settings.server.body_timeout,
        min_body_rate=settings.server.min_body_rate,
        idle_timeout=settings.server.idle_timeout,
    )


def _public_listener(settings: Settings, reactor: Any, site: ApiSite) -> Listener:
    """Return the listener of the public port.

    :raise InvalidSettings: if the endpoint is invalid.
    """
    server = settings.server
    endpoint = server.endpoint or tcp_endpoint(server.host, server.port)
    try:
        return Listener(reactor, endpoint, site, site.accepts)
    except InvalidEndpoint as error:
        raise InvalidSettings(f"{variable('server', 'endpoint')}: {endpoint}: {error}") from None


def _redis(settings: Settings, reactor: Any) -> RedisTokenBuckets | None:
    """Return the shared token buckets, or ``None`` if Redis is not configured or there are no rate limits.

    :raise InvalidSettings: if the client library is not installed.
    """
    if settings.redis.url is None or not settings.rate_limit.per_minute():
        return None
    try:
        return RedisTokenBuckets(RedisServer.from_url(settings.redis.url.get_secret_value()), reactor)
    except MissingExtra as error:
        raise InvalidSettings(f"{variable('redis', 'url')}: {error}") from None


def _rate_limit(
    settings: Settings, redis: RedisTokenBuckets | None, clock: Callable[[], float]
) -> RequestRateLimit | None:
    per_minute = settings.rate_limit.per_minute()
    return RequestRateLimit(per_minute, redis, clock) if per_minute else None


def _auth_failures(settings: Settings, clock: Callable[[], float]) -> AuthFailureLimit | None:
    failures, burst = settings.rate_limit.auth_failures_per_minute, settings.rate_limit.auth_failures_burst
    if not failures:
        return None
    keyed_hash = partial(hmac.digest, secrets.token_bytes(16), digest="blake2s")
    return AuthFailureLimit(Rate.per_minute(failures, burst=burst), clock, keyed_hash)
