"""The supervisor: owns everything that exists once per installation, and starts and stops the worker.

It owns the embedded database, the migrations, the sweeper and the admin port. At present, supervisor and worker run in
one process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool

import tkserver
from tkserver import __version__, log
from tkserver.config import Settings, variable
from tkserver.operations.database import ConfiguredDatabase
from tkserver.server.privileges import CannotDrop, Privileges
from tkserver.server.sweeper import Sweeper
from tkserver.server.wiring import create_admin, create_aggregation, create_worker
from tkserver.server.worker import stop_all
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.credentials import has_credentials
from tkserver.storage.embedded import demo
from tkserver.storage.embedded.exceptions import EmbeddedError
from tkserver.storage.errors import StorageError
from tkserver.storage.migrations import IncompatibleDatabase
from tkserver.web.listen.listener import CannotListen

_log = log.logger(__name__)

T = TypeVar("T")

EMBEDDED_CHECK_INTERVAL = 5.0
"""Seconds between two checks that the embedded database is running."""

GC_THRESHOLD = 20_000
"""The number of new objects that triggers a garbage collection. A request creates about a hundred objects, and rarely a
reference cycle."""

FIRST_EVENT = Path(tkserver.__file__).parent / "examples" / "first_event.sh"


class _Stopping(Exception):
    """The server is stopped while it starts."""


class Supervisor(Service):
    """The server as a Twisted service.

    :param fail: called with a message if the server cannot continue. Ends the process.
    :param privileges: the root privileges of the process, which it gives up; ``None`` to keep them.
    :ivar worker: serves requests.
    """

    name = "tkserver"

    def __init__(
        self, settings: Settings, reactor: Any, fail: Callable[[str], None], privileges: Privileges | None = None
    ) -> None:
        self._privileges = privileges
        self._settings = settings
        self._reactor = reactor
        self._fail = fail
        database = ConfiguredDatabase.from_settings(settings)
        self._dsn, self._embedded = database.dsn, database.embedded
        self.worker = create_worker(settings, reactor, self._dsn)
        self._admin_parts = create_admin(settings, reactor, self._dsn, self.worker)
        self._admin = None if self._admin_parts is None else self._admin_parts.listener
        days, tolerance = settings.retention.days, settings.ingest.timestamp_tolerance
        self._sweeper = Sweeper(reactor, self._dsn, days, tolerance, settings.quarantine.days)
        self._aggregation = create_aggregation(settings, reactor, self._dsn, self.worker.components.metrics)
        self._embedded_check = LoopingCall(lambda: ensureDeferred(self._restart_embedded()))
        self._embedded_check.clock = reactor
        self._embedded_check_ended: Deferred[LoopingCall]
        self._connections = BlockingConnections()
        self._startup: Deferred[None] | None = None
        self._retry_delay: Deferred[None] | None = None
        self._bound = False
        self._has_demo = False
        self._stopping = False

    @property
    def port(self) -> int:
        """The public TCP port."""
        return self.worker.port

    @property
    def admin_port(self) -> int:
        """The TCP port of the admin interface."""
        assert self._admin is not None
        return self._admin.port

    # --- starting

    def privilegedStartService(self) -> None:
        """Bind the ports. ``twistd`` calls this method before it gives up root privileges."""
        try:
            self.worker.bind()
        except CannotListen as error:
            self._fail(f"cannot listen on {error}")
            return
        try:
            if self._admin is not None:
                self._admin.open()
        except CannotListen as error:
            self._fail(
                f"cannot listen on {error}: this is the admin port for /metrics, see {variable('admin', 'host')} and"
                f" {variable('admin', 'port')}; the value none disables it"
            )
            return
        self._bound = True

    def startService(self) -> None:
        super().startService()
        _tune_garbage_collector()
        if self._bound and self._drop_privileges():
            url = self.worker.url
            _log.info("tkserver {version} listens on {url}", version=__version__, url=url, event="listening")
            self._log_admin_address()
            self.worker.start()
            self._startup = ensureDeferred(self._start())

    def _drop_privileges(self) -> bool:
        """Prepare everything that needs root privileges, and give them up. Return whether the server can continue."""
        if self._privileges is None:
            return True
        try:
            if self._embedded is not None:
                self._embedded.prepare()
            self._privileges.drop()
        except (CannotDrop, EmbeddedError) as error:
            self._fail(str(error))
            return False
        self.worker.check_certificate()
        return True

    def _log_admin_address(self) -> None:
        if self._admin is None:
            return
        _log.info("metrics on {url}/metrics", url=self._admin.url, event="metrics_listening")
        if self._admin.exposed:
            _log.warn(
                "other machines can reach the admin port at {host}: make sure that strangers cannot",
                host=self._settings.admin.host,
                event="metrics_exposed",
            )
        if self._settings.dashboard_enabled:
            _log.info(
                "dashboard on {url}/dashboard/: to sign in, run: tkserver dashboard",
                url=self._settings.dashboard.url or self._admin.url,
                event="dashboard_listening",
            )

    async def _start(self) -> None:
        try:
            await self._prepare_database()
        except _Stopping:
            return
        except (EmbeddedError, IncompatibleDatabase) as error:
            self._fail(str(error))
            return
        except Exception:
            _log.failure("the server could not be started", event="start_failed")
            self._fail("cannot start: see the log above")
            return
        self.worker.connect()
        self._sweeper.start()
        if self._aggregation is not None:
            self._aggregation.start()
        if self._embedded is not None:
            self._embedded_check_ended = self._embedded_check.start(EMBEDDED_CHECK_INTERVAL, now=False)
        if self._has_demo and self.worker.url.startswith("http:"):
            script, url = str(FIRST_EVENT), self.worker.url
            _log.info("to send a first event, run: sh {script} {url}", script=script, url=url, event="first_event")

    async def _prepare_database(self) -> None:
        if self._embedded is not None:
            await self._in_thread(self._embedded.start)
            data_dir = str(self._embedded.data_dir)
            _log.info("embedded PostgreSQL, data in {data_dir}", data_dir=data_dir, event="embedded_database")
        await self._when_available(migrations.migrate)
        if self._embedded is not None:
            await self._prepare_demo()
        if not self._has_demo and not await self._when_available(has_credentials):
            _log.info(
                "no application can send events yet: create one with: tkserver apps create NAME",
                event="no_application",
            )

    async def _prepare_demo(self) -> None:
        """Create the demo application, or suspend it if strangers may reach the server: its credentials are public."""
        if not self.worker.is_loopback or self._settings.server.trusted_proxies:
            await self._when_available(demo.suspend)
            _log.info(
                "no demo application, because other machines may reach this server",
                event="demo_suspended",
            )
        else:
            self._has_demo = await self._when_available(demo.install)

    async def _when_available(self, work: Callable[[str, BlockingConnections], T]) -> T:
        """Run a function that uses the database, and retry while the database is not available.

        :return: the result of the function.
        :raise _Stopping: if the server is stopped in the meantime.
        """
        backoff = backoffPolicy(initialDelay=0.2, maxDelay=2.0, factor=1.5)
        failures = 0
        while True:
            try:
                if not self._stopping:
                    return await self._in_thread(work, self._dsn, self._connections)
            except StorageError as error:
                if failures == 0 and not self._stopping:
                    _log.warn("the database is not available, retrying: {error}", error=error, event="database_awaited")
                    self.worker.resume_accepting()
            if self._stopping:
                raise _Stopping
            self._retry_delay = deferLater(self._reactor, backoff(failures))
            failures += 1
            with suppress(CancelledError):
                await self._retry_delay

    async def _restart_embedded(self) -> None:
        """Start the embedded database again if it has died."""
        if self._embedded is not None and not self.worker.database_connected:
            try:
                await self._in_thread(self._embedded.start)
            except EmbeddedError as error:
                _log.error(
                    "the embedded database cannot be restarted: {error}", error=error, event="embedded_database_lost"
                )

    # --- stopping

    def stopService(self) -> Deferred[None]:
        """Stop all parts of the server one after another, in the order of their dependencies."""
        super().stopService()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        await stop_all(self.worker.drain, self._end_startup, self._end_embedded_check)
        aggregation = [] if self._aggregation is None else [self._aggregation.stop]
        if self._admin_parts is not None:
            await stop_all(self._admin_parts.queries.stop, self._admin_parts.watch.stop)
        await stop_all(*aggregation, self._sweeper.stop, self.worker.stop)
        if self._embedded is not None:
            await stop_all(partial(self._in_thread, self._embedded.stop))
        if self._admin is not None:  # last, so that Prometheus sees the metrics of the stop
            await stop_all(self._admin.close)
        gc.collect()  # logs the unhandled errors of Deferreds
        _log.info("stopped", event="stopped")

    async def _end_startup(self) -> None:
        self._connections.stop()
        if self._retry_delay is not None:
            self._retry_delay.cancel()
        if self._startup is not None:
            await self._startup

    async def _end_embedded_check(self) -> None:
        if self._embedded_check.running:
            self._embedded_check.stop()
            await self._embedded_check_ended  # otherwise it might start the database again after _embedded.stop

    def _in_thread(self, work: Callable[..., T], *arguments: object) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work, *arguments)


def _tune_garbage_collector() -> None:
    """Collect less often, and ignore the objects that exist for the lifetime of the process, such as modules."""
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
