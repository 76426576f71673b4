"""``python -m bench``: a database, a server, a table of what they do, and the limits in the same run."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from dataclasses import dataclass

from bench import limits, load
from bench.requests import bodies, request
from bench.server import Server, running_server
from tkserver.server.sweeper import sweep
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.embedded import demo

SIZES = (1, 10, 100, 1000)
CLIENTS = (1, 16, 64)
ROUNDS = 5
OLD_ROWS = 1_000_000
HEADINGS = "events clients requests/s   events/s    p50 ms    p99 ms CPU us/ev  RSS MB generator busy"


def _requests(events: int, clients: int, scale: float) -> list[bytes]:
    count = int(scale * (min(200_000 / events, 12_000) if clients > 1 else 600))
    return [request(body) for body in bodies(max(count, 2 * clients), events)]


@dataclass(frozen=True)
class Measurement:
    """One line of the table. Times in seconds."""

    events: int
    clients: int
    result: load.Result
    cpu_per_event: float

    @property
    def events_per_second(self) -> float:
        return self.result.per_second * self.events


def _measure(server: Server, events: int, clients: int, scale: float) -> Measurement:
    prepared = _requests(events, clients, scale)
    cpu = server.cpu_seconds
    result = load.run(server.port, prepared, clients)
    measured = Measurement(events, clients, result, (server.cpu_seconds - cpu) / (result.requests * events))
    print(
        f"{events:6} {clients:7} {result.per_second:10.0f} {measured.events_per_second:10.0f}"
        f" {result.p50 * 1000:9.2f} {result.p99 * 1000:9.2f} {measured.cpu_per_event * 1e6:10.1f}"
        f" {server.rss_mb:7.0f} {result.cpu / result.seconds:14.0%}"
        + (f"  {result.refused} not 200" if result.refused else ""),
        flush=True,
    )
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="how much is sent; 0.1 for a quick look")
    parser.add_argument("--rows", type=int, default=0, help="compare an empty table with one of so many rows")
    parser.add_argument("--crowd", action="store_true", help="compare the cost of 1000 clients with that of 16")
    parser.add_argument("--prune", action="store_true", help="compare latencies with those while old rows are deleted")
    options = parser.parse_args()
    with running_server() as server:
        if options.rows and not options.prune:
            _compare_full(server, options.rows, options.scale)
        elif options.crowd:
            _compare_crowd(server, options.scale)
        elif options.prune:
            _compare_pruned(server, options.rows or OLD_ROWS, options.scale)
        else:
            _compare_klein(server, options.scale)
            print(HEADINGS)
            measured = [_measure(server, size, clients, options.scale) for size in SIZES for clients in CLIENTS]
            _compare(server, measured, options.scale)


def _compare_full(server: Server, rows: int, scale: float) -> None:
    """Events a second into a table with many rows, as a share of those into an empty one."""
    print(HEADINGS)
    empty = _median_of_each(server, scale)
    print(f"filling the table with {rows} rows", flush=True)
    _fill(server.dsn, rows)
    full = _median_of_each(server, scale)
    for case, per_second in full.items():
        share = per_second / empty[case]
        print(f"{case[0]} a request, {case[1]} clients: {share:.2f} of an empty table's events a second")


def _median_of_each(server: Server, scale: float) -> dict[tuple[int, int], float]:
    """The median of the events a second of some cases, measured in turn."""
    cases = ((1, 64), (100, 64), (1000, 16))
    rounds = [[_measure(server, *case, scale).events_per_second for case in cases] for _ in range(ROUNDS)]
    return {case: statistics.median(rates) for case, rates in zip(cases, zip(*rounds, strict=True), strict=True)}


def _compare_crowd(server: Server, scale: float) -> None:
    """Processor time an event at 1000 clients, as a multiple of that at 16."""
    print(HEADINGS)
    _measure(server, 1, 16, scale)  # to warm up
    ratios = []
    for _ in range(ROUNDS):
        few, many = (_measure(server, 1, clients, scale) for clients in (16, 1000))
        ratios.append(many.cpu_per_event / few.cpu_per_event)
    _print_shares("processor time an event at 1000 clients, of that at 16", ratios)


def _compare_pruned(server: Server, rows: int, scale: float) -> None:
    """The latency that one request in a hundred exceeds while old rows are deleted, as a multiple of that before."""
    print(f"{HEADINGS}\nfilling the table with {rows} rows", flush=True)
    _fill(server.dsn, rows, older_by_days=8)
    _measure(server, 100, 16, scale)  # to warm up
    before = [_measure(server, 100, 16, scale) for _ in range(ROUNDS)]
    print("while they are deleted", flush=True)
    connections, began = BlockingConnections(), time.monotonic()
    gone: list[int] = []
    sweeping = threading.Thread(target=lambda: gone.append(sweep(server.dsn, 7, connections)))
    sweeping.start()
    during = []
    while sweeping.is_alive():
        during.append(_measure(server, 100, 16, scale))
    print(f"{sum(gone)} rows were deleted within {time.monotonic() - began:.0f} s")
    # The last one began while there was something to delete and ended when there was not.
    usual = statistics.median(one.result.p99 for one in before)
    _print_shares(
        "p99 at 100 events a request, 16 clients, of that before", [one.result.p99 / usual for one in during[:-1]]
    )


def _compare(server: Server, measured: list[Measurement], scale: float) -> None:
    """What the server does as a share of each limit: one after the other, several times, for machines have moods."""
    print(f"\nthe same {ROUNDS} times in turn with each limit: the median of the shares, and all")
    for size in (100, 1000):
        best = max((one for one in measured if one.events == size), key=lambda one: one.events_per_second)
        clients = best.clients
        shares = [_share_of_copy(server, size, clients, scale) for _ in range(ROUNDS)]
        _print_shares(f"{size} events a request, {clients} clients, of COPY of {size} events a commit", shares)
    (lone,) = (one.result.p50 for one in measured if (one.events, one.clients) == (1, 1))
    _, bare = limits.copy(server.dsn, list(bodies(200, 1)), demo.ORG_ID, demo.APP_ID)
    print(f"bare commit of a row: {bare * 1000:.2f} ms; a lone request: {lone * 1000:.2f} ms")


def _compare_klein(server: Server, scale: float) -> None:
    with limits.constant_klein_route() as port:
        shares = [_share_of_klein(server, port, scale) for _ in range(ROUNDS)]
    _print_shares("one event a request, 64 clients, of a constant Klein route", shares)


def _share_of_copy(server: Server, size: int, clients: int, scale: float) -> float:
    prepared = _requests(size, clients, scale)
    ours = load.run(server.port, prepared, clients).per_second * size
    copied, _ = limits.copy(server.dsn, list(bodies(len(prepared), size)), demo.ORG_ID, demo.APP_ID)
    return ours / copied


def _share_of_klein(server: Server, klein_port: int, scale: float) -> float:
    prepared = _requests(1, 64, scale)
    return load.run(server.port, prepared, 64).per_second / load.run(klein_port, prepared, 64).per_second


def _print_shares(what: str, shares: list[float]) -> None:
    each = ", ".join(f"{share:.2f}" for share in shares)
    print(f"{what}: {statistics.median(shares):.2f} ({each})", flush=True)


def _fill(dsn: str, rows: int, older_by_days: int = 0) -> None:
    """Put rows into the table, as the server would have, so many days ago."""
    connection = BlockingConnections().connect(dsn)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO events (
                event_id, org_id, app_id, schema_version, timestamp, service_name, service_version, service_language,
                user_id, os, event_type, event_data, sdk_version, transmission_timestamp, batch_size, retry_count,
                received_at
            )
            SELECT gen_random_uuid(), %s, %s, '1.0.0', now() - n * interval '1 second', 'my-cli', '1.2.3', 'rust',
                   'client_' || n %% 10000, 'linux', 'command_execution', '{"command": "build"}', '0.3.0', now(), 1, 0,
                   now() - make_interval(days => %s, secs => n / 100)
            FROM generate_series(1, %s) AS n
            """,
            (demo.ORG_ID, demo.APP_ID, older_by_days, rows),
        )
        cursor.execute("VACUUM ANALYZE events")
    connection.close()


if __name__ == "__main__":
    main()
