"""All metrics. docs/monitoring.md describes how to use them.

Values that clients choose never become labels. If all values of a label are known, a counter exists for each from the
start, so that Prometheus sees its first event as an increase. Values that can be queried are queried only when the
metrics are collected.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import accumulate
from operator import add

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import twisted
from tkserver import __version__
from tkserver.ingest.committer import QueueLimits, QueueLoad
from tkserver.ingest.ledger import Ledger
from tkserver.limits.redis import RedisTokenBuckets
from tkserver.log.access import RequestRecord
from tkserver.server.aggregation import Aggregation
from tkserver.server.query_processes import QueryCounts, QueryProcesses
from tkserver.storage.event_store import CommitRecord, CommitResult
from tkserver.storage.pool import Pool
from tkserver.web.http.connections import ApiSite
from tkserver.web.panel_reader import PanelCache
from tkserver.wire.api_errors import ApiError

DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COMMIT_SIZE_BUCKETS = (1, 3, 10, 30, 100, 300, 1000, 4000)
AGGREGATED_BUCKETS = (1, 10, 100, 1000, 3000, 10_000, 20_000)
LAG_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)

prometheus_client.disable_created_metrics()  # a timestamp for each counter would double the size of the response


class Metrics:
    """The metrics of one server.

    :param registry: an empty registry.
    :param clock: returns Unix time.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._last_commit = clock()
        self._create_request_metrics()
        self._create_commit_metrics()
        self._create_aggregation_metrics()
        self._create_statistics_metrics()
        self._lag = Histogram(
            "tkserver_reactor_lag_seconds",
            "How late the reactor ran a timer.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        versions = {"version": __version__, "python": platform.python_version(), "twisted": twisted.__version__}
        Info("tkserver_build", "Versions of the server, Python and Twisted.", registry=registry).info(versions)
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

    def _create_request_metrics(self) -> None:
        self._requests = _RequestCollector()
        self._registry.register(self._requests)
        errors = Counter(
            "tkserver_http_errors", "Requests that failed, by error code.", ("code",), registry=self._registry
        )
        auth_failures = Counter(
            "tkserver_auth_failures",
            "Requests that failed to authenticate, by error code.",
            ("code",),
            registry=self._registry,
        )
        self._storage_errors = Counter(
            "tkserver_storage_errors",
            "Requests that failed because of the database, by cause.",
            ("cause",),
            registry=self._registry,
        )
        statuses = dict(_error_codes(ApiError))
        self._errors = {code: errors.labels(code) for code in statuses}
        self._auth_failures = {
            code: auth_failures.labels(code) for code, status in statuses.items() if status in (401, 403)
        }

    def _create_commit_metrics(self) -> None:
        commits = Counter("tkserver_commits", "Commits of events, by result.", ("outcome",), registry=self._registry)
        self._commits = {result: commits.labels(result.value) for result in CommitResult}
        self._commit_duration = Histogram(
            "tkserver_commit_duration_seconds",
            "Duration of successful commits, including the time spent waiting for a connection.",
            buckets=DURATION_BUCKETS,
            registry=self._registry,
        )
        self._commit_size = Histogram(
            "tkserver_commit_events",
            "Number of events in a successful commit.",
            buckets=COMMIT_SIZE_BUCKETS,
            registry=self._registry,
        )
        self._gauge(
            "tkserver_last_commit_age_seconds",
            "Seconds since the last successful commit, or since the start of the server.",
            lambda: max(0.0, self._clock() - self._last_commit),  # the clock may have been set back
        )

    def _create_aggregation_metrics(self) -> None:
        self._aggregation_duration = Histogram(
            "tkserver_aggregation_duration_seconds",
            "Duration of the transactions that aggregate events.",
            buckets=DURATION_BUCKETS,
            registry=self._registry,
        )
        self._aggregation_size = Histogram(
            "tkserver_aggregation_events",
            "Number of events that a transaction has aggregated.",
            buckets=AGGREGATED_BUCKETS,
            registry=self._registry,
        )

    def _create_statistics_metrics(self) -> None:
        self._statistics = Counter(
            "tkserver_insight_requests",
            "Requests for statistics, by panel and status.",
            ("panel", "status"),
            registry=self._registry,
        )
        self._query_duration = Histogram(
            "tkserver_insight_query_duration_seconds",
            "Time to compute statistics, without the time spent waiting for others.",
            buckets=DURATION_BUCKETS,
            registry=self._registry,
        )

    # --- observed when they happen

    def observe_request(self, record: RequestRecord) -> None:
        """Count a finished request."""
        self._requests.add(record)
        if record.cause is not None:
            self._storage_errors.labels(record.cause).inc()
        if record.code is not None:
            self._errors[record.code].inc()
            if record.code in self._auth_failures:
                self._auth_failures[record.code].inc()

    def observe_commit(self, commit: CommitRecord) -> None:
        """Count a commit."""
        self._commits[commit.result].inc()
        if commit.result is CommitResult.COMMITTED:
            self._commit_duration.observe(commit.seconds)
            self._commit_size.observe(commit.events)
            self._last_commit = self._clock()

    def observe_aggregation(self, events: int, seconds: float) -> None:
        """Count a transaction that has aggregated events."""
        self._aggregation_duration.observe(seconds)
        self._aggregation_size.observe(events)

    def observe_lag(self, seconds: float) -> None:
        """Count a measurement of the reactor lag."""
        self._lag.observe(seconds)

    def observe_query(self, seconds: float) -> None:
        """Count a computation of statistics that has ended."""
        self._query_duration.observe(seconds)

    def observe_statistics(self, panel: str, status: int) -> None:
        """Count a response to a request for statistics."""
        self._statistics.labels(panel, str(status)).inc()

    # --- queried when they are collected

    def watch_events(self, ledger: Ledger, load: QueueLoad, limits: QueueLimits, dropped: Callable[[], int]) -> None:
        """Add the metrics of events, of the queue and of the quarantine.

        :param dropped: returns the number of events that were deleted from the quarantine to make room for newer ones.
        """
        self._registry.register(_LedgerCollector(ledger))
        self._registry.register(
            _QueriedCounter(
                "tkserver_quarantine_dropped_events",
                "Quarantined events that were deleted to make room for newer ones.",
                dropped,
            )
        )
        self._gauge("tkserver_queue_events", "Events that are waiting to be committed.", lambda: load.events)
        self._gauge("tkserver_queue_max_events", "Maximum number of events in the queue.", lambda: limits.events)
        self._gauge("tkserver_queue_bytes", "Bytes of the events that are waiting to be committed.", lambda: load.bytes)
        self._gauge("tkserver_queue_max_bytes", "Maximum number of bytes in the queue.", lambda: limits.bytes)

    def watch_database(self, pool: Pool) -> None:
        """Add the metrics of database connections."""
        connections = Gauge(
            "tkserver_database_connections",
            "Connections to the database, by state.",
            ("state",),
            registry=self._registry,
        )
        for state in pool.states():
            connections.labels(state).set_function(lambda state=state: pool.states()[state])  # type: ignore[misc]
        self._gauge(
            "tkserver_database_up", "1 if there is at least one connection to the database.", lambda: pool.connected
        )
        self._gauge(
            "tkserver_database_waiting_statements",
            "Statements that are waiting for a database connection.",
            lambda: pool.waiting,
        )

    def watch_clients(self, site: ApiSite) -> None:
        """Add the metrics of client connections and of request bodies."""
        bodies = site.bodies
        self._registry.register(
            _QueriedCounter(
                "tkserver_http_connections_turned_away",
                "Connections that were closed immediately because there were too many.",
                lambda: site.rejected_connections,
            )
        )
        self._registry.register(
            _QueriedCounter(
                "tkserver_http_idle_connections_closed",
                "Idle connections that were closed early because there were too many connections.",
                lambda: site.idle_connections.closed,
            )
        )
        self._gauge("tkserver_http_connections", "Open connections of clients.", lambda: site.connections)
        self._gauge(
            "tkserver_http_max_connections",
            "Maximum number of connections of clients.",
            lambda: site.limits.max_connections,
        )
        self._gauge("tkserver_body_memory_bytes", "Memory used by request bodies.", lambda: bodies.used)
        self._gauge("tkserver_body_memory_max_bytes", "Maximum memory for request bodies.", lambda: bodies.total)
        self._gauge(
            "tkserver_body_memory_waiting_requests",
            "Requests that are waiting for memory for their bodies.",
            lambda: bodies.waiting,
        )

    def watch_statistics(self, queries: QueryProcesses, cache: PanelCache) -> None:
        """Add the metrics of the statistics that the admin port serves."""
        self._registry.register(_QueryCollector(queries.counts))
        self._gauge("tkserver_insight_queries_running", "Statistics that are being computed.", lambda: queries.running)
        self._gauge(
            "tkserver_insight_queries_waiting",
            "Requests for statistics that wait until others are computed.",
            lambda: queries.waiting,
        )
        self._gauge(
            "tkserver_insight_queries_max_waiting",
            "Maximum number of these requests.",
            lambda: queries.limits.waiting,
        )
        self._gauge("tkserver_insight_cache_bytes", "Memory used by computed statistics.", lambda: cache.bytes)
        self._gauge("tkserver_insight_cache_max_bytes", "Maximum of this memory.", lambda: cache.max_bytes)

    def watch_redis(self, shared: RedisTokenBuckets | None) -> None:
        """Add the metric of Redis, which has no sample if Redis is not configured."""
        self._registry.register(_RedisCollector(shared))

    def watch_aggregation(self, aggregation: Aggregation | None) -> None:
        """Add the metrics of the aggregation, which have no samples if this server does not aggregate."""
        self._registry.register(_AggregationCollector(aggregation))

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        """Return the current metrics as text, and the content type.

        :param accept: the ``Accept`` header, if sent.
        """
        try:
            encode, content_type = choose_encoder(accept or "")
        except (TypeError, ValueError):  # a version that is not a number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def _gauge(self, name: str, documentation: str, query: Callable[[], float]) -> None:
        Gauge(name, documentation, registry=self._registry).set_function(query)


class _RequestCollector(Collector):
    """The number and the durations of requests.

    The counters of prometheus_client take three times as long, because they are thread-safe. That matters for requests,
    but not for commits.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str, int], list[int]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, record: RequestRecord) -> None:
        """Count a request."""
        key = (record.route, record.method, record.status)
        buckets = self._buckets.get(key)
        if buckets is None:
            buckets = self._buckets[key] = [0] * (len(DURATION_BUCKETS) + 1)
        buckets[bisect_left(DURATION_BUCKETS, record.seconds)] += 1
        self._seconds[record.route] += record.seconds

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tkserver_http_requests",
            "Requests to the public port. Status 499: the client disconnected before the response.",
            labels=("route", "method", "status"),
        )
        by_route = {route: [0] * (len(DURATION_BUCKETS) + 1) for route in self._seconds}
        for (route, method, status), buckets in self._buckets.items():
            requests.add_metric((route, method, str(status)), sum(buckets))
            by_route[route] = list(map(add, by_route[route], buckets))
        yield requests
        durations = HistogramMetricFamily(
            "tkserver_http_request_duration_seconds",
            "Time from the end of a request to its response.",
            labels=("route",),
        )
        bounds = [*map(floatToGoString, DURATION_BUCKETS), "+Inf"]
        for route, buckets in by_route.items():
            durations.add_metric((route,), list(zip(bounds, accumulate(buckets), strict=True)), self._seconds[route])
        yield durations


class _QueriedCounter(Collector):
    """A counter whose value is queried when it is collected."""

    def __init__(self, name: str, documentation: str, query: Callable[[], int]) -> None:
        self._name, self._documentation, self._query = name, documentation, query

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, self._query())


class _LedgerCollector(Collector):
    """The numbers of events in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "tkserver_events_received", "Events of batches that were read.", self._ledger.received
        )
        events = CounterMetricFamily("tkserver_events", "Events by outcome and error code.", labels=("outcome", "code"))
        for labels, count in self._ledger.settled.items():
            events.add_metric(labels, count)
        yield events


