"""A client that speaks all dialects of the contract, well or badly, over real sockets."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import treq
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.web.client import Agent

from tests.support.database import Database
from tkserver.wire.signature import sign, signed_message

DOCUMENTED, SDK, BOTH = "documented", "shipped SDK", "both"
DIALECTS = (DOCUMENTED, SDK, BOTH)


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The code of an error."""
        return str(self.json["error"]["code"]) if self.body and "error" in self.json else None


@dataclass(frozen=True)
class App:
    """An application with a credential of its own."""

    org_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    app_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    token: str = field(default_factory=lambda: f"tk_{uuid.uuid4().hex}")
    secret: str = field(default_factory=lambda: uuid.uuid4().hex * 2)

    @property
    def path(self) -> str:
        return f"/v1/ingest/{self.org_id}/{self.app_id}"

    def install(self, database: Database) -> App:
        database.query(
            "INSERT INTO api_tokens (org_id, app_id, token, secret) VALUES (%s, %s, %s, %s)",
            self.org_id,
            self.app_id,
            self.token,
            self.secret,
        )
        return self

    def headers(
        self, body: bytes, dialect: str = DOCUMENTED, *, nonce: str | None = None, timestamp: int | str | None = None
    ) -> dict[str, str]:
        """The headers of a request with this body, as a client of the dialect sends them."""
        stamp = str(int(time.time()) if timestamp is None else timestamp)
        headers = {"Content-Type": "application/json", "X-Timestamp": stamp}
        if dialect != DOCUMENTED:
            headers["X-Nonce"] = str(uuid.uuid4()) if nonce is None else nonce
        if dialect != SDK:
            headers["Authorization"] = f"Bearer {self.token}"
        sent_nonce = headers.get("X-Nonce")
        message = signed_message(stamp.encode(), None if sent_nonce is None else sent_nonce.encode(), body)
        headers["X-Signature"] = sign(self.secret, message).decode()
        return headers


@dataclass(frozen=True)
class Client:
    """Sends requests to one server."""

    url: str

    async def request(
        self, method: str, path: str, *, headers: Mapping[Any, Any] | None = None, body: bytes | None = None
    ) -> Reply:
        # A connection for each request, so that none is left behind for the next test.
        client = HTTPClient(Agent(reactor))
        response = await client.request(method, self.url + path, headers=dict(headers or {}), data=body)
        content = await treq.content(response)
        sent = {
            name.decode().lower(): values[-1].decode("latin-1") for name, values in response.headers.getAllRawHeaders()
        }
        sent["content-length"] = str(response.length)  # which Twisted keeps apart
        return Reply(response.code, sent, content)

    async def send(
        self,
        app: App,
        body: bytes | list[Any],
        dialect: str = DOCUMENTED,
        *,
        changes: Mapping[str, str | None] | None = None,
        path: str | None = None,
        nonce: str | None = None,
        timestamp: int | str | None = None,
    ) -> Reply:
        """Send a batch that is signed as it should be.

        :param body: events, or the very bytes.
        :param changes: headers to set, or with ``None`` to leave out, after the signing.
        """
        raw = body if isinstance(body, bytes) else batch(body)
        headers = app.headers(raw, dialect, nonce=nonce, timestamp=timestamp)
        for name, value in (changes or {}).items():
            headers.pop(name, None)
            if value is not None:
                headers[name] = value
        return await self.request("POST", path or app.path, headers=headers, body=raw)


def batch(events: list[Any]) -> bytes:
    """The body for these events."""
    return json.dumps({"events": events}).encode()
