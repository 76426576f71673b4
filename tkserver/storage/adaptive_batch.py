"""How much to do at a time, and how long to rest, so that a long piece of work disturbs nobody."""

from __future__ import annotations

TARGET = 0.05
"""Seconds that one transaction should take."""

SHARE = 0.2
"""The share of the time in which the work is under way."""

FEWEST, MOST = 100, 5000
"""Rows of one transaction."""

LONGEST_PAUSE = 10.0
"""Seconds."""


class AdaptiveBatch:
    """Follows what the database has to spare: when it is busy, transactions get smaller and pauses longer.

    :ivar rows: how many the next transaction should be about.
    """

    def __init__(self) -> None:
        self.rows = 500

    def pause_after(self, seconds: float) -> float:
        """Learn how long the last transaction took.

        :return: seconds to rest before the next one.
        """
        if seconds > TARGET:
            self.rows = max(FEWEST, self.rows // 2)
        elif seconds < TARGET / 2:
            self.rows = min(MOST, self.rows + self.rows // 4)
        return min(LONGEST_PAUSE, seconds * (1 / SHARE - 1))
