"""Benchmark a server with an embedded database. Both are started for the benchmark and removed afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.against import compare_checkouts
from bench.aggregation import compare_aggregation
from bench.comparisons import compare_many_clients, compare_pruning, compare_table_sizes, compare_with_limits
from bench.server import running_server

ROUNDS = 5
AGAINST_ROUNDS = 20
PRUNE_ROWS = 1_000_000


def main() -> None:
    options = _parse_options()
    rounds = options.rounds or (AGAINST_ROUNDS if options.against else ROUNDS)
    if options.against:
        compare_checkouts(options.against, rounds, options.scale)
        return
    if options.aggregation:
        compare_aggregation(rounds, options.scale)
        return
    with running_server() as server:
        if options.prune:
            compare_pruning(server, options.rows or PRUNE_ROWS, rounds, options.scale)
        elif options.rows:
            compare_table_sizes(server, options.rows, rounds, options.scale)
        elif options.crowd:
            compare_many_clients(server, rounds, options.scale)
        else:
            compare_with_limits(server, rounds, options.scale)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"{__doc__} Without options, print throughput, latencies, processor time and memory for several"
        " sizes of request and numbers of clients, and compare them with the limits of Klein and of COPY.",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply the number of requests; use 0.1 for a quick run (default: 1)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"repeat each comparison this many times (default: {ROUNDS}; {AGAINST_ROUNDS} with --against)",
    )
    parser.add_argument(
        "--against",
        type=_checkout,
        metavar="DIRECTORY",
        help="compare this checkout with the one in DIRECTORY, for example a git worktree of an older commit",
    )
    parser.add_argument("--rows", type=int, default=0, help="compare a table with this many rows with an empty table")
    parser.add_argument("--crowd", action="store_true", help="compare 1000 clients with 16 clients")
    parser.add_argument(
        "--aggregation", action="store_true", help="compare a server that aggregates events with one that does not"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="compare latencies before and during the deletion of old events;"
        f" --rows is the number of events (default: {PRUNE_ROWS})",
    )
    return parser.parse_args()


def _checkout(argument: str) -> Path:
    directory = Path(argument).resolve()
    if not (directory / "tkserver" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{directory} does not contain a checkout of tkserver")
    return directory


if __name__ == "__main__":
    main()
