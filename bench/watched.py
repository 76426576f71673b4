"""``python -m bench.watched FILE -n tkserver``: ``twistd`` that, on SIGUSR2, writes into a file what it holds.

The file gets a line of JSON: how many objects of each class the garbage collector knows of, after it has collected.
What was there when the server started is not among them, for that is frozen.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections import Counter
from pathlib import Path

from twisted.scripts.twistd import run


def main() -> None:
    file = Path(sys.argv.pop(1))

    def write(*_: object) -> None:
        gc.collect()
        held = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, gc.get_objects()))
        with file.open("a") as lines:
            lines.write(json.dumps(held) + "\n")

    signal.signal(signal.SIGUSR2, write)
    sys.argv[0] = "twistd"
    run()


if __name__ == "__main__":
    main()
