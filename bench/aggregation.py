"""Compare a server that aggregates events in the background with one that does not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from random import Random

import msgspec

from bench import load
from bench.measure import HEADINGS, Case, Measurement, print_ratios
from bench.requests import signed_request
from bench.server import Server, running_server
from tkserver.demo import Parameters, Population
from tkserver.operations.demo import as_json

CASES = (Case(1000, 16), Case(100, 64))
EVENTS = 100_000
"""Events of a run with a scale of 1."""

_LEFT = "SELECT count(*) FROM events WHERE id > (SELECT watermark FROM insight_progress)"


def compare_aggregation(rounds: int, scale: float) -> None:
    """Print throughput and latency with aggregation, as ratios to those without, and how fast the rest is aggregated.

    The events are those of a simulated population. Both servers run all the time, and only one of them is under load.
    """
    ratios: dict[Case, list[tuple[float, float]]] = {case: [] for case in CASES}
    with running_server(TK__INSIGHT__ENABLED="false") as without, running_server() as aggregating:
        print(HEADINGS)
        for number, case in itertools.product(range(rounds + 1), CASES):
            measure = partial(_measure, case=case, scale=scale if number else scale / 10, seed=f"{number} {case}")
            if number % 2:
                ours, theirs = measure(aggregating, waits=True), measure(without)
            else:
                theirs, ours = measure(without), measure(aggregating, waits=True)
            if number:  # the first round warms up
                ratios[case].append(
                    (ours.events_per_second / theirs.events_per_second, ours.result.p99 / theirs.result.p99)
                )
    for case, values in ratios.items():
        print_ratios(f"{case}: events per second with aggregation, ratio to without", [value for value, _ in values])
        print_ratios(f"{case}: p99 with aggregation, ratio to without", [value for _, value in values])


def _measure(server: Server, case: Case, scale: float, seed: str, *, waits: bool = False) -> Measurement:
    """Measure a case once.

    :param waits: wait until the events are aggregated.
    """
    requests = list(_requests(case, int(EVENTS * scale), seed))
    cpu = server.cpu_seconds
    result = load.run(server.port, requests, case.clients)
    cpu = server.cpu_seconds - cpu
    measurement = Measurement(case, result, cpu / (result.requests * case.events), server.rss_mb)
    print(measurement, flush=True)
    if waits:
        _wait_until_aggregated(server)
    return measurement


def _requests(case: Case, count: int, seed: str) -> Iterator[bytes]:
    parameters = Parameters(events=count, users=count // 20, days=30)
    population = Population(parameters, datetime.now(timezone.utc), Random(seed))
    events = (as_json(event) for event in population.events())
    while chunk := list(itertools.islice(events, case.events)):
        yield signed_request(msgspec.json.encode({"events": chunk}))


def _wait_until_aggregated(server: Server) -> None:
    ((left,),) = server.query(_LEFT)
    started = time.monotonic()
    while server.query(_LEFT)[0][0]:
        time.sleep(0.2)
    print(f"{left} events were left, and aggregated within {time.monotonic() - started:.1f} s", flush=True)
