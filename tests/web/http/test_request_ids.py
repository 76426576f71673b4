"""Request ids: every response contains one in ``X-Request-ID``."""

from __future__ import annotations

import re

import pytest
import pytest_twisted

from tests.support.client import App, Client
from tests.support.events import make_event
from tests.support.peer import connect
from tests.support.raw_requests import forged_head
from tkserver.server.supervisor import Supervisor

GENERATED_ID = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize("request_id", ["a", "!~" * 32, "4bf92f35-77b3"])
@pytest_twisted.ensureDeferred
async def test_valid_id_of_client_is_used(client: Client, app: App, request_id: str) -> None:
    """A valid id from the client is used in the headers of all responses, and in the bodies of errors."""
    stored = await client.send(app, [make_event()], changes={"X-Request-ID": request_id})
    rejected = await client.request("POST", app.path, headers={"X-Request-ID": request_id})
    assert (stored.status, rejected.status) == (200, 401)
    assert stored.headers["x-request-id"] == request_id
    assert rejected.headers["x-request-id"] == rejected.json["request_id"] == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 65, "two words", "gr\u00fcn", "tab\there"])
@pytest_twisted.ensureDeferred
async def test_invalid_id_of_client_is_replaced(client: Client, request_id: str) -> None:
    """An invalid id from the client is replaced by a generated one."""
    reply = await client.request("GET", "/health", headers={"X-Request-ID": request_id.encode("latin-1")})
    assert GENERATED_ID.fullmatch(reply.headers["x-request-id"])


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("PUT", "/health"), ("OPTIONS", "/health")])
@pytest_twisted.ensureDeferred
async def test_requests_without_id_get_different_ids(client: Client, method: str, path: str) -> None:
    """Each request without an id gets a new one, also if its path or method does not exist."""
    ids = [(await client.request(method, path)).headers["x-request-id"] for _ in range(2)]
    assert all(GENERATED_ID.fullmatch(request_id) for request_id in ids)
    assert ids[0] != ids[1]


@pytest_twisted.ensureDeferred
async def test_last_header_is_used(client: Client) -> None:
    """If there are several headers, the last one is used, which a proxy has appended."""
    headers = {"X-Request-ID": ["from-the-client", "from-the-proxy"]}
    reply = await client.request("GET", "/health", headers=headers)
    assert reply.headers["x-request-id"] == "from-the-proxy"


@pytest_twisted.ensureDeferred
async def test_malformed_request_gets_an_id(shared_server: Supervisor) -> None:
    """The response to input that is not HTTP contains a generated id."""
    peer = await connect(shared_server.port)
    peer.write(b"no HTTP at all\r\n\r\n")
    response = (await peer.read_all()).decode()
    (request_id,) = re.findall(r"X-Request-ID: (\S+)", response)
    assert GENERATED_ID.fullmatch(request_id)
    assert f'"request_id":"{request_id}"' in response


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"no header\r\n\r\n",
    ],
    ids=["malformed body", "two lengths", "malformed header"],
)
@pytest_twisted.ensureDeferred
async def test_id_before_malformed_part_is_used(shared_server: Supervisor, app: App, rest: bytes) -> None:
    """If a request is malformed after its id, the error response contains the id."""
    peer = await connect(shared_server.port)
    peer.write(forged_head(app, "X-Request-ID: mine").removesuffix(b"\r\n") + rest)
    response = (await peer.read_all()).decode()
    assert response.startswith("HTTP/1.1 400 ")
    assert "\r\nX-Request-ID: mine\r\n" in response
    assert '"request_id":"mine"' in response


@pytest_twisted.ensureDeferred
async def test_id_is_not_reused_for_next_request(shared_server: Supervisor) -> None:
    """A malformed request does not get the id of the previous request on its connection."""
    peer = await connect(shared_server.port)
    peer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine\r\n\r\nno HTTP at all\r\n\r\n")
    first, second = re.findall(r"X-Request-ID: (\S+)", (await peer.read_all()).decode())
    assert first == "mine"
    assert GENERATED_ID.fullmatch(second)
