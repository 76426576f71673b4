"""The checks of a request, without a server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable
from itertools import count, product
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed

from tests.support.clock import IterationClock
from tkserver.ingest import verification
from tkserver.ingest.scheduler import SLICE_TIME, FairScheduler
from tkserver.ingest.verification import IngestRequest, VerificationState, VerifiedRequest, Verifier
from tkserver.log.access import RequestRecord
from tkserver.storage.credentials import Credential
from tkserver.storage.errors import Unavailable
from tkserver.wire import signature
from tkserver.wire.api_errors import (
    ApiError,
    DoNotTrack,
    InvalidSignature,
    InvalidToken,
    MissingSignature,
    TimestampOutOfWindow,
)
from tkserver.wire.batch import Steps
from tkserver.wire.ids import PathId
from tkserver.wire.signature import sign, signed_message

T = TypeVar("T")

NOW = 1_700_000_000
ORG, APP = uuid.uuid4(), uuid.uuid4()
CREDENTIAL = Credential(uuid.uuid4(), ORG, APP, "token", "secret")


class FakeCredentials:
    """Finds a single credential.

    :param error: lookups fail with this error.
    :param others: other credentials of the same application.
    """

    def __init__(self, error: Exception | None = None, others: tuple[Credential, ...] = ()) -> None:
        self._error = error
        self._others = others

    def by_token(self, token: str) -> Deferred[tuple[Credential, ...]]:
        if self._error:
            return fail(self._error)
        return succeed((CREDENTIAL,) if token == CREDENTIAL.token else ())

    def by_app(self, org_id: PathId, app_id: PathId) -> Deferred[tuple[Credential, ...]]:
        if self._error:
            return fail(self._error)
        return succeed((*self._others, CREDENTIAL) if (org_id, app_id) == (ORG, APP) else ())


def make_verifier(
    now: float = NOW,
    error: Exception | None = None,
    *,
    reactor: IterationClock | None = None,
    others: tuple[Credential, ...] = (),
) -> Verifier:
    """Return a verifier whose scheduler runs one step of a computation in each iteration of the reactor."""
    scheduler = FairScheduler(reactor or IterationClock(), count(step=SLICE_TIME * 0.6).__next__)
    credentials: Any = FakeCredentials(error, others)
    return Verifier(credentials, lambda: now, 600, scheduler)


def make_request(
    timestamp: int = NOW, *, body: bytes = b"body", nonce: str | None = None, **headers: str
) -> IngestRequest:
    """Return a request with a valid signature, and with more headers."""
    stamp = str(timestamp).encode()
    signed = sign("secret", signed_message(stamp, None if nonce is None else nonce.encode(), body)).decode()
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


LONG_BODY = b"x" * 1_000_000


def iterations(verifier: Verifier, reactor: IterationClock, request: IngestRequest) -> tuple[int, VerifiedRequest]:
    """Return the number of iterations of the reactor until a request is verified, and the result."""
    verified = verifier.verify(request)
    number = 0
    while not verified.called or isinstance(verified.result, Deferred):
        reactor.advance(1)
        number += 1
        assert number < 1000
    return number, result_of(verified)


def test_signature_of_long_body_is_computed_in_steps() -> None:
    """The reactor can do other work while the signature of a long body is computed, with each of several secrets."""
    reactor = IterationClock()
    others = tuple(Credential(uuid.uuid4(), ORG, APP, f"token {n}", f"secret {n}") for n in range(3))
    verifier = make_verifier(reactor=reactor, others=others)
    number, verified = iterations(verifier, reactor, make_request(body=LONG_BODY))
    assert number > 3
    assert verified.credential == CREDENTIAL
    request = make_request(body=LONG_BODY, nonce="n", x_nonce="n")
    del request.headers["authorization"]  # type: ignore[attr-defined]
    number_with_others, verified = iterations(verifier, reactor, request)
    assert number_with_others > 3 * number
    assert (verified.credential, verified.nonce) == (CREDENTIAL, "n")
    assert result_of(verifier.verify(make_request())).credential == CREDENTIAL


def test_wrong_signature_of_long_body_is_rejected() -> None:
    """The errors are the same as for a short body, and a signature is computed for an unknown token, too."""
    reactor = IterationClock()
    verifier = make_verifier(reactor=reactor)
    with pytest.raises(InvalidSignature):
        iterations(verifier, reactor, replace(make_request(body=LONG_BODY), body=LONG_BODY + b"x"))
    unknown = verifier.verify(make_request(body=LONG_BODY, authorization="Bearer unknown"))
    reactor.advance(1)
    assert not unknown.called or isinstance(unknown.result, Deferred)
    reactor.pump([1] * 10)
    with pytest.raises(InvalidToken):
        result_of(unknown)


def test_representation_of_credential_contains_no_secret() -> None:
    """A credential in a log or traceback does not reveal its token or secret."""
    representation = repr(CREDENTIAL)
    assert "secret" not in representation
    assert "'token'" not in representation


class OwnersOfTasks(FairScheduler):
    """Records on whose behalf computations run."""

    def __init__(self) -> None:
        super().__init__(IterationClock(), count(step=SLICE_TIME * 0.6).__next__)
        self.owners: list[Hashable] = []

    def run(self, owner: Hashable, steps: Steps[T]) -> Deferred[T]:
        self.owners.append(owner)
        return super().run(owner, steps)


class CredentialsOfSlugs(FakeCredentials):
    """Finds the credential by slugs, too."""

    def by_app(self, org_id: PathId, app_id: PathId) -> Deferred[tuple[Credential, ...]]:
        return succeed((CREDENTIAL,) if org_id in (ORG, "acme") and app_id in (APP, "my-cli") else ())


@pytest.mark.parametrize("has_token", [True, False])
def test_one_share_for_all_paths_of_an_application(has_token: bool) -> None:
    """Long bodies of an application are verified in its turn, however its path is written."""
    scheduler = OwnersOfTasks()
    credentials: Any = CredentialsOfSlugs()
    verifier = Verifier(credentials, lambda: NOW, 600, scheduler)
    request = make_request(body=bytes(1_000_000), nonce="nonce", x_nonce="nonce")
    if not has_token:
        request = replace(
            request, headers={name: text for name, text in request.headers.items() if name != "authorization"}
        )
    paths = list(
        product((str(ORG), str(ORG).upper(), ORG.hex, "acme"), (str(APP), str(APP).upper(), APP.hex, "my-cli"))
    )
    for org, app in paths:
        verifier.verify(replace(request, org_id=org, app_id=app)).addErrback(lambda _: None)
    assert scheduler.owners == [(str(ORG), str(APP))] * len(paths)
    verifier.verify(replace(request, org_id="unknown", headers={**request.headers, "authorization": "Bearer unknown"}))
    assert scheduler.owners[-1] != (str(ORG), str(APP))
