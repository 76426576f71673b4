"""Compare the server with its limits, and with itself under other conditions.

The speed of a machine changes from minute to minute. Each comparison therefore repeats its two measurements in turn,
and the result is the median of the ratios.
"""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from bench import limits, load
from bench.measure import HEADINGS, Case, Measurement, measure_and_print, prepare_requests, print_ratios
from bench.requests import APP_ID, ORG_ID, new_bodies
from bench.server import Server

SIZES = (1, 10, 100, 1000)
CLIENTS = (1, 16, 64)
PRUNE_DAYS = 7


def compare_with_limits(server: Server, rounds: int, scale: float) -> None:
    """Measure all sizes of request and numbers of clients, and compare them with the limits."""
    _compare_with_klein(server, rounds, scale)
    print(HEADINGS)
    cases = [Case(size, clients) for size in SIZES for clients in CLIENTS]
    measurements = [measure_and_print(server, case, scale) for case in cases]
    print(f"\nRatios to COPY: the median of {rounds} rounds, and each round")
    for size in (100, 1000):
        _compare_with_copy(server, _fastest(measurements, size), rounds, scale)
    (single,) = (line.result.p50 for line in measurements if line.case == Case(1, 1))
    commit = limits.measure_copy(server.dsn, list(new_bodies(200, 1))).seconds_per_commit
    print(f"commit of one row: {commit * 1000:.2f} ms; request of a single client: {single * 1000:.2f} ms")


def _compare_with_klein(server: Server, rounds: int, scale: float) -> None:
    case = Case(1, 64)
    with limits.constant_klein_route() as port:
        ratios = [_ratio_to_klein(server, port, case, scale) for _ in range(rounds)]
    print_ratios(f"{case}: requests per second, ratio to a constant Klein route", ratios)


def _ratio_to_klein(server: Server, klein_port: int, case: Case, scale: float) -> float:
    requests = prepare_requests(case, scale)
    ours, klein = (load.run(port, requests, case.clients) for port in (server.port, klein_port))
    return ours.requests_per_second / klein.requests_per_second


def _compare_with_copy(server: Server, case: Case, rounds: int, scale: float) -> None:
    ratios = [_ratio_to_copy(server, case, scale) for _ in range(rounds)]
    print_ratios(f"{case}: events per second, ratio to COPY of {case.events} events per commit", ratios)


def _ratio_to_copy(server: Server, case: Case, scale: float) -> float:
    requests = prepare_requests(case, scale)
    ours = load.run(server.port, requests, case.clients).requests_per_second * case.events
    return ours / limits.measure_copy(server.dsn, list(new_bodies(len(requests), case.events))).events_per_second


def _fastest(measurements: list[Measurement], size: int) -> Case:
    """Return the case of this size with the most events per second."""
    same_size = (line for line in measurements if line.case.events == size)
    return max(same_size, key=lambda line: line.events_per_second).case


def compare_table_sizes(server: Server, rows: int, rounds: int, scale: float) -> None:
    """Compare events per second with a large table to those with an empty table."""
    print(HEADINGS)
    empty = _median_events_per_second(server, rounds, scale)
    _insert_rows(server, rows)
    full = _median_events_per_second(server, rounds, scale)
    for case, events_per_second in full.items():
        print(f"{case}: events per second, ratio to an empty table: {events_per_second / empty[case]:.2f}")


def _median_events_per_second(server: Server, rounds: int, scale: float) -> dict[Case, float]:
    cases = (Case(1, 64), Case(100, 64), Case(1000, 16))
    rates: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            rates[case].append(measure_and_print(server, case, scale).events_per_second)
    return {case: statistics.median(values) for case, values in rates.items()}


def compare_many_clients(server: Server, rounds: int, scale: float) -> None:
    """Compare processor time per event with 1000 clients to that with 16 clients."""
    few, many = Case(1, 16), Case(1, 1000)
    print(HEADINGS)
    measure_and_print(server, few, scale)  # warm up
    ratios = []
    for _ in range(rounds):
        first, second = (measure_and_print(server, case, scale).cpu_per_event for case in (few, many))
        ratios.append(second / first)
    print_ratios("processor time per event with 1000 clients, ratio to 16 clients", ratios)


def compare_pruning(server: Server, rows: int, rounds: int, scale: float) -> None:
    """Compare the 99th percentile of latencies while old events are deleted to that before."""
    case = Case(100, 16)
    print(HEADINGS)
    _insert_rows(server, rows, age_days=PRUNE_DAYS + 1)
    measure_and_print(server, case, scale)  # warm up
    before = [measure_and_print(server, case, scale).result.p99 for _ in range(rounds)]
    print("deleting old events", flush=True)
    during = _measure_while_pruning(server, case, scale)
    if not during:
        raise SystemExit("All events were deleted before the first run ended. Use more --rows or a smaller --scale.")
    usual = statistics.median(before)
    print_ratios(f"{case}: p99 while old events are deleted, ratio to before", [p99 / usual for p99 in during])


def _measure_while_pruning(server: Server, case: Case, scale: float) -> list[float]:
    """Return the 99th percentiles of the runs that end before the deletion ends."""
    started = time.monotonic()
    percentiles = []
    with ThreadPoolExecutor(1) as executor:
        pruning = executor.submit(_prune, server)
        while True:
            p99 = measure_and_print(server, case, scale).result.p99
            if pruning.done():
                break
            percentiles.append(p99)
    print(f"deleted {pruning.result()} events in {time.monotonic() - started:.0f} s")
    return percentiles


def _prune(server: Server) -> int:
    output = server.run_command("prune", "--json", TK__RETENTION__DAYS=str(PRUNE_DAYS))
    return sum(application["deleted"] for application in json.loads(output))


def _insert_rows(server: Server, rows: int, age_days: int = 0) -> None:
    """Insert events as if the server had stored them this many days ago."""
    print(f"inserting {rows} rows", flush=True)
    server.query(
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
        ORG_ID,
        APP_ID,
        age_days,
        rows,
    )
    server.query("VACUUM ANALYZE events")
