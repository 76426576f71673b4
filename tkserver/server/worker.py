"""The worker, which serves requests.

It does not use anything that exists once per installation: that belongs to the supervisor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from tkserver import log
from tkserver.ingest.ingestion import Ingestion
from tkserver.ingest.readiness import Readiness
from tkserver.limits.redis import RedisTokenBuckets
from tkserver.log.access import AccessLog
from tkserver.server.metrics import Metrics
from tkserver.server.reactor_lag import ReactorLagMeter
from tkserver.storage.caches import LastUsedTimes
from tkserver.storage.changes import ChangeListener
from tkserver.storage.duplicates import DuplicateCounts
from tkserver.storage.pool import Pool
from tkserver.web.http.connections import ApiSite
from tkserver.web.listen.listener import Listener

_log = log.logger(__name__)

MAX_START_PAUSE = 5.0
"""Seconds for which new connections wait while the server starts. After that, requests get a 503."""


@dataclass(frozen=True)
class Components:
    """The parts of a worker that are started, stopped or observed. :mod:`tkserver.server.wiring` creates them."""

    listener: Listener
    site: ApiSite
    ingestion: Ingestion
    readiness: Readiness
    pool: Pool
    changes: ChangeListener
    last_used: LastUsedTimes
    duplicates: DuplicateCounts
    redis: RedisTokenBuckets | None
    lag_meter: ReactorLagMeter
    metrics: Metrics
    access_log: AccessLog


class Worker:
    """Serves requests on the public port.

    The supervisor calls :meth:`bind` and :meth:`start`, then :meth:`connect` when the database has been migrated, and
    finally :meth:`drain` and :meth:`stop`. Otherwise, it uses only the properties below.

    :param drain_timeout: seconds for which requests in progress can continue when the server stops.
    """

    def __init__(self, components: Components, drain_timeout: float) -> None:
        self.components = components
        self._drain_timeout = drain_timeout

    @property
    def url(self) -> str:
        """The URL of the public port."""
        return self.components.listener.url

    @property
    def port(self) -> int:
        """The public TCP port."""
        return self.components.listener.port

    @property
    def is_loopback(self) -> bool:
        """True if only programs on this machine can connect to the public port."""
        return self.components.listener.is_loopback

    @property
    def database_connected(self) -> bool:
        """True if there is at least one connection to the database."""
        return self.components.pool.connected

    def bind(self) -> None:
        """Bind the public port. That may need root privileges.

        :raise CannotListen: if the port cannot be bound.
        """
        self.components.listener.open()

    def check_certificate(self) -> None:
        """Log if the certificate cannot be read again, because the process has become another user."""
        self.components.listener.check_certificate()

    def start(self) -> None:
        """Let new connections wait until :meth:`connect`, but not longer than :data:`MAX_START_PAUSE`."""
        self.components.lag_meter.start()
        self.components.listener.pause_accepting(MAX_START_PAUSE)

    def resume_accepting(self) -> None:
        """Accept connections before :meth:`connect`, because the database is not available."""
        self.components.listener.resume_accepting()

    def connect(self) -> None:
        """Connect to the database, and then accept connections."""
        components = self.components
        components.pool.start().addCallback(lambda _: self.resume_accepting())
        components.changes.start()
        components.last_used.start()
        components.duplicates.start()
        if components.redis is not None:
            components.redis.start()

    async def store_events(self, org_id: str, app_id: str, body: bytes) -> None:
        """Store events of the server itself: see :meth:`~tkserver.ingest.ingestion.Ingestion.ingest_own`."""
        await self.components.ingestion.ingest_own(UUID(org_id), UUID(app_id), body)

    async def drain(self) -> None:
        """Close the public port, and finish the requests in progress."""
        await stop_all(self.components.listener.close)
        await self.components.site.drain(self._drain_timeout)

    async def stop(self) -> None:
        """Close the connections to the database and to Redis. Call :meth:`drain` before."""
        components = self.components
        redis = [] if components.redis is None else [components.redis.stop]
        writers = components.last_used.stop, components.duplicates.stop
        await stop_all(*writers, components.changes.stop, components.pool.stop, *redis)
        components.lag_meter.stop()


async def stop_all(*stops: Callable[[], Awaitable[None]]) -> None:
    """Call functions one after another, and log their errors, so that each part of the server is stopped."""
    for stop in stops:
        try:
            await stop()
        except Exception:
            _log.failure("a part of the server could not be stopped", event="stop_failed")
