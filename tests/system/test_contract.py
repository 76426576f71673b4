"""The wire contract over real sockets, a case for every row of its tables."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from tests.support.client import BOTH, DIALECTS, DOCUMENTED, SDK, App, Client, Reply, batch
from tests.support.database import Database
from tests.support.events import make_event
from tkserver import __version__

NIL = "00000000-0000-0000-0000-000000000000"


REFUSE_ODD = """
CREATE FUNCTION refuse_odd() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE check_violation; END $$;
CREATE CONSTRAINT TRIGGER odd AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.event_type = 'odd') EXECUTE FUNCTION refuse_odd()
"""


def stored_ids(database: Database, app: App) -> list[str]:
    """The ids of an application's events, in the order of arrival."""
    rows = database.query("SELECT event_id::text FROM events WHERE app_id = %s ORDER BY id", app.app_id)
    return [row[0] for row in rows]


def assert_refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.code) == (status, code)
    assert set(reply.json["error"]) == {"code", "message"}
    assert reply.json["error"]["message"]


class TestEndpoints:
    """The table *Endpoints*."""

    @pytest_twisted.ensureDeferred
    async def test_health(self, client: Client) -> None:
        """Liveness gives the version."""
        reply = await client.request("GET", "/health")
        assert (reply.status, reply.json) == (200, {"status": "healthy", "version": __version__})

    @pytest_twisted.ensureDeferred
    async def test_ready(self, client: Client) -> None:
        """A server whose database accepts writes is ready."""
        reply = await client.request("GET", "/health/ready")
        assert (reply.status, reply.json) == (200, {"status": "ready"})

    @pytest.mark.parametrize("path", ["/health", "/health/ready", App().path])
    @pytest_twisted.ensureDeferred
    async def test_preflight(self, client: Client, path: str) -> None:
        """A browser may send any method and header from any origin."""
        asked = {
            "Origin": "https://example.org",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, x-anything",
        }
        reply = await client.request("OPTIONS", path, headers=asked)
        assert (reply.status, reply.body) == (204, b"")
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["access-control-allow-methods"] == "POST"
        assert reply.headers["access-control-allow-headers"] == "authorization, x-anything"
        assert reply.headers["x-clacks-overhead"] == "GNU Terry Pratchett"

    @pytest_twisted.ensureDeferred
    async def test_head(self, client: Client) -> None:
        """A load balancer may ask for the headers only."""
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
            ("POST", "/v1/ingest/x/y", 400),
            ("POST", App().path, 401),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_every_answer(self, client: Client, method: str, path: str, status: int) -> None:
        """Whatever the answer, it is JSON, has its length, can be read by a web page, and remembers."""
        reply = await client.request(method, path, headers={"Origin": "https://example.org"})
        assert reply.status == status
        assert reply.headers["x-clacks-overhead"] == "GNU Terry Pratchett"
        assert reply.headers["content-type"] == "application/json"
        assert int(reply.headers["content-length"]) == len(reply.body)
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.json


