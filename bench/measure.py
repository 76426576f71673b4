"""Measure one server under one kind of load."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench import load
from bench.requests import new_bodies, signed_request
from bench.server import Server

HEADINGS = "events clients requests/s   events/s    p50 ms    p99 ms CPU us/ev  RSS MB generator CPU"

# The size of a run with a scale of 1. The smallest limit applies.
MAX_EVENTS = 200_000
MAX_REQUESTS = 12_000
MAX_SINGLE_REQUESTS = 2000
"""Requests of a single client, which sends them one after the other."""


@dataclass(frozen=True)
class Case:
    """A kind of load: events in each request, and clients that send at the same time."""

    events: int
    clients: int

    def __str__(self) -> str:
        events = "1 event" if self.events == 1 else f"{self.events} events"
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{events} per request, {clients}"


@dataclass(frozen=True)
class Measurement:
    """The result of a case. Times are in seconds.

    :ivar cpu_per_event: processor time of the server.
    """

    case: Case
    result: load.Result
    cpu_per_event: float
    rss_mb: float

    @property
    def events_per_second(self) -> float:
        return self.result.requests_per_second * self.case.events

    def __str__(self) -> str:
        """Return a line of the table whose headings are ``HEADINGS``."""
        case, result = self.case, self.result
        return (
            f"{case.events:6} {case.clients:7} {result.requests_per_second:10.0f} {self.events_per_second:10.0f}"
            f" {result.p50 * 1000:9.2f} {result.p99 * 1000:9.2f} {self.cpu_per_event * 1e6:9.1f}"
            f" {self.rss_mb:7.0f} {result.cpu / result.seconds:13.0%}"
            + (f"  {result.errors} responses were not 200" if result.errors else "")
        )


def prepare_requests(case: Case, scale: float) -> list[bytes]:
    """Return signed requests for one run of a case, with new event ids. They are valid for some minutes.

    :param scale: multiplies the number of requests. With 1, most cases take some seconds.
    """
    count = int(scale * min(MAX_EVENTS / case.events, MAX_REQUESTS if case.clients > 1 else MAX_SINGLE_REQUESTS))
    return [signed_request(body) for body in new_bodies(max(count, 2 * case.clients), case.events)]


def measure(server: Server, case: Case, scale: float) -> Measurement:
    """Measure a case once."""
    requests = prepare_requests(case, scale)
    cpu = server.cpu_seconds
    result = load.run(server.port, requests, case.clients)
    cpu = server.cpu_seconds - cpu
    return Measurement(case, result, cpu / (result.requests * case.events), server.rss_mb)


def measure_and_print(server: Server, case: Case, scale: float) -> Measurement:
    """Measure a case once and print the line of the table."""
    measurement = measure(server, case, scale)
    print(measurement, flush=True)
    return measurement


def print_ratios(title: str, ratios: list[float]) -> None:
    """Print the median of the ratios, and all of them."""
    values = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{title}: {statistics.median(ratios):.2f} ({values})", flush=True)
