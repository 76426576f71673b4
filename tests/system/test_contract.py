"""The wire contract over real sockets: a test for every row of its tables."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.support.client import BOTH, DIALECTS, DOCUMENTED, SDK, App, Client, Reply, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.queries import stored_ids
from tests.support.waiting import until
from tkserver import __version__
from tkserver.server.sweeper import delete_old_nonces
from tkserver.storage.blocking import BlockingConnections
from tkserver.wire.signature import sign, signed_message

NIL = "00000000-0000-0000-0000-000000000000"

INGEST_PATH = f"/v1/ingest/{NIL}/{NIL}"
"""The path of an application without credentials."""

MAX_BODY_BYTES = 12_582_912
LARGEST_EVENT = 102_400

REJECT_ODD = """
CREATE FUNCTION reject_odd() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE check_violation; END $$;
CREATE CONSTRAINT TRIGGER odd AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.event_type = 'odd') EXECUTE FUNCTION reject_odd()
"""


def assert_error(reply: Reply, status: int, code: str) -> None:
    """Check that a response is an error response of the contract."""
    assert (reply.status, reply.code) == (status, code)
    assert set(reply.json["error"]) == {"code", "message"}
    assert reply.json["error"]["message"]


class TestEndpoints:
    """The table "Endpoints"."""

    @pytest_twisted.ensureDeferred
    async def test_health(self, client: Client) -> None:
        """The liveness check returns the version."""
        reply = await client.request("GET", "/health")
        assert (reply.status, reply.json) == (200, {"status": "healthy", "version": __version__})

    @pytest_twisted.ensureDeferred
    async def test_ready(self, client: Client) -> None:
        """A server whose database accepts writes is ready."""
        reply = await client.request("GET", "/health/ready")
        assert (reply.status, reply.json) == (200, {"status": "ready"})

    @pytest.mark.parametrize("path", ["/health", "/health/ready", INGEST_PATH])
    @pytest_twisted.ensureDeferred
    async def test_preflight(self, client: Client, path: str) -> None:
        """A preflight request allows any method and header from any origin."""
        headers = {
            "Origin": "https://example.org",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, x-anything",
        }
        reply = await client.request("OPTIONS", path, headers=headers)
        assert (reply.status, reply.body) == (204, b"")
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["access-control-allow-methods"] == "POST"
        assert reply.headers["access-control-allow-headers"] == "authorization, x-anything"
        assert reply.headers["x-clacks-overhead"] == "GNU Terry Pratchett"

    @pytest_twisted.ensureDeferred
    async def test_head(self, client: Client) -> None:
        """A HEAD request to the liveness check returns no body."""
        reply = await client.request("HEAD", "/health")
        assert (reply.status, reply.body) == (200, b"")

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/health", 200),
            ("GET", "/nothing", 404),
            ("GET", "/health/", 404),
            ("GET", "/%ff%fe", 404),
            ("PUT", "/health", 405),
            ("POST", "/v1/ingest/%20/y", 400),
            ("POST", INGEST_PATH, 401),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_common_headers(self, client: Client, method: str, path: str, status: int) -> None:
        """Every response is JSON with a length, can be read by web pages, and has the header X-Clacks-Overhead."""
        reply = await client.request(method, path, headers={"Origin": "https://example.org"})
        assert reply.status == status
        assert reply.headers["x-clacks-overhead"] == "GNU Terry Pratchett"
        assert reply.headers["content-type"] == "application/json"
        assert int(reply.headers["content-length"]) == len(reply.body)
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.json


class TestDialects:
    """The table "Dialects"."""

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest_twisted.ensureDeferred
    async def test_accepted(self, client: Client, app: App, shared_database: Database, dialect: str) -> None:
        """Events are stored in each dialect."""
        event = make_event()
        reply = await client.send(app, [event], dialect)
        assert reply.status == 200
        assert reply.json == {
            "status": "success",
            "accepted": 1,
            "rejected": 0,
            "duplicates": 0,
            "message": "1 event accepted",
        }
        assert stored_ids(shared_database, app) == [event["event_id"]]

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest_twisted.ensureDeferred
    async def test_upper_case_signature(self, client: Client, app: App, dialect: str) -> None:
        """The hexadecimal digits of a signature can be in upper case."""
        body = batch([make_event()])
        headers = app.headers(body, dialect)
        headers["X-Signature"] = headers["X-Signature"].upper()
        assert (await client.request("POST", app.path, headers=headers, body=body)).status == 200

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest_twisted.ensureDeferred
    async def test_gzip_is_signed_as_sent(self, client: Client, app: App, dialect: str) -> None:
        """The signature of a compressed body covers the compressed bytes."""
        body = gzip.compress(batch([make_event()]))
        assert (await client.send(app, body, dialect, changes={"Content-Encoding": "gzip"})).status == 200

    @pytest_twisted.ensureDeferred
    async def test_unsigned_nonce(self, client: Client, app: App) -> None:
        """A signature that does not cover the nonce of the request is invalid."""
        reply = await client.send(app, [make_event()], DOCUMENTED, changes={"X-Nonce": "abc"})
        assert_error(reply, 401, "invalid_signature")

    @pytest_twisted.ensureDeferred
    async def test_removed_nonce(self, client: Client, app: App) -> None:
        """A signature that covers a nonce is invalid for a request without it."""
        reply = await client.send(app, [make_event()], BOTH, changes={"X-Nonce": None})
        assert_error(reply, 401, "invalid_signature")

    @pytest_twisted.ensureDeferred
    async def test_invalid_token_with_nonce(self, client: Client, app: App) -> None:
        """A request with a nonce needs no token, but an invalid token is an error."""
        for authorization in ("Bearer tk_wrong", "Bearer", "Basic abc", f"Token {app.token}", ""):
            reply = await client.send(app, [make_event()], BOTH, changes={"Authorization": authorization})
            assert_error(reply, 401, "invalid_token")

    @pytest_twisted.ensureDeferred
    async def test_any_active_credential(self, client: Client, app: App, shared_database: Database) -> None:
        """Without a token, the secret of any active credential of the application is valid."""
        other = App(app.org_id, app.app_id).install(shared_database)
        for credential in (app, other):
            assert (await client.send(credential, [make_event()], SDK)).status == 200
        shared_database.query("UPDATE api_tokens SET is_active = false WHERE token = %s", other.token)
        await until_rejected(client, other, within=2)
        assert_error(await client.send(other, [make_event()], SDK), 401, "invalid_signature")
        assert (await client.send(app, [make_event()], SDK)).status == 200


async def until_rejected(client: Client, app: App, within: float) -> None:
    """Send events until the server rejects the credential."""

    async def is_rejected() -> bool:
        return (await client.send(app, [make_event()], SDK)).status != 200

    await until(is_rejected, lambda: f"a revoked token was accepted for more than {within} seconds", within)


class TestOrderOfChecks:
    """The table "Order of checks": each check, and that it precedes the next one."""

    @pytest_twisted.ensureDeferred
    async def test_routes(self, client: Client) -> None:
        """1: the path does not exist."""
        assert_error(await client.request("POST", "/v1/ingest"), 404, "not_found")

    @pytest_twisted.ensureDeferred
    async def test_methods(self, client: Client, app: App) -> None:
        """1: the method is not allowed, and the response lists the allowed ones."""
        reply = await client.request("GET", app.path)
        assert_error(reply, 405, "method_not_allowed")
        assert reply.headers["allow"] == "OPTIONS, POST"

    @pytest_twisted.ensureDeferred
    async def test_route_before_size(self, client: Client) -> None:
        """1 before 6: the path does not exist, and the body is too large."""
        assert_error(await client.request("POST", "/nothing", body=bytes(MAX_BODY_BYTES + 1)), 404, "not_found")

    @pytest.mark.parametrize("bad", ["x" * 101, "%20x", "%ff", "{550e8400-e29b-41d4-a716-446655440000}"])
    @pytest_twisted.ensureDeferred
    async def test_ids(self, client: Client, app: App, bad: str) -> None:
        """2: an id is neither a UUID nor a possible name; this precedes the check of the headers."""
        assert_error(await client.request("POST", f"/v1/ingest/{bad}/{app.app_id}"), 400, "invalid_id")
        assert_error(await client.request("POST", f"/v1/ingest/{app.org_id}/{bad}"), 400, "invalid_id")

    @pytest.mark.parametrize(
        ("missing", "code"),
        [
            (["X-Signature", "X-Timestamp", "Authorization"], "missing_signature"),
            (["X-Timestamp", "Authorization"], "missing_timestamp"),
            (["Authorization"], "missing_authorization"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_missing_headers(self, client: Client, app: App, missing: list[str], code: str) -> None:
        """3: a required header is missing; this precedes the check of the timestamp."""
        changes = {"X-Timestamp": "yesterday", **dict.fromkeys(missing)}
        assert_error(reply := await client.send(app, [make_event()], changes=changes), 401, code)
        assert reply.headers["www-authenticate"] == "Bearer"

    @pytest_twisted.ensureDeferred
    async def test_credential(self, client: Client, app: App, shared_database: Database) -> None:
        """5: the token is unknown or not active; this precedes the check of the signature."""
        unknown = {"Authorization": "Bearer unknown", "X-Signature": "00"}
        assert_error(await client.send(app, [], changes=unknown), 401, "invalid_token")
        without_credential = App()
        assert_error(await client.send(without_credential, [make_event()], SDK), 401, "invalid_token")
        inactive = App().install(shared_database)
        shared_database.query("UPDATE api_tokens SET is_active = false WHERE token = %s", inactive.token)
        for dialect in DIALECTS:
            assert_error(await client.send(inactive, [make_event()], dialect), 401, "invalid_token")

    @pytest.mark.parametrize("signature", ["", "00", "zz" * 32, "ab" * 32, "é"])
    @pytest_twisted.ensureDeferred
    async def test_signature(self, client: Client, app: App, signature: str) -> None:
        """8: the signature is invalid; this precedes Do Not Track."""
        changes = {"X-Signature": signature, "DNT": "1"}
        assert_error(await client.send(app, [make_event()], changes=changes), 401, "invalid_signature")

    @pytest.mark.parametrize(
        "timestamp",
        [
            "yesterday",
            "1.5",
            "1e9",
            "0x10",
            "",
            "1_000",
            "١٢٣",
            "9" * 21,
            "-" + "9" * 21,
            "0" * 11 + "1700000000",
            "1" * 5000,
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_timestamp_syntax(self, client: Client, app: App, timestamp: str) -> None:
        """4: the timestamp is not a number; this precedes the check of the credential."""
        body = batch([make_event()])
        raw = timestamp.encode()
        headers: dict[str, Any] = app.headers(body)
        headers["X-Timestamp"] = raw.decode("latin-1")
        headers["X-Signature"] = sign(app.secret, signed_message(raw, None, body)).decode()
        encoded = {name.encode(): [value.encode("latin-1")] for name, value in headers.items()}
        reply = await client.request("POST", app.path, headers=encoded, body=body)
        assert_error(reply, 400, "invalid_timestamp")

    @pytest.mark.parametrize("off", [-(10**15), -605, 605, 10**15])
    @pytest_twisted.ensureDeferred
    async def test_timestamp_window(self, client: Client, app: App, off: int) -> None:
        """4: the timestamp is too old or too far in the future; this precedes the check of the scope."""
        reply = await client.send(app, [make_event()], timestamp=int(time.time()) + off, path=App().path)
        assert_error(reply, 403, "timestamp_out_of_window")

    @pytest.mark.parametrize("nonce", ["", "a b", "x" * 129, "tab\there"])
    @pytest_twisted.ensureDeferred
    async def test_nonce_syntax(self, client: Client, app: App, nonce: str) -> None:
        """A nonce consists of 1 to 128 visible ASCII characters."""
        assert_error(await client.send(app, [make_event()], SDK, nonce=nonce), 400, "invalid_nonce")

    @pytest_twisted.ensureDeferred
    async def test_scope(self, client: Client, app: App, shared_database: Database) -> None:
        """5: the token belongs to another organization or application; this precedes the check of the signature."""
        other = App().install(shared_database)
        for path in (other.path, f"/v1/ingest/{app.org_id}/{other.app_id}", f"/v1/ingest/{other.org_id}/{app.app_id}"):
            reply = await client.send(app, [make_event()], path=path, changes={"X-Signature": "00"})
            assert_error(reply, 403, "token_mismatch")

    @pytest_twisted.ensureDeferred
    async def test_size(self, client: Client, app: App) -> None:
        """6: a body may have the maximum length; the check is between those of the credential and the signature."""
        largest, too_large = bytes(MAX_BODY_BYTES), bytes(MAX_BODY_BYTES + 1)
        forged = {"X-Signature": "00"}
        assert_error(await client.send(app, largest, changes=forged), 401, "invalid_signature")
        assert_error(await client.send(app, too_large, changes=forged), 413, "payload_too_large")
        assert_error(await client.send(App(), too_large, SDK), 401, "invalid_token")

    @pytest_twisted.ensureDeferred
    async def test_largest_batch_of_the_sdk(self, client: Client, app: App, shared_database: Database) -> None:
        """6: the largest batch that the published SDK sends by default is accepted: 100 events of almost 100 KiB."""
        events = [make_event() for _ in range(100)]
        for event in events:
            event["event"]["data"] = {"text": "x" * (LARGEST_EVENT - len(json.dumps(event)) - 100)}
        body = batch(events)
        assert 10_000_000 < len(body) <= MAX_BODY_BYTES
        assert (await client.send(app, body, SDK)).status == 200
        assert len(stored_ids(shared_database, app)) == 100

    @pytest.mark.parametrize("header", ["DNT", "Sec-GPC"])
    @pytest_twisted.ensureDeferred
    async def test_do_not_track(self, client: Client, app: App, shared_database: Database, header: str) -> None:
        """10: nothing is stored with Do Not Track; this precedes the check of the body."""
        reply = await client.send(app, [make_event()], changes={header: "1", "Content-Type": "text/plain"})
        assert (reply.status, reply.body) == (204, b"")
        assert reply.headers["x-clacks-overhead"] == "GNU Terry Pratchett"
        assert stored_ids(shared_database, app) == []
        assert (await client.send(app, [make_event()], changes={header: "0"})).status == 200

    @pytest.mark.parametrize(
        "content_type", [None, "text/plain", "application/jsonl", "application/x-www-form-urlencoded"]
    )
    @pytest_twisted.ensureDeferred
    async def test_content_type(self, client: Client, app: App, content_type: str | None) -> None:
        """11: the content type is not JSON; this precedes the check of the encoding."""
        changes = {"Content-Type": content_type, "Content-Encoding": "br"}
        assert_error(await client.send(app, b"not json", changes=changes), 415, "unsupported_media_type")

    @pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8"])
    @pytest_twisted.ensureDeferred
    async def test_charset(self, client: Client, app: App, content_type: str) -> None:
        """11: the content type is JSON with a charset."""
        assert (await client.send(app, [make_event()], changes={"Content-Type": content_type})).status == 200

    @pytest_twisted.ensureDeferred
    async def test_content_encoding(self, client: Client, app: App) -> None:
        """11: the content encoding is not supported."""
        reply = await client.send(app, b"not json", changes={"Content-Encoding": "br"})
        assert_error(reply, 415, "unsupported_encoding")

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"not gzip", "invalid_encoding"),
            (gzip.compress(b'{"events":[]}', mtime=0)[:-1], "invalid_encoding"),
            (gzip.compress(b'{"events":[]}', mtime=0) + b"more", "invalid_encoding"),
            (gzip.compress(b"not json", mtime=0), "invalid_json"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_gzip(self, client: Client, app: App, body: bytes, code: str) -> None:
        """12: the compressed body is incomplete or not JSON."""
        assert_error(await client.send(app, body, changes={"Content-Encoding": "gzip"}), 400, code)

    @pytest_twisted.ensureDeferred
    async def test_decompression_bomb(self, client: Client, app: App) -> None:
        """12: a small body is too large after decompression."""
        reply = await client.send(app, gzip.compress(bytes(100_000_000)), changes={"Content-Encoding": "gzip"})
        assert_error(reply, 413, "payload_too_large")

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", "invalid_json"),
            (b"{", "invalid_json"),
            (b"[]", "invalid_json"),
            (b"{}", "invalid_json"),
            (b'{"events":{}}', "invalid_json"),
            (b'{"events":null}', "invalid_json"),
            (b'{"events":[NaN]}', "invalid_json"),
            (b'\xef\xbb\xbf{"events":[]}', "invalid_json"),
            (b'{"events":["\xff"]}', "invalid_encoding"),
            (b'{"events":[]}', "empty_batch"),
            (b'{"events":[' + b"0," * 1000 + b"0]}", "batch_too_large"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_body(self, client: Client, app: App, body: bytes, code: str) -> None:
        """12 and 13: the body is not a valid batch."""
        assert_error(await client.send(app, body), 400, code)

    @pytest_twisted.ensureDeferred
    async def test_batch_size_header(self, client: Client, app: App) -> None:
        """13: X-Batch-Size must be the number of events; the error message contains both."""
        reply = await client.send(app, [make_event(), make_event()], changes={"X-Batch-Size": "3"})
        assert_error(reply, 400, "batch_size_mismatch")
        assert reply.json["error"]["message"] == "X-Batch-Size is 3, but the batch has 2 events"
        assert (await client.send(app, [make_event()], changes={"X-Batch-Size": "1"})).status == 200

    @pytest_twisted.ensureDeferred
    async def test_informational_headers(self, client: Client, app: App) -> None:
        """Any values of X-SDK-Version and X-Schema-Version are accepted."""
        changes = {"X-SDK-Version": "nonsense", "X-Schema-Version": "99"}
        assert (await client.send(app, [make_event()], changes=changes)).status == 200

    @pytest_twisted.ensureDeferred
    async def test_largest_batch(self, client: Client, app: App, shared_database: Database) -> None:
        """13: a batch of 1000 events is accepted."""
        reply = await client.send(app, [make_event() for _ in range(1000)])
        assert (reply.status, reply.json["accepted"]) == (200, 1000)
        assert len(stored_ids(shared_database, app)) == 1000


class TestNonces:
    """Row 16 of "Order of checks": when a nonce counts as used."""

    @pytest_twisted.ensureDeferred
    async def test_replay(self, client: Client, app: App, shared_database: Database) -> None:
        """The second request with a nonce is rejected, and none of its events is stored."""
        event = make_event()
        assert (await client.send(app, [event], SDK, nonce="once")).status == 200
        assert_error(await client.send(app, [make_event()], SDK, nonce="once"), 409, "nonce_reused")
        assert stored_ids(shared_database, app) == [event["event_id"]]

    @pytest_twisted.ensureDeferred
    async def test_two_applications(self, client: Client, app: App, shared_database: Database) -> None:
        """Two applications can use the same nonce."""
        other = App().install(shared_database)
        for sender in (app, other):
            assert (await client.send(sender, [make_event()], SDK, nonce="shared")).status == 200

    @pytest_twisted.ensureDeferred
    async def test_rejected_batch(self, client: Client, app: App, shared_database: Database) -> None:
        """A nonce is used by a request of which all events were quarantined, for whatever reason."""
        conflicting = make_event()
        await client.send(App().install(shared_database), [conflicting])
        for nonce, events in (("invalid", [make_event(user_id="bob")]), ("conflict", [conflicting])):
            reply = await client.send(app, events, BOTH, nonce=nonce)
            assert (reply.status, reply.code) == (400, "all_events_rejected")
            for again in (events, [make_event()], [make_event(), make_event(user_id="bob")]):
                assert_error(await client.send(app, again, SDK, nonce=nonce), 409, "nonce_reused")
        assert stored_ids(shared_database, app) == []
        assert shared_database.value("SELECT sum(times) FROM quarantine WHERE app_id = %s", app.app_id) == 2

    @pytest_twisted.ensureDeferred
    async def test_duplicates(self, client: Client, app: App) -> None:
        """A nonce is used by a request that contains only duplicates."""
        event = make_event()
        await client.send(app, [event])
        assert (await client.send(app, [event], SDK, nonce="again")).status == 200
        assert_error(await client.send(app, [event], SDK, nonce="again"), 409, "nonce_reused")

    @pytest_twisted.ensureDeferred
    async def test_expiry(self, client: Client, app: App, shared_database: Database) -> None:
        """A nonce can be used again when its timestamp is no longer valid."""
        await client.send(app, [make_event()], SDK, nonce="old")
        age = "UPDATE nonces SET sent_at = now() - interval '{} seconds' WHERE app_id = %s"
        for seconds, expected in ((600, 409), (659, 409), (661, 200), (0, 409)):
            shared_database.query(age.format(seconds), app.app_id)
            delete_old_nonces(shared_database.dsn, BlockingConnections(), 600)
            assert (await client.send(app, [make_event()], SDK, nonce="old")).status == expected

    @pytest_twisted.ensureDeferred
    async def test_concurrent_requests(self, client: Client, app: App, shared_database: Database) -> None:
        """Exactly one of several concurrent requests with the same nonce is stored."""
        requests = [ensureDeferred(client.send(app, [make_event()], SDK, nonce="race")) for _ in range(8)]
        replies = await gatherResults(requests)
        assert sorted(reply.status for reply in replies) == [200, *[409] * 7]
        assert len(stored_ids(shared_database, app)) == 1


async def in_thread(database: Database, sql: str) -> None:
    """Execute a statement that may wait for a transaction of the server, which needs the reactor meanwhile."""
    await deferToThread(database.query, sql)


class TestResponses:
    """The section "Responses", and what SDKs expect of them."""

    @pytest_twisted.ensureDeferred
    async def test_some_events_are_rejected(self, client: Client, app: App, shared_database: Database) -> None:
        """The valid events of a batch are stored, and each of the others gets an error."""
        valid = [make_event(), make_event()]
        invalid = make_event(service__name="x" * 256)
        without_id = make_event(event_id="not a uuid")
        reply = await client.send(app, [valid[0], invalid, without_id, valid[1]])
        assert reply.status == 207
        assert reply.json == {
            "status": "partial",
            "accepted": 2,
            "rejected": 2,
            "duplicates": 0,
            "quarantined": 2,
            "errors": [
                {
                    "index": 1,
                    "event_id": invalid["event_id"],
                    "error": "invalid_schema",
                    "message": "service.name: longer than 255 characters",
                },
                {"index": 2, "event_id": NIL, "error": "invalid_schema", "message": "event_id: not a UUID"},
            ],
        }
        assert sorted(stored_ids(shared_database, app)) == sorted(event["event_id"] for event in valid)

    @pytest_twisted.ensureDeferred
    async def test_all_events_are_rejected(self, client: Client, app: App) -> None:
        """The response is a 400 if no event is accepted, because SDKs would retry a 200 or 207 forever."""
        invalid = make_event(schema_version="2.0.0")
        reply = await client.send(app, [invalid])
        errors = reply.json["errors"]
        assert (reply.status, reply.code) == (400, "all_events_rejected")
        assert [(error["index"], error["event_id"], error["error"]) for error in errors] == [
            (0, invalid["event_id"], "unsupported_schema")
        ]

    @pytest_twisted.ensureDeferred
    async def test_retried_batch(self, client: Client, app: App, shared_database: Database) -> None:
        """A batch that is sent again is accepted again, and the events that are stored already do not change."""
        events = [make_event(event__data={"copy": 1}) for _ in range(3)]
        await client.send(app, events[:2])
        retried = [{**event, "event": {**event["event"], "data": {"copy": 2}}} for event in events]
        reply = await client.send(app, retried)
        assert reply.status == 200
        assert (reply.json["accepted"], reply.json["duplicates"]) == (3, 2)
        copies = shared_database.query("SELECT event_data->>'copy' FROM events WHERE app_id = %s", app.app_id)
        assert sorted(copies) == [("1",), ("1",), ("2",)]

    @pytest_twisted.ensureDeferred
    async def test_duplicate_in_batch(self, client: Client, app: App, shared_database: Database) -> None:
        """An event that is twice in a batch is stored once and accepted twice."""
        event = make_event()
        reply = await client.send(app, [event, make_event(), event])
        assert (reply.json["accepted"], reply.json["duplicates"], reply.status) == (3, 1, 200)
        assert len(stored_ids(shared_database, app)) == 2

    @pytest_twisted.ensureDeferred
    async def test_concurrent_retries(self, client: Client, app: App, shared_database: Database) -> None:
        """Concurrent requests with the same events, in any order, are all accepted, and each event is stored once."""
        events = [make_event() for _ in range(20)]
        batches = [events if number % 2 else events[::-1] for number in range(12)]
        replies = await gatherResults([ensureDeferred(client.send(app, events)) for events in batches])
        assert [(reply.status, reply.json["accepted"]) for reply in replies] == [(200, 20)] * 12
        assert sum(reply.json["duplicates"] for reply in replies) == 20 * 11
        assert len(stored_ids(shared_database, app)) == 20

    @pytest_twisted.ensureDeferred
    async def test_conflict(self, client: Client, app: App, shared_database: Database) -> None:
        """An event is rejected if another application has stored its id, so that no application can suppress others."""
        conflicting, own = make_event(), make_event()
        other = App().install(shared_database)
        await client.send(other, [conflicting])
        reply = await client.send(app, [conflicting, own, conflicting])
        assert (reply.status, reply.json["accepted"]) == (207, 1)
        assert [(error["index"], error["error"]) for error in reply.json["errors"]] == [
            (0, "event_id_conflict"),
            (2, "event_id_conflict"),
        ]
        assert (stored_ids(shared_database, app), stored_ids(shared_database, other)) == (
            [own["event_id"]],
            [conflicting["event_id"]],
        )

    @pytest_twisted.ensureDeferred
    async def test_concurrent_conflict(self, client: Client, app: App, shared_database: Database) -> None:
        """If two applications send the same id concurrently, one of them stores it and the other gets an error."""
        apps = [app, App().install(shared_database)]
        event = make_event()
        replies = await gatherResults([ensureDeferred(client.send(sender, [event])) for sender in apps * 4])
        owner = shared_database.value("SELECT app_id::text FROM events WHERE event_id = %s", event["event_id"])
        expected = [200 if sender.app_id == owner else 400 for sender in apps * 4]
        assert [reply.status for reply in replies] == expected

    @pytest_twisted.ensureDeferred
    async def test_json_that_jsonb_cannot_store(self, client: Client, app: App, shared_database: Database) -> None:
        """An event with JSON that ``jsonb`` cannot store, or makes long, is rejected, and the others are stored."""
        marker = "@@"
        long_numbers = ["1e999999", "0e-999", f"[{'1e131071,' * 10_000}1]", "9" * 350 + "e99"]
        values = ['"\\u0000"', '{"\\u0000":1}', '"\\ud800"', *long_numbers]
        valid = make_event()
        events = [make_event(event__data=marker) for _ in values]
        text = batch([*events, valid]).decode()
        for value in values:
            text = text.replace(f'"{marker}"', value, 1)
        reply = await client.send(app, text.encode())
        assert reply.status == 207
        for index, error in enumerate(reply.json["errors"]):
            assert (error["index"], error["error"]) == (index, "invalid_schema")
            assert error["event_id"] == events[index]["event_id"]
            assert error["message"].startswith("event.data: ")
        assert stored_ids(shared_database, app) == [valid["event_id"]]

    @pytest_twisted.ensureDeferred
    async def test_json_that_is_nested_too_deeply(self, client: Client, app: App, shared_database: Database) -> None:
        """A body that is nested too deeply is rejected, and an event with 500 levels is stored."""
        text = batch([make_event(event__data="@@")]).decode()
        for depth in (20_000, 200_000):
            body = text.replace('"@@"', "[" * depth + "]" * depth).encode()
            assert_error(await client.send(app, body), 400, "invalid_json")
        assert stored_ids(shared_database, app) == []
        reply = await client.send(app, text.replace('"@@"', "[" * 500 + "]" * 500).encode())
        assert (reply.status, len(stored_ids(shared_database, app))) == (200, 1)

    @pytest_twisted.ensureDeferred
    async def test_bodies_that_were_expensive(self, client: Client, app: App, shared_database: Database) -> None:
        """Bodies that once blocked the server for seconds are handled. tests/wire/test_cost.py measures their cost."""
        text = batch([make_event(event__data="@@") for _ in range(51)]).decode()
        nested = "[" + "{}," * 32_000 + "[" * 2000 + "]" * 2000 + "]"
        body = gzip.compress(text.replace('"@@"', nested).encode())
        assert len(body) < 30_000
        assert_error(await client.send(app, body, changes={"Content-Encoding": "gzip"}), 400, "invalid_json")
        reply = await client.send(app, b'{"events":[' + b",".join([b"{}"] * 1000) + b"]}")
        assert_error(reply, 400, "all_events_rejected")
        large = batch([make_event(event__data="@@")]).decode()
        for data in ("[" + "[]," * 1_700_000 + "[]]", '"' + "\\ud800" * 850_000 + '"'):
            reply = await client.send(app, large.replace('"@@"', data).encode())
            assert_error(reply, 400, "all_events_rejected")
            assert [error["error"] for error in reply.json["errors"]] == ["event_too_large"]
        assert stored_ids(shared_database, app) == []

    @pytest_twisted.ensureDeferred
    async def test_user_ids_that_are_not_visible_ascii(
        self, client: Client, app: App, shared_database: Database
    ) -> None:
        """User ids with other characters than visible ASCII are rejected."""
        ids = ["client_a\u200b", "client_a\nb", "client_a\x1b[2J", "anon_é"]
        reply = await client.send(app, [make_event(user_id=user_id) for user_id in [*ids, "anon_!~"]])
        assert (reply.status, reply.json["accepted"]) == (207, 1)
        assert [error["message"].partition(":")[0] for error in reply.json["errors"]] == ["user_id"] * len(ids)

    @pytest_twisted.ensureDeferred
    async def test_constraint(self, client: Client, app: App, shared_database: Database) -> None:
        """Events that violate a constraint of the database are rejected, and the others are stored."""
        await in_thread(shared_database, "ALTER TABLE events ADD CONSTRAINT odd CHECK (event_type <> 'odd') NOT VALID")
        try:
            events = [make_event(event__type="odd" if index in (3, 4, 9) else "even") for index in range(11)]
            reply = await client.send(app, events, SDK, nonce="halves")
        finally:
            await in_thread(shared_database, "ALTER TABLE events DROP CONSTRAINT odd")
        assert (reply.status, reply.json["accepted"], reply.json["quarantined"]) == (207, 11, 3)
        assert [error["index"] for error in reply.json["errors"]] == [3, 4, 9]
        assert len(stored_ids(shared_database, app)) == 8
        assert_error(await client.send(app, [make_event()], SDK, nonce="halves"), 409, "nonce_reused")

    @pytest_twisted.ensureDeferred
    async def test_deferred_constraint(self, client: Client, app: App, shared_database: Database) -> None:
        """Events that violate a constraint that is checked at the commit are rejected, and the others are stored."""
        await in_thread(shared_database, REJECT_ODD)
        try:
            reply = await client.send(app, [make_event(event__type=name) for name in ("even", "odd", "even")])
        finally:
            await in_thread(shared_database, "DROP TRIGGER odd ON events; DROP FUNCTION reject_odd")
        assert (reply.status, [error["index"] for error in reply.json["errors"]]) == (207, [1])
        assert len(stored_ids(shared_database, app)) == 2


class TestStoredEvents:
    """The tables "An event" and of the columns: every field of an event is stored."""

    @pytest_twisted.ensureDeferred
    async def test_fractions_beyond_microseconds(self, client: Client, app: App, shared_database: Database) -> None:
        """Fractions of a second beyond microseconds are truncated, and never change the year."""
        times = ["2024-12-31T23:59:59.9999996Z", "9999-12-31T23:59:59.9999999Z"]
        reply = await client.send(
            app,
            [make_event(timestamp=time, metadata__transmission_timestamp=time) for time in times],
        )
        assert reply.status == 200
        rows = shared_database.query(
            "SELECT timestamp = transmission_timestamp,"
            " to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
            " FROM events WHERE app_id = %s ORDER BY 2",
            app.app_id,
        )
        assert rows == [(True, "2024-12-31 23:59:59.999999"), (True, "9999-12-31 23:59:59.999999")]

    @pytest_twisted.ensureDeferred
    async def test_every_column(self, client: Client, app: App, shared_database: Database) -> None:
        """Every field of an event is stored in its column."""
        event = make_event(
            timestamp="2026-03-04T05:06:07.123456789+23:59",
            service={"name": "näme", "version": "v", "language": "rust", "language_version": "1.95"},
            user_id="anon_1",
            session_id="s",
            environment={"os": "linux", "os_version": "6", "arch": "arm64", "ci": True, "shell": "zsh"},
            event={"type": "t", "category": "c", "data": {"a": [1, 2.50, None, "\u2028", "💡"]}},
            metadata={
                "sdk_version": "0.3.0",
                "transmission_timestamp": "2026-03-04T05:06:08Z",
                "batch_size": 2_147_483_647,
                "retry_count": 3,
            },
        )
        assert (await client.send(app, [event])).status == 200
        (row,) = shared_database.query(
            "SELECT to_jsonb(e) - 'id' - 'received_at' - 'event_data', e.event_data = %s::jsonb,"
            " now() - received_at < interval '1 minute' FROM events AS e WHERE app_id = %s",
            json.dumps(event["event"]["data"]),
            app.app_id,
        )
        assert row[1:] == (True, True)
        assert row[0] == {
            "event_id": event["event_id"],
            "org_id": app.org_id,
            "app_id": app.app_id,
            "schema_version": event["schema_version"],
            "timestamp": "2026-03-03T05:07:07.123456+00:00",
            "service_name": "näme",
            "service_version": "v",
            "service_language": "rust",
            "service_language_version": "1.95",
            "user_id": "anon_1",
            "session_id": "s",
            "os": "linux",
            "os_version": "6",
            "arch": "arm64",
            "ci": True,
            "shell": "zsh",
            "event_type": "t",
            "event_category": "c",
            "sdk_version": "0.3.0",
            "transmission_timestamp": "2026-03-04T05:06:08+00:00",
            "batch_size": 2_147_483_647,
            "retry_count": 3,
        }

    @pytest_twisted.ensureDeferred
    async def test_columns_and_indexes(self, shared_database: Database) -> None:
        """The tables have the columns of the contract and only the listed indexes, each with a comment."""
        columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = %s"
        assert shared_database.value(columns, "events") == 25
        assert shared_database.value(columns, "api_tokens") == 10
        indexes = shared_database.query(
            "SELECT tablename, indexname, obj_description(indexname::regclass), indexdef FROM pg_indexes"
            " WHERE tablename IN ('events', 'nonces', 'api_tokens', 'readiness') ORDER BY 1, 2"
        )
        assert [(table, name) for table, name, _, _ in indexes] == [
            ("api_tokens", "api_tokens_app_idx"),
            ("api_tokens", "api_tokens_pkey"),
            ("api_tokens", "api_tokens_token_key"),
            ("events", "events_app_hour_idx"),
            ("events", "events_app_user_idx"),
            ("events", "events_event_id_key"),
            ("events", "events_pkey"),
            ("events", "events_timestamp_idx"),
            ("nonces", "nonces_pkey"),
            ("nonces", "nonces_sent_at_idx"),
            ("readiness", "readiness_pkey"),
        ]
        assert all(comment for _, _, comment, _ in indexes)
        assert len({(table, definition.partition("(")[2]) for table, _, _, definition in indexes}) == len(indexes)

    @pytest_twisted.ensureDeferred
    async def test_null_data(self, client: Client, app: App, shared_database: Database) -> None:
        """Event data can be a JSON null."""
        assert (await client.send(app, [make_event(event__data=None)])).status == 200
        assert shared_database.value("SELECT event_data::text FROM events WHERE app_id = %s", app.app_id) == "null"

    @pytest_twisted.ensureDeferred
    async def test_sql_in_every_string(self, client: Client, app: App, shared_database: Database) -> None:
        """Text that looks like SQL or like a placeholder is stored unchanged."""
        text = "'; DROP TABLE events; -- %s %(x)s \\ \\' $1 {} :x"
        event = make_event(service__name=text, event__data={text: text}, session_id=text)
        assert (await client.send(app, [event])).status == 200
        row = shared_database.query("SELECT service_name, event_data FROM events WHERE app_id = %s", app.app_id)
        assert row == [(text, {text: text})]