class _QueryCollector(Collector):
    """Collects the results of requests that needed a computation."""

    def __init__(self, counts: QueryCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        queries = CounterMetricFamily(
            "tkserver_insight_queries", "Computations of statistics, by outcome.", labels=("outcome",)
        )
        for outcome, count in asdict(self._counts).items():
            queries.add_metric((outcome,), count)
        yield queries


class _RedisCollector(Collector):
    """The state of the connection to Redis."""

    def __init__(self, shared: RedisTokenBuckets | None) -> None:
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("tkserver_redis_up", "1 if all servers share the rate limits in Redis.")
        if self._shared is not None:
            up.add_metric((), self._shared.available)
        yield up


class _AggregationCollector(Collector):
    """The state of the aggregation."""

    def __init__(self, aggregation: Aggregation | None) -> None:
        self._aggregation = aggregation

    def collect(self) -> Iterator[Metric]:
        active = GaugeMetricFamily(
            "tkserver_aggregation_active", "1 if this server aggregates events, 0 if another one does."
        )
        seconds = GaugeMetricFamily(
            "tkserver_aggregation_lag_seconds", "How long the oldest event that is not aggregated has been waiting."
        )
        events = GaugeMetricFamily("tkserver_aggregation_lag_events", "About how many events are not aggregated.")
        failures = CounterMetricFamily(
            "tkserver_aggregation_failures", "Interruptions by the database, and deaths of the aggregating process."
        )
        if self._aggregation is not None:
            active.add_metric((), self._aggregation.state.aggregates)
            seconds.add_metric((), self._aggregation.lag_seconds)
            events.add_metric((), self._aggregation.state.lag_events)
            failures.add_metric((), self._aggregation.failures)
        yield from (active, seconds, events, failures)


def _error_codes(base: type[ApiError]) -> Iterator[tuple[str, int]]:
    """Return the code and the status of each subclass of an error."""
    for error in base.__subclasses__():
        if hasattr(error, "code"):
            yield error.code, error.status
        yield from _error_codes(error)
