"""Search for bodies that take much CPU time for their length, and compare them with an ordinary batch.

Everything runs in this process, without network and database: decompression, decoding and validation of the body,
encoding for the database, and encoding of the response.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from bench.recipes import IDENTITY, KINDS, MAX_EVENTS, ORDINARY_BATCH, Kind, Recipe
from bench.requests import signed_request
from tkserver.ingest.ingestion import IngestResult
from tkserver.storage.events import encode_rows
from tkserver.web.api import ingest_response
from tkserver.web.http.response import error_response
from tkserver.wire.api_errors import AllEventsRejected, ApiError
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

    :ivar bytes: the length of the body as received or after decompression, whichever is greater.
    :ivar seconds: the time for all steps.
    :ivar step: the time of the longest step.
    """

    bytes: int
    seconds: float
    step: float

    @property
    def per_byte(self) -> float:
        return self.seconds / (HEAD_BYTES + self.bytes)


@dataclass(frozen=True)
class Finding:
    """A recipe and the cost of its body."""

    recipe: Recipe
    cost: Cost


# --- measurement


def handle(body: bytes, encoding: str | None, max_bytes: int) -> Steps[int]:
    """Handle a body as the server does, except for the database.

    :return: the length of the body after decompression, or of what was decompressed before it was rejected.
    """
    length = 0
    try:
        text = yield from decode_body(
            body, content_type="application/json", content_encoding=encoding, max_bytes=max_bytes
        )
        length = len(text)
        batch = yield from read_batch(text)
        if not batch.events:
            raise AllEventsRejected("", batch.errors)
        yield from encode_rows(batch.events)
        ingest_response(IngestResult(len(batch.events), 0, batch.errors))
    except ApiError as error:
        error_response(error, "")
        return max_bytes if error.status == 413 else length
    return length


def measure(body: bytes, encoding: str | None = None, max_bytes: int = MAX_BYTES, repeat: int = 3) -> Cost:
    """Return the cost of a body: the least of several measurements, because other processes disturb them.

    :param encoding: the ``Content-Encoding`` header.
    """
    return min((_measure_once(body, encoding, max_bytes) for _ in range(repeat)), key=lambda cost: cost.seconds)


def _measure_once(body: bytes, encoding: str | None, max_bytes: int) -> Cost:
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
        return Cost(max(len(body), stop.value), now - started, max(longest, now - before))


def measure_ordinary() -> Cost:
    """Return the cost of an ordinary batch."""
    return measure(ORDINARY_BATCH, repeat=20)


# --- search


def measure_recipe(recipe: Recipe, max_bytes: int, repeat: int = 3) -> Finding:
    encoding = None if recipe.encoding == IDENTITY else "gzip"
    return Finding(recipe, measure(recipe.build(max_bytes), encoding, max_bytes, repeat))


def search(kinds: Mapping[str, Kind], random: Random, go_on: Callable[[], bool]) -> dict[str, Finding]:
    """Return the worst short body of each kind that was found.

    :param go_on: returns false when the search should end.
    """
    worst = {name: measure_recipe(kind.recipe, SEARCH_BYTES) for name, kind in kinds.items()}
    while go_on():
        for name, kind in kinds.items():
            finding = measure_recipe(kind.mutate(worst[name].recipe, random), SEARCH_BYTES)
            if finding.cost.per_byte > worst[name].cost.per_byte:
                worst[name] = measure_recipe(finding.recipe, SEARCH_BYTES)  # again, in case it was disturbed
    return worst


def grow(recipe: Recipe, max_bytes: int) -> Iterator[Finding]:
    """Repeat a body in several ways, up to the limit of the server."""
    for values, events in ((recipe.values, recipe.events), (max_bytes, 1), (max_bytes, MAX_EVENTS)):
        yield measure_recipe(replace(recipe, values=values, events=events), max_bytes, repeat=1)


# --- report


@dataclass(frozen=True)
class Row:
    """The worst bodies of a kind.

    :ivar costliest: the body with the greatest cost per byte.
    :ivar slowest: the body with the longest step.
    """

    kind: str
    costliest: Finding
    slowest: Finding


def worst_of(kind: str, findings: Iterable[Finding]) -> Row:
    found = list(findings)
    costliest = max(found, key=lambda finding: finding.cost.per_byte)
    slowest = max(found, key=lambda finding: finding.cost.step)
    return Row(kind, costliest, slowest)


def main() -> int:
    """Print a table, and return 1 if a limit is exceeded."""
    options = _parse_options()
    deadline = time.monotonic() + options.seconds
    ordinary = measure_ordinary()
    print(f"ordinary batch: {ordinary.bytes} bytes, {ordinary.per_byte * 1e9:.1f} ns per byte", flush=True)
    findings = search(KINDS, Random(options.seed), lambda: time.monotonic() < deadline)
    print(f"{'kind':32} {'bytes':>9} {'ns per byte':>11} {'ratio':>6} {'longest step':>12}  worst body")
    rows = []
    for name, finding in findings.items():
        recipes = dict.fromkeys((finding.recipe, KINDS[name].recipe))
        rows.append(worst_of(name, [finding, *(grown for recipe in recipes for grown in grow(recipe, MAX_BYTES))]))
        _print(rows[-1], ordinary)
    ratio = max(row.costliest.cost.per_byte for row in rows) / ordinary.per_byte
    step = max(row.slowest.cost.step for row in rows)
    print(
        f"worst ratio: {ratio:.1f} (limit {MAX_RATIO:g}); longest step: {step * 1e3:.0f} ms (limit {MAX_STEP * 1e3:g})"
    )
    return int(ratio > MAX_RATIO or step > MAX_STEP)


def _print(row: Row, ordinary: Cost) -> None:
    cost, step = row.costliest.cost, row.slowest.cost.step
    print(
        f"{row.kind:32} {cost.bytes:9} {cost.per_byte * 1e9:11.1f} {cost.per_byte / ordinary.per_byte:6.1f}"
        f" {step * 1e3:9.1f} ms  {row.costliest.recipe}",
        flush=True,
    )


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the random mutations (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long to search before the worst bodies are grown (default: 60)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
