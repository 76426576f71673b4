"""Everything that is measured, by its name; how it is used is said in docs/monitoring.md.

What a client chooses never becomes a label. Where all values of a label are known, each is there from the start, so
that the first event of its kind is seen as an increase. What can be asked for is asked for when somebody looks, and
costs nothing otherwise.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
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
from tkserver.storage.event_store import CommitRecord, CommitResult
from tkserver.storage.pool import Pool
from tkserver.web.http.connections import ApiSite
from tkserver.web.listen.listener import Listener
from tkserver.wire.api_errors import ApiError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COMMIT_EVENTS = (1, 3, 10, 30, 100, 300, 1000, 4000)
LAG_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)

prometheus_client.disable_created_metrics()  # a time for each counter, which nobody asks for, and half of the text


class Metrics:
    """What is measured, in a registry.

    :param registry: one for each server, with nothing else of this server in it.
    :param clock: gives seconds since 1970.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._last_commit = clock()
        self._begin_requests()
        self._begin_commits()
        self._lag = Histogram(
            "tkserver_reactor_lag_seconds",
            "By how much the reactor was late for what it was to do.",
            buckets=LAG_SECONDS,
            registry=registry,
        )
        versions = {"version": __version__, "python": platform.python_version(), "twisted": twisted.__version__}
        Info("tkserver_build", "What is running.", registry=registry).info(versions)
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

    def _begin_requests(self) -> None:
        self._requests = _Requests()
        self._registry.register(self._requests)
        refused = Counter(
            "tkserver_http_errors",
            "Requests that were answered with an error, by its code.",
            ("code",),
            registry=self._registry,
        )
        failed = Counter(
            "tkserver_auth_failures", "Requests that failed to authenticate.", ("code",), registry=self._registry
        )
        refusals = dict(_refusals())
        self._refused = {code: refused.labels(code) for code in refusals}
        self._auth_failures = {code: failed.labels(code) for code, status in refusals.items() if status in (401, 403)}

    def _begin_commits(self) -> None:
        commits = Counter("tkserver_commits", "Commits of events.", ("outcome",), registry=self._registry)
        self._commits = {ending: commits.labels(ending.value) for ending in CommitResult}
        self._commit_seconds = Histogram(
            "tkserver_commit_duration_seconds",
            "Of a commit that was done, with its wait for a connection.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._commit_events = Histogram(
            "tkserver_commit_events",
            "Events in a commit that was done.",
            buckets=COMMIT_EVENTS,
            registry=self._registry,
        )
        self._gauge(
            "tkserver_last_commit_age_seconds",
            "Since the last commit, or since the start where there was none.",
            lambda: max(0.0, self._clock() - self._last_commit),  # by a clock that may be set back
        )

    # --- what happens

    def observe_request(self, record: RequestRecord) -> None:
        """A request is finished."""
        self._requests.add(record)
        if record.code is not None:
            self._refused[record.code].inc()
            if record.code in self._auth_failures:
                self._auth_failures[record.code].inc()

    def observe_commit(self, commit: CommitRecord) -> None:
        """A commit has ended."""
        self._commits[commit.result].inc()
        if commit.result is CommitResult.COMMITTED:
            self._commit_seconds.observe(commit.seconds)
            self._commit_events.observe(commit.events)
            self._last_commit = self._clock()

    def observe_lag(self, seconds: float) -> None:
        """The reactor was so late."""
        self._lag.observe(seconds)

    # --- what can be asked for

    def watch_events(self, ledger: Ledger, load: QueueLoad, bounds: QueueLimits) -> None:
        """The books, and what waits to be committed."""
        self._registry.register(_Books(ledger))
        self._gauge("tkserver_queue_events", "Events that wait to be committed.", lambda: load.events)
        self._gauge("tkserver_queue_max_events", "How many may.", lambda: bounds.events)
        self._gauge("tkserver_queue_bytes", "Bytes of events that wait to be committed.", lambda: load.bytes)
        self._gauge("tkserver_queue_max_bytes", "How many may.", lambda: bounds.bytes)

    def watch_database(self, pool: Pool) -> None:
        """The connections to the database."""
        connections = Gauge(
            "tkserver_database_connections", "Connections to the database.", ("state",), registry=self._registry
        )
        for state in pool.states():
            connections.labels(state).set_function(lambda state=state: pool.states()[state])  # type: ignore[misc]
        self._gauge("tkserver_database_up", "Whether there is one at all.", lambda: pool.connected)
        self._gauge(
            "tkserver_database_waiting_statements", "Statements that wait for a connection.", lambda: pool.waiting
        )

    def watch_clients(self, site: ApiSite, listener: Listener) -> None:
        """The connections of clients, and the memory of what they send."""
        bodies = site.bodies
        rejected_connections = "Connections that were closed at once, for there were too many."
        self._registry.register(
            _ReadCounter(
                "tkserver_http_connections_turned_away", rejected_connections, lambda: listener.rejected_connections
            )
        )
        self._gauge("tkserver_http_connections", "Connections of clients.", lambda: site.connections)
        self._gauge("tkserver_http_max_connections", "How many there may be.", lambda: site.limits.max_connections)
        self._gauge("tkserver_body_memory_bytes", "Bytes that bodies of requests take up.", lambda: bodies.reserved)
        self._gauge("tkserver_body_memory_max_bytes", "How many they may.", lambda: bodies.total)
        self._gauge(
            "tkserver_body_memory_waiting_requests", "Requests that wait for room for a body.", lambda: bodies.waiting
        )

    def watch_redis(self, shared: RedisTokenBuckets | None) -> None:
        """The Redis; there is no sample where there is none."""
        self._registry.register(_Redis(shared))

    def exposition(self, accepted: str | None) -> tuple[bytes, str]:
        """All of it now, as text, and its content type.

        :param accepted: the ``Accept`` header, where one was sent.
        """
        try:
            encode, content_type = choose_encoder(accepted or "")
        except (TypeError, ValueError):  # which versions that are no numbers lead to
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def _gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        Gauge(name, documentation, registry=self._registry).set_function(read)


