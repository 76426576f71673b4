"""Verification of a request: the chain of checks between its headers and its events.

Each check is a small function that takes a :class:`VerificationState` and returns it, possibly with more information,
or raises an :class:`~tkserver.wire.api_errors.ApiError`. :class:`Verifier` chains them on two Deferreds in the order of
the contract: the first ends before the body is read. Consecutive checks that do not wait for anything share a callback.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from tkserver.deferreds import clear_traceback
from tkserver.ingest.scheduler import FairScheduler
from tkserver.limits.request_rate import RequestRateLimit
from tkserver.limits.token_bucket import Decision
from tkserver.log.access import RequestRecord
from tkserver.storage.caches import CredentialCache
from tkserver.storage.credentials import Credential
from tkserver.wire import signature
from tkserver.wire.api_errors import (
    ApiError,
    DoNotTrack,
    InvalidId,
    InvalidNonce,
    InvalidSignature,
    InvalidTimestamp,
    InvalidToken,
    MissingAuthorization,
    MissingSignature,
    MissingTimestamp,
    RateLimited,
    TimestampOutOfWindow,
    TokenMismatch,
)
from tkserver.wire.batch import Steps
from tkserver.wire.ids import PATH_ID, UUID_LENGTHS, PathId

CREDENTIALS_VALID = 1.0
"""Seconds for which the result of a lookup is used. A body can take longer, and its credential may be revoked then."""

_LONG_BODY = 65_536
"""Bytes. The signatures of longer bodies are computed in steps."""

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TOKEN_LENGTH = 255


class IngestRequest(Struct, frozen=True):
    """A request whose headers have been received.

    :ivar headers: by lower-case name. Values are decoded from ISO 8859-1.
    :ivar record: the record for logs and metrics; checks add the application.
    :ivar response_headers: checks add headers for the response, including error responses.
    :ivar before_query: called before a query for a credential; raises an ``ApiError`` if the client must not cause one.
    """

    org_id: str
    app_id: str
    headers: Mapping[str, str]
    record: RequestRecord
    response_headers: dict[str, str]
    before_query: Callable[[], None] = lambda: None


@dataclass(slots=True)
class VerificationState:
    """A request, and the results of the checks so far.

    :ivar org: the organization in the path. The same for ``app``.
    :ivar candidates: the active credentials with which the request may have been signed.
    :ivar found_at: when they were looked up, as Unix time.
    :ivar body: as received, still compressed if it was sent so.
    :ivar credential: the credential with which it was signed.
    """

    request: IngestRequest
    org: PathId = ""
    app: PathId = ""
    candidates: tuple[Credential, ...] = ()
    found_at: float = 0.0
    body: bytes = b""
    credential: Credential | None = None

    def header(self, name: str) -> str | None:
        return self.request.headers.get(name)


class VerifiedRequest(Struct, frozen=True):
    """A request that has passed all checks."""

    request: IngestRequest
    org_id: UUID
    app_id: UUID
    credential: Credential
    nonce: str | None
    body: bytes


T = TypeVar("T")

Check = Callable[[VerificationState], VerificationState]
Step = Callable[[VerificationState], "VerificationState | Deferred[VerificationState]"]


def run_checks(*checks: Check) -> Check:
    """Combine checks that do not wait into one step, because a callback takes longer than most of them."""

    def run_all(state: VerificationState) -> VerificationState:
        for check in checks:
            state = check(state)
        return state

    return run_all


class Verifier:
    """Runs a request through all checks: first those of the headers, then those that need the body.

    :param now: returns Unix time.
    :param tolerance: the maximum difference between the clocks of client and server, in seconds.
    :param scheduler: computes the signatures of long bodies.
    :param limit: the rate limit of applications; ``None`` if no tier has one.
    """

    def __init__(
        self,
        credentials: CredentialCache,
        now: Callable[[], float],
        tolerance: int,
        scheduler: FairScheduler,
        limit: RequestRateLimit | None = None,
    ) -> None:
        self._credentials = credentials
        self._now = now
        self._tolerance = tolerance
        self._scheduler = scheduler
        identify = run_checks(identify_application, require_headers, self.check_timestamp)
        check_candidates = run_checks(require_candidates, check_scope, check_nonce)
        self.header_steps: tuple[Step, ...] = (identify, self.find_candidates, check_candidates)
        self.body_steps: tuple[Step, ...] = (
            (self.renew_candidates, self.find_credential, check_do_not_track)
            if limit is None
            else (self.renew_candidates, self.find_credential, partial(check_rate, limit), check_do_not_track)
        )

    def identify(self, request: IngestRequest) -> Deferred[VerificationState]:
        """Run the checks that need only the headers, so that the bodies of strangers are not read.

        :raise ApiError: if a check fails. Later checks are not run.
        """
        return _run_steps(self.header_steps, VerificationState(request)).addErrback(_failed)

    def verify(self, state: VerificationState, body: bytes) -> Deferred[VerifiedRequest]:
        """Run the checks that need the body.

        :param state: the result of :meth:`identify`.
        :raise ApiError: if a check fails. Later checks are not run.
        :raise DoNotTrack: if all checks pass, and the client sent a do-not-track header.
        """
        state.body = body
        return _run_steps(self.body_steps, state).addCallbacks(_verified, _failed)

    def renew_candidates(self, state: VerificationState) -> VerificationState | Deferred[VerificationState]:
        """Look up the credentials again, unless the body arrived immediately."""
        return state if self._now() - state.found_at < CREDENTIALS_VALID else self.find_candidates(state)

    def find_candidates(self, state: VerificationState) -> VerificationState | Deferred[VerificationState]:
        """Look up credentials by the bearer token if there is one, otherwise by the application."""
        authorization, before_query = state.header("authorization"), state.request.before_query
        if authorization is None:
            found = self._credentials.by_app(state.org, state.app, before_query)
        else:
            token = _bearer_token(authorization)
            found = () if token is None else self._credentials.by_token(token, before_query)

        def add_candidates(candidates: tuple[Credential, ...]) -> VerificationState:
            now = state.found_at = self._now()
            state.candidates = tuple([candidate for candidate in candidates if candidate.expires_at > now])
            return state

        return found.addCallback(add_candidates) if isinstance(found, Deferred) else add_candidates(found)

    def find_credential(self, state: VerificationState) -> VerificationState | Deferred[VerificationState]:
        """Find the credential with which the request was signed. A long body takes turns with those of others."""
        require_candidates(state)
        if len(state.body) <= _LONG_BODY:
            return check_signature(state)
        application = state.candidates[0].application  # one application has one share, however its path is written
        return self._scheduler.enqueue(application, check_signature_in_steps(state))

    def check_timestamp(self, state: VerificationState) -> VerificationState:
        text = state.header("x-timestamp") or ""
        if not _INTEGER.fullmatch(text):
            raise InvalidTimestamp("X-Timestamp must be Unix time in seconds, in decimal, with at most 20 digits")
        timestamp = int(text)
        if abs(int(self._now()) - timestamp) > self._tolerance:
            raise TimestampOutOfWindow(
                f"X-Timestamp differs from the clock of the server by more than {self._tolerance} seconds:"
                " check the clock of the client"
            )
        return state


def identify_application(state: VerificationState) -> VerificationState:
    request, record = state.request, state.request.record
    state.org = _path_id(request.org_id, "organization")
    state.app = _path_id(request.app_id, "application")
    if isinstance(state.org, UUID) and isinstance(state.app, UUID):  # other text may be a misplaced token
        record.org_id, record.app_id = request.org_id, request.app_id
    return state


def require_headers(state: VerificationState) -> VerificationState:
    headers = state.request.headers
    if "x-signature" not in headers:
        raise MissingSignature("the X-Signature header is missing")
    if "x-timestamp" not in headers:
        raise MissingTimestamp("the X-Timestamp header is missing")
    if "authorization" not in headers and "x-nonce" not in headers:
        raise MissingAuthorization("send Authorization: Bearer <token>, or include an X-Nonce in the signature")
    return state


def require_candidates(state: VerificationState) -> VerificationState:
    if not state.candidates:
        raise InvalidToken("no active credential matches this request")
    return state


def check_signature(state: VerificationState) -> VerificationState:
    for candidate in state.candidates:
        if _is_signed_with(state, candidate.secret):
            state.credential = candidate
            return state
    raise _wrong_signature()


def check_signature_in_steps(state: VerificationState) -> Steps[VerificationState]:
    """Do the same as :func:`check_signature` in steps."""
    for candidate in state.candidates:
        if (yield from _is_signed_in_steps(state, candidate.secret)):
            state.credential = candidate
            return state
    raise _wrong_signature()


def _wrong_signature() -> InvalidSignature:
    return InvalidSignature("the signature is wrong: check the secret and the signed message")


def check_nonce(state: VerificationState) -> VerificationState:
    nonce = state.header("x-nonce")
    if nonce is not None and not _VISIBLE_ASCII.fullmatch(nonce):
        raise InvalidNonce("X-Nonce must be 1 to 128 visible ASCII characters")
    return state


def check_scope(state: VerificationState) -> VerificationState:
    credential, record = state.candidates[0], state.request.record  # the others belong to the same application
    org = credential.org_id if isinstance(state.org, UUID) else credential.org_slug
    app = credential.app_id if isinstance(state.app, UUID) else credential.app_slug
    if (org, app) != (state.org, state.app):
        raise TokenMismatch("the token belongs to another organization or application")
    record.org_id, record.app_id = str(credential.org_id), str(credential.app_id)
    return state


def check_rate(limit: RequestRateLimit, state: VerificationState) -> VerificationState | Deferred[VerificationState]:
    credential = _known(state.credential)
    decision = limit.take(credential.tier, credential.org_id, credential.app_id)
    if isinstance(decision, Deferred):
        return decision.addCallback(partial(apply_rate_limit, state))
    return state if decision is None else apply_rate_limit(state, decision)


def apply_rate_limit(state: VerificationState, decision: Decision) -> VerificationState:
    """Add the state of the limit to the response, and reject the request if it exceeds the limit."""
    state.request.response_headers.update(
        {
            "X-RateLimit-Limit": str(decision.rate.limit),
            "X-RateLimit-Remaining": str(decision.remaining),
            "X-RateLimit-Reset": str(decision.reset),
        }
    )
    if not decision.allowed:
        raise RateLimited(
            f"more than {decision.rate.limit} requests per minute: send more events in fewer batches",
            retry_after=decision.retry_after,
        )
    return state


def check_do_not_track(state: VerificationState) -> VerificationState:
    if "1" in (state.header("dnt"), state.header("sec-gpc")):
        raise DoNotTrack
    return state


def _run_steps(steps: tuple[Step, ...], state: VerificationState) -> Deferred[VerificationState]:
    result: Deferred[VerificationState] = succeed(state)
    for step in steps:
        result.addCallback(step)
    return result


def _verified(state: VerificationState) -> VerifiedRequest:
    credential, nonce = _known(state.credential), state.header("x-nonce")
    return VerifiedRequest(state.request, credential.org_id, credential.app_id, credential, nonce, state.body)


def _failed(failure: Failure) -> Failure:
    if isinstance(failure.value, (ApiError, DoNotTrack)):  # their tracebacks are of no use
        clear_traceback(failure)
    return failure


def _known(value: T | None) -> T:
    """Return a result of an earlier check."""
    assert value is not None, "the checks are in the wrong order"
    return value


def _path_id(text: str, owner: str) -> PathId:
    if len(text) in UUID_LENGTHS:
        with suppress(msgspec.ValidationError):
            return msgspec.convert(text, UUID)
    if not PATH_ID.fullmatch(text):
        raise InvalidId(f"the {owner} in the path is neither a UUID nor 1 to 100 characters of A-Z a-z 0-9 . _ -")
    return text


def _bearer_token(authorization: str) -> str | None:
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    valid = 0 < len(token) <= _MAX_TOKEN_LENGTH and "\0" not in token
    return token if scheme.lower() == "bearer" and valid else None


def _is_signed_with(state: VerificationState, secret: str) -> bool:
    timestamp, nonce, sent = _signature_headers(state)
    return signature.matches(secret, signature.signed_message(timestamp, nonce, state.body), sent)


def _is_signed_in_steps(state: VerificationState, secret: str) -> Steps[bool]:
    timestamp, nonce, sent = _signature_headers(state)
    return signature.matches_in_steps(secret, timestamp, nonce, state.body, sent)


def _signature_headers(state: VerificationState) -> tuple[bytes, bytes | None, bytes]:
    """Return timestamp, nonce and signature as sent."""
    headers = state.request.headers
    nonce = headers.get("x-nonce")
    return (
        headers.get("x-timestamp", "").encode("latin-1"),
        None if nonce is None else nonce.encode("latin-1"),
        headers.get("x-signature", "").encode("latin-1"),
    )
