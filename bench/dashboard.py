"""Benchmark the dashboard: every page with millions of events, for the first request and for repeated ones.

It uses the database that ``python -m bench.insight --directory DIRECTORY`` has created. For first requests, the server
keeps no statistics in memory; the database has cached what it reads.

With ``--ingest``, it compares the latency of small batches before and while pages are requested, one each second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from urllib.parse import urlencode, urlsplit

from bench import load
from bench.insight import p95
from bench.requests import new_bodies, signed_request
from bench.server import running_server
from tkserver.config import Insight
from tkserver.operations.demo import APP_NAME

ADMIN_PORT = "38131"

PAGES = ("overview", "commands", "versions", "errors", "environment", "retention", "data", "command")

QUERIES = ("period=30", "period=90", "period=365", "period=30&os=linux", "period=365&os=linux&arch=x86_64")

MAX_SECONDS = 0.5
MAX_FILTERED_YEAR = 1.2
CACHE_BYTES = Insight().cache_bytes
"""The default of the server."""

MAX_BYTES = 60_000
"""Of a compressed page."""

MAX_RATIO = 1.2
"""The 99th percentile of the latency of ingest may be so many times the one without page views."""

MAX_RENDERING = 0.02
"""CPU seconds for which a page may block the reactor."""

CLIENTS = 4
"""Connections that send batches with one event."""

PAUSE = 1.0
"""Seconds between two page views."""


@dataclass(frozen=True)
class Visit:
    """A page that was requested several times.

    :ivar seconds: of each request.
    :ivar size: bytes of the compressed page.
    """

    seconds: Sequence[float]
    size: int


class Client:
    """A browser that is signed in.

    :param link: a sign-in link.
    """

    def __init__(self, link: str) -> None:
        url = urlsplit(link)
        self._host = url.netloc
        form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://{url.netloc}"}
        response, _ = self._request("POST", url.path, url.query, form)
        self._cookie = response.getheader("Set-Cookie", "").partition(";")[0]

    def visit(self, path: str, rounds: int) -> Visit:
        """Request a page several times."""
        seconds, size = [], 0
        for _ in range(rounds):
            started = time.perf_counter()
            response, body = self._request("GET", path, None, {"Cookie": self._cookie, "Accept-Encoding": "gzip"})
            seconds.append(time.perf_counter() - started)
            size = len(body)
            if response.status != HTTPStatus.OK:
                raise SystemExit(f"{path}: {response.status}")
        return Visit(seconds, size)

    def _request(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self._host)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


@contextmanager
def signed_in(directory: Path, cache_bytes: int) -> Iterator[Client]:
    """Run a server, and yield a client of its dashboard.

    :param cache_bytes: the memory for computed statistics.
    """
    cache = str(cache_bytes)
    with running_server(data_dir=directory, TK__ADMIN__PORT=ADMIN_PORT, TK__INSIGHT__CACHE_BYTES=cache) as server:
        link = json.loads(server.run_command("dashboard", "--json", TK__ADMIN__PORT=ADMIN_PORT))["url"]
        yield Client(link)


def path_of(page: str, query: str) -> str:
    """Return the path of a page of the application that the benchmark of statistics has created."""
    name = f"&{urlencode({'name': 'build'})}" if page == "command" else ""
    return f"/dashboard/apps/{APP_NAME}/{page}?{query}{name}"


def measure_ingest(directory: Path, rounds: int, requests: int) -> bool:
    """Print the latency of ingest without and with page views, and return true if it is within the limit.

    :param requests: the number of batches in each round.
    """
    ratios, longest = [], []
    paths = [path_of(page, query) for query in QUERIES for page in PAGES]
    with running_server(
        module="bench.stalls", data_dir=directory, TK__ADMIN__PORT=ADMIN_PORT, TK__INSIGHT__CACHE_BYTES="0"
    ) as server:
        client = Client(json.loads(server.run_command("dashboard", "--json", TK__ADMIN__PORT=ADMIN_PORT))["url"])
        load.run(server.port, _small_batches(requests), CLIENTS)  # warm up
        for _ in range(rounds):
            server.next_report()
            normal = load.run(server.port, _small_batches(requests), CLIENTS)
            without = server.next_report()
            with _viewed_repeatedly(client, paths):
                viewed = load.run(server.port, _small_batches(requests), CLIENTS)
            ratios.append(viewed.p99 / normal.p99)
            longest.append(max(server.next_report(), default=0.0))
            p99, stall = f"{normal.p99 * 1e3:.1f} > {viewed.p99 * 1e3:.1f}", max(without, default=0.0)
            print(
                f"p99 of ingest: {p99} ms; longest iteration: {stall * 1e3:.1f} > {longest[-1] * 1e3:.1f} ms",
                flush=True,
            )
    limits = MAX_RATIO, MAX_RENDERING * 1e3
    print(f"ratio: {median(ratios):.2f}; longest iteration: {median(longest) * 1e3:.1f} ms; limits: {limits}")
    return median(ratios) <= MAX_RATIO and median(longest) <= MAX_RENDERING


def _small_batches(count: int) -> list[bytes]:
    return [signed_request(body) for body in new_bodies(count, 1)]


@contextmanager
def _viewed_repeatedly(client: Client, paths: Sequence[str]) -> Iterator[None]:
    """Request pages one after another from another process."""
    process = get_context("fork").Process(target=_view_forever, args=(client, paths))
    process.start()
    try:
        time.sleep(PAUSE)
        yield
        if not process.is_alive():
            raise SystemExit("A page could not be requested.")
    finally:
        process.terminate()
        process.join()


def _view_forever(client: Client, paths: Sequence[str]) -> None:
    for path in cycle(paths):
        client.visit(path, 1)
        time.sleep(PAUSE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, and return 1 if a limit is exceeded."""
    options = _parse_options(arguments)
    if options.ingest:
        return int(not measure_ingest(options.directory, options.rounds, options.requests))
    paths = [(page, query, path_of(page, query)) for query in QUERIES for page in PAGES]
    with signed_in(options.directory, 0) as client:
        for _, _, path in paths:
            client.visit(path, 1)  # so that the database has cached what it reads
        first = {path: client.visit(path, options.rounds) for _, _, path in paths}
    with signed_in(options.directory, CACHE_BYTES) as client:
        for _, _, path in paths:
            client.visit(path, 1)
        again = {path: client.visit(path, options.rounds) for _, _, path in paths}
    print(f"{'page':12} {'p50 ms':>7} {'p95 ms':>7} {'limit':>6}  {'again: p50':>10} {'p95':>5} {'kB':>5}  query")
    within = [_report(page, query, first[path], again[path]) for page, query, path in paths]
    return int(not all(within))


def _report(page: str, query: str, first: Visit, again: Visit) -> bool:
    """Print a row, and return true if it is within the limits."""
    limit = MAX_FILTERED_YEAR if "365&" in query else MAX_SECONDS
    within = p95(first.seconds) <= limit and first.size <= MAX_BYTES
    times = (
        f"{median(first.seconds) * 1e3:7.0f} {p95(first.seconds) * 1e3:7.0f}{' ' if within else '!'}{limit * 1e3:6.0f}"
    )
    repeated = f"{median(again.seconds) * 1e3:10.0f} {p95(again.seconds) * 1e3:5.0f} {first.size / 1000:5.1f}"
    print(f"{page:12} {times}  {repeated}  {query}", flush=True)
    return within


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="requests of each page (default: 20)")
    parser.add_argument("--ingest", action="store_true", help="measure the effect of page views on ingest instead")
    parser.add_argument("--requests", type=int, default=20_000, help="batches in each round of --ingest (20000)")
    parser.add_argument("--directory", type=Path, required=True, help="the database of the benchmark of statistics")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
