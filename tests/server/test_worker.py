"""The order and the errors of a worker's stop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest_twisted

from tests.support.logs import logged_failures
from tkserver.server.worker import Worker


class Part:
    """A part of a worker, which records the calls of its methods.

    :param failing: the name of a method that fails.
    """

    def __init__(self, name: str, calls: list[str], failing: str | None = None) -> None:
        self._name = name
        self._calls = calls
        self._failing = failing

    async def _call(self, method: str) -> None:
        self._calls.append(f"{self._name}.{method}")
        if method == self._failing:
            raise OSError(5, "I/O error")

    async def close(self) -> None:
        await self._call("close")

    async def drain(self, timeout: float) -> None:
        await self._call(f"drain({timeout:g})")

    async def stop(self) -> None:
        await self._call("stop")


@pytest_twisted.ensureDeferred
async def test_requests_are_finished_although_the_port_cannot_be_closed() -> None:
    """An error of closing the public port is logged, and the requests in progress are finished nevertheless."""
    calls: list[str] = []
    components = SimpleNamespace(listener=Part("listener", calls, failing="close"), site=Part("site", calls))
    with logged_failures() as failures:
        await Worker(cast(Any, components), 7).drain()
    assert calls == ["listener.close", "site.drain(7)"]
    assert [failure["event"] for failure in failures] == ["stop_failed"]


@pytest_twisted.ensureDeferred
async def test_all_parts_are_stopped_although_one_fails() -> None:
    """An error of one part is logged, and the other parts are stopped in their order."""
    calls: list[str] = []
    names = ("last_used", "duplicates", "changes", "pool", "redis")
    parts: dict[str, Any] = {name: Part(name, calls, failing="stop") for name in names}
    components = SimpleNamespace(**parts, lag_meter=SimpleNamespace(stop=lambda: calls.append("lag_meter.stop")))
    with logged_failures() as failures:
        await Worker(cast(Any, components), 7).stop()
    assert calls == [*(f"{name}.stop" for name in names), "lag_meter.stop"]
    assert len(failures) == len(names)
