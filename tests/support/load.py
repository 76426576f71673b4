"""Clients that keep sending, as SDKs do: what was not answered is sent again, with the same ids and a new nonce."""

from __future__ import annotations

import http.client
import threading
import time
from types import TracebackType

from tests.support.client import SDK, App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.process import wait_for

LONGEST_ANSWER = 15.0
"""Seconds within which every request must be answered, or its connection closed."""


class QueueLoad:
    """Clients in threads, each with a batch of events at a time.

    :param port: of a server on this machine.
    :param keep: whether a connection is kept for the next request.
    :param least: how many events are stored before the context begins.
    """

    def __init__(
        self, port: int, app: App, clients: int = 6, events: int = 5, *, keep: bool = True, least: int = 50
    ) -> None:
        self._port = port
        self._app = app
        self._events = events
        self._keep = keep
        self._least = least
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        self.accepted: set[str] = set()
        self.statuses: dict[int | str, int] = {}
        self.wrong: list[str] = []

    def __enter__(self) -> QueueLoad:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.accepted) > self._least)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Have every client finish its request."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * LONGEST_ANSWER)
            assert not thread.is_alive(), "a request was never answered"

    def goes_on(self) -> None:
        """Wait until every client has been answered with success again, several times."""
        before = len(self.accepted)
        wait_for(lambda: len(self.accepted) > before + 20 * self._events, lambda: f"nothing goes on: {self.statuses}")

    def check(self, database: Database) -> None:
        """Every event that was answered as accepted is in the table, once."""
        assert not self.wrong, self.wrong[:3]
        rows = database.query("SELECT event_id::text FROM events WHERE app_id = %s", self._app.app_id)
        stored = [row[0] for row in rows]
        assert len(stored) == len(set(stored))
        lost = self.accepted - set(stored)
        assert not lost, f"{len(lost)} of {len(self.accepted)} events are lost"

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        pending: list[dict[str, object]] = []
        while not self._stop.is_set():
            pending = pending or [make_event() for _ in range(self._events)]
            connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=LONGEST_ANSWER)
            status = self._send(connection, pending)
            with self._lock:
                self.statuses[status] = self.statuses.get(status, 0) + 1
                if status == 200:
                    self.accepted.update(str(event["event_id"]) for event in pending)
                elif status not in (503, "closed"):
                    self.wrong.append(f"answered {status}")
            if status == 200:
                pending = []
            else:
                time.sleep(0.05)
            if status != 200 or not self._keep:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _send(self, connection: http.client.HTTPConnection, events: list[dict[str, object]]) -> int | str:
        """The status of the answer; ``closed`` where the connection ended before it; ``never`` where none came."""
        body = batch(events)
        try:
            connection.request("POST", self._app.path, body, self._app.headers(body, SDK))
            response = connection.getresponse()
            response.read()
            return response.status
        except TimeoutError:
            return "never"
        except (OSError, http.client.HTTPException):
            return "closed"
