"""The checks of a request, without a server."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from itertools import count, product
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from tests.support.clock import IterationClock
from tkserver.ingest.active_applications import ActiveApplications, Application
from tkserver.ingest.scheduler import SLICE_TIME, FairScheduler
from tkserver.ingest.verification import (
    IngestRequest,
    VerificationState,
    VerifiedRequest,
    Verifier,
    require_headers,
)
from tkserver.log.access import RequestRecord
from tkserver.storage.credentials import Credential
from tkserver.storage.errors import Unavailable
from tkserver.wire.api_errors import (
    ApiError,
    DoNotTrack,
    InvalidNonce,
    InvalidSignature,
    InvalidToken,
    MissingSignature,
    RateLimited,
    TimestampOutOfWindow,
    TokenMismatch,
)
from tkserver.wire.batch import Steps
from tkserver.wire.ids import PathId
from tkserver.wire.signature import sign, signed_message

T = TypeVar("T")

NOW = 1_700_000_000
ORG, APP = uuid.uuid4(), uuid.uuid4()
CREDENTIAL = Credential(uuid.uuid4(), ORG, APP, "token", "secret", org_slug="acme", app_slug="my-cli")
BODY = b"body"


class FakeCredentials:
    """Finds a single credential, with a query for each lookup.

    :param error: lookups fail with this error.
    :param others: other credentials of the same application.
    :ivar active: false if the credential has been revoked.
    """

    def __init__(self, error: Exception | None = None, others: tuple[Credential, ...] = ()) -> None:
        self._error = error
        self._others = others
        self.active = True

    def by_token(self, token: str, before_query: Callable[[], None]) -> Deferred[tuple[Credential, ...]]:
        return self._look_up(token == CREDENTIAL.token, (), before_query)

    def by_app(self, org: PathId, app: PathId, before_query: Callable[[], None]) -> Deferred[tuple[Credential, ...]]:
        return self._look_up(org in (ORG, "acme") and app in (APP, "my-cli"), self._others, before_query)

    def _look_up(
        self, exists: bool, others: tuple[Credential, ...], before_query: Callable[[], None]
    ) -> Deferred[tuple[Credential, ...]]:
        before_query()
        if self._error:
            return fail(self._error)
        return succeed((*others, CREDENTIAL) if exists and self.active else ())


def make_verifier(
    now: float = NOW, credentials: FakeCredentials | None = None, scheduler: FairScheduler | None = None
) -> Verifier:
    found: Any = credentials or FakeCredentials()
    return Verifier(found, lambda: now, 600, scheduler or make_scheduler(IterationClock()))


def make_scheduler(reactor: IterationClock) -> FairScheduler:
    """Return a scheduler that runs one step of a computation in each iteration of the reactor."""
    active = ActiveApplications(reactor.seconds)
    for application in ((0, 0), (0, 1)):
        active.note_request(application)
    return FairScheduler(reactor, count(step=SLICE_TIME * 0.6).__next__, active)


def verify(verifier: Verifier, request: IngestRequest) -> VerifiedRequest:
    """Run all checks, and return the result or raise the exception."""
    return result_of(verifier.verify(result_of(verifier.identify(request)), BODY))


def make_request(
    timestamp: int = NOW, *, body: bytes = BODY, nonce: str | None = None, **headers: str
) -> IngestRequest:
    """Return a request with a valid signature, and with more headers."""
    stamp = str(timestamp).encode()
    signed = sign("secret", signed_message(stamp, None if nonce is None else nonce.encode(), body)).decode()
    all_headers = {"authorization": "Bearer token", "x-timestamp": stamp.decode(), "x-signature": signed}
    all_headers.update({name.replace("_", "-"): text for name, text in headers.items()})
    return IngestRequest(str(ORG), str(APP), all_headers, RequestRecord(), {})


def result_of(deferred: Deferred[T]) -> T:
    """Return the result of a Deferred that has fired, or raise its exception."""
    results: list[T | Failure] = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def test_valid_request_is_verified() -> None:
    """The result for a valid request contains its application, credential and nonce."""
    verified = verify(make_verifier(), make_request())
    assert (verified.org_id, verified.app_id, verified.credential, verified.nonce) == (ORG, APP, CREDENTIAL, None)
    assert verified.body == BODY


@pytest.mark.parametrize("difference", [-600, 600, -600.9, 0])
def test_timestamp_within_tolerance_is_accepted(difference: float) -> None:
    """The tolerance is in whole seconds, and includes both ends."""
    assert verify(make_verifier(now=NOW - difference), make_request())


@pytest.mark.parametrize("difference", [-601, 601])
def test_timestamp_outside_tolerance_is_rejected(difference: int) -> None:
    """A difference that is one second larger than the tolerance is rejected."""
    with pytest.raises(TimestampOutOfWindow):
        result_of(make_verifier(now=NOW + difference).identify(make_request()))


def test_first_failed_step_ends_verification() -> None:
    """Steps run in order, and no step runs after one that fails."""
    called: list[str] = []

    def step(name: str) -> Callable[[VerificationState], VerificationState]:
        def run(state: VerificationState) -> VerificationState:
            called.append(name)
            return state

        return run

    verifier = make_verifier()
    verifier.header_steps = (step("first"), require_headers, step("second"))
    with pytest.raises(MissingSignature):
        result_of(verifier.identify(replace(make_request(), headers={})))
    assert called == ["first"]


def test_storage_error_of_lookup_is_raised() -> None:
    """If the credential cannot be looked up, verification fails with the error of the database."""
    with pytest.raises(Unavailable):
        result_of(make_verifier(credentials=FakeCredentials(Unavailable("away"))).identify(make_request()))


def test_do_not_track_is_checked_last() -> None:
    """A do-not-track header has an effect only if the request is valid otherwise."""
    with pytest.raises(DoNotTrack):
        verify(make_verifier(), make_request(dnt="1"))
    with pytest.raises(ApiError):
        verify(make_verifier(), make_request(dnt="1", x_signature="00"))


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"authorization": "Bearer unknown"}, InvalidToken),
        ({"x_timestamp": "1"}, TimestampOutOfWindow),
        ({"x_nonce": ""}, InvalidNonce),
    ],
)
def test_headers_are_checked_before_the_body(headers: dict[str, str], error: type[ApiError]) -> None:
    """A request that cannot succeed fails before its body is needed."""
    with pytest.raises(error):
        result_of(make_verifier().identify(make_request(NOW, body=BODY, nonce=None, **headers)))


def test_scope_is_checked_before_the_body() -> None:
    """The token of another application fails before the body is needed."""
    with pytest.raises(TokenMismatch):
        result_of(make_verifier().identify(replace(make_request(), app_id=str(uuid.uuid4()))))


def test_wrong_signature() -> None:
    """The signature is the first check that needs the body."""
    identified = result_of(make_verifier().identify(make_request(x_signature="00")))
    with pytest.raises(InvalidSignature):
        result_of(make_verifier().verify(identified, BODY))


def test_credential_revoked_while_the_body_arrives() -> None:
    """A credential that is revoked while the body arrives is not valid any more."""
    credentials = FakeCredentials()
    identified = result_of(make_verifier(credentials=credentials).identify(make_request()))
    credentials.active = False
    with pytest.raises(InvalidToken):
        result_of(make_verifier(NOW + 1, credentials).verify(identified, BODY))


def test_client_without_queries() -> None:
    """An error that is raised before a query is the result of the check."""

    def reject() -> None:
        raise RateLimited("too many")

    with pytest.raises(RateLimited):
        result_of(make_verifier().identify(replace(make_request(), before_query=reject)))


def test_representation_of_credential_contains_no_secret() -> None:
    """A credential in a log or traceback does not reveal its token or secret."""
    representation = repr(CREDENTIAL)
    assert "secret" not in representation
    assert "'token'" not in representation


LONG_BODY = b"x" * 1_000_000


def iterations(
    verifier: Verifier, reactor: IterationClock, request: IngestRequest, body: bytes = LONG_BODY
) -> tuple[int, VerifiedRequest]:
    """Return the number of iterations of the reactor until a request is verified, and the result."""
    verified = verifier.verify(result_of(verifier.identify(request)), body)
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
    verifier = make_verifier(credentials=FakeCredentials(others=others), scheduler=make_scheduler(reactor))
    number, verified = iterations(verifier, reactor, make_request(body=LONG_BODY))
    assert number > 3
    assert verified.credential == CREDENTIAL
    request = make_request(body=LONG_BODY, nonce="n", x_nonce="n")
    del request.headers["authorization"]  # type: ignore[attr-defined]
    number_with_others, verified = iterations(verifier, reactor, request)
    assert number_with_others > 3 * number
    assert (verified.credential, verified.nonce) == (CREDENTIAL, "n")
    assert verify(verifier, make_request()).credential == CREDENTIAL


def test_wrong_signature_of_long_body_is_rejected() -> None:
    """The error is the same as for a short body."""
    reactor = IterationClock()
    verifier = make_verifier(scheduler=make_scheduler(reactor))
    with pytest.raises(InvalidSignature):
        iterations(verifier, reactor, make_request(body=LONG_BODY), LONG_BODY + b"x")


class OwnersOfTasks(FairScheduler):
    """Records on whose behalf computations run."""

    def __init__(self) -> None:
        reactor = IterationClock()
        super().__init__(reactor, reactor.seconds, ActiveApplications(reactor.seconds))
        self.owners: list[Application] = []

    def enqueue(self, owner: Application, steps: Steps[T], *, small: bool = False) -> Deferred[T]:
        self.owners.append(owner)
        return super().enqueue(owner, steps, small=small)


@pytest.mark.parametrize("has_token", [True, False])
def test_one_share_for_all_paths_of_an_application(has_token: bool) -> None:
    """Long bodies of an application are verified in its turn, however its path is written."""
    scheduler = OwnersOfTasks()
    verifier = make_verifier(scheduler=scheduler)
    request = make_request(body=LONG_BODY, nonce="nonce", x_nonce="nonce")
    if not has_token:
        request = replace(
            request, headers={name: text for name, text in request.headers.items() if name != "authorization"}
        )
    paths = list(
        product((str(ORG), str(ORG).upper(), ORG.hex, "acme"), (str(APP), str(APP).upper(), APP.hex, "my-cli"))
    )
    for org, app in paths:
        identified = result_of(verifier.identify(replace(request, org_id=org, app_id=app)))
        verifier.verify(identified, LONG_BODY).addErrback(lambda _: None)
    assert scheduler.owners == [(ORG.int, APP.int)] * len(paths)
