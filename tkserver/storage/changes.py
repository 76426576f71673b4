"""Notifications of changes in the database: what servers cache must be discarded when another process changes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall

from tkserver.storage.connection import PersistentConnection
from tkserver.storage.errors import StorageError

HEARTBEAT = 1.0
"""Seconds between two checks of the listening connection, and the time limit of each check."""

PROPAGATION_TIME = 2.5
"""Seconds after which every server has applied a change, even one that has just lost its listening connection.

A server notices a dead connection within two heartbeats, and caches nothing until it has a new one. The rest is a
margin for a busy reactor.
"""


class ChangeListener:
    """Calls functions when other processes may have changed what they cache.

    Subscribe before :meth:`start`.

    :ivar listening: true if a change would be noticed now. Nothing must be cached while it is false.
    """

    def __init__(self, reactor: Any, dsn: str) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._invalidate: dict[str, Callable[[], None]] = {}
        self._heartbeat = LoopingCall(self._check)
        self._heartbeat.clock = reactor
        self._connection: PersistentConnection | None = None
        self.listening = False

    def subscribe(self, channel: str, invalidate: Callable[[], None]) -> None:
        """Call ``invalidate`` after each NOTIFY on a channel, and whenever one may have been missed."""
        self._invalidate[channel] = invalidate

    def start(self) -> None:
        self._connection = PersistentConnection(
            self._reactor,
            self._dsn,
            session=[f"LISTEN {channel}" for channel in self._invalidate],
            up=self._up,
            down=self._down,
        )
        self._connection.on_notify(lambda notice: self._invalidate[notice.channel]())
        self._connection.start()

    async def stop(self) -> None:
        if self._connection is not None:
            await self._connection.stop()

    def _up(self) -> None:
        for invalidate in self._invalidate.values():
            invalidate()
        self.listening = True
        self._heartbeat.start(HEARTBEAT)

    def _down(self, _: StorageError) -> None:
        self.listening = False
        if self._heartbeat.running:
            self._heartbeat.stop()

    def _check(self) -> Deferred[None]:
        return ensureDeferred(self._query())

    async def _query(self) -> None:
        """Detect a connection that is open but dead: it would deliver no notifications."""
        assert self._connection is not None
        with suppress(StorageError):
            await self._connection.query("SELECT 1", timeout=HEARTBEAT)
