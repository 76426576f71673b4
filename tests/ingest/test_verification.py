"""The chain of verification, step by step."""

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


class OneCredential:
    """Knows one credential, or fails."""

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


def verifier(now: float = NOW, error: Exception | None = None) -> Verifier:
    return Verifier(OneCredential(error), lambda: now, tolerance=600)  # type: ignore[arg-type]


def request(timestamp: int = NOW, **headers: str) -> IngestRequest:
    """A request that is signed as it should be, with more headers."""
    body, stamp = b"body", str(timestamp).encode()
    signed = sign("secret", signed_message(stamp, None, body)).decode()
    given = {"authorization": "Bearer token", "x-timestamp": stamp.decode(), "x-signature": signed}
    given.update({name.replace("_", "-"): text for name, text in headers.items()})
    return IngestRequest(str(ORG), str(APP), given, body, RequestRecord())


def result(deferred: Deferred[VerifiedRequest]) -> VerifiedRequest:
    """What has come of it by now."""
    found: list[object] = []
    deferred.addBoth(found.append)
    (outcome,) = found
    if isinstance(outcome, VerifiedRequest):
        return outcome
    outcome.raiseException()  # type: ignore[attr-defined]
    raise AssertionError


def test_verified() -> None:
    """A request that passes comes out with its credential."""
    verified = result(verifier().verify(request()))
    assert (verified.org_id, verified.app_id, verified.credential, verified.nonce) == (ORG, APP, CREDENTIAL, None)


@pytest.mark.parametrize("off", [-600, 600, -600.9, 0])
def test_both_ends_of_the_window_are_in(off: float) -> None:
    """The tolerance is in whole seconds, both ends included."""
    assert result(verifier(now=NOW - off).verify(request()))


@pytest.mark.parametrize("off", [-601, 601])
def test_outside_the_window(off: int) -> None:
    """A second more is too much."""
    with pytest.raises(TimestampOutOfWindow):
        result(verifier(now=NOW + off).verify(request()))


def test_the_first_step_that_fails_decides() -> None:
    """Steps run in their order, and none runs after one that fails."""
    ran: list[str] = []

    def note(name: str) -> Callable[[VerificationState], VerificationState]:
        def step(state: VerificationState) -> VerificationState:
            ran.append(name)
            return state

        return step

    chain = verifier()
    chain.steps = (note("first"), verification.require_headers, note("second"))
    with pytest.raises(MissingSignature):
        result(chain.verify(replace(request(), headers={})))
    assert ran == ["first"]


def test_storage_failures_are_no_refusals() -> None:
    """When the credential cannot be looked up, that is what comes out."""
    with pytest.raises(Unavailable):
        result(verifier(error=Unavailable("away")).verify(request()))


def test_do_not_track() -> None:
    """It ends the chain, after everything else has passed."""
    with pytest.raises(DoNotTrack):
        result(verifier().verify(request(dnt="1")))
    with pytest.raises(ApiError):
        result(verifier().verify(request(dnt="1", x_signature="00")))


def test_an_unknown_token_costs_a_signature_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is signed for a token that nobody knows as it is for one that somebody does."""
    lengths: list[int] = []
    original = signature.matches

    def matches(secret: str, message: bytes, sent: bytes) -> bool:
        lengths.append(len(message))
        return original(secret, message, sent)

    monkeypatch.setattr(signature, "matches", matches)
    with pytest.raises(InvalidToken):
        result(verifier().verify(request(authorization="Bearer unknown")))
    with pytest.raises(ApiError):
        result(verifier().verify(request(x_signature="00")))
    assert len(lengths) == 2
    assert lengths[0] == lengths[1]


def test_secrets_are_not_shown() -> None:
    """A credential that finds its way into a log or a traceback keeps its secret."""
    shown = repr(CREDENTIAL)
    assert "secret" not in shown
    assert "'token'" not in shown
