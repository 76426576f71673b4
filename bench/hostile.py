"""Search for bodies that take much CPU time for their length, and compare them with an ordinary batch.

Everything runs in this process, without network and database: decompression, decoding and validation of the body, and
encoding for the database or the quarantine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from random import Random

from bench.recipes import IDENTITY, KINDS, ORDINARY_BATCH, Kind, Recipe
from bench.requests import signed_request
from tkserver.storage.events import encode_rows
from tkserver.storage.quarantine import invalid_events
from tkserver.wire.api_errors import ApiError, PayloadTooLarge
from tkserver.wire.batch import Steps, decode_body, read_batch

MAX_BYTES = 12_582_912
"""The default limit of the server for a body, before and after decompression."""

MAX_RATIO = 20.0
"""The cost per byte may be so many times that of an ordinary batch."""

MAX_STEP = 0.1
"""Seconds. No other request is handled during a step."""

HEAD_BYTES = len(signed_request(b""))
"""The length of the headers of a request, which are counted too: each request has a fixed cost."""

SEARCH_BYTES = 131_072
"""Maximum length of a body during the search. Afterwards, the worst body of each kind is repeated up to the limit."""


@dataclass(frozen=True)
class Cost:
    """The CPU time for a body.

    :ivar bytes: the length of the request: its headers, and the body as received or after decompression, whichever is
        longer.
    :ivar seconds: the time for all steps.
    :ivar step: the time of the longest step.
    """

    bytes: int
    seconds: float
    step: float

    @property
    def per_byte(self) -> float:
        return self.seconds / self.bytes


@dataclass(frozen=True)
class Finding:
    """The cost of a body, compared with that of an ordinary batch that was measured at the same time."""

    recipe: Recipe
    cost: Cost
    ordinary: Cost

    @property
    def ratio(self) -> float:
        """The cost per byte, as a multiple of that of the ordinary batch."""
        return self.cost.per_byte / self.ordinary.per_byte


# --- measurement


def handle(body: bytes, encoding: str | None, max_bytes: int) -> Steps[int]:
    """Decode, validate and encode a body as the server does.

    :return: the length of the body after decompression, or of what was decompressed before it was rejected.
    """
    length = 0
    try:
        text = yield from decode_body(
            body, content_type="application/json", content_encoding=encoding, max_bytes=max_bytes
        )
        length = len(text)
        batch = yield from read_batch(text)
        yield from encode_rows(batch.events)
        yield from invalid_events(batch.errors, batch.texts)
    except PayloadTooLarge:
        return max_bytes
    except ApiError:
        pass
    return length


def measure(body: bytes, encoding: str | None = None, max_bytes: int = MAX_BYTES) -> Cost:
    """Return the cost of a body.

    :param encoding: the ``Content-Encoding`` header.
    """
    clock = time.thread_time
    steps = handle(body, encoding, max_bytes)
    longest = 0.0
    started = before = clock()
    try:
        while True:
            next(steps)
            now = clock()
            longest, before = max(longest, now - before), now
    except StopIteration as stop:
        now = clock()
        return Cost(HEAD_BYTES + max(len(body), stop.value), now - started, max(longest, now - before))


def compare(body: bytes, encoding: str | None = None, max_bytes: int = MAX_BYTES, repeat: int = 5) -> tuple[Cost, Cost]:
    """Return the cost of a body, and that of an ordinary batch.

    They are measured in turn, and the pair with the median ratio is returned: other processes can make everything
    slower for a while.
    """
    pairs = []
    for _ in range(repeat):
        ordinary = min((measure(ORDINARY_BATCH) for _ in range(3)), key=lambda cost: cost.seconds)
        pairs.append((measure(body, encoding, max_bytes), ordinary))
    return sorted(pairs, key=lambda pair: pair[0].per_byte / pair[1].per_byte)[repeat // 2]


# --- search


def measure_recipe(recipe: Recipe, max_bytes: int, repeat: int = 5) -> Finding:
    encoding = None if recipe.encoding == IDENTITY else "gzip"
    return Finding(recipe, *compare(recipe.build(max_bytes), encoding, max_bytes, repeat))


def search(kinds: Mapping[str, Kind], random: Random, go_on: Callable[[], bool]) -> dict[str, Finding]:
    """Return the worst short body of each kind that was found.

    :param go_on: returns false when the search should end.
    """
    worst = {name: measure_recipe(kind.recipe, SEARCH_BYTES) for name, kind in kinds.items()}
    while go_on():
        for name, kind in kinds.items():
            mutated = kind.mutate(worst[name].recipe, random)
            if measure_recipe(mutated, SEARCH_BYTES, repeat=1).ratio > worst[name].ratio:
                worst[name] = max(worst[name], measure_recipe(mutated, SEARCH_BYTES), key=_ratio)
    return worst


def grow(finding: Finding, kind: Kind, max_bytes: int) -> Iterator[Finding]:
    """Repeat a body in several ways, up to the limit of the server."""
    recipe = finding.recipe
    recipes = (kind.recipe, replace(recipe, values=max_bytes, events=1), replace(recipe, values=max_bytes, events=1000))
    for grown in recipes:
        found = measure_recipe(grown, max_bytes, repeat=1)
        if found.ratio > MAX_RATIO / 2 or found.cost.step > MAX_STEP / 2:
            found = measure_recipe(grown, max_bytes, repeat=3)
        yield found


_ratio: Callable[[Finding], float] = attrgetter("ratio")


# --- report


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, and return 1 if a limit is exceeded."""
    options = _parse_options(arguments)
    deadline = time.monotonic() + options.seconds
    ordinary = min(measure(ORDINARY_BATCH).per_byte for _ in range(20))
    print(f"ordinary batch: {len(ORDINARY_BATCH)} bytes, {ordinary * 1e9:.1f} ns per byte", flush=True)
    worst = search(KINDS, Random(options.seed), lambda: time.monotonic() < deadline)
    print(f"{'kind':31} {'bytes':>9} {'ns per byte':>11} {'ratio':>6} {'longest step':>12}  worst body")
    ratios, steps = [], []
    for name, finding in worst.items():
        findings = [finding, *grow(finding, KINDS[name], MAX_BYTES)]
        costliest = max(findings, key=_ratio)
        ratios.append(costliest.ratio)
        steps.append(max(finding.cost.step for finding in findings))
        print(_row(name, costliest, steps[-1]), flush=True)
    print(f"worst ratio: {max(ratios):.1f}, limit {MAX_RATIO:g}")
    print(f"longest step: {max(steps) * 1e3:.0f} ms, limit {MAX_STEP * 1e3:g} ms")
    return int(max(ratios) > MAX_RATIO or max(steps) > MAX_STEP)


def _row(kind: str, costliest: Finding, step: float) -> str:
    cost = costliest.cost
    return (
        f"{kind:31} {cost.bytes:9} {cost.per_byte * 1e9:11.1f} {costliest.ratio:6.1f} {step * 1e3:9.1f} ms"
        f"  {costliest.recipe}"
    )


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the random mutations (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long to search before the worst bodies are grown (default: 60)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
