"""The client for Python programs, against the server, and against others that have bad days."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from email.utils import formatdate
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.support.client import App
from tests.support.database import Database
from tests.support.events import MISSING, make_event
from tkserver.client import Client, EventBuilder, EventError, NotNow, Refused, Result, service
from tkserver.client.batches import MAX_BYTES, batches
from tkserver.client.client import wait
from tkserver.client.responses import result_of
from tkserver.server.supervisor import Supervisor
from tkserver.wire.event_validation import read_event
from tkserver.wire.signature import matches, signed_message

NOW = 1_800_000_000.0


def client_of(url: str, app: App, **options: Any) -> Client:
    options = {"reactor": reactor, "random_fraction": lambda: 0.0, **options}
    return Client(url, app.org_id, app.app_id, app.token, app.secret, **options)


def builder() -> EventBuilder:
    return EventBuilder(service("my-cli", "1.0.0"))


# --- against the server


@pytest.fixture
def url(shared_server: Supervisor) -> str:
    return f"http://127.0.0.1:{shared_server.port}"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("compress", [False, True])
async def test_any_number(url: str, app: App, shared_database: Database, compress: bool) -> None:
    """Events are sent in batches, stored, and found to be duplicates when they are sent again."""
    build = builder()
    events = [build.event("built", {"n": n, "text": "grün"}) for n in range(2100)]
    async with client_of(url, app, compress=compress) as client:
        assert await client.send(iter(events)) == Result(accepted=2100)
        assert await client.send(events) == Result(accepted=2100, duplicates=2100)
    stored = shared_database.query(
        "SELECT count(*), min(batch_size), max(batch_size), sum((event_data->>'n')::int), max(service_language)"
        " FROM events WHERE app_id = %s",
        app.app_id,
    )
    assert stored == [(2100, 100, 1000, sum(range(2100)), "python")]


@pytest_twisted.ensureDeferred
async def test_errors(url: str, app: App) -> None:
    """Events that are refused are named by their place among all, also where nothing of a batch was accepted."""
    good, bad = make_event(), make_event(service__name="")
    events = [good] * 1000 + [bad]
    async with client_of(url, app) as client:
        result = await client.send(events)
    assert (result.accepted, result.rejected, result.duplicates) == (1000, 1, 999)
    assert [(error.index, error.code) for error in result.errors] == [(1000, "invalid_schema")]
    assert result.errors[0].event_id == uuid.UUID(bad["event_id"])


@pytest_twisted.ensureDeferred
async def test_refused(url: str, app: App) -> None:
    """Credentials that do not fit are an exception with the server's code, and are not shown."""
    client = client_of(url, App(app.org_id, app.app_id, app.token, "wrong"))
    with pytest.raises(Refused) as caught:
        await client.send([make_event()])
    assert (caught.value.code, caught.value.status) == ("invalid_signature", 401)
    assert app.token not in f"{caught.value!r} {client!r} {vars(caught.value)}"
    await client.close()


@pytest_twisted.ensureDeferred
async def test_own_metadata(url: str, app: App, shared_database: Database) -> None:
    """Metadata that an event has stays; JSON texts are sent as they are."""
    text = json.dumps(make_event(metadata__sdk_version="other")).encode()
    mapping = make_event(metadata=MISSING)
    async with client_of(url, app) as client:
        assert await client.send([text, mapping]) == Result(accepted=2)
    versions = shared_database.query("SELECT sdk_version FROM events WHERE app_id = %s ORDER BY 1", app.app_id)
    assert versions[0] == ("other",)
    assert versions[1][0].startswith("tkserver-")


# --- against servers that have bad days


Script = tuple[int, dict[str, str], bytes] | None


class Scripted(Resource):
    """Answers with what it is told to, one after the other, and notes what it got."""

    isLeaf = True  # noqa: N815 -- Twisted looks for it by this name

    def __init__(self, *answers: Script) -> None:
        super().__init__()
        self.answers = list(answers)
        self.seen: list[tuple[dict[str, str], bytes]] = []

    def render_POST(self, request: Request) -> Any:  # noqa: N802 -- Twisted calls it by this name
        headers = {name.decode(): values[-1].decode() for name, values in request.requestHeaders.getAllRawHeaders()}
        assert request.content is not None
        self.seen.append((headers, request.content.read()))
        answer = self.answers.pop(0)
        if answer is None:
            return NOT_DONE_YET
        status, sent, body = answer
        request.setResponseCode(status)
        for name, value in sent.items():
            request.setHeader(name, value)
        return body


@asynccontextmanager
async def scripted(*answers: Script) -> AsyncIterator[tuple[Scripted, str]]:
    resource = Scripted(*answers)
    listening: Any = reactor
    port = listening.listenTCP(0, Site(resource), interface="127.0.0.1")
    try:
        yield resource, f"http://127.0.0.1:{port.getHost().port}"
    finally:
        await port.stopListening()


OK: Script = (200, {}, b'{"status":"success","accepted":1,"rejected":0,"duplicates":0,"message":""}')
BUSY: Script = (503, {"Retry-After": "0"}, b'{"error":{"code":"overloaded","message":"later"},"retry_after":0}')
LIMITED: Script = (
    429,
    {"Retry-After": "100"},
    b'{"error":{"code":"rate_limited","message":"slowly"},"retry_after":100}',
)
PROXY: Script = (502, {}, b"<html>")


