"""Ready-made signed requests, prepared before a measurement so that it does not include the cost of signing."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from tkserver.storage.embedded import demo
from tkserver.wire.signature import sign, signed_message

ORG_ID, APP_ID = demo.ORG_ID, demo.APP_ID

_ID = "00000000-0000-4000-8000-000000000000"

_EVENT = {
    "schema_version": "1.0.0",
    "event_id": _ID,
    "timestamp": "2026-01-02T03:04:05.678901Z",
    "service": {"name": "my-cli", "version": "1.2.3", "language": "rust", "language_version": "1.85.0"},
    "user_id": "client_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "session_id": "sess_0123456789abcdef0123456789abcdef",
    "environment": {"os": "linux", "os_version": "6.1.0", "arch": "x86_64", "ci": False, "shell": "bash"},
    "event": {
        "type": "command_execution",
        "category": "success",
        "data": {"command": "build", "flags": ["--release", "--verbose"], "duration_ms": 1234, "exit_code": 0},
    },
    "metadata": {
        "sdk_version": "telemetry-kit-rust/0.3.0",
        "transmission_timestamp": "2026-01-02T03:04:10Z",
        "batch_size": 1,
        "retry_count": 0,
    },
}


@dataclass(frozen=True)
class Sender:
    """An application that sends requests as the released SDK does."""

    path: str
    secret: str


DEMO = Sender(f"/v1/ingest/{ORG_ID}/{APP_ID}", demo.SECRET)

_BEFORE_ID, _AFTER_ID = json.dumps(_EVENT, separators=(",", ":")).encode().split(_ID.encode())


def new_bodies(count: int, events: int) -> Iterator[bytes]:
    """Return ``count`` request bodies with ``events`` events each. Every event has a new id."""
    for _ in range(count):
        ids = (str(uuid.uuid4()).encode() for _ in range(events))
        yield b'{"events":[' + b",".join(_BEFORE_ID + event_id + _AFTER_ID for event_id in ids) + b"]}"


def signed_request(body: bytes, sender: Sender = DEMO, encoding: str = "identity") -> bytes:
    """Return a complete HTTP request as the released SDK sends it, with the current time and a new nonce."""
    timestamp, nonce = str(int(time.time())).encode(), str(uuid.uuid4()).encode()
    signature = sign(sender.secret, signed_message(timestamp, nonce, body))
    head = (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Signature: %s\r\n"
        b"X-Timestamp: %s\r\nX-Nonce: %s\r\n%sContent-Length: %d\r\n\r\n"
    )
    coding = b"" if encoding == "identity" else b"Content-Encoding: %s\r\n" % encoding.encode()
    return head % (sender.path.encode(), signature, timestamp, nonce, coding, len(body)) + body
