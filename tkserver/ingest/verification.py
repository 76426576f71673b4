"""Who sent this, and may they: the chain of checks between the headers of a request and its events.

Each check is a small step that takes a :class:`Claim` and gives it back, possibly knowing more, or raises a
:class:`~tkserver.wire.refusal.Refusal`. :class:`Verifier` strings them on a Deferred in the contract's order, those
that wait for nothing several on one link.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from tkserver.exchange import Exchange
from tkserver.failures import drop_frames
from tkserver.ingest.credentials import CredentialCache
from tkserver.limits.bucket import Verdict
from tkserver.limits.requests import RequestLimit
from tkserver.storage.tokens import Credential
from tkserver.wire import signature
from tkserver.wire.refusal import (
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
    Refusal,
    TimestampOutOfWindow,
    TokenMismatch,
)

_NO_SECRET = "0" * 64
"""Signed with where there is no credential, so that this takes as long as where there is one."""

_INTEGER = re.compile(r"-?[0-9]+")
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TIMESTAMP_DIGITS = 20
_LONGEST_TOKEN = 255


class IngestRequest(Struct, frozen=True):
    """A request as it came in.

    :ivar headers: by lower-case name. Values as sent, ISO 8859-1.
    :ivar body: as sent, still compressed where it is.
    :ivar exchange: where the chain says what it finds out, and which headers the answer carries besides.
    """

    org_id: str
    app_id: str
    headers: Mapping[str, str]
    body: bytes
    exchange: Exchange


@dataclass(slots=True)
class Claim:
    """A request and what is known of it so far, to which each step may add.

    :ivar candidates: the credentials that it may have been signed with.
    :ivar credential: the one that it was signed with.
    """

    request: IngestRequest
    org_id: UUID | None = None
    app_id: UUID | None = None
    candidates: tuple[Credential, ...] = ()
    credential: Credential | None = None

    def header(self, name: str) -> str | None:
        return self.request.headers.get(name)


class Verified(Struct, frozen=True):
    """A request that may be taken in."""

    request: IngestRequest
    org_id: UUID
    app_id: UUID
    credential: Credential
    nonce: str | None


T = TypeVar("T")

Check = Callable[[Claim], Claim]
Step = Callable[[Claim], "Claim | Deferred[Claim]"]


def in_turn(*checks: Check) -> Check:
    """Checks that wait for nothing, as one step: a link of a Deferred costs more than most of them."""

    def check_all(claim: Claim) -> Claim:
        for check in checks:
            claim = check(claim)
        return claim

    return check_all


class Verifier:
    """Runs a request through the chain.

    :param now: gives seconds since 1970.
    :param tolerance: seconds by which the clocks of client and server may differ, either way.
    :param limit: how many requests an application may send; ``None`` where no tier has a limit.
    """

    def __init__(
        self,
        credentials: CredentialCache,
        now: Callable[[], float],
        tolerance: int,
        limit: RequestLimit | None = None,
    ) -> None:
        self._credentials = credentials
        self._now = now
        self._tolerance = tolerance
        identify = in_turn(identify_application, require_headers)
        authenticate = in_turn(require_candidates, check_signature, self.check_timestamp, check_nonce, check_scope)
        self.steps: tuple[Step, ...] = (
            (identify, self.find_candidates, in_turn(authenticate, honour_do_not_track))
            if limit is None
            else (identify, self.find_candidates, authenticate, partial(check_rate, limit), honour_do_not_track)
        )

    def verify(self, request: IngestRequest) -> Deferred[Verified]:
        """
        :raise Refusal: by the first step that fails.
        :raise DoNotTrack: when the client asked for that.
        """
        claim: Deferred[Claim] = succeed(Claim(request))
        for step in self.steps:
            claim.addCallback(step)
        return claim.addCallbacks(_verified, _refused)

    def find_candidates(self, claim: Claim) -> Claim | Deferred[Claim]:
        """By the bearer token where there is one, and else by the application."""
        authorization = claim.header("authorization")
        if authorization is None:
            found = self._credentials.by_app(_known(claim.org_id), _known(claim.app_id))
        else:
            token = _bearer_token(authorization)
            found = () if token is None else self._credentials.by_token(token)

        def learn(candidates: tuple[Credential, ...]) -> Claim:
            now = self._now()
            claim.candidates = tuple([one for one in candidates if one.expires_at > now])
            return claim

        return found.addCallback(learn) if isinstance(found, Deferred) else learn(found)

    def check_timestamp(self, claim: Claim) -> Claim:
        text = claim.header("x-timestamp") or ""
        if not _INTEGER.fullmatch(text):
            raise InvalidTimestamp("X-Timestamp must be Unix seconds, in decimal")
        sent = int(text[:_MAX_TIMESTAMP_DIGITS])
        if abs(int(self._now()) - sent) > self._tolerance:
            raise TimestampOutOfWindow(
                f"X-Timestamp differs from this server's clock by more than {self._tolerance} seconds:"
                " check the clock of the client"
            )
        return claim


def identify_application(claim: Claim) -> Claim:
    exchange = claim.request.exchange
    claim.org_id = _uuid(claim.request.org_id, "organisation")
    claim.app_id = _uuid(claim.request.app_id, "application")
    exchange.org_id, exchange.app_id = claim.request.org_id, claim.request.app_id
    return claim


def require_headers(claim: Claim) -> Claim:
    headers = claim.request.headers
    if "x-signature" not in headers:
        raise MissingSignature("the X-Signature header is missing")
    if "x-timestamp" not in headers:
        raise MissingTimestamp("the X-Timestamp header is missing")
    if "authorization" not in headers and "x-nonce" not in headers:
        raise MissingAuthorization("send Authorization: Bearer <token>, or sign with an X-Nonce")
    return claim


def require_candidates(claim: Claim) -> Claim:
    if not claim.candidates:
        _signed_by(claim, _NO_SECRET)
        raise InvalidToken("no active credential fits this request")
    return claim


def check_signature(claim: Claim) -> Claim:
    for candidate in claim.candidates:
        if _signed_by(claim, candidate.secret):
            claim.credential = candidate
            return claim
    raise InvalidSignature("the signature does not fit: check the secret and what is signed")


def check_nonce(claim: Claim) -> Claim:
    nonce = claim.header("x-nonce")
    if nonce is not None and not _VISIBLE_ASCII.fullmatch(nonce):
        raise InvalidNonce("X-Nonce must be 1 to 128 visible ASCII characters")
    return claim


def check_scope(claim: Claim) -> Claim:
    credential = _known(claim.credential)
    if (credential.org_id, credential.app_id) != (claim.org_id, claim.app_id):
        raise TokenMismatch("the token belongs to another organisation or application")
    return claim


def check_rate(limit: RequestLimit, claim: Claim) -> Claim | Deferred[Claim]:
    credential = _known(claim.credential)
    verdict = limit.take(credential.tier, credential.org_id, credential.app_id)
    if isinstance(verdict, Deferred):
        return verdict.addCallback(partial(keep_to_rate, claim))
    return claim if verdict is None else keep_to_rate(claim, verdict)


def keep_to_rate(claim: Claim, verdict: Verdict) -> Claim:
    """Tell the client where it stands, whatever the answer will be, and go on only where it is within its limit."""
    claim.request.exchange.answer_headers.update(
        {
            "X-RateLimit-Limit": str(verdict.rate.limit),
            "X-RateLimit-Remaining": str(verdict.remaining),
            "X-RateLimit-Reset": str(verdict.reset),
        }
    )
    if not verdict.allowed:
        raise RateLimited(
            f"more than {verdict.rate.limit} requests a minute: send more events in fewer batches",
            retry_after=verdict.retry_after,
        )
    return claim


def honour_do_not_track(claim: Claim) -> Claim:
    if "1" in (claim.header("dnt"), claim.header("sec-gpc")):
        raise DoNotTrack
    return claim


def _verified(claim: Claim) -> Verified:
    org_id, app_id, credential = _known(claim.org_id), _known(claim.app_id), _known(claim.credential)
    return Verified(claim.request, org_id, app_id, credential, claim.header("x-nonce"))


def _refused(failure: Failure) -> Failure:
    if isinstance(failure.value, (Refusal, DoNotTrack)):  # which say all there is to say
        drop_frames(failure)
    return failure


def _known(value: T | None) -> T:
    """What an earlier step has found out."""
    assert value is not None, "the steps are in the wrong order"
    return value


def _uuid(text: str, whose: str) -> UUID:
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        raise InvalidId(f"the {whose} id in the path is not a UUID") from None


def _bearer_token(authorization: str) -> str | None:
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    fits = 0 < len(token) <= _LONGEST_TOKEN and "\0" not in token
    return token if scheme.lower() == "bearer" and fits else None


def _signed_by(claim: Claim, secret: str) -> bool:
    nonce = claim.header("x-nonce")
    message = signature.signed_message(
        (claim.header("x-timestamp") or "").encode("latin-1"),
        None if nonce is None else nonce.encode("latin-1"),
        claim.request.body,
    )
    return signature.matches(secret, message, (claim.header("x-signature") or "").encode("latin-1"))
