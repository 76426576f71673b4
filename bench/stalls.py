"""``python -m bench.stalls FILE -n tkserver``: run ``twistd``, and measure the iterations of its reactor.

The server handles no other request during an iteration of the reactor. On SIGUSR2, it appends a line of JSON to the
file: the CPU times of the longest iterations since the last signal, in seconds.
"""

from __future__ import annotations

import heapq
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.scripts.twistd import run

KEPT = 1000
"""The number of iterations that are kept."""


class Stopwatch:
    """Measures the iterations of a reactor.

    :param clock: returns the CPU time of the thread that runs the reactor.
    """

    def __init__(self, reactor: Any, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._run_until_current = reactor.runUntilCurrent
        self._started = clock()
        self.longest: list[float] = []
        reactor.runUntilCurrent = self._begin_iteration

    def _begin_iteration(self) -> None:
        """Run the calls that are due. This is the first thing that a reactor does in each iteration."""
        now = self._clock()
        duration, self._started = now - self._started, now
        if len(self.longest) < KEPT:
            heapq.heappush(self.longest, duration)
        else:
            heapq.heappushpop(self.longest, duration)
        self._run_until_current()


def main() -> None:
    file = Path(sys.argv.pop(1))
    from twisted.internet import reactor  # installs it, which must not happen when this module is imported

    stopwatch = Stopwatch(reactor)

    def append_longest(*_: object) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps(sorted(stopwatch.longest, reverse=True)) + "\n")
        stopwatch.longest.clear()

    signal.signal(signal.SIGUSR2, append_longest)
    sys.argv[0] = "twistd"
    run()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
