"""Answers, to the byte where the contract shows them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from tkserver.web.http.response import Response
from tkserver.wire.api_errors import AllEventsRejected, ApiError, EventError, MethodNotAllowed, Unauthorized
from tkserver.wire.event import NIL_UUID

ID = "4bf92f35"
FIRST = UUID("11111111-1111-4111-8111-111111111111")
SECOND = UUID("AAAAAAAA-AAAA-4AAA-8AAA-AAAAAAAAAAAA")

# Code, status and class of each refusal that the contract names and that needs nothing but a message.
CODES = {
    "not_found": (404, refusal.NotFound),
    "payload_too_large": (413, refusal.PayloadTooLarge),
    "invalid_id": (400, refusal.InvalidId),
    "missing_signature": (401, refusal.MissingSignature),
    "missing_timestamp": (401, refusal.MissingTimestamp),
    "missing_authorization": (401, refusal.MissingAuthorization),
    "invalid_token": (401, refusal.InvalidToken),
    "invalid_signature": (401, refusal.InvalidSignature),
    "invalid_timestamp": (400, refusal.InvalidTimestamp),
    "timestamp_out_of_window": (403, refusal.TimestampOutOfWindow),
    "token_mismatch": (403, refusal.TokenMismatch),
    "rate_limited": (429, refusal.RateLimited),
    "unsupported_media_type": (415, refusal.UnsupportedMediaType),
    "unsupported_encoding": (415, refusal.UnsupportedEncoding),
    "invalid_encoding": (400, refusal.InvalidEncoding),
    "invalid_json": (400, refusal.InvalidJson),
    "empty_batch": (400, refusal.EmptyBatch),
    "batch_too_large": (400, refusal.BatchTooLarge),
    "batch_size_mismatch": (400, refusal.BatchSizeMismatch),
    "overloaded": (503, refusal.Overloaded),
    "storage_unavailable": (503, refusal.StorageUnavailable),
    "nonce_reused": (409, refusal.NonceReused),
}

# Those that the contract has no row for.
CODES_BESIDE_IT = {
    "bad_request": (400, refusal.BadRequest),
    "invalid_nonce": (400, refusal.InvalidNonce),
    "request_timeout": (408, refusal.RequestTimeout),
    "internal_error": (500, refusal.InternalError),
}


def content_of(made: Response) -> Any:
    assert made.body is not None
    return json.loads(made.body)


# --- batches that were committed


def test_all_accepted() -> None:
    """A batch that is accepted whole is a 200 with its counts and a message, in the contract's form."""
    made = answer.stored(accepted=3, duplicates=1, refusals=[])

    assert made == Response(
        200,
        b'{"status":"success","accepted":3,"rejected":0,"duplicates":1,'
        b'"message":"3 events accepted, 1 of them already stored"}',
        {},
    )


@pytest.mark.parametrize(
    ("accepted", "duplicates", "message"),
    [(1, 0, "1 event accepted"), (2, 0, "2 events accepted"), (1, 1, "1 event accepted, 1 of them already stored")],
)
def test_message(accepted: int, duplicates: int, message: str) -> None:
    """The message says in words what the counts say."""
    content = content_of(answer.stored(accepted=accepted, duplicates=duplicates, refusals=[]))

    assert content["message"] == message


def test_some_refused() -> None:
    """A batch of which some events are refused is a 207 with an error for each, in the contract's form."""
    refusals = [EventError(1, FIRST, "invalid_schema", "service.name: missing")]
    made = answer.stored(accepted=2, duplicates=0, refusals=refusals)

    assert made == Response(
        207,
        b'{"status":"partial","accepted":2,"rejected":1,"duplicates":0,"errors":['
        b'{"index":1,"event_id":"11111111-1111-4111-8111-111111111111",'
        b'"error":"invalid_schema","message":"service.name: missing"}]}',
        {},
    )


