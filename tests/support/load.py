"""Clients that send continuously, as SDKs do: they retry a failed batch with the same event ids and a new nonce."""

from __future__ import annotations

import http.client
import threading
import time
from types import TracebackType

from tests.support.client import SDK, App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.waiting import wait_for

LONGEST_RESPONSE_TIME = 15.0
"""Seconds within which the server must respond to every request, or close its connection."""

RETRY_DELAY = 0.05
"""Seconds before a client retries a failed batch."""


class LoadGenerator:
    """Clients in threads, each of which sends one batch after another.

    :param port: the port of a server on this machine.
    :param keep_alive: whether a client uses its connection for several requests.
    :param warm_up: the context begins when more than this number of events has been accepted.
    :ivar accepted: the ids of the events that the server accepted.
    :ivar statuses: the number of responses by status, or by what happened instead of a response.
    """

    def __init__(
        self, port: int, app: App, clients: int = 6, batch_size: int = 5, *, keep_alive: bool = True, warm_up: int = 50
    ) -> None:
        self._port = port
        self._app = app
        self._batch_size = batch_size
        self._keep_alive = keep_alive
        self._warm_up = warm_up
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        self.accepted: set[str] = set()
        self.statuses: dict[int | str, int] = {}
        self._unexpected: list[str] = []

    def __enter__(self) -> LoadGenerator:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.accepted) > self._warm_up, self._explain)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every client finish its current request."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * LONGEST_RESPONSE_TIME)
            assert not thread.is_alive(), "a request got no response"

    def wait_for_progress(self) -> None:
        """Wait until the server has accepted several more batches of every client."""
        before = len(self.accepted)
        wait_for(lambda: len(self.accepted) > before + 20 * self._batch_size, self._explain)

    def wait_for_responses(self, number: int) -> None:
        """Wait until the server has sent more responses, whatever their status."""
        before = sum(self.statuses.values())
        wait_for(lambda: sum(self.statuses.values()) > before + number, self._explain)

    def check(self, database: Database) -> None:
        """Check that every accepted event is stored exactly once."""
        assert not self._unexpected, self._unexpected[:3]
        rows = database.query("SELECT event_id::text FROM events WHERE app_id = %s", self._app.app_id)
        stored = [row[0] for row in rows]
        assert len(stored) == len(set(stored))
        lost = self.accepted - set(stored)
        assert not lost, f"{len(lost)} of {len(self.accepted)} events are lost"

    def _explain(self) -> str:
        return f"not enough events are accepted: {self.statuses}"

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        pending: list[dict[str, object]] = []
        while not self._stop.is_set():
            pending = pending or [make_event() for _ in range(self._batch_size)]
            connection = connection or http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=LONGEST_RESPONSE_TIME
            )
            status = self._send(connection, pending)
            self._record(status, pending)
            if status == 200:
                pending = []
            else:
                time.sleep(RETRY_DELAY)
            if status != 200 or not self._keep_alive:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _record(self, status: int | str, events: list[dict[str, object]]) -> None:
        with self._lock:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.accepted.update(str(event["event_id"]) for event in events)
            elif status not in (503, "closed"):
                self._unexpected.append(f"unexpected: {status}")

    def _send(self, connection: http.client.HTTPConnection, events: list[dict[str, object]]) -> int | str:
        """Return the status, ``closed`` if the connection ended before the response, or ``no response``."""
        body = batch(events)
        try:
            connection.request("POST", self._app.path, body, self._app.headers(body, SDK))
            response = connection.getresponse()
            response.read()
            return response.status
        except TimeoutError:
            return "no response"
        except (OSError, http.client.HTTPException):
            return "closed"
