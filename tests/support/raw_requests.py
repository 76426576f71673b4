"""Requests as bytes, for tests that write to a socket."""

from __future__ import annotations

import time
import uuid

from tests.support.client import App

HEALTH_REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def request_head(app: App, body: bytes, *, length: bool = True) -> bytes:
    """Return everything that precedes the body of a signed request.

    :param length: whether the head contains the length of the body.
    """
    headers = {"Host": "x", **app.headers(body), **({"Content-Length": str(len(body))} if length else {})}
    lines = [f"POST {app.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def chunked_request_head(app: App, body: bytes) -> bytes:
    """Return the head of a signed request whose body is sent in chunks."""
    return request_head(app, body, length=False)[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"


def forged_head(app: App, *lines: str) -> bytes:
    """Return the head of a request with a wrong signature, as anybody can send it who knows the application's ids.

    :param lines: more headers.
    """
    start = f"POST {app.path} HTTP/1.1\r\nHost: x\r\nX-Signature: {'0' * 64}\r\n"
    identity = f"X-Timestamp: {int(time.time())}\r\nX-Nonce: {uuid.uuid4()}\r\n"
    return (start + identity + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


def signed_request(app: App, body: bytes) -> bytes:
    """Return a signed request."""
    return request_head(app, body) + body
