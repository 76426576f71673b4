"""The client: requests to the server and to servers that fail, batches, retries and parsing of responses."""

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
from tkserver.client.client import retry_delay
from tkserver.client.responses import parse_response
from tkserver.server.supervisor import Supervisor
from tkserver.wire import event as wire_event
from tkserver.wire.event_validation import read_event
from tkserver.wire.signature import matches, signed_message

NOW = 1_800_000_000.0


def client_for(url: str, app: App, **options: Any) -> Client:
    """Return a client that retries without delay."""
    options = {"reactor": reactor, "random_fraction": lambda: 0.0, **options}
    return Client(url, app.org_id, app.app_id, app.token, app.secret, **options)


def event_builder() -> EventBuilder:
    return EventBuilder(service("my-cli", "1.0.0"))


# --- requests to the server


@pytest.fixture
def url(shared_server: Supervisor) -> str:
    return f"http://127.0.0.1:{shared_server.port}"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("compress", [False, True])
async def test_events_are_stored_once(url: str, app: App, shared_database: Database, compress: bool) -> None:
    """Events are sent in batches and stored, and are duplicates if they are sent again."""
    builder = event_builder()
    events = [builder.event("built", {"n": number, "text": "grün"}) for number in range(2100)]
    async with client_for(url, app, compress=compress) as client:
        assert await client.send(iter(events)) == Result(accepted=2100)
        assert await client.send(events) == Result(accepted=2100, duplicates=2100)
    stored = shared_database.query(
        "SELECT count(*), min(batch_size), max(batch_size), sum((event_data->>'n')::int), max(service_language)"
        " FROM events WHERE app_id = %s",
        app.app_id,
    )
    assert stored == [(2100, 100, 1000, sum(range(2100)), "python")]


@pytest_twisted.ensureDeferred
async def test_errors_have_index_among_all_events(url: str, app: App) -> None:
    """The index of an error is the position among all events, even if all events of the batch are rejected."""
    valid, invalid = make_event(), make_event(service__name="")
    events = [valid] * 1000 + [invalid]
    async with client_for(url, app) as client:
        result = await client.send(events)
    assert (result.accepted, result.rejected, result.duplicates) == (1000, 1, 999)
    assert [(error.index, error.code) for error in result.errors] == [(1000, "invalid_schema")]
    assert result.errors[0].event_id == uuid.UUID(invalid["event_id"])


@pytest_twisted.ensureDeferred
async def test_wrong_credentials_raise_refused(url: str, app: App) -> None:
    """Wrong credentials raise Refused with the error code of the server, and no message contains the credentials."""
    client = client_for(url, App(app.org_id, app.app_id, app.token, "wrong"))
    with pytest.raises(Refused) as caught:
        await client.send([make_event()])
    assert (caught.value.code, caught.value.status) == ("invalid_signature", 401)
    assert app.token not in f"{caught.value!r} {client!r} {vars(caught.value)}"
    await client.close()


@pytest_twisted.ensureDeferred
async def test_existing_metadata_is_not_changed(url: str, app: App, shared_database: Database) -> None:
    """The client adds metadata only to events without metadata."""
    text = json.dumps(make_event(metadata__sdk_version="other")).encode()
    mapping = make_event(metadata=MISSING)
    async with client_for(url, app) as client:
        assert await client.send([text, mapping]) == Result(accepted=2)
    versions = shared_database.query("SELECT sdk_version FROM events WHERE app_id = %s ORDER BY 1", app.app_id)
    assert versions[0] == ("other",)
    assert versions[1][0].startswith("tkserver-")


# --- requests to servers that fail


