"""Benchmark statistics: aggregate events of a simulated population on an embedded database, and compute every panel."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from tkserver.demo import Parameters, Population, seeded
from tkserver.insight import aggregator
from tkserver.insight.panels import APPLICABLE_FILTERS, PANELS
from tkserver.insight.stats import compute
from tkserver.operations.demo import APP_NAME, DirectStorage, find_or_create_app
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, Connection, rows, value
from tkserver.storage.embedded.postgres import EmbeddedPostgres

UNTIL = datetime(2026, 11, 30, 16, tzinfo=timezone.utc)
"""The end of the population's events, so that they are the same in each run."""

PERIODS = (30, 90, 365)
"""Days."""

MAX_SECONDS = 0.3
"""Seconds within which a panel must be computed."""

MAX_FILTERED_YEAR = 1.0
"""The same for a panel of 365 days with filters."""

MIN_EVENTS_PER_SECOND = 20_000
MAX_SHARE = 0.25
"""The size of the aggregates, as a share of the size of the events with their indexes."""

ROUNDS = 20

FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"ci": "include"},
    {"os": "linux"},
    {"arch": "aarch64"},
    {"os": "linux", "arch": "x86_64"},
    {"version": "newest"},
    {"version": "oldest", "os": "windows"},
    {"name": "most frequent"},
    {"name": "most frequent", "os": "linux", "ci": "include"},
)
"""Filters of the panels. The version and the name are chosen among those of the population."""

_TABLES = """
SELECT relname, pg_total_relation_size(oid) FROM pg_class
WHERE relkind = 'r' AND (relname = 'events' OR relname LIKE 'insight\\_%') AND relnamespace = 'public'::regnamespace
ORDER BY relname
"""


@dataclass(frozen=True)
class Case:
    """A panel with its parameters."""

    panel: str
    days: int
    filters: Mapping[str, str]

    @property
    def limit(self) -> float:
        """Seconds within which the panel must be computed."""
        return MAX_FILTERED_YEAR if self.days > 90 and self.filters else MAX_SECONDS


# --- the database


@contextmanager
def embedded_database(directory: Path | None) -> Iterator[str]:
    """Yield the address of an embedded database.

    :param directory: of the database, which is kept; ``None`` for a new one, which is removed afterwards.
    """
    data_dir = directory or Path(tempfile.mkdtemp(prefix="tkbench"))
    data_dir.mkdir(parents=True, exist_ok=True)
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    try:
        migrations.migrate(postgres.dsn, BlockingConnections())
        yield postgres.dsn
    finally:
        postgres.stop()
        if directory is None:
            shutil.rmtree(data_dir, ignore_errors=True)


def generate(connection: Connection, parameters: Parameters) -> None:
    """Store the events of a population, unless they are stored already."""
    app = find_or_create_app(connection)
    if value(connection, "SELECT EXISTS (SELECT FROM events WHERE app_id = %s)", str(app.app_id)):
        return
    started = time.monotonic()
    events = Population(parameters, UNTIL, seeded(parameters, seed=1)).events()
    stored = DirectStorage(connection, app).store(events, lambda _: None)
    rows(connection, "VACUUM ANALYZE events")
    print(f"generated {stored:,} events in {time.monotonic() - started:.0f} s", flush=True)


def aggregate(connection: Connection) -> float:
    """Aggregate all events that are not aggregated yet, and return how many per second."""
    started = time.monotonic()
    events = aggregator.run_once(connection, time.sleep)
    if not events:
        return math.inf
    return events / (time.monotonic() - started)


# --- panels


def cases(connection: Connection) -> list[Case]:
    """Return all panels, each with all filters that it has."""
    chosen = _choose_values(connection)
    result = []
    for panel in PANELS:
        for days in PERIODS:
            for filters in FILTERS:
                if filters.keys() <= {"ci", *APPLICABLE_FILTERS[panel]}:
                    result.append(Case(panel, days, {key: chosen.get(name, name) for key, name in filters.items()}))
    return result


