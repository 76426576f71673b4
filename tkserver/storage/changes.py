"""Notifications of changes in the database, so that servers discard what they cache when another process changes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import ensureDeferred
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
    """Listens for changes, and invalidates caches.

    All caches must subscribe before :meth:`start` is called.

    :ivar listening: true if a change would be noticed now. While it is false, cached data must not be used.
    """

    def __init__(self, reactor: Any, dsn: str) -> None:
        self._reactor = reactor
        self._dsn = dsn
        self._subscribers: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._heartbeat = LoopingCall(lambda: ensureDeferred(self._check()))
        self._heartbeat.clock = reactor
        self._connection: PersistentConnection | None = None
        self.listening = False

    def subscribe(self, channel: str, invalidate: Callable[[], None]) -> None:
        """Call a function after each NOTIFY on a channel, and whenever a NOTIFY may have been missed."""
        assert self._connection is None, "the connection listens only on the channels that it was started with"
        self._subscribers[channel].append(invalidate)

    def start(self) -> None:
        self._connection = PersistentConnection(
            self._reactor,
            self._dsn,
            session=[f"LISTEN {channel}" for channel in self._subscribers],
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
        )
        self._connection.add_notify_observer(lambda notice: self._invalidate(notice.channel))
        self._connection.start()

    async def stop(self) -> None:
        if self._connection is not None:
            await self._connection.stop()

    def _invalidate(self, channel: str) -> None:
        for invalidate in self._subscribers[channel]:
            invalidate()

    def _on_connected(self) -> None:
        for channel in self._subscribers:
            self._invalidate(channel)
        self.listening = True
        self._heartbeat.start(HEARTBEAT)

    def _on_disconnected(self, _: StorageError) -> None:
        self.listening = False
        if self._heartbeat.running:
            self._heartbeat.stop()

    async def _check(self) -> None:
        """Detect a connection on which no notification would arrive: one that is open but dead, or to a server that is
        no longer the primary server."""
        assert self._connection is not None
        await self._connection.check(timeout=HEARTBEAT)
