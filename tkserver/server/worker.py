"""The worker: serves requests. It knows nothing about what exists once per installation (see the supervisor)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tkserver import log
from tkserver.limits.redis import RedisTokenBuckets
from tkserver.log.access import AccessLog
from tkserver.server.metrics import Metrics
from tkserver.server.reactor_lag import ReactorLagMeter
from tkserver.storage.caches import LastUsedTimes
from tkserver.storage.changes import ChangeListener
from tkserver.storage.pool import Pool
from tkserver.web.http.connections import ApiSite
from tkserver.web.listen.listener import Listener

_log = log.logger(__name__)

MAX_START_PAUSE = 5.0
"""Seconds for which new connections wait while the server starts. After that, they are accepted and get a 503."""


@dataclass(frozen=True)
class Components:
    """The parts of a worker that are started and stopped, or used from outside. See :mod:`tkserver.server.wiring`."""

    listener: Listener
    site: ApiSite
    pool: Pool
    changes: ChangeListener
    last_used: LastUsedTimes
    redis: RedisTokenBuckets | None
    lag_meter: ReactorLagMeter
    metrics: Metrics
    access_log: AccessLog


class Worker:
    """Serves requests on the public port.

    The supervisor calls :meth:`bind`, :meth:`start`, then :meth:`connect` when the database has been migrated, and
    finally :meth:`drain` and :meth:`stop`. Nothing else passes between the two, except the properties below.

    :param drain_timeout: seconds for requests in progress when the server stops.
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
    def database_connected(self) -> bool:
        """True if there is at least one connection to the database."""
        return self.components.pool.connected

    def bind(self) -> None:
        """Bind the public port, which may need root privileges.

        :raise CannotListen: if that fails.
        """
        self.components.listener.open()

    def start(self) -> None:
        """Let connections wait until :meth:`resume_accepting` or :meth:`connect`, or for ``MAX_START_PAUSE``."""
        self.components.lag_meter.start()
        self.components.listener.pause_accepting(MAX_START_PAUSE)

    def resume_accepting(self) -> None:
        """Accept connections, although the database may not be available."""
        self.components.listener.resume_accepting()

    def connect(self) -> None:
        """Connect to the database, and then accept connections."""
        components = self.components
        components.pool.start().addCallback(lambda _: self.resume_accepting())
        components.changes.start()
        components.last_used.start()
        if components.redis is not None:
            components.redis.start()

    async def drain(self) -> None:
        """Close the public port, and finish the requests in progress."""
        await self.components.listener.close()
        await self.components.site.drain(self._drain_timeout)

    async def stop(self) -> None:
        """Close all connections to databases. Only after :meth:`drain`."""
        components = self.components
        redis = [] if components.redis is None else [components.redis.stop]
        await stop_all(components.last_used.stop, components.changes.stop, components.pool.stop, *redis)
        components.lag_meter.stop()


async def stop_all(*stops: Callable[[], Awaitable[None]]) -> None:
    """Call functions that stop a part of the server, one after another; log errors instead of raising them."""
    for stop in stops:
        try:
            await stop()
        except Exception:
            _log.failure("a part of the server could not be stopped", event="stop_failed")
