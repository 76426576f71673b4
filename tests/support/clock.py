"""Clocks that tests control."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock


class IterationClock(Clock):
    """A clock that runs the calls of one iteration of the reactor each time it is advanced by one."""

    def callLater(self, delay: float, callable: object, *args: object, **kw: object) -> Any:  # noqa: N802
        """Run a call in the next iteration."""
        return super().callLater(delay + 1, callable, *args, **kw)  # type: ignore[arg-type]