def _choose_values(connection: Connection) -> dict[str, str]:
    versions = [item["version"] for item in _compute(connection, Case("versions", 365, {}))["items"]]
    names = [item["name"] for item in _compute(connection, Case("commands", 30, {}))["items"]]
    return {"newest": versions[0], "oldest": versions[-1], "most frequent": names[0]}


def _compute(connection: Connection, case: Case) -> dict[str, list[dict[str, str]]]:
    app = find_or_create_app(connection)
    return compute(connection, *app.key, app.label, case.panel, {"days": str(case.days), **case.filters}, UNTIL)


def measure(connection: Connection, case: Case, rounds: int) -> list[float]:
    """Return the processor and waiting time of a panel in several rounds, in seconds. Nothing is kept between them."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        _compute(connection, case)
        seconds.append(time.perf_counter() - started)
    return seconds


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile by the nearest-rank method."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


# --- report


def main(arguments: Sequence[str] | None = None) -> int:
    """Print tables, and return 1 if a limit is exceeded."""
    options = _parse_options(arguments)
    parameters = Parameters(options.events, options.users, options.days, options.versions, options.commands)
    with embedded_database(options.directory) as dsn, closing(BlockingConnections().connect(dsn)) as connection:
        generate(connection, parameters)
        exceeded = [
            not _report_aggregation(connection),
            not _report_sizes(connection),
            not _report_panels(connection, options.rounds),
            not _report_command(dsn),
        ]
    return int(any(exceeded))


def _report_aggregation(connection: Connection) -> bool:
    rate = aggregate(connection)
    if rate < math.inf:
        print(f"aggregation: {rate:,.0f} events per second, limit {MIN_EVENTS_PER_SECOND:,}", flush=True)
    return rate >= MIN_EVENTS_PER_SECOND


def _report_sizes(connection: Connection) -> bool:
    rows(connection, "VACUUM ANALYZE insight_cells")
    sizes = dict(rows(connection, _TABLES))
    events = value(connection, "SELECT count(*) FROM events")
    print(f"\n{'table':20} {'MB':>8} {'bytes per event':>15}")
    for table, size in sizes.items():
        print(f"{table:20} {size / 1e6:8.1f} {size / events:15.1f}")
    share = sum(size for table, size in sizes.items() if table != "events") / sizes["events"]
    print(f"aggregates: {share:.1%} of the size of the events, limit {MAX_SHARE:.0%}\n", flush=True)
    return bool(share <= MAX_SHARE)


def _report_panels(connection: Connection, rounds: int) -> bool:
    print(f"{'panel':12} {'days':>4} {'median ms':>9} {'p95 ms':>7} {'limit ms':>8}  filters")
    within = True
    for case in cases(connection):
        _compute(connection, case)  # so that the database has cached what it reads
        seconds = measure(connection, case, rounds)
        within &= p95(seconds) <= case.limit
        filters = " ".join(f"{name}={value}" for name, value in case.filters.items())
        times = f"{median(seconds) * 1e3:9.0f} {p95(seconds) * 1e3:7.0f} {case.limit * 1e3:8.0f}"
        print(
            f"{case.panel:12} {case.days:4} {times}{' ' if p95(seconds) <= case.limit else '!'} {filters}", flush=True
        )
    return within


def _report_command(dsn: str) -> bool:
    command = [str(Path(sys.executable).parent / "tkserver"), "stats", APP_NAME]
    environment = {**os.environ, "TK__DATABASE__URL": dsn}
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        seconds.append(time.perf_counter() - started)
    print(f"\ntkserver stats {APP_NAME}: {median(seconds):.2f} s with its start, limit 1 s")
    return median(seconds) <= 1


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.insight", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--users", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--days", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--versions", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--commands", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each panel is computed (default: 20)")
    parser.add_argument(
        "--directory", type=Path, help="keep the database there, and use its events if it has some already"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