def test_errors_in_order() -> None:
    """Errors stand in the order of the batch, however they were found, and each has a UUID, if only the nil one."""
    refusals = iter(
        [
            EventError(10, SECOND, "event_id_conflict", "event_id: belongs to another application"),
            EventError(2, NIL_UUID, "event_too_large", "the event has 102401 bytes, the limit is 102400"),
        ]
    )
    content = content_of(answer.stored(accepted=9, duplicates=4, refusals=refusals))

    assert content["rejected"] == 2
    assert [(error["index"], error["event_id"], error["error"]) for error in content["errors"]] == [
        (2, "00000000-0000-0000-0000-000000000000", "event_too_large"),
        (10, "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "event_id_conflict"),
    ]


def test_text_of_any_kind() -> None:
    """A message with quotes, control characters and U+0000 from a client is still JSON in UTF-8."""
    message = 'event.data: "\\\0\x1f\u2028\U0001f600'
    content = content_of(
        answer.stored(accepted=1, duplicates=0, refusals=[EventError(0, FIRST, "invalid_schema", message)])
    )

    assert content["errors"][0]["message"] == message


# --- requests that are refused


@pytest.mark.parametrize("code", CODES | CODES_BESIDE_IT)
def test_code_and_status(code: str) -> None:
    """Each code has its status, and comes in the contract's form."""
    status, kind = (CODES | CODES_BESIDE_IT)[code]
    made = answer.refused(kind("what to do"), ID)
    content = content_of(made)

    assert made.status == status
    assert content["error"] == {"code": code, "message": "what to do"}
    assert (content["request_id"], made.code) == (ID, code)
    assert set(content) == {"error", "request_id", *(["retry_after"] if status in (429, 503) else [])}


def _kinds(kind: type[ApiError]) -> list[type[ApiError]]:
    return [kind, *(inner for below in kind.__subclasses__() for inner in _kinds(below))]


def test_codes_are_distinct() -> None:
    """No code stands for two kinds of refusal, and every kind that can be raised has a status and a code."""
    kinds = [kind for kind in _kinds(ApiError) if kind.__module__ == refusal.__name__]
    codes = [kind.code for kind in kinds if kind not in (ApiError, Unauthorized)]

    assert len(codes) > len(CODES)
    assert len(codes) == len(set(codes))
    assert all(400 <= kind.status < 600 for kind in kinds if kind is not ApiError)


@pytest.mark.parametrize("kind", [refusal.RateLimited, refusal.Overloaded, refusal.StorageUnavailable])
def test_retry_after(kind: type[ApiError]) -> None:
    """A 429 or 503 says in body and headers when to come back: when it is told to, or else all the same."""
    told = answer.refused(kind("later", retry_after=12), ID)
    untold = answer.refused(kind("later"), ID)

    assert content_of(told)["retry_after"] == 12
    assert told.headers == {"Retry-After": "12"}
    assert content_of(untold)["retry_after"] == refusal.RETRY_AFTER
    assert untold.headers == {"Retry-After": str(refusal.RETRY_AFTER)}
    assert isinstance(refusal.RETRY_AFTER, int)


def test_rate_limited() -> None:
    """The contract's example of a refusal comes out to the byte, with the request's id."""
    made = answer.refused(refusal.RateLimited("...", retry_after=12), ID)

    assert made.body == b'{"error":{"code":"rate_limited","message":"..."},"request_id":"4bf92f35","retry_after":12}'


@pytest.mark.parametrize("code", [code for code, (status, _) in CODES.items() if status == 401])
def test_unauthorized(code: str) -> None:
    """Each 401 says which scheme is spoken here."""
    _, kind = CODES[code]

    assert answer.refused(kind("no"), ID).headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("code", [code for code, (status, _) in CODES.items() if status not in (401, 429, 503)])
def test_no_headers_of_others(code: str) -> None:
    """The other refusals have no such headers."""
    _, kind = CODES[code]

    assert answer.refused(kind("no"), ID).headers == {}


def test_method_not_allowed() -> None:
    """A 405 names the methods that there are."""
    made = answer.refused(MethodNotAllowed("use another", ["POST", "OPTIONS"]), ID)

    assert (made.status, content_of(made)["error"]["code"]) == (405, "method_not_allowed")
    assert made.headers == {"Allow": "POST, OPTIONS"}


def test_all_events_rejected() -> None:
    """A batch of which nothing is accepted is a 400 in the error form, with the same errors as a 207 beside it."""
    refusals = [
        EventError(1, NIL_UUID, "unsupported_schema", "schema_version: no"),
        EventError(0, FIRST, "invalid_schema", "service.name: missing"),
    ]
    made = answer.refused(AllEventsRejected("every event was refused", refusals), ID)
    content = content_of(made)

    assert made.status == 400
    assert content["error"] == {"code": "all_events_rejected", "message": "every event was refused"}
    assert content["errors"] == content_of(answer.stored(accepted=1, duplicates=0, refusals=refusals))["errors"]
    assert [error["index"] for error in content["errors"]] == [0, 1]
    assert set(content) == {"error", "errors", "request_id"}


# --- the rest


def test_no_content() -> None:
    """Do not track is answered with a 204 that has no body."""
    assert answer.no_content() == Response(204, None, {})
    assert answer.no_content({"Vary": "Origin"}).headers == {"Vary": "Origin"}


def test_json_answer() -> None:
    """Any content is answered as compact JSON, with the headers that were given."""
    made = answer.json_response(200, {"status": "healthy", "version": "0.1.0"}, {"X-Test": "1"})

    assert made == Response(200, b'{"status":"healthy","version":"0.1.0"}', {"X-Test": "1"})