class TestDialects:
    """The table *Dialects*."""

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest_twisted.ensureDeferred
    async def test_accepted(self, client: Client, app: App, shared_database: Database, dialect: str) -> None:
        """Each dialect gets its events stored."""
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
        """The hexadecimal digits may be in either case."""
        body = batch([make_event()])
        headers = app.headers(body, dialect)
        headers["X-Signature"] = headers["X-Signature"].upper()
        assert (await client.request("POST", app.path, headers=headers, body=body)).status == 200

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest_twisted.ensureDeferred
    async def test_gzip_is_signed_as_sent(self, client: Client, app: App, dialect: str) -> None:
        """Compressed bodies are signed as they come over the wire."""
        body = gzip.compress(batch([make_event()]))
        assert (await client.send(app, body, dialect, changes={"Content-Encoding": "gzip"})).status == 200

    @pytest_twisted.ensureDeferred
    async def test_nonce_without_being_signed(self, client: Client, app: App) -> None:
        """A nonce that is sent is signed too: left out of the message, the signature does not fit."""
        reply = await client.send(app, [make_event()], DOCUMENTED, changes={"X-Nonce": "abc"})
        assert_refused(reply, 401, "invalid_signature")

    @pytest_twisted.ensureDeferred
    async def test_nonce_taken_away(self, client: Client, app: App) -> None:
        """A nonce that was signed cannot be taken away."""
        reply = await client.send(app, [make_event()], BOTH, changes={"X-Nonce": None})
        assert_refused(reply, 401, "invalid_signature")

    @pytest_twisted.ensureDeferred
    async def test_a_token_that_is_present_must_be_right(self, client: Client, app: App) -> None:
        """With a nonce the token may be absent, but not wrong."""
        for authorization in ("Bearer tk_wrong", "Bearer", "Basic abc", f"Token {app.token}", ""):
            reply = await client.send(app, [make_event()], BOTH, changes={"Authorization": authorization})
            assert_refused(reply, 401, "invalid_token")

    @pytest_twisted.ensureDeferred
    async def test_sdk_tries_every_credential(self, client: Client, app: App, shared_database: Database) -> None:
        """Without a token the signature may be by any active credential of the application."""
        other = App(app.org_id, app.app_id).install(shared_database)
        for credential in (app, other):
            assert (await client.send(credential, [make_event()], SDK)).status == 200
        shared_database.query("UPDATE api_tokens SET is_active = false WHERE token = %s", other.token)
        await _until_forgotten(client, other)
        assert_refused(await client.send(other, [make_event()], SDK), 401, "invalid_signature")
        assert (await client.send(app, [make_event()], SDK)).status == 200


async def _until_forgotten(client: Client, app: App) -> None:
    deadline = time.monotonic() + 2
    while (await client.send(app, [make_event()], SDK)).status == 200:
        assert time.monotonic() < deadline, "a revoked token was taken for more than 2 seconds"


