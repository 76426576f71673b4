"""The one map from errors to answers."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from werkzeug import exceptions as werkzeug

from tkserver import log
from tkserver.storage.errors import StorageError
from tkserver.web.request import ApiRequest
from tkserver.wire import answer
from tkserver.wire.answer import Answer
from tkserver.wire.refusal import (
    DoNotTrack,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Refusal,
    StorageUnavailable,
)

_log = log.logger(__name__)


class ErrorAnswers:
    """The answers to errors, those of routing included.

    :param clock: gives seconds, on any scale.
    :param directions: for whoever asks for what is not there.
    """

    def __init__(self, clock: Callable[[], float], directions: str) -> None:
        self._complaints = log.Throttle(clock)
        self._directions = directions

    def __call__(self, failure: Failure, request: ApiRequest) -> Answer:
        """The answer to an error."""
        if isinstance(failure.value, DoNotTrack):
            return answer.no_content()
        return answer.refused(self._refusal_for(failure, request.exchange.request_id), request.exchange.request_id)

    def _refusal_for(self, failure: Failure, request_id: str) -> Refusal:
        error = failure.value
        if isinstance(error, Refusal):
            return error
        if isinstance(error, StorageError):
            problem = str(error)
            if self._complaints.lets_pass(problem):
                _log.warn(
                    "requests are answered 503: {problem}",
                    problem=problem,
                    request_id=request_id,
                    event="storage_unavailable",
                )
            return StorageUnavailable("the database cannot take events now: try again")
        if isinstance(error, CancelledError):  # the client is gone, and so is everyone who could read an answer
            return StorageUnavailable("given up: try again")
        if isinstance(error, werkzeug.MethodNotAllowed):
            return MethodNotAllowed("use one of the allowed methods", sorted(error.valid_methods or ()))
        if isinstance(error, werkzeug.HTTPException):
            return NotFound(f"there is nothing here: {self._directions}")
        _log.failure("a request failed", failure, request_id=request_id, event="request_failed")
        return InternalError("something went wrong on this server")
