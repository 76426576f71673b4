"""Giving up on the database after a while."""

from __future__ import annotations

from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from tkserver.storage.errors import Unavailable

T = TypeVar("T")


def in_time(work: Deferred[T], seconds: float, reactor: Any, problem: str) -> Deferred[T]:
    """The same Deferred, cancelled after a while, which then fails with :exc:`Unavailable` and this problem."""

    def too_late(_: object, timeout: float) -> T:
        raise Unavailable(f"{problem} within {timeout:g} s")

    return work.addTimeout(seconds, reactor, too_late)
