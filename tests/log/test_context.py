"""Which request a line is of."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from tests.support.logs import Lines
from tkserver import log
from tkserver.deferreds import SharedDeferred
from tkserver.log.access import RequestRecord
from tkserver.log.context import request_id_of

_log = log.logger("tkserver.test")


class Ids(Lines):
    """The ids of the requests that lines are of."""

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "tkserver.test":
            self.append(str(event.get("request_id")))


def within(request_id: str, work: Any) -> Any:
    """Do it as a part of this request."""
    outer = log.request_id.set(request_id)
    try:
        return work()
    finally:
        log.request_id.reset(outer)


def test_lines() -> None:
    """A coroutine's are of the request that began it, also after it has waited; work for several has none."""
    ids = Ids()
    globalLogPublisher.addObserver(ids)
    shared_work: Deferred[None] = Deferred()
    shared = SharedDeferred(shared_work)

    async def handle() -> None:
        _log.info("at once")
        shared.wait().addCallback(lambda _: _log.info("in a callback"))
        log.outside_requests(_log.info, "for all")
        await shared.wait()
        _log.info("later")

    try:
        for name in ("a", "b"):
            within(name, lambda: ensureDeferred(handle()))
        within("c", lambda: shared_work.callback(None))
        _log.info("none")
        _log.info("said", request_id="d")
    finally:
        globalLogPublisher.removeObserver(ids)
    assert ids == ["a", "None", "b", "None", "a", "a", "b", "b", "None", "d"]


def test_failures() -> None:
    """A failure is of the request whose coroutine it went through, or that a frame of it has at hand."""

    async def work() -> None:
        raise ValueError

    def callback(_: None, record: RequestRecord) -> None:
        raise ValueError(record)

    found: list[Failure] = []

    def find(failure: Failure) -> None:
        found.append(failure)

    within("a", lambda: ensureDeferred(work())).addErrback(find)
    log.outside_requests(ensureDeferred, work()).addErrback(find)
    done: Deferred[None] = Deferred()
    done.addCallback(callback, RequestRecord("b")).addErrback(find)
    done.callback(None)
    assert [request_id_of(failure) for failure in found] == ["a", None, "b"]
