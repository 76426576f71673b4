"""Each request has an id, which the answer repeats."""

from __future__ import annotations

import re

import pytest
import pytest_twisted

from tests.support.client import App, Client
from tests.support.events import make_event
from tests.support.peer import connect
from tkserver.server.supervisor import Supervisor

MADE = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize("sent", ["a", "!~" * 32, "4bf92f35-77b3"])
@pytest_twisted.ensureDeferred
async def test_taken(client: Client, app: App, sent: str) -> None:
    """A harmless id is taken as it is, in the answer to what is stored and in the body of what is refused."""
    stored = await client.send(app, [make_event()], changes={"X-Request-ID": sent})
    refused = await client.request("POST", app.path, headers={"X-Request-ID": sent})
    assert (stored.status, refused.status) == (200, 401)
    assert stored.headers["x-request-id"] == refused.headers["x-request-id"] == refused.json["request_id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "two words", "gr\u00fcn", "tab\there"])
@pytest_twisted.ensureDeferred
async def test_not_taken(client: Client, sent: str) -> None:
    """Any other is left, and one is made."""
    reply = await client.request("GET", "/health", headers={"X-Request-ID": sent.encode("latin-1")})
    assert MADE.fullmatch(reply.headers["x-request-id"])


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("PUT", "/health"), ("OPTIONS", "/health")])
@pytest_twisted.ensureDeferred
async def test_made(client: Client, method: str, path: str) -> None:
    """Each request that comes without one gets one of its own, wherever it leads."""
    ids = [(await client.request(method, path)).headers["x-request-id"] for _ in range(2)]
    assert all(MADE.fullmatch(one) for one in ids)
    assert ids[0] != ids[1]


@pytest_twisted.ensureDeferred
async def test_the_last_is_the_proxys(client: Client) -> None:
    """Of several the last one counts, which is a proxy's if there is one."""
    headers = {"X-Request-ID": ["the-clients", "the-proxys"]}
    reply = await client.request("GET", "/health", headers=headers)
    assert reply.headers["x-request-id"] == "the-proxys"


@pytest_twisted.ensureDeferred
async def test_what_is_no_request(shared_server: Supervisor) -> None:
    """What cannot be read as a request has one as well."""
    peer = await connect(shared_server.port)
    peer.write(b"no HTTP at all\r\n\r\n")
    answer = (await peer.end()).decode()
    (sent,) = re.findall(r"X-Request-ID: (\S+)", answer)
    assert MADE.fullmatch(sent)
    assert f'"request_id":"{sent}"' in answer


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"no header\r\n\r\n",
    ],
    ids=["broken body", "two lengths", "broken header"],
)
@pytest_twisted.ensureDeferred
async def test_what_never_arrives_whole(shared_server: Supervisor, app: App, rest: bytes) -> None:
    """An id that came before it is known what is wrong is taken, too."""
    peer = await connect(shared_server.port)
    peer.write(b"POST %s HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine\r\n%s" % (app.path.encode(), rest))
    answer = (await peer.end()).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    assert "\r\nX-Request-ID: mine\r\n" in answer
    assert '"request_id":"mine"' in answer


@pytest_twisted.ensureDeferred
async def test_the_next_of_a_connection(shared_server: Supervisor) -> None:
    """What is no request does not get the id of the one before it."""
    peer = await connect(shared_server.port)
    peer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: mine\r\n\r\nno HTTP at all\r\n\r\n")
    first, second = re.findall(r"X-Request-ID: (\S+)", (await peer.end()).decode())
    assert first == "mine"
    assert MADE.fullmatch(second)
