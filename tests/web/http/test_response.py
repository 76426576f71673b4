"""JSON and headers of responses, byte for byte where the contract has examples."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from tests.support.client import batch
from tests.support.events import make_event
from tkserver.ingest.active_applications import ActiveApplications
from tkserver.ingest.ingestion import Ingestion, IngestResult
from tkserver.ingest.ledger import Ledger
from tkserver.ingest.scheduler import FairScheduler
from tkserver.ingest.verification import IngestRequest, VerificationState, VerifiedRequest
from tkserver.log.access import RequestRecord
from tkserver.storage.events import Outcome, Submission
from tkserver.web.api import ingest_response
from tkserver.web.http.response import Response, error_response, json_response, no_content
from tkserver.wire import api_errors
from tkserver.wire.api_errors import AllEventsRejected, ApiError, EventError, MethodNotAllowed, Unauthorized
from tkserver.wire.event import MAX_EVENT_BYTES, NIL_UUID

ID = "4bf92f35"
FIRST = UUID("11111111-1111-4111-8111-111111111111")
SECOND = UUID("AAAAAAAA-AAAA-4AAA-8AAA-AAAAAAAAAAAA")

# Code, status and class of the errors in the contract that need only a message.
CONTRACT_ERRORS = {
    "not_found": (404, api_errors.NotFound),
    "payload_too_large": (413, api_errors.PayloadTooLarge),
    "invalid_id": (400, api_errors.InvalidId),
    "missing_signature": (401, api_errors.MissingSignature),
    "missing_timestamp": (401, api_errors.MissingTimestamp),
    "missing_authorization": (401, api_errors.MissingAuthorization),
    "invalid_token": (401, api_errors.InvalidToken),
    "invalid_signature": (401, api_errors.InvalidSignature),
    "invalid_timestamp": (400, api_errors.InvalidTimestamp),
    "timestamp_out_of_window": (403, api_errors.TimestampOutOfWindow),
    "token_mismatch": (403, api_errors.TokenMismatch),
    "rate_limited": (429, api_errors.RateLimited),
    "unsupported_media_type": (415, api_errors.UnsupportedMediaType),
    "unsupported_encoding": (415, api_errors.UnsupportedEncoding),
    "invalid_encoding": (400, api_errors.InvalidEncoding),
    "invalid_json": (400, api_errors.InvalidJson),
    "empty_batch": (400, api_errors.EmptyBatch),
    "batch_too_large": (400, api_errors.BatchTooLarge),
    "batch_size_mismatch": (400, api_errors.BatchSizeMismatch),
    "overloaded": (503, api_errors.Overloaded),
    "storage_unavailable": (503, api_errors.StorageUnavailable),
    "nonce_reused": (409, api_errors.NonceReused),
}

# Errors that are not in the contract.
OTHER_ERRORS = {
    "bad_request": (400, api_errors.BadRequest),
    "invalid_nonce": (400, api_errors.InvalidNonce),
    "misdirected_request": (421, api_errors.MisdirectedRequest),
    "request_timeout": (408, api_errors.RequestTimeout),
    "internal_error": (500, api_errors.InternalError),
}


def content_of(response: Response) -> Any:
    """Return the decoded body of a response."""
    assert response.body is not None
    return json.loads(response.body)


async def ingest(events: list[dict[str, Any]], outcome: Outcome) -> IngestResult:
    """Return the result of a request that has passed all checks.

    :param outcome: the outcome in the database.
    """

    async def verify(state: VerificationState, body: bytes) -> VerifiedRequest:
        return VerifiedRequest(state.request, FIRST, SECOND, credential, None, body)

    async def submit(_: Submission) -> Outcome:
        return outcome

    credential: Any = SimpleNamespace(has_quota=False, application=(FIRST.int, SECOND.int))
    verifier: Any = SimpleNamespace(verify=verify)
    committer: Any = SimpleNamespace(submit=submit)
    last_used: Any = SimpleNamespace(record=lambda _: None)
    headers = {"content-type": "application/json", "x-timestamp": "1735732800"}
    request = IngestRequest(str(FIRST), str(SECOND), headers, RequestRecord(), {})
    active = ActiveApplications(time.monotonic)
    scheduler = FairScheduler(Clock(), time.monotonic, active)
    ingestion = Ingestion(verifier, scheduler, committer, last_used, Ledger(), 10_000_000)
    return await ingestion.ingest(VerificationState(request, candidates=(credential,)), batch(events))


# --- accepted batches


def test_accepted_batch_is_a_200() -> None:
    """The response to a batch whose events are all accepted is a 200 with the counts and a message."""
    response = ingest_response(IngestResult(accepted=3, duplicates=1))

    assert response == Response(
        200,
        b'{"status":"success","accepted":3,"rejected":0,"duplicates":1,'
        b'"message":"3 events accepted, 1 of them already stored"}',
        {},
    )


@pytest.mark.parametrize(
    ("accepted", "duplicates", "message"),
    [(1, 0, "1 event accepted"), (2, 0, "2 events accepted"), (1, 1, "1 event accepted, 1 of them already stored")],
)
def test_message_contains_counts(accepted: int, duplicates: int, message: str) -> None:
    """The message of an accepted batch contains the counts."""
    content = content_of(ingest_response(IngestResult(accepted, duplicates)))

    assert content["message"] == message


def test_partially_accepted_batch_is_a_207() -> None:
    """The response to a batch with rejected events is a 207 with one error for each of them."""
    errors = (EventError(1, FIRST, "invalid_schema", "service.name: missing"),)
    response = ingest_response(IngestResult(accepted=2, duplicates=0, errors=errors, quarantined=1))

    assert response == Response(
        207,
        b'{"status":"partial","accepted":2,"rejected":1,"duplicates":0,"quarantined":1,"errors":['
        b'{"index":1,"event_id":"11111111-1111-4111-8111-111111111111",'
        b'"error":"invalid_schema","message":"service.name: missing"}]}',
        {},
    )


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("too_large", "conflict"), [(2, 10), (10, 2)])
async def test_errors_are_ordered_by_index(too_large: int, conflict: int) -> None:
    """Errors are ordered by index, regardless of how they were found, and each has a UUID, possibly the nil UUID."""
    events = [make_event() for _ in range(11)]
    events[too_large] = make_event(event_id="x", event__data="x" * MAX_EVENT_BYTES)
    events[conflict] = make_event(event_id=str(SECOND).upper())
    outcome = Outcome(conflicts=frozenset([conflict]), duplicates=frozenset([1, 3, 4, 5]))
    content = content_of(ingest_response(await ingest(events, outcome)))

    assert (content["accepted"], content["rejected"], content["duplicates"]) == (9, 2, 4)
    assert [(error["index"], error["event_id"], error["error"]) for error in content["errors"]] == sorted(
        [
            (too_large, "00000000-0000-0000-0000-000000000000", "event_too_large"),
            (conflict, "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "event_id_conflict"),
        ]
    )


def test_message_with_special_characters_is_valid_json() -> None:
    """A message that contains quotes, control characters and U+0000 is encoded as valid JSON in UTF-8."""
    message = 'event.data: "\\\0\x1f\u2028\U0001f600'
    errors = (EventError(0, FIRST, "invalid_schema", message),)
    content = content_of(ingest_response(IngestResult(accepted=1, duplicates=0, errors=errors)))

    assert content["errors"][0]["message"] == message


# --- errors


@pytest.mark.parametrize("code", CONTRACT_ERRORS | OTHER_ERRORS)
def test_error_has_status_code_and_message(code: str) -> None:
    """The response to an error has the status of its class, and contains code, message and request id."""
    status, error_class = (CONTRACT_ERRORS | OTHER_ERRORS)[code]
    response = error_response(error_class("a message"), ID)
    content = content_of(response)

    assert response.status == status
    assert content["error"] == {"code": code, "message": "a message"}
    assert (content["request_id"], response.code) == (ID, code)
    assert set(content) == {"error", "request_id", *(["retry_after"] if status in (429, 503) else [])}


def _with_subclasses(error_class: type[ApiError]) -> list[type[ApiError]]:
    return [error_class, *(found for child in error_class.__subclasses__() for found in _with_subclasses(child))]


def test_error_codes_are_unique() -> None:
    """Every class of errors has a status and a code, and no two classes have the same code."""
    classes = [found for found in _with_subclasses(ApiError) if found.__module__ == api_errors.__name__]
    codes = [error_class.code for error_class in classes if error_class not in (ApiError, Unauthorized)]

    assert len(codes) > len(CONTRACT_ERRORS)
    assert len(codes) == len(set(codes))
    assert all(400 <= error_class.status < 600 for error_class in classes if error_class is not ApiError)


@pytest.mark.parametrize("error_class", [api_errors.RateLimited, api_errors.Overloaded, api_errors.StorageUnavailable])
def test_retry_after_is_in_body_and_header(error_class: type[ApiError]) -> None:
    """A 429 or 503 contains the seconds until a retry in body and header, even if the error does not specify them."""
    specified = error_response(error_class("later", retry_after=12), ID)
    default = error_response(error_class("later"), ID)

    assert content_of(specified)["retry_after"] == 12
    assert specified.headers == {"Retry-After": "12"}
    assert content_of(default)["retry_after"] == api_errors.RETRY_AFTER
    assert default.headers == {"Retry-After": str(api_errors.RETRY_AFTER)}
    assert isinstance(api_errors.RETRY_AFTER, int)


def test_error_body_equals_example_of_contract() -> None:
    """The body of an error equals the example in the contract, with the request id."""
    response = error_response(api_errors.RateLimited("...", retry_after=12), ID)

    assert (
        response.body == b'{"error":{"code":"rate_limited","message":"..."},"request_id":"4bf92f35","retry_after":12}'
    )


@pytest.mark.parametrize("code", [code for code, (status, _) in CONTRACT_ERRORS.items() if status == 401])
def test_401_contains_authentication_scheme(code: str) -> None:
    """Each 401 contains the supported authentication scheme."""
    _, error_class = CONTRACT_ERRORS[code]

    assert error_response(error_class("no"), ID).headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize(
    "code", [code for code, (status, _) in CONTRACT_ERRORS.items() if status not in (401, 429, 503)]
)
def test_other_errors_have_no_headers(code: str) -> None:
    """Other errors have no headers of their own."""
    _, error_class = CONTRACT_ERRORS[code]

    assert error_response(error_class("no"), ID).headers == {}


def test_405_lists_allowed_methods() -> None:
    """A 405 contains the allowed methods."""
    response = error_response(MethodNotAllowed("use another method", ["POST", "OPTIONS"]), ID)

    assert (response.status, content_of(response)["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers == {"Allow": "POST, OPTIONS"}


def test_rejected_batch_is_a_400() -> None:
    """The response to a batch whose events are all rejected is a 400 with the same list of errors as in a 207."""
    errors = (
        EventError(0, FIRST, "invalid_schema", "service.name: missing"),
        EventError(1, NIL_UUID, "unsupported_schema", "schema_version: no"),
    )
    response = error_response(AllEventsRejected("all events were rejected", errors), ID)
    content = content_of(response)

    assert response.status == 400
    assert content["error"] == {"code": "all_events_rejected", "message": "all events were rejected"}
    assert content["errors"] == content_of(ingest_response(IngestResult(1, 0, errors)))["errors"]
    assert [error["index"] for error in content["errors"]] == [0, 1]
    assert set(content) == {"error", "errors", "quarantined", "request_id"}


def test_quarantined_events_count_as_accepted_for_published_sdk() -> None:
    """A client that deletes a batch only if an event was accepted gets the quarantined events counted as accepted."""
    errors = (EventError(0, FIRST, "invalid_schema", "service.name: missing"),)
    result = IngestResult(accepted=3, duplicates=1, errors=errors, quarantined=1, deletes_only_accepted=True)
    content = content_of(ingest_response(result))

    assert list(content) == ["status", "accepted", "rejected", "duplicates", "quarantined", "errors"]
    assert list(content.values())[:5] == ["partial", 4, 0, 1, 1]


@pytest.mark.parametrize("code", CONTRACT_ERRORS | OTHER_ERRORS)
def test_flat_error(code: str) -> None:
    """The published SDK gets every error in the only format that it can parse."""
    status, error_class = (CONTRACT_ERRORS | OTHER_ERRORS)[code]
    nested = error_response(error_class("a message"), ID, "telemetry-kit-rust/0.3.1")
    flat = error_response(error_class("a message"), ID, "telemetry-kit-rust/0.3.0")

    assert content_of(flat) == content_of(nested) | {"error": code, "message": "a message"}
    assert (flat.status, flat.headers, flat.code) == (status, nested.headers, code)


def test_flat_error_of_rejected_batch() -> None:
    """If all events of a batch are rejected, the flat format contains the list of errors, too."""
    error = AllEventsRejected("no", (EventError(0, FIRST, "invalid_schema", "service.name: missing"),), 1)
    content = content_of(error_response(error, ID, "telemetry-kit-rust/0.3.0"))

    assert set(content) == {"error", "message", "errors", "quarantined", "request_id"}
    assert (content["error"], content["quarantined"]) == ("all_events_rejected", 1)
    assert content["errors"] == content_of(error_response(error, ID))["errors"]


@pytest_twisted.ensureDeferred
async def test_errors_of_rejected_batch_are_ordered_by_index() -> None:
    """The errors of a batch whose events are all rejected are ordered by index, regardless of how they were found."""
    events = [make_event(event_id=str(FIRST)), make_event(event_id="x", schema_version="2.0.0")]
    with pytest.raises(AllEventsRejected) as caught:
        await ingest(events, Outcome(conflicts=frozenset([0])))
    content = content_of(error_response(caught.value, ID))

    assert [(error["index"], error["event_id"], error["error"]) for error in content["errors"]] == [
        (0, "11111111-1111-4111-8111-111111111111", "event_id_conflict"),
        (1, "00000000-0000-0000-0000-000000000000", "unsupported_schema"),
    ]


# --- other responses


def test_no_content_is_a_204_without_body() -> None:
    """A response without content is a 204 without a body."""
    assert no_content() == Response(204, None, {})
    assert no_content({"Vary": "Origin"}).headers == {"Vary": "Origin"}


def test_json_response_is_compact() -> None:
    """A JSON response contains compact JSON and additional headers."""
    response = json_response(200, {"status": "healthy", "version": "0.1.0"}, {"X-Test": "1"})

    assert response == Response(200, b'{"status":"healthy","version":"0.1.0"}', {"X-Test": "1"})
