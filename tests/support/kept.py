"""An output that keeps its lines."""

from __future__ import annotations

from collections.abc import Sequence

from tkserver.log.observer import Line


class Kept(list[bytes]):
    """All lines that were written, one after the other.

    :ivar writes: how many lines at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[int] = []

    def write(self, lines: Sequence[Line]) -> None:
        self.extend(line for _, line in lines)
        self.writes.append(len(lines))