class TestOrderOfChecks:
    """The table *Order of checks*: each row by itself, and each before the next."""

    @pytest_twisted.ensureDeferred
    async def test_routes(self, client: Client) -> None:
        """1: what is nothing is a 404."""
        assert_refused(await client.request("POST", "/v1/ingest"), 404, "not_found")

    @pytest_twisted.ensureDeferred
    async def test_methods(self, client: Client, app: App) -> None:
        """1: a wrong method is told the right ones."""
        reply = await client.request("GET", app.path)
        assert_refused(reply, 405, "method_not_allowed")
        assert reply.headers["allow"] == "OPTIONS, POST"

    @pytest_twisted.ensureDeferred
    async def test_route_before_size(self, client: Client) -> None:
        """1 before 2: a body that is too large for a route that is none."""
        assert_refused(await client.request("POST", "/nothing", body=bytes(6_000_000)), 404, "not_found")

    @pytest_twisted.ensureDeferred
    async def test_size(self, client: Client, app: App) -> None:
        """2: a body of the limit is read, and one byte more is not; before the ids are looked at."""
        assert_refused(await client.request("POST", app.path, body=bytes(5_242_880)), 401, "missing_signature")
        assert_refused(await client.request("POST", app.path, body=bytes(5_242_881)), 413, "payload_too_large")
        assert_refused(await client.request("POST", "/v1/ingest/x/y", body=bytes(5_242_881)), 413, "payload_too_large")

    @pytest.mark.parametrize("bad", ["x", "550e8400", "%ff", "{550e8400-e29b-41d4-a716-446655440000}"])
    @pytest_twisted.ensureDeferred
    async def test_ids(self, client: Client, app: App, bad: str) -> None:
        """3: ids that are no UUIDs, before the headers are looked at."""
        assert_refused(await client.request("POST", f"/v1/ingest/{bad}/{app.app_id}"), 400, "invalid_id")
        assert_refused(await client.request("POST", f"/v1/ingest/{app.org_id}/{bad}"), 400, "invalid_id")

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
        """4: the headers that must be there, in their order."""
        reply = await client.send(app, [make_event()], changes=dict.fromkeys(missing))
        assert_refused(reply, 401, code)
        assert reply.headers["www-authenticate"] == "Bearer"

    @pytest_twisted.ensureDeferred
    async def test_credential(self, client: Client, app: App, shared_database: Database) -> None:
        """5: tokens that nobody knows or that are not active, before the signature is looked at."""
        unknown = {"Authorization": "Bearer nobody-knows-it", "X-Signature": "00"}
        assert_refused(await client.send(app, [], changes=unknown), 401, "invalid_token")
        nobody = App()
        assert_refused(await client.send(nobody, [make_event()], SDK), 401, "invalid_token")
        inactive = App().install(shared_database)
        shared_database.query("UPDATE api_tokens SET is_active = false WHERE token = %s", inactive.token)
        for dialect in DIALECTS:
            assert_refused(await client.send(inactive, [make_event()], dialect), 401, "invalid_token")

    @pytest.mark.parametrize("signature", ["", "00", "zz" * 32, "ab" * 32, "é"])
    @pytest_twisted.ensureDeferred
    async def test_signature(self, client: Client, app: App, signature: str) -> None:
        """6: signatures that do not fit, before the timestamp is looked at."""
        changes = {"X-Signature": signature, "X-Timestamp": "yesterday"}
        assert_refused(await client.send(app, [make_event()], changes=changes), 401, "invalid_signature")

    @pytest.mark.parametrize("timestamp", ["yesterday", "1.5", "1e9", "0x10", "", "1_000", "١٢٣"])
    @pytest_twisted.ensureDeferred
    async def test_timestamp_is_a_number(self, client: Client, app: App, timestamp: str) -> None:
        """7: a timestamp that was signed and is no number."""
        body = batch([make_event()])
        raw = timestamp.encode()
        headers: dict[str, Any] = app.headers(body)
        from tkserver.wire.signature import sign, signed_message

        headers["X-Timestamp"] = raw.decode("latin-1")
        headers["X-Signature"] = sign(app.secret, signed_message(raw, None, body)).decode()
        encoded = {name.encode(): [value.encode("latin-1")] for name, value in headers.items()}
        reply = await client.request("POST", app.path, headers=encoded, body=body)
        assert_refused(reply, 400, "invalid_timestamp")

    @pytest.mark.parametrize("off", [-(10**15), -605, 605, 10**15])
    @pytest_twisted.ensureDeferred
    async def test_timestamp_is_in_the_window(self, client: Client, app: App, off: int) -> None:
        """7: a clock that is too far off, either way; before the scope is looked at."""
        reply = await client.send(app, [make_event()], timestamp=int(time.time()) + off, path=App().path)
        assert_refused(reply, 403, "timestamp_out_of_window")

    @pytest.mark.parametrize("nonce", ["", "a b", "x" * 129, "tab\there"])
    @pytest_twisted.ensureDeferred
    async def test_nonce_form(self, client: Client, app: App, nonce: str) -> None:
        """A nonce is 1 to 128 visible ASCII characters."""
        assert_refused(await client.send(app, [make_event()], SDK, nonce=nonce), 400, "invalid_nonce")

    @pytest_twisted.ensureDeferred
    async def test_scope(self, client: Client, app: App, shared_database: Database) -> None:
        """8: a token of another organisation or application, before do-not-track is honoured."""
        other = App().install(shared_database)
        for path in (other.path, f"/v1/ingest/{app.org_id}/{other.app_id}", f"/v1/ingest/{other.org_id}/{app.app_id}"):
            reply = await client.send(app, [make_event()], path=path, changes={"DNT": "1"})
            assert_refused(reply, 403, "token_mismatch")

    @pytest.mark.parametrize("header", ["DNT", "Sec-GPC"])
    @pytest_twisted.ensureDeferred
    async def test_do_not_track(self, client: Client, app: App, shared_database: Database, header: str) -> None:
        """10: who asks not to be tracked is not; before the body is looked at."""
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
        """11: what is not said to be JSON."""
        changes = {"Content-Type": content_type, "Content-Encoding": "br"}
        assert_refused(await client.send(app, b"no json", changes=changes), 415, "unsupported_media_type")

    @pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8"])
    @pytest_twisted.ensureDeferred
    async def test_charset(self, client: Client, app: App, content_type: str) -> None:
        """11: JSON, with a charset."""
        assert (await client.send(app, [make_event()], changes={"Content-Type": content_type})).status == 200

    @pytest_twisted.ensureDeferred
    async def test_content_encoding(self, client: Client, app: App) -> None:
        """11: compressed in a way that is not understood."""
        reply = await client.send(app, b"no json", changes={"Content-Encoding": "br"})
        assert_refused(reply, 415, "unsupported_encoding")

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"no gzip", "invalid_encoding"),
            (gzip.compress(b'{"events":[]}')[:-1], "invalid_encoding"),
            (gzip.compress(b'{"events":[]}') + b"more", "invalid_encoding"),
            (gzip.compress(b"no json"), "invalid_json"),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_gzip(self, client: Client, app: App, body: bytes, code: str) -> None:
        """12: compressed bodies that are not whole."""
        assert_refused(await client.send(app, body, changes={"Content-Encoding": "gzip"}), 400, code)

    @pytest_twisted.ensureDeferred
    async def test_bomb(self, client: Client, app: App) -> None:
        """12: a small body that inflates to a large one."""
        reply = await client.send(app, gzip.compress(bytes(100_000_000)), changes={"Content-Encoding": "gzip"})
        assert_refused(reply, 413, "payload_too_large")

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
        """12 and 13: bodies that are no batch."""
        assert_refused(await client.send(app, body), 400, code)

    @pytest_twisted.ensureDeferred
    async def test_batch_size_header(self, client: Client, app: App) -> None:
        """13: X-Batch-Size must agree, and the answer says with what it does not."""
        reply = await client.send(app, [make_event(), make_event()], changes={"X-Batch-Size": "3"})
        assert_refused(reply, 400, "batch_size_mismatch")
        assert reply.json["error"]["message"] == "X-Batch-Size says 3 but the batch has 2"
        assert (await client.send(app, [make_event()], changes={"X-Batch-Size": "1"})).status == 200

    @pytest_twisted.ensureDeferred
    async def test_informative_headers(self, client: Client, app: App) -> None:
        """X-SDK-Version and X-Schema-Version are never a reason to refuse."""
        changes = {"X-SDK-Version": "nonsense", "X-Schema-Version": "99"}
        assert (await client.send(app, [make_event()], changes=changes)).status == 200

    @pytest_twisted.ensureDeferred
    async def test_the_largest_batch(self, client: Client, app: App, shared_database: Database) -> None:
        """13: 1000 events are one batch."""
        reply = await client.send(app, [make_event() for _ in range(1000)])
        assert (reply.status, reply.json["accepted"]) == (200, 1000)
        assert len(stored_ids(shared_database, app)) == 1000