@pytest_twisted.ensureDeferred
async def test_sent_again() -> None:
    """A batch is sent again with the same ids, another nonce, and a signature that fits."""
    app = App()
    async with scripted(BUSY, PROXY, OK) as (server, url), client_of(url, app) as client:
        assert await client.send([builder().event("built")]) == Result(accepted=1)
    assert len({headers["X-Nonce"] for headers, _ in server.seen}) == 3
    for headers, body in server.seen:
        message = signed_message(headers["X-Timestamp"].encode(), headers["X-Nonce"].encode(), body)
        assert matches(app.secret, message, headers["X-Signature"].encode())
    events = [json.loads(body)["events"][0] for _, body in server.seen]
    assert len({event["event_id"] for event in events}) == 1
    assert [event["metadata"]["retry_count"] for event in events] == [0, 1, 2]


@pytest_twisted.ensureDeferred
async def test_given_up() -> None:
    """After its tries it says why, and what became of the batches before."""
    async with scripted(OK, BUSY, BUSY) as (server, url), client_of(url, App(), tries=2) as client:
        with pytest.raises(NotNow) as caught:
            await client.send([make_event() for _ in range(1001)])
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("overloaded", 503, 0)
    assert caught.value.so_far == Result(accepted=1)
    assert len(server.seen) == 3


@pytest_twisted.ensureDeferred
async def test_asked_for_too_much() -> None:
    """A server that wants to be left alone for long is, and the caller is told for how long."""
    async with scripted(LIMITED) as (server, url), client_of(url, App(), max_wait=60) as client:
        with pytest.raises(NotNow) as caught:
            await client.send([make_event()])
    assert (caught.value.code, caught.value.retry_after) == ("rate_limited", 100)
    assert len(server.seen) == 1


@pytest_twisted.ensureDeferred
async def test_no_answer() -> None:
    """A server that says nothing, or is not there, is tried again and then reported."""
    async with scripted(None, OK) as (server, url), client_of(url, App(), timeout=0.3) as client:
        assert await client.send([make_event()]) == Result(accepted=1)
    assert len(server.seen) == 2
    with pytest.raises(NotNow) as caught:
        await client_of(url, App(), tries=2).send([make_event()])
    assert (caught.value.code, caught.value.status) == ("unreachable", None)


# --- pure


def test_waits_longer_each_time() -> None:
    """Waits double up to a bound, are spread at random, and come on top of what the server asks for."""
    assert [wait(tried, None, 60, 1.0) for tried in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 60.0]
    assert wait(3, None, 60, 0.25) == 0.5
    assert wait(1, 7.0, 60, 0.0) == 7.0


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("12", 12.0), (formatdate(NOW + 30, usegmt=True), 30.0), (formatdate(0), 0.0), ("soon", None), (None, None)],
)
def test_retry_after(retry_after: str | None, seconds: float | None) -> None:
    """Seconds and dates are understood where the answer is not the server's own."""
    with pytest.raises(NotNow) as caught:
        result_of(503, retry_after, b"", NOW)
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"{}"), (204, b""), (302, b""), (404, b"\xff"), (400, b'{"error":1}')]
)
def test_no_tkserver(status: int, body: bytes) -> None:
    """Whatever else answers is found out."""
    with pytest.raises(Refused) as caught:
        result_of(status, None, body, NOW)
    assert caught.value.code == "unexpected_answer"


def test_nothing_accepted() -> None:
    """A batch of which nothing is accepted is a result as others are."""
    body = b'{"error":{"code":"all_events_rejected","message":""},"errors":[{"index":0,"error":"event_id_conflict",'
    body += b'"message":"m","event_id":"00000000-0000-0000-0000-000000000000"}]}'
    result = result_of(400, None, body, NOW)
    assert result == Result(rejected=1, errors=(EventError(0, uuid.UUID(int=0), "event_id_conflict", "m"),))


@pytest.mark.parametrize(
    "make", [lambda text: builder().event("e", text), lambda text: make_event(event__data=text)], ids=["built", "sent"]
)
def test_batches_keep_the_limits(make: Callable[[str], Any]) -> None:
    """No batch is longer than a server takes; all events are there, in their order."""
    sizes = [1, 100_000, 50] * 60

    def events() -> Iterator[Any]:
        return (make(str(n) + "x" * size) for n, size in enumerate(sizes))

    bodies = [
        batch.body("v" * 50, datetime.fromtimestamp(NOW, timezone.utc), 9) for batch in batches(events(), max_events=7)
    ]
    seen = [event["event"]["data"].rstrip("x") for body in bodies for event in json.loads(body)["events"]]
    assert seen == [str(n) for n in range(len(sizes))]
    assert all(len(body) <= MAX_BYTES for body in bodies)


def test_bytes_of_a_batch() -> None:
    """Long events make for fewer of them in a batch; one that is too long for all is sent alone."""
    texts = [b'{"a":"%s"}' % (b"x" * length) for length in (900, 900, 5000, 10)]
    assert [len(batch.texts) for batch in batches(texts, max_bytes=3000)] == [2, 1, 1]


@pytest.mark.parametrize("text", [b"[]", b"{", b"", b"1"])
def test_no_event(text: bytes) -> None:
    """What is no JSON object is refused before it is sent."""
    with pytest.raises(ValueError):
        list(batches([text]))


def test_built_events_are_valid() -> None:
    """What the builder makes keeps every rule, and says nothing about who it was."""
    event = builder().event("built", {"ok": True}, category="success")
    (batch,) = batches([event])
    (raw,) = json.loads(batch.body("1", event.timestamp, 0))["events"]
    read = read_event(json.dumps(raw).encode())
    assert read.event_id == event.event_id
    assert read.user_id.startswith("anon_")
    assert builder().event("built").user_id != event.user_id
