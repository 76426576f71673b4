"""``python -m bench.instrumented FILE -n tkserver``: run ``twistd``, and count its objects when it receives SIGUSR2.

Each signal appends a line of JSON to the file: the number of objects of each class that the garbage collector tracks,
after a collection. Objects that existed when the server started are not counted, because the server freezes them.
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

    def append_object_counts(*_: object) -> None:
        gc.collect()
        counts = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, gc.get_objects()))
        with file.open("a") as lines:
            lines.write(json.dumps(counts) + "\n")

    signal.signal(signal.SIGUSR2, append_object_counts)
    sys.argv[0] = "twistd"
    run()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
