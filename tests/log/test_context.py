"""Request ids in log events."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from tests.support.logs import Lines, observing
from tkserver import log
from tkserver.deferreds import SharedDeferred
from tkserver.log.access import RequestRecord
from tkserver.log.context import request_id_of

T = TypeVar("T")

_log = log.logger("tkserver.test")


class RequestIds(Lines):
    """The request ids of events."""

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "tkserver.test":
            self.append(str(event.get("request_id")))


def in_request(request_id: str, work: Callable[[], T]) -> T:
    """Call a function as part of a request."""
    previous = log.request_id.set(request_id)
    try:
        return work()
    finally:
        log.request_id.reset(previous)


def test_events_have_the_id_of_their_request() -> None:
    """A coroutine logs the id of the request that started it, also after waiting; shared work logs no id."""
    operation: Deferred[None] = Deferred()
    shared = SharedDeferred(operation)

    async def handle() -> None:
        _log.info("immediately")
        shared.wait().addCallback(lambda _: _log.info("in a callback"))
        Context().run(_log.info, "in shared work")
        await shared.wait()
        _log.info("after waiting")

    with observing(RequestIds()) as ids:
        for name in ("a", "b"):
            in_request(name, lambda: ensureDeferred(handle()))
        in_request("c", lambda: operation.callback(None))
        _log.info("outside of requests")
        _log.info("with an explicit id", request_id="d")
    assert ids == ["a", "None", "b", "None", "a", "a", "b", "b", "None", "d"]


def test_failures_have_the_id_of_their_request() -> None:
    """The request of a failure is found in the context of its coroutine, or in the local variables of a frame."""

    async def work() -> None:
        raise ValueError

    def callback(_: None, record: RequestRecord) -> None:
        raise ValueError(record)

    failures: list[Failure] = []

    def collect(failure: Failure) -> None:
        failures.append(failure)

    in_request("a", lambda: ensureDeferred(work())).addErrback(collect)
    Context().run(lambda: ensureDeferred(work())).addErrback(collect)
    done: Deferred[None] = Deferred()
    done.addCallback(callback, RequestRecord("b")).addErrback(collect)
    done.callback(None)
    assert [request_id_of(failure) for failure in failures] == ["a", None, "b"]