class TestNonces:
    """Row 16, and what uses a nonce up."""

    @pytest_twisted.ensureDeferred
    async def test_replay(self, client: Client, app: App, shared_database: Database) -> None:
        """A nonce is good for one request, and the second leaves nothing behind."""
        event = make_event()
        assert (await client.send(app, [event], SDK, nonce="once")).status == 200
        assert_refused(await client.send(app, [make_event()], SDK, nonce="once"), 409, "nonce_reused")
        assert stored_ids(shared_database, app) == [event["event_id"]]

    @pytest_twisted.ensureDeferred
    async def test_of_another_application(self, client: Client, app: App, shared_database: Database) -> None:
        """Applications do not share nonces."""
        other = App().install(shared_database)
        for each in (app, other):
            assert (await client.send(each, [make_event()], SDK, nonce="shared")).status == 200

    @pytest_twisted.ensureDeferred
    async def test_refused_requests_use_none_up(self, client: Client, app: App, shared_database: Database) -> None:
        """A request of which nothing is stored does not use its nonce up."""
        taken = make_event()
        await client.send(App().install(shared_database), [taken])
        for events in ([make_event(user_id="bob")], [taken]):
            assert_rejected = await client.send(app, events, SDK, nonce="mine")
            assert (assert_rejected.status, assert_rejected.code) == (400, "all_events_rejected")
        assert (await client.send(app, [make_event()], SDK, nonce="mine")).status == 200

    @pytest_twisted.ensureDeferred
    async def test_duplicates_use_it_up(self, client: Client, app: App) -> None:
        """A request of duplicates is a stored one."""
        event = make_event()
        await client.send(app, [event])
        assert (await client.send(app, [event], SDK, nonce="again")).status == 200
        assert_refused(await client.send(app, [event], SDK, nonce="again"), 409, "nonce_reused")

    @pytest_twisted.ensureDeferred
    async def test_old_ones(self, client: Client, app: App, shared_database: Database) -> None:
        """After 20 minutes a nonce may be used again."""
        await client.send(app, [make_event()], SDK, nonce="old")
        age = "UPDATE nonces SET used_at = now() - interval '{} minutes' WHERE app_id = %s"
        shared_database.query(age.format(19), app.app_id)
        assert_refused(await client.send(app, [make_event()], SDK, nonce="old"), 409, "nonce_reused")
        shared_database.query(age.format(21), app.app_id)
        assert (await client.send(app, [make_event()], SDK, nonce="old")).status == 200
        assert_refused(await client.send(app, [make_event()], SDK, nonce="old"), 409, "nonce_reused")

    @pytest_twisted.ensureDeferred
    async def test_at_once(self, client: Client, app: App, shared_database: Database) -> None:
        """Of requests with one nonce that arrive at once, one is stored."""
        sent = [ensureDeferred(client.send(app, [make_event()], SDK, nonce="race")) for _ in range(8)]
        replies = await gatherResults(sent)
        assert sorted(reply.status for reply in replies) == [200, *[409] * 7]
        assert len(stored_ids(shared_database, app)) == 1


