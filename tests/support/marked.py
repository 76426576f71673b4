"""Values that must not be logged, and a client that sends them in every part of a request."""

from __future__ import annotations

import gzip
import socket
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import requests as http

from tests.support.client import BOTH, DIALECTS, DOCUMENTED, App, batch
from tests.support.events import make_event

MARK = "zq9mark"
"""A part of every value that a client sends and that must not be logged."""

ADDRESS = "203.0.113.7"
"""The address of the client in the headers of a proxy."""

USER = f"client_{MARK}_user"

HEADERS = {
    "X-Forwarded-For": ADDRESS,
    "Forwarded": f"for={ADDRESS}",
    "Cookie": f"{MARK}=cookie",
    "User-Agent": f"{MARK}-agent",
    "Referer": f"http://{MARK}.example/",
    "Origin": f"http://{MARK}.example",
    f"X-{MARK}": "name",
}


def marked_app() -> App:
    """Return an application whose credentials are marked."""
    unique = uuid.uuid4().hex
    return App(token=f"tk_{MARK}_token_{unique}", secret=f"{MARK}_secret_{unique}")


def marked_event(**overrides: Any) -> dict[str, Any]:
    """Return an event whose values are marked."""
    return make_event(
        **{
            "user_id": USER,
            "session_id": f"{MARK}_session",
            "service__name": f"{MARK}_service",
            "environment__os": f"{MARK}_os",
            "event__type": f"{MARK}_type",
            "event__data": {MARK: f"{MARK}_data"},
            **overrides,
        }
    )


@dataclass
class MarkedClient:
    """A client that sends marked values.

    :ivar codes: the error codes of all responses, and the statuses of the responses without one.
    :ivar signatures: the signatures that were sent; they cannot be marked.
    """

    url: str
    codes: set[str] = field(default_factory=set)
    signatures: set[str] = field(default_factory=set)

    def send(
        self,
        app: App,
        events: list[Any] | bytes,
        dialect: str = DOCUMENTED,
        *,
        changes: Mapping[str, str | None] | None = None,
        path: str | None = None,
        nonce: str | None = None,
        timestamp: str | None = None,
    ) -> http.Response:
        """Send a batch with a valid signature; ``changes`` are headers that are replaced after signing, or removed."""
        body = events if isinstance(events, bytes) else batch(events)
        nonce = nonce or f"{MARK}-nonce-{uuid.uuid4()}"
        headers = {**app.headers(body, dialect, nonce=nonce, timestamp=timestamp), **HEADERS, **(changes or {})}
        sent = {name: value for name, value in headers.items() if value is not None}
        self.signatures.update(value for name, value in sent.items() if name == "X-Signature")
        return self._record(http.post(self.url + (path or app.path), data=body, headers=sent, timeout=20))

    def _record(self, response: http.Response) -> http.Response:
        error = response.json().get("error") if response.content else None
        self.codes.add(error["code"] if error else str(response.status_code))
        return response

    def send_requests_of_all_kinds(self, app: App, other: App) -> None:
        """Send valid and invalid requests that need nothing special of the server."""
        event = marked_event()
        for dialect in DIALECTS:
            self.send(app, [marked_event()], dialect)
        self.send(app, [event])
        self.send(app, [event])
        self.send(other, [event])
        self.send(app, [marked_event(), marked_event(user_id=f"{MARK}@example.com")])
        self.send(app, [marked_event(schema_version=MARK)])
        self.send(app, [MARK])
        for _ in range(2):
            self.send(app, [marked_event()], BOTH, nonce=f"{MARK}-once")
        self._send_invalid_headers(app, other)
        self._send_invalid_bodies(app)
        self._request_unknown_paths()

    def _send_invalid_headers(self, app: App, other: App) -> None:
        invalid: tuple[dict[str, str | None], ...] = (
            {"Authorization": f"Bearer {MARK}"},
            {"Authorization": f"{MARK}"},
            {"Authorization": f"Basic {MARK}"},
            {"Authorization": None},
            {"X-Signature": f"{MARK}-signature"},
            {"X-Signature": None},
            {"X-Timestamp": MARK},
            {"X-Timestamp": "1"},
            {"Content-Type": f"text/{MARK}"},
            {"Content-Encoding": MARK},
            {"X-Batch-Size": MARK},
            {"DNT": "1"},
            {"X-Request-ID": f"not a valid id: {MARK}"},
        )
        for changes in invalid:
            self.send(app, [marked_event()], changes=changes)
            self.send(app, [marked_event()], BOTH, changes=changes)
        self.send(app, [marked_event()], BOTH, nonce=f"{MARK} {MARK}")
        for timestamp in (MARK, "1"):
            self.send(app, [marked_event()], timestamp=timestamp)
        self.send(app, [marked_event()], path=other.path)

    def _send_invalid_bodies(self, app: App) -> None:
        compressed = {"Content-Encoding": "gzip"}
        self.send(app, gzip.compress(MARK.encode() * 1_000_000), changes=compressed)
        self.send(app, MARK.encode(), changes=compressed)
        self.send(app, gzip.compress(batch([marked_event()]))[:-9], changes=compressed)
        self.send(app, gzip.compress(batch([marked_event()])), changes=compressed)
        self.send(app, MARK.encode())
        self.send(app, b"\xff" + MARK.encode())
        self.send(app, f'{{"events": "{MARK}"}}'.encode())
        self.send(app, [])
        self.send(app, MARK.encode() * 100_000)

    def _request_unknown_paths(self) -> None:
        for path in (f"/{MARK}", f"/{MARK}?{MARK}={MARK}", f"/health?token={MARK}", f"/v1/ingest/{MARK}/%ff{MARK}"):
            for method in ("GET", "POST", "OPTIONS", MARK.upper()):
                response = http.request(method, self.url + path, headers=HEADERS, timeout=20)
                self.codes.add(str(response.status_code))

    def send_malformed_requests(self, port: int) -> None:
        """Send bytes that are not HTTP, and incomplete requests."""
        start = f"POST /{MARK} HTTP/1.1\r\nHost: {MARK}\r\n"
        for text in (
            f"{MARK}\r\n\r\n",
            f"GET /{MARK} {MARK}\r\n\r\n",
            f"{start}{MARK}\r\n\r\n",
            f"{start}Content-Length: {MARK}\r\n\r\n",
            f"{start}Content-Length: {'9' * 5000}\r\n\r\n",
            f"{start}Transfer-Encoding: {MARK}\r\n\r\n",
            f"{start}Transfer-Encoding: chunked\r\n\r\n{MARK}\r\n",
            f"{start}X: {MARK * 10_000}\r\n\r\n",
            f"{start}Content-Length: 100\r\n\r\n{MARK}",
        ):
            with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection, suppress(OSError):
                connection.sendall(text.encode())
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
