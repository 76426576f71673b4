"""The size and pace of transactions in the background, so that they do not slow down the servers."""

from __future__ import annotations

TARGET = 0.05
"""Seconds that a transaction should take."""

BUSY_SHARE = 0.2
"""The share of the time in which transactions run. The rest is pauses."""

INITIAL_ROWS = 500
MIN_ROWS, MAX_ROWS = 100, 5000

MAX_PAUSE = 10.0
"""Seconds."""


class AdaptiveBatch:
    """Adapts to the load of the database: when it is busy, transactions become smaller and pauses longer.

    :ivar rows: the number of rows that the next transaction should process.
    """

    def __init__(self) -> None:
        self.rows = INITIAL_ROWS

    def pause_after(self, seconds: float) -> float:
        """Adapt the size to the duration of the last transaction.

        :return: the number of seconds to wait before the next one.
        """
        if seconds > TARGET:
            self.rows = max(MIN_ROWS, self.rows // 2)
        elif seconds < TARGET / 2:
            self.rows = min(MAX_ROWS, self.rows + self.rows // 4)
        return min(MAX_PAUSE, seconds * (1 / BUSY_SHARE - 1))
