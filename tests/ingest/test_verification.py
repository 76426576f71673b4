"""The checks of a request, without a server."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed

from tkserver.ingest import verification
from tkserver.ingest.verification import IngestRequest, VerificationState, VerifiedRequest, Verifier
from tkserver.log.access import RequestRecord
from tkserver.storage.credentials import Credential
from tkserver.storage.errors import Unavailable
from tkserver.wire import signature
from tkserver.wire.api_errors import ApiError, DoNotTrack, InvalidToken, MissingSignature, TimestampOutOfWindow
from tkserver.wire.signature import sign, signed_message

NOW = 1_700_000_000
ORG, APP = uuid.uuid4(), uuid.uuid4()
CREDENTIAL = Credential(uuid.uuid4(), ORG, APP, "token", "secret")


class FakeCredentials:
    """Finds a single credential.

    :param error: lookups fail with this error.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def by_token(self, token: str) -> Deferred[tuple[Credential, ...]]:
        if self._error:
            return fail(self._error)
        return succeed((CREDENTIAL,) if token == CREDENTIAL.token else ())

    def by_app(self, org_id: uuid.UUID, app_id: uuid.UUID) -> Deferred[tuple[Credential, ...]]:
        if self._error:
            return fail(self._error)
        return succeed((CREDENTIAL,) if (org_id, app_id) == (ORG, APP) else ())


def make_verifier(now: float = NOW, error: Exception | None = None) -> Verifier:
    return Verifier(FakeCredentials(error), lambda: now, tolerance=600)  # type: ignore[arg-type]


def make_request(timestamp: int = NOW, **headers: str) -> IngestRequest:
    """Return a request with a valid signature, and with more headers."""
    body, stamp = b"body", str(timestamp).encode()
    signed = sign("secret", signed_message(stamp, None, body)).decode()
    all_headers = {"authorization": "Bearer token", "x-timestamp": stamp.decode(), "x-signature": signed}
    all_headers.update({name.replace("_", "-"): text for name, text in headers.items()})
    return IngestRequest(str(ORG), str(APP), all_headers, body, RequestRecord(), {})


def result_of(deferred: Deferred[VerifiedRequest]) -> VerifiedRequest:
    """Return the result of a Deferred that has fired, or raise its exception."""
    results: list[object] = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, VerifiedRequest):
        return result
    result.raiseException()  # type: ignore[attr-defined]
    raise AssertionError


def test_valid_request_is_verified() -> None:
    """The result for a valid request contains its application, credential and nonce."""
    verified = result_of(make_verifier().verify(make_request()))
    assert (verified.org_id, verified.app_id, verified.credential, verified.nonce) == (ORG, APP, CREDENTIAL, None)


@pytest.mark.parametrize("difference", [-600, 600, -600.9, 0])
def test_timestamp_within_tolerance_is_accepted(difference: float) -> None:
    """The tolerance is in whole seconds, and includes both ends."""
    assert result_of(make_verifier(now=NOW - difference).verify(make_request()))


@pytest.mark.parametrize("difference", [-601, 601])
def test_timestamp_outside_tolerance_is_rejected(difference: int) -> None:
    """A difference that is one second larger than the tolerance is rejected."""
    with pytest.raises(TimestampOutOfWindow):
        result_of(make_verifier(now=NOW + difference).verify(make_request()))


def test_first_failed_step_ends_verification() -> None:
    """Steps run in order, and no step runs after one that fails."""
    called: list[str] = []

    def step(name: str) -> Callable[[VerificationState], VerificationState]:
        def run(state: VerificationState) -> VerificationState:
            called.append(name)
            return state

        return run

    verifier = make_verifier()
    verifier.steps = (step("first"), verification.require_headers, step("second"))
    with pytest.raises(MissingSignature):
        result_of(verifier.verify(replace(make_request(), headers={})))
    assert called == ["first"]


def test_storage_error_of_lookup_is_raised() -> None:
    """If the credential cannot be looked up, verification fails with the error of the database."""
    with pytest.raises(Unavailable):
        result_of(make_verifier(error=Unavailable("away")).verify(make_request()))


def test_do_not_track_is_checked_last() -> None:
    """A do-not-track header has an effect only if the request is valid otherwise."""
    with pytest.raises(DoNotTrack):
        result_of(make_verifier().verify(make_request(dnt="1")))
    with pytest.raises(ApiError):
        result_of(make_verifier().verify(make_request(dnt="1", x_signature="00")))


def test_signature_is_computed_for_unknown_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature of the body is computed for an unknown token, too, so that the response takes as long."""
    lengths: list[int] = []
    original = signature.matches

    def matches(secret: str, message: bytes, sent: bytes) -> bool:
        lengths.append(len(message))
        return original(secret, message, sent)

    monkeypatch.setattr(signature, "matches", matches)
    with pytest.raises(InvalidToken):
        result_of(make_verifier().verify(make_request(authorization="Bearer unknown")))
    with pytest.raises(ApiError):
        result_of(make_verifier().verify(make_request(x_signature="00")))
    assert len(lengths) == 2
    assert lengths[0] == lengths[1]


def test_representation_of_credential_contains_no_secret() -> None:
    """A credential in a log or traceback does not reveal its token or secret."""
    representation = repr(CREDENTIAL)
    assert "secret" not in representation
    assert "'token'" not in representation
