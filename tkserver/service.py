"""The server as a service: in which order its parts start and stop."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool

from tkserver import __version__, log
from tkserver.config import Settings, variable
from tkserver.database import dsn_of, embedded_by
from tkserver.parts import Parts
from tkserver.storage import demo, migrations
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.embedded import EmbeddedError
from tkserver.storage.errors import StorageError
from tkserver.storage.migrations import IncompatibleDatabase
from tkserver.web.listening import CannotListen

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

        self.parts = Parts(settings, reactor, dsn)
        self._forget_nonces = _periodically(reactor, self.parts.events.forget_nonces)
        self._look_after_embedded = _periodically(reactor, self._look_after)
        self._looking_after: Deferred[LoopingCall]
        self._connections = BlockingConnections()
        self._starting: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None
        self._listens = False
        self._stopping = False

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self.parts.public.port

    @property
    def admin_port(self) -> int:
        """The private port that it listens on."""
        assert self.parts.admin is not None
        return self.parts.admin.port

    def privilegedStartService(self) -> None:
        """Take the ports, while still allowed to take any."""
        try:
            self.parts.public.open()
        except CannotListen as error:
            self._fail(f"cannot listen on {error}")
            return
        try:
            if self.parts.admin is not None:
                self.parts.admin.open()
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
            url = self.parts.public.url
            _log.info("tkserver {version} listens on {url}", version=__version__, url=url, event="listening")
            self._say_where_metrics_are()
            self.parts.lag_meter.start()
            self.parts.public.hold(HELD)
            self._starting = ensureDeferred(self._start_storage())

    def stopService(self) -> Deferred[None]:
        """Stop in the order in which the parts lean on each other, each after the one before has ended."""
        super().stopService()
        return ensureDeferred(self._stop())

    def _say_where_metrics_are(self) -> None:
        if self.parts.admin is None:
            return
        _log.info("metrics on {url}/metrics", url=self.parts.admin.url, event="metrics_listening")
        if self.parts.admin.exposed:
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
            script, url = str(FIRST_EVENT), self.parts.public.url
            _log.info("to send a first event: sh {script} {url}", script=script, url=url, event="first_event")

    def _start_using_storage(self) -> None:
        self.parts.pool.start().addCallback(lambda _: self.parts.public.admit())
        self.parts.changes.start()
        self.parts.usage.start()
        self.parts.sweeper.start()
        if self.parts.shared_buckets is not None:
            self.parts.shared_buckets.start()
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
                    self.parts.public.admit()
            if self._stopping:
                raise _Stopping
            self._pause = deferLater(self._reactor, backoff(failures))
            with suppress(CancelledError):
                await self._pause

    async def _look_after(self) -> None:
        """Start the embedded database again, should it have died."""
        if self._embedded is not None and not self.parts.pool.connected:
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
        await self._without_fail(self.parts.public.close)
        await self.parts.site.drain(self._settings.server.shutdown_timeout)
        loops = (self._end_start, self._end_loops, self.parts.sweeper.stop)
        for part in (*loops, self.parts.usage.stop, self.parts.changes.stop, self.parts.pool.stop):
            await self._without_fail(part)
        if self.parts.shared_buckets is not None:
            await self._without_fail(self.parts.shared_buckets.stop)
        if self._embedded is not None:
            await self._without_fail(partial(self._in_thread, self._embedded.stop))
        self.parts.lag_meter.stop()
        if self.parts.admin is not None:  # which shows how all of that went
            await self._without_fail(self.parts.admin.close)
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