class TestAnswers:
    """The section *Answers*, and the rules that follow from what SDKs do with them."""

    @pytest_twisted.ensureDeferred
    async def test_some_refused(self, client: Client, app: App, shared_database: Database) -> None:
        """One bad event never costs a good one, and is told what is wrong with it."""
        good = [make_event(), make_event()]
        bad = make_event(service__name="x" * 256)
        nameless = make_event(event_id="not a uuid")
        reply = await client.send(app, [good[0], bad, nameless, good[1]])
        assert reply.status == 207
        assert reply.json == {
            "status": "partial",
            "accepted": 2,
            "rejected": 2,
            "duplicates": 0,
            "errors": [
                {
                    "index": 1,
                    "event_id": bad["event_id"],
                    "error": "invalid_schema",
                    "message": "service.name: longer than 255 characters",
                },
                {"index": 2, "event_id": NIL, "error": "invalid_schema", "message": "event_id: not a UUID"},
            ],
        }
        assert sorted(stored_ids(shared_database, app)) == sorted(event["event_id"] for event in good)

    @pytest_twisted.ensureDeferred
    async def test_none_accepted(self, client: Client, app: App) -> None:
        """When nothing is accepted, it is no 200 or 207: SDKs would send the batch for ever."""
        bad = make_event(schema_version="2.0.0")
        reply = await client.send(app, [bad])
        assert_rejected = reply.json["errors"]
        assert (reply.status, reply.code) == (400, "all_events_rejected")
        assert [(error["index"], error["event_id"], error["error"]) for error in assert_rejected] == [
            (0, bad["event_id"], "unsupported_schema")
        ]

    @pytest_twisted.ensureDeferred
    async def test_sent_again(self, client: Client, app: App, shared_database: Database) -> None:
        """A batch that is sent again is accepted again, and the first copy stays."""
        events = [make_event(event__data={"copy": 1}) for _ in range(3)]
        await client.send(app, events[:2])
        again = [{**event, "event": {**event["event"], "data": {"copy": 2}}} for event in events]
        reply = await client.send(app, again)
        assert reply.status == 200
        assert (reply.json["accepted"], reply.json["duplicates"]) == (3, 2)
        copies = shared_database.query("SELECT event_data->>'copy' FROM events WHERE app_id = %s", app.app_id)
        assert sorted(copies) == [("1",), ("1",), ("2",)]

    @pytest_twisted.ensureDeferred
    async def test_twice_in_one_batch(self, client: Client, app: App, shared_database: Database) -> None:
        """The same id twice in one batch is stored once and accepted twice."""
        event = make_event()
        reply = await client.send(app, [event, make_event(), event])
        assert (reply.json["accepted"], reply.json["duplicates"], reply.status) == (3, 1, 200)
        assert len(stored_ids(shared_database, app)) == 2

    @pytest_twisted.ensureDeferred
    async def test_in_many_requests_at_once(self, client: Client, app: App, shared_database: Database) -> None:
        """The same batch in requests at once, in any order of its events, is stored once and accepted each time."""
        events = [make_event() for _ in range(20)]
        batches = [events if number % 2 else events[::-1] for number in range(12)]
        replies = await gatherResults([ensureDeferred(client.send(app, each)) for each in batches])
        assert [(reply.status, reply.json["accepted"]) for reply in replies] == [(200, 20)] * 12
        assert sum(reply.json["duplicates"] for reply in replies) == 20 * 11
        assert len(stored_ids(shared_database, app)) == 20

    @pytest_twisted.ensureDeferred
    async def test_conflict(self, client: Client, app: App, shared_database: Database) -> None:
        """An id that another application has stored is refused: nobody can swallow another's events."""
        taken, own = make_event(), make_event()
        other = App().install(shared_database)
        await client.send(other, [taken])
        reply = await client.send(app, [taken, own, taken])
        assert (reply.status, reply.json["accepted"]) == (207, 1)
        assert [(error["index"], error["error"]) for error in reply.json["errors"]] == [
            (0, "event_id_conflict"),
            (2, "event_id_conflict"),
        ]
        assert (stored_ids(shared_database, app), stored_ids(shared_database, other)) == (
            [own["event_id"]],
            [taken["event_id"]],
        )

    @pytest_twisted.ensureDeferred
    async def test_one_id_of_two_applications_at_once(
        self, client: Client, app: App, shared_database: Database
    ) -> None:
        """When two applications send one id at once, one of them gets it and the other is told."""
        apps = [app, App().install(shared_database)]
        event = make_event()
        replies = await gatherResults([ensureDeferred(client.send(each, [event])) for each in apps * 4])
        owner = shared_database.value("SELECT app_id::text FROM events WHERE event_id = %s", event["event_id"])
        expected = [200 if each.app_id == owner else 400 for each in apps * 4]
        assert [reply.status for reply in replies] == expected

    @pytest_twisted.ensureDeferred
    async def test_what_jsonb_cannot_hold(self, client: Client, app: App, shared_database: Database) -> None:
        """What is JSON and yet cannot be stored costs its own event only."""
        marker = "@@"
        odd = ['"\\u0000"', '{"\\u0000":1}', '"\\ud800"', "1e999999", "[" * 20_000 + "]" * 20_000]
        good = make_event()
        events = [make_event(event__data=marker) for _ in odd]
        text = batch([*events, good]).decode()
        for value in odd:
            text = text.replace(f'"{marker}"', value, 1)
        reply = await client.send(app, text.encode())
        assert reply.status == 207
        for place, error in enumerate(reply.json["errors"]):
            assert (error["index"], error["error"]) == (place, "invalid_schema")
            assert error["event_id"] == events[place]["event_id"]
            assert error["message"].startswith("event.data: ")
        assert stored_ids(shared_database, app) == [good["event_id"]]

    @pytest_twisted.ensureDeferred
    async def test_what_only_the_database_refuses(self, client: Client, app: App, shared_database: Database) -> None:
        """A constraint that somebody has added costs the events that break it, and no others."""
        shared_database.query("ALTER TABLE events ADD CONSTRAINT odd CHECK (event_type <> 'odd') NOT VALID")
        try:
            events = [make_event(event__type="odd" if place in (3, 4, 9) else "even") for place in range(11)]
            reply = await client.send(app, events, SDK, nonce="halves")
        finally:
            shared_database.query("ALTER TABLE events DROP CONSTRAINT odd")
        assert (reply.status, reply.json["accepted"]) == (207, 8)
        assert [error["index"] for error in reply.json["errors"]] == [3, 4, 9]
        assert len(stored_ids(shared_database, app)) == 8
        assert_refused(await client.send(app, [make_event()], SDK, nonce="halves"), 409, "nonce_reused")

    @pytest_twisted.ensureDeferred
    async def test_what_the_database_refuses_in_the_end(
        self, client: Client, app: App, shared_database: Database
    ) -> None:
        """So does one that is looked at with the commit only."""
        shared_database.query(REFUSE_ODD)
        try:
            reply = await client.send(app, [make_event(event__type=kind) for kind in ("even", "odd", "even")])
        finally:
            shared_database.query("DROP TRIGGER odd ON events; DROP FUNCTION refuse_odd")
        assert (reply.status, [error["index"] for error in reply.json["errors"]]) == (207, [1])
        assert len(stored_ids(shared_database, app)) == 2


