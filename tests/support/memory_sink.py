"""A log sink in memory."""

from __future__ import annotations

from collections.abc import Sequence

from tkserver.log.observer import Line


class MemorySink(list[bytes]):
    """All lines that were written.

    :ivar writes: the number of lines of each call of :meth:`write`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[int] = []

    def write(self, lines: Sequence[Line]) -> None:
        self.extend(line for _, line in lines)
        self.writes.append(len(lines))