class _Requests(Collector):
    """How many requests there were, and how long they took.

    Added up here: prometheus_client's own counters are made for threads and take three times as long, which is nothing
    for a commit, and something for a request.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str, int], list[int]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, record: RequestRecord) -> None:
        """One more."""
        key = (record.route, record.method, record.status)
        buckets = self._buckets.get(key)
        if buckets is None:
            buckets = self._buckets[key] = [0] * (len(SECONDS) + 1)
        buckets[bisect_left(SECONDS, record.seconds)] += 1
        self._seconds[record.route] += record.seconds

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tkserver_http_requests",
            "Requests to the public port that were answered, or whose client did not wait for the answer (499).",
            labels=("route", "method", "status"),
        )
        by_route = {route: [0] * (len(SECONDS) + 1) for route in self._seconds}
        for (route, method, status), buckets in self._buckets.items():
            requests.add_metric((route, method, str(status)), sum(buckets))
            by_route[route] = list(map(add, by_route[route], buckets))
        yield requests
        seconds = HistogramMetricFamily(
            "tkserver_http_request_duration_seconds",
            "From when a request had arrived until it was answered.",
            labels=("route",),
        )
        bounds = [*map(floatToGoString, SECONDS), "+Inf"]
        for route, buckets in by_route.items():
            seconds.add_metric((route,), list(zip(bounds, accumulate(buckets), strict=True)), self._seconds[route])
        yield seconds


class _ReadCounter(Collector):
    """One number, asked for when somebody looks."""

    def __init__(self, name: str, documentation: str, read: Callable[[], int]) -> None:
        self._name, self._documentation, self._read = name, documentation, read

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, self._read())


class _Books(Collector):
    """The ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "tkserver_events_received", "Events of batches that were read.", self._ledger.received
        )
        settled = CounterMetricFamily("tkserver_events", "Events by what became of them.", labels=("outcome", "code"))
        for entry, events in self._ledger.settled.items():
            settled.add_metric(entry, events)
        yield settled


class _Redis(Collector):
    def __init__(self, shared: RedisTokenBuckets | None) -> None:
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("tkserver_redis_up", "Whether limits hold for all servers together.")
        if self._shared is not None:
            up.add_metric((), self._shared.available)
        yield up


def _refusals(of: type[ApiError] = ApiError) -> Iterator[tuple[str, int]]:
    """The codes of all errors, and their statuses."""
    for refusal in of.__subclasses__():
        if hasattr(refusal, "code"):
            yield refusal.code, refusal.status
        yield from _refusals(refusal)
