"""The mapping from exceptions to error responses."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from werkzeug import exceptions as werkzeug

from tkserver import log
from tkserver.storage.errors import StorageError
from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response, error_response, no_content
from tkserver.wire.api_errors import (
    ApiError,
    DoNotTrack,
    InternalError,
    MethodNotAllowed,
    NotFound,
    StorageUnavailable,
)

_log = log.logger(__name__)


class ErrorResponses:
    """Maps exceptions of request handlers and of routing to responses, and logs errors of the server.

    :param clock: returns seconds, on any scale.
    :param hint: appended to the message about a path that does not exist.
    """

    def __init__(self, clock: Callable[[], float], hint: str) -> None:
        self._throttle = log.Throttle(clock)
        self._hint = hint

    def __call__(self, failure: Failure, request: ApiRequest) -> Response:
        if isinstance(failure.value, DoNotTrack):
            return no_content()
        error = self.api_error(failure, request)
        return error_response(error, request.record.request_id, request.header("x-sdk-version"))

    def api_error(self, failure: Failure, request: ApiRequest) -> ApiError:
        """Return the error that the client gets, and log errors of the server."""
        error, request_id = failure.value, request.record.request_id
        if isinstance(error, ApiError):
            return error
        if isinstance(error, StorageError):
            request.record.cause = error.cause
            self._log_storage_error(str(error), request_id)
            return StorageUnavailable("the database cannot store events at the moment: try again later")
        if isinstance(error, CancelledError):  # the client has disconnected, so nobody reads this
            return StorageUnavailable("the request was cancelled: try again later")
        if isinstance(error, werkzeug.MethodNotAllowed):
            return MethodNotAllowed("use one of the allowed methods", sorted(error.valid_methods or ()))
        if isinstance(error, werkzeug.HTTPException):
            return NotFound(f"this path does not exist: {self._hint}")
        _log.failure("a request failed", failure, request_id=request_id, event="request_failed")
        return InternalError("the server failed to handle the request")

    def _log_storage_error(self, problem: str, request_id: str) -> None:
        if self._throttle.allows(problem):
            _log.warn(
                "requests get a 503: {problem}", problem=problem, request_id=request_id, event="storage_unavailable"
            )