class TestStoredEvents:
    """The table *An event* and the table of columns: what is accepted comes back."""

    @pytest_twisted.ensureDeferred
    async def test_every_column(self, client: Client, app: App, shared_database: Database) -> None:
        """Each field of an event is in its column."""
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
            "timestamp": "2026-03-03T05:07:07.123457+00:00",
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
        """The tables have the contract's columns and as few indexes as needed, each with its reason."""
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
            ("events", "events_app_timestamp_idx"),
            ("events", "events_app_user_idx"),
            ("events", "events_event_id_key"),
            ("events", "events_pkey"),
            ("events", "events_retention_idx"),
            ("nonces", "nonces_pkey"),
            ("nonces", "nonces_used_at_idx"),
            ("readiness", "readiness_pkey"),
        ]
        assert all(comment for _, _, comment, _ in indexes)
        assert len({(table, definition.partition("(")[2]) for table, _, _, definition in indexes}) == len(indexes)

    @pytest_twisted.ensureDeferred
    async def test_null_data(self, client: Client, app: App, shared_database: Database) -> None:
        """The JSON null is a value like any other."""
        assert (await client.send(app, [make_event(event__data=None)])).status == 200
        assert shared_database.value("SELECT event_data::text FROM events WHERE app_id = %s", app.app_id) == "null"

    @pytest_twisted.ensureDeferred
    async def test_sql_in_every_string(self, client: Client, app: App, shared_database: Database) -> None:
        """Text that looks like SQL or like a placeholder is text."""
        nasty = "'; DROP TABLE events; -- %s %(x)s \\ \\' $1 {} :x"
        event = make_event(service__name=nasty, event__data={nasty: nasty}, session_id=nasty)
        assert (await client.send(app, [event])).status == 200
        row = shared_database.query("SELECT service_name, event_data FROM events WHERE app_id = %s", app.app_id)
        assert row == [(nasty, {nasty: nasty})]
