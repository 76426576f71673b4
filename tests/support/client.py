"""A non-blocking client that sends valid and invalid requests in all dialects of the contract, over real sockets."""

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
    """A response.

    :ivar headers: the last value of each header by its lower-case name.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The code of the error, if the response is one."""
        return str(self.json["error"]["code"]) if self.body and "error" in self.json else None


@dataclass(frozen=True)
class App:
    """An application with a credential."""

    org_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    app_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    token: str = field(default_factory=lambda: f"tk_{uuid.uuid4().hex}")
    secret: str = field(default_factory=lambda: uuid.uuid4().hex * 2)

    @property
    def path(self) -> str:
        return f"/v1/ingest/{self.org_id}/{self.app_id}"

    def install(self, database: Database) -> App:
        """Store the credential in a database."""
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
        """Return the headers of a request with this body.

        :param nonce: a new one by default, in the dialects that have a nonce.
        :param timestamp: the current time by default.
        """
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
    """A client of one server."""

    url: str

    async def request(
        self, method: str, path: str, *, headers: Mapping[Any, Any] | None = None, body: bytes | None = None
    ) -> Reply:
        """Send a request on a new connection, which is closed afterwards, so that the next test starts with none."""
        client = HTTPClient(Agent(reactor))
        response = await client.request(method, self.url + path, headers=dict(headers or {}), data=body)
        content = await treq.content(response)
        received = {
            name.decode().lower(): values[-1].decode("latin-1") for name, values in response.headers.getAllRawHeaders()
        }
        received["content-length"] = str(response.length)  # Twisted does not list it among the headers
        return Reply(response.code, received, content)

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
        """Send a batch with a valid signature.

        :param body: events, or the body itself.
        :param changes: headers that are replaced after signing, or removed if the value is ``None``.
        """
        raw = body if isinstance(body, bytes) else batch(body)
        headers = app.headers(raw, dialect, nonce=nonce, timestamp=timestamp)
        for name, value in (changes or {}).items():
            headers.pop(name, None)
            if value is not None:
                headers[name] = value
        return await self.request("POST", path or app.path, headers=headers, body=raw)


def batch(events: list[Any]) -> bytes:
    """Return the body of a request with these events."""
    return json.dumps({"events": events}).encode()