ScriptedResponse = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body, or ``None`` if the server does not respond."""


class ScriptedServer(Resource):
    """A server that sends prepared responses.

    :ivar requests: headers and body of each request.
    """

    isLeaf = True  # noqa: N815 -- name in Twisted

    def __init__(self, *responses: ScriptedResponse) -> None:
        super().__init__()
        self.responses = list(responses)
        self.requests: list[tuple[dict[str, str], bytes]] = []

    def render_POST(self, request: Request) -> Any:  # noqa: N802 -- name in Twisted
        headers = {name.decode(): values[-1].decode() for name, values in request.requestHeaders.getAllRawHeaders()}
        assert request.content is not None
        self.requests.append((headers, request.content.read()))
        response = self.responses.pop(0)
        if response is None:
            return NOT_DONE_YET
        status, response_headers, body = response
        request.setResponseCode(status)
        for name, value in response_headers.items():
            request.setHeader(name, value)
        return body


@asynccontextmanager
async def scripted_server(*responses: ScriptedResponse) -> AsyncIterator[tuple[ScriptedServer, str]]:
    """Start a server that sends these responses. Yield the server and its URL."""
    server = ScriptedServer(*responses)
    untyped_reactor: Any = reactor
    port = untyped_reactor.listenTCP(0, Site(server), interface="127.0.0.1")
    try:
        yield server, f"http://127.0.0.1:{port.getHost().port}"
    finally:
        await port.stopListening()


OK: ScriptedResponse = (200, {}, b'{"status":"success","accepted":1,"rejected":0,"duplicates":0,"message":""}')
BUSY: ScriptedResponse = (
    503,
    {"Retry-After": "0"},
    b'{"error":{"code":"overloaded","message":"later"},"retry_after":0}',
)
LIMITED: ScriptedResponse = (
    429,
    {"Retry-After": "100"},
    b'{"error":{"code":"rate_limited","message":"slowly"},"retry_after":100}',
)
PROXY: ScriptedResponse = (502, {}, b"<html>")


@pytest_twisted.ensureDeferred
async def test_batch_is_retried_with_new_nonce_and_signature() -> None:
    """A batch is retried with the same event ids, a new nonce and a valid signature."""
    app = App()
    async with scripted_server(BUSY, PROXY, OK) as (server, url), client_for(url, app) as client:
        assert await client.send([event_builder().event("built")]) == Result(accepted=1)
    assert len({headers["X-Nonce"] for headers, _ in server.requests}) == 3
    for headers, body in server.requests:
        message = signed_message(headers["X-Timestamp"].encode(), headers["X-Nonce"].encode(), body)
        assert matches(app.secret, message, headers["X-Signature"].encode())
    events = [json.loads(body)["events"][0] for _, body in server.requests]
    assert len({event["event_id"] for event in events}) == 1
    assert [event["metadata"]["retry_count"] for event in events] == [0, 1, 2]


@pytest_twisted.ensureDeferred
async def test_error_after_last_attempt_contains_earlier_results() -> None:
    """After the last attempt, the error contains the response of the server and the result of the earlier batches."""
    async with scripted_server(OK, BUSY, BUSY) as (server, url), client_for(url, App(), tries=2) as client:
        with pytest.raises(NotNow) as caught:
            await client.send([make_event() for _ in range(1001)])
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("overloaded", 503, 0)
    assert caught.value.so_far == Result(accepted=1)
    assert len(server.requests) == 3


@pytest_twisted.ensureDeferred
async def test_long_retry_after_is_not_waited_for() -> None:
    """The client does not wait if the server asks for a longer delay than the maximum, and the error contains it."""
    async with scripted_server(LIMITED) as (server, url), client_for(url, App(), max_wait=60) as client:
        with pytest.raises(NotNow) as caught:
            await client.send([make_event()])
    assert (caught.value.code, caught.value.retry_after) == ("rate_limited", 100)
    assert len(server.requests) == 1


@pytest_twisted.ensureDeferred
async def test_missing_response_is_retried() -> None:
    """The client tries again if the server does not respond or is not reachable, and finally raises NotNow."""
    async with scripted_server(None, OK) as (server, url), client_for(url, App(), timeout=0.3) as client:
        assert await client.send([make_event()]) == Result(accepted=1)
    assert len(server.requests) == 2
    with pytest.raises(NotNow) as caught:
        await client_for(url, App(), tries=2).send([make_event()])
    assert (caught.value.code, caught.value.status) == ("unreachable", None)


# --- delays, responses and batches


def test_retry_delay_grows_exponentially() -> None:
    """Delays double up to a maximum, are multiplied by a random fraction, and are added to ``retry_after``."""
    assert [retry_delay(attempts, None, 60, 1.0) for attempts in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 60.0]
    assert retry_delay(3, None, 60, 0.25) == 0.5
    assert retry_delay(1, 7.0, 60, 0.0) == 7.0


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("12", 12.0), (formatdate(NOW + 30, usegmt=True), 30.0), (formatdate(0), 0.0), ("soon", None), (None, None)],
)
def test_retry_after_header_is_parsed(retry_after: str | None, seconds: float | None) -> None:
    """A ``Retry-After`` header with seconds or a date is used if the body does not contain the delay."""
    with pytest.raises(NotNow) as caught:
        parse_response(503, retry_after, b"", NOW)
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"{}"), (204, b""), (302, b""), (404, b"\xff"), (400, b'{"error":1}')]
)
def test_response_of_other_server_raises_refused(status: int, body: bytes) -> None:
    """A response that is not from a tkserver raises Refused with the code ``unexpected_answer``."""
    with pytest.raises(Refused) as caught:
        parse_response(status, None, body, NOW)
    assert caught.value.code == "unexpected_answer"


def test_batch_of_rejected_events_returns_result() -> None:
    """A response that rejects all events is a result, not an exception."""
    body = b'{"error":{"code":"all_events_rejected","message":""},"errors":[{"index":0,"error":"event_id_conflict",'
    body += b'"message":"m","event_id":"00000000-0000-0000-0000-000000000000"}]}'
    result = parse_response(400, None, body, NOW)
    assert result == Result(rejected=1, errors=(EventError(0, uuid.UUID(int=0), "event_id_conflict", "m"),))


@pytest.mark.parametrize(
    "create_event",
    [lambda text: event_builder().event("e", text), lambda text: make_event(event__data=text)],
    ids=["without metadata", "with metadata"],
)
def test_batches_are_within_limits(create_event: Callable[[str], Any]) -> None:
    """No batch is longer than the maximum, and the batches contain all events in their order."""
    sizes = [1, 100_000, 50] * 60

    def events() -> Iterator[Any]:
        return (create_event(str(number) + "x" * size) for number, size in enumerate(sizes))

    bodies = [
        batch.body("v" * 50, datetime.fromtimestamp(NOW, timezone.utc), 9) for batch in batches(events(), max_events=7)
    ]
    numbers = [event["event"]["data"].rstrip("x") for body in bodies for event in json.loads(body)["events"]]
    assert numbers == [str(number) for number in range(len(sizes))]
    assert all(len(body) <= MAX_BYTES for body in bodies)


def test_batches_are_limited_by_bytes() -> None:
    """The number of events in a batch depends on their size, and an event that is too long gets its own batch."""
    texts = [b'{"a":"%s"}' % (b"x" * length) for length in (900, 900, 5000, 10)]
    assert [len(batch.texts) for batch in batches(texts, max_bytes=3000)] == [2, 1, 1]


@pytest.mark.parametrize("text", [b"[]", b"{", b"", b"1"])
def test_text_that_is_not_an_object_raises_value_error(text: bytes) -> None:
    """A text that is not a JSON object raises ValueError before anything is sent."""
    with pytest.raises(ValueError):
        list(batches([text]))


def test_built_events_are_valid_and_anonymous() -> None:
    """The events of a builder are valid, and have a random user id."""
    event = event_builder().event("built", {"ok": True}, category="success")
    (batch,) = batches([event])
    (raw,) = json.loads(batch.body("1", event.timestamp, 0))["events"]
    read = read_event(json.dumps(raw).encode())
    assert isinstance(read, wire_event.Event)
    assert read.event_id == event.event_id
    assert read.user_id.startswith("anon_")
    assert event_builder().event("built").user_id != event.user_id


@pytest_twisted.ensureDeferred
async def test_slugs(url: str, app: App, shared_database: Database) -> None:
    """A client can address its application by slugs."""
    shared_database.query("INSERT INTO orgs (org_id, name, slug) VALUES (%s, 'Client', 'client.org')", app.org_id)
    shared_database.query(
        "INSERT INTO apps (org_id, app_id, name, slug) VALUES (%s, %s, 'x', 'my_cli')", app.org_id, app.app_id
    )
    async with Client(url, "client.org", "my_cli", app.token, app.secret, reactor=reactor) as client:
        assert await client.send([event_builder().event("built")]) == Result(accepted=1)


@pytest.mark.parametrize("bad", ["", "a/b", "a b", "ä", "x" * 101, "a?b"], ids=repr)
def test_invalid_slugs(bad: str) -> None:
    """A text that cannot be in the path is an error before anything is sent."""
    for ids in ((bad, "app"), ("org", bad)):
        with pytest.raises(ValueError, match="A-Z a-z 0-9"):
            Client("http://127.0.0.1:1", *ids, "token", "secret", reactor=reactor)
