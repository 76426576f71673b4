"""Values that may never be seen again, and a client that sends them in every way there is."""

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
"""A part of every value that a client sends and that may not be told."""

ADDRESS = "203.0.113.7"
"""Of the client, as a proxy tells."""

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
    """An application whose credentials are marked."""
    some = uuid.uuid4().hex
    return App(token=f"tk_{MARK}_token_{some}", secret=f"{MARK}_secret_{some}")


def marked_event(**overrides: Any) -> dict[str, Any]:
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
    """Sends marked values, and remembers what came of it.

    :ivar codes: of the errors that were answered, and the statuses of what is no error.
    :ivar signatures: that were sent. They cannot be marked.
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
        """A batch that is signed as it should be, but for ``changes`` of its headers after that."""
        body = events if isinstance(events, bytes) else batch(events)
        nonce = nonce or f"{MARK}-nonce-{uuid.uuid4()}"
        headers = {**app.headers(body, dialect, nonce=nonce, timestamp=timestamp), **HEADERS, **(changes or {})}
        sent = {name: value for name, value in headers.items() if value is not None}
        self.signatures.update(value for name, value in sent.items() if name == "X-Signature")
        return self._note(http.post(self.url + (path or app.path), data=body, headers=sent, timeout=20))

    def _note(self, response: http.Response) -> http.Response:
        error = response.json().get("error") if response.content else None
        self.codes.add(error["code"] if error else str(response.status_code))
        return response

    def send_all_kinds(self, app: App, other: App) -> None:
        """What a client can do by itself, rightly and wrongly."""
        twice = marked_event()
        for dialect in DIALECTS:
            self.send(app, [marked_event()], dialect)
        self.send(app, [twice])
        self.send(app, [twice])
        self.send(other, [twice])
        self.send(app, [marked_event(), marked_event(user_id=f"{MARK}@example.com")])
        self.send(app, [marked_event(schema_version=MARK)])
        self.send(app, [MARK])
        for _ in range(2):
            self.send(app, [marked_event()], BOTH, nonce=f"{MARK}-once")
        self._send_wrong_headers(app, other)
        self._send_wrong_bodies(app)
        self._ask_wrong_paths()

    def _send_wrong_headers(self, app: App, other: App) -> None:
        wrong: tuple[dict[str, str | None], ...] = (
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
            {"X-Request-ID": f"not harmless: {MARK}"},
        )
        for changes in wrong:
            self.send(app, [marked_event()], changes=changes)
            self.send(app, [marked_event()], BOTH, changes=changes)
        self.send(app, [marked_event()], BOTH, nonce=f"{MARK} {MARK}")
        for timestamp in (MARK, "1"):
            self.send(app, [marked_event()], timestamp=timestamp)
        self.send(app, [marked_event()], path=other.path)

    def _send_wrong_bodies(self, app: App) -> None:
        zipped = {"Content-Encoding": "gzip"}
        self.send(app, gzip.compress(MARK.encode() * 1_000_000), changes=zipped)
        self.send(app, MARK.encode(), changes=zipped)
        self.send(app, gzip.compress(batch([marked_event()]))[:-9], changes=zipped)
        self.send(app, gzip.compress(batch([marked_event()])), changes=zipped)
        self.send(app, MARK.encode())
        self.send(app, b"\xff" + MARK.encode())
        self.send(app, f'{{"events": "{MARK}"}}'.encode())
        self.send(app, [])
        self.send(app, MARK.encode() * 100_000)

    def _ask_wrong_paths(self) -> None:
        for path in (f"/{MARK}", f"/{MARK}?{MARK}={MARK}", f"/health?token={MARK}", f"/v1/ingest/{MARK}/%ff{MARK}"):
            for method in ("GET", "POST", "OPTIONS", MARK.upper()):
                answer = http.request(method, self.url + path, headers=HEADERS, timeout=20)
                self.codes.add(str(answer.status_code))

    def send_no_http(self, port: int) -> None:
        """What is no request, or ends before it is one."""
        whole = f"POST /{MARK} HTTP/1.1\r\nHost: {MARK}\r\n"
        for text in (
            f"{MARK}\r\n\r\n",
            f"GET /{MARK} {MARK}\r\n\r\n",
            f"{whole}{MARK}\r\n\r\n",
            f"{whole}Content-Length: {MARK}\r\n\r\n",
            f"{whole}Content-Length: {'9' * 5000}\r\n\r\n",
            f"{whole}Transfer-Encoding: {MARK}\r\n\r\n",
            f"{whole}Transfer-Encoding: chunked\r\n\r\n{MARK}\r\n",
            f"{whole}X: {MARK * 10_000}\r\n\r\n",
            f"{whole}Content-Length: 100\r\n\r\n{MARK}",
        ):
            with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection, suppress(OSError):
                connection.sendall(text.encode())
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
