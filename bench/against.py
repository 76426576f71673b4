"""Compare this checkout with another checkout of the same project.

The speed of a shared machine changes all the time, so only measurements that are made almost at the same time can be
compared. Both servers run all the time, and only one of them is under load. For each case, the requests of both
measurements are prepared first and divided into slices, which take less than a second if possible. The slices are sent
to the two servers in the order A B, B A, A B, … The two resulting measurements are a pair. This is repeated for several
rounds, and the result is the median of the ratios of the pairs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

from bench import load
from bench.measure import Case, Measurement, prepare_requests
from bench.server import Server, running_server

CASES = (Case(1, 1), Case(1, 64), Case(10, 64), Case(100, 16), Case(1000, 16))

MAX_SLICES = 20

MIN_REQUESTS_PER_CLIENT = 4
"""In a slice. With fewer requests, some clients would be idle for much of the time."""


@dataclass(frozen=True)
class Figure:
    """A quantity to compare."""

    name: str
    value: Callable[[Measurement], float]


FIGURES = (
    Figure("requests/s", lambda measurement: measurement.result.requests_per_second),
    Figure("p50 ms", lambda measurement: measurement.result.p50 * 1e3),
    Figure("p99 ms", lambda measurement: measurement.result.p99 * 1e3),
    Figure("CPU us/event", lambda measurement: measurement.cpu_per_event * 1e6),
)


@dataclass(frozen=True)
class Pair:
    """A measurement of each server, made at the same time."""

    this: Measurement
    other: Measurement


class SlicedRun:
    """A measurement whose requests are sent in slices."""

    def __init__(self, server: Server, case: Case, requests: list[bytes]) -> None:
        self._server = server
        self._case = case
        self._slices = split(requests, case.clients)
        self._results: list[load.Result] = []
        self._cpu = server.cpu_seconds

    @property
    def slices(self) -> int:
        return len(self._slices)

    def send(self, number: int) -> None:
        """Send a slice.

        :raise SystemExit: when a request fails, because the figures cannot be compared then.
        """
        result = load.run(self._server.port, self._slices[number], self._case.clients)
        if result.errors:
            raise SystemExit(f"{self._server.checkout}: {result.errors} responses were not 200 ({self._case})")
        self._results.append(result)

    def finish(self) -> Measurement:
        """Return the figures of all slices together.

        Processor time between the slices counts, too: a server may do part of its work after the response.
        """
        result = reduce(add, self._results)
        cpu = self._server.cpu_seconds - self._cpu
        return Measurement(self._case, result, cpu / (result.requests * self._case.events), self._server.rss_mb)


def compare_checkouts(directory: Path, rounds: int, scale: float) -> None:
    """Measure this checkout and the one in ``directory``, and print the ratios."""
    pairs: dict[Case, list[Pair]] = {case: [] for case in CASES}
    with running_server() as this, running_server(checkout=directory) as other:
        for case in CASES:
            _measure_pair(this, other, case, 0, scale)  # warm up
        for number in range(rounds):
            started = time.monotonic()
            _empty_tables(this, other)
            for case in CASES:
                pairs[case].append(_measure_pair(this, other, case, number, scale))
            print(f"round {number + 1} of {rounds}: {time.monotonic() - started:.0f} s", flush=True)
    _print_table(pairs)


def _empty_tables(*servers: Server) -> None:
    """Make all rounds start with an empty table, and write to disk now what would disturb a measurement later."""
    for server in servers:
        server.query("TRUNCATE events")
        server.query("CHECKPOINT")


def _measure_pair(this: Server, other: Server, case: Case, number: int, scale: float) -> Pair:
    """Measure a case on both servers. The round's number determines which server is first."""
    requests = [prepare_requests(case, scale) for _ in range(2)]
    runs = [SlicedRun(server, case, prepared) for server, prepared in zip((this, other), requests, strict=True)]
    for index in range(runs[0].slices):
        for run in runs if (number + index) % 2 == 0 else reversed(runs):
            run.send(index)
    return Pair(*(run.finish() for run in runs))


def split(requests: list[bytes], clients: int) -> list[list[bytes]]:
    """Divide requests into an even number of slices, or one, with enough requests for all clients in each of them."""
    count = min(MAX_SLICES, len(requests) // (MIN_REQUESTS_PER_CLIENT * clients))
    count = max(count // 2 * 2, 1)
    return [requests[len(requests) * i // count : len(requests) * (i + 1) // count] for i in range(count)]


def median_error(values: list[float]) -> float:
    """Return half the width of the median's 95 % confidence interval, as in the notches of a box plot.

    Source: McGill, Tukey and Larsen, "Variations of Box Plots", The American Statistician 32 (1978).
    """
    if len(values) < 2:
        return math.nan
    lower, _, upper = statistics.quantiles(values, n=4)
    return 1.57 * (upper - lower) / math.sqrt(len(values))


def _print_table(pairs: dict[Case, list[Pair]]) -> None:
    print(f"\n{'case':35} {'figure':12} {'this':>9} {'other':>9} {'this/other':>11} {'±':>6} {'min':>6} {'max':>6}")
    for case in pairs:
        for figure in FIGURES:
            print(_line(case, figure, pairs[case]))
    print("this and other are medians. this/other is the median of the ratios, ± its 95 % confidence interval.")
    print("For requests/s, a ratio above 1 is better; for all other figures, a ratio below 1.")


def _line(case: Case, figure: Figure, pairs: list[Pair]) -> str:
    this = [figure.value(pair.this) for pair in pairs]
    other = [figure.value(pair.other) for pair in pairs]
    ratios = [ours / theirs for ours, theirs in zip(this, other, strict=True)]
    return (
        f"{case!s:35} {figure.name:12} {statistics.median(this):9.2f} {statistics.median(other):9.2f}"
        f" {statistics.median(ratios):11.3f} {median_error(ratios):6.3f} {min(ratios):6.2f} {max(ratios):6.2f}"
    )
