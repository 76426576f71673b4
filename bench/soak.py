"""Run a server for a long time with clients that connect and disconnect, and check that it leaks nothing.

All clients disconnect after a warm-up and again at the end. The server must then use the same resources both times. A
line per minute shows memory and the number of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass
from random import Random

from bench.clients import SimulatedClients
from bench.server import Server, running_server
from tkserver.storage.changes import PROPAGATION_TIME
from tkserver.storage.embedded import demo

WARM_UP = 0.25
"""The warm-up's fraction of the time. Nothing may grow after the warm-up."""

IDLE_SECONDS = 3.0
"""Time for the server to notice that all clients have disconnected."""

MAX_MEMORY_GROWTH = 1.1
"""Factor of resident memory. Python's allocator does not return all unused memory to the system."""

MAX_MORE_OBJECTS = 10
"""Deferreds, and objects of the server's own classes. Timers of caches and pools may be in different states."""


@dataclass(frozen=True)
class ResourceUsage:
    """The resources that a server uses while no client is connected.

    :ivar clients: connections of clients.
    :ivar database: connections to the database.
    :ivar objects: the number of objects of each class.
    """

    rss_mb: float
    files: int
    clients: int
    database: int
    objects: Counter[str]

    @property
    def deferreds(self) -> int:
        return self.objects["twisted.internet.defer.Deferred"]

    @property
    def own_objects(self) -> int:
        """The number of objects of the server's own classes.

        It reveals leaked connections and requests of a rare kind, which need too little memory to be noticed there.
        """
        return sum(count for name, count in self.objects.items() if name.startswith("tkserver."))

    def __str__(self) -> str:
        return (
            f"{self.rss_mb:.0f} MB, {self.files} open files, {self.clients} client connections,"
            f" {self.database} database connections, {self.deferreds} Deferreds,"
            f" {self.own_objects} objects of the server's own classes"
        )


@dataclass(frozen=True)
class Report:
    """The result of a soak test.

    :ivar warm: resource usage after the warm-up.
    :ivar lost: the number of events that were accepted but are not in the table.
    """

    clients: SimulatedClients
    warm: ResourceUsage
    end: ResourceUsage
    lost: int

    def problems(self) -> list[str]:
        """Return a description of each problem."""
        warm, end = self.warm, self.end
        unexpected = self.clients.unexpected
        checks = (
            (bool(unexpected), f"{len(unexpected)} unexpected responses, such as {unexpected[:3]}"),
            (self.lost > 0, f"{self.lost} accepted events are not in the table"),
            (end.rss_mb > warm.rss_mb * MAX_MEMORY_GROWTH, f"memory: {warm.rss_mb:.0f} MB, then {end.rss_mb:.0f} MB"),
            (end.files > warm.files, f"open files: {warm.files}, then {end.files}"),
            (end.clients > 0, f"client connections: {end.clients}"),
            (end.database > warm.database, f"database connections: {warm.database}, then {end.database}"),
            (end.deferreds > warm.deferreds + MAX_MORE_OBJECTS, f"Deferreds: {warm.deferreds}, then {end.deferreds}"),
            (
                end.own_objects > warm.own_objects + MAX_MORE_OBJECTS,
                f"objects of the server's own classes: {warm.own_objects}, then {end.own_objects}",
            ),
        )
        return [problem for failed, problem in checks if failed]

    def growth(self) -> list[tuple[str, int]]:
        """Return the five classes whose number of objects has increased most, and by how many."""
        return (self.end.objects - self.warm.objects).most_common(5)


def soak(server: Server, clients: SimulatedClients, seconds: float) -> Report:
    """Run the clients for this time and compare the server's resource usage after the warm-up and at the end.

    :param server: a server that :mod:`bench.instrumented` runs and that trusts 127.0.0.1 as a proxy.
    """
    # The server has no demo application, because it trusts a proxy.
    insert = "INSERT INTO api_tokens (org_id, app_id, token, secret) VALUES (%s, %s, %s, %s)"
    server.query(insert, demo.ORG_ID, demo.APP_ID, demo.TOKEN, demo.SECRET)
    time.sleep(PROPAGATION_TIME)
    _run_clients(clients, server, seconds * WARM_UP)
    warm = _measure_resources(server)
    print(f"after the warm-up: {warm}", flush=True)
    _run_clients(clients, server, seconds * (1 - WARM_UP))
    end = _measure_resources(server)
    print(f"at the end: {end}", flush=True)
    return Report(clients, warm, end, _count_lost_events(server, clients))


def _run_clients(clients: SimulatedClients, server: Server, seconds: float) -> None:
    async def print_progress() -> None:
        while True:
            await asyncio.sleep(60)
            requests = sum(clients.responses.values())
            print(f"{time.strftime('%H:%M')} {server.rss_mb:.0f} MB, {requests} requests", flush=True)

    async def run() -> None:
        progress = asyncio.ensure_future(print_progress())
        await clients.run(server.port, seconds)
        progress.cancel()

    asyncio.run(run())


def _measure_resources(server: Server) -> ResourceUsage:
    time.sleep(IDLE_SECONDS)
    rss_mb = server.rss_mb  # before the objects are counted, because counting needs memory
    objects: Counter[str] = Counter(server.next_report())
    sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ((database,),) = server.query(sql)
    return ResourceUsage(rss_mb, server.open_files, server.client_connections, database, objects)


def _count_lost_events(server: Server, clients: SimulatedClients) -> int:
    stored = {event_id for (event_id,) in server.query("SELECT event_id::text FROM events")}
    return len(clients.accepted - stored)


def main() -> None:
    options = _parse_options()
    clients = SimulatedClients(options.clients, options.pause, Random(options.seed))
    with running_server(module="bench.instrumented", TK__SERVER__TRUSTED_PROXIES="127.0.0.1") as server:
        report = soak(server, clients, options.minutes * 60)
    for (name, status), count in sorted(report.clients.responses.items()):
        print(f"{count:8} {name}: {status}")
    print("classes with more objects:", ", ".join(f"{name} +{count}" for name, count in report.growth()) or "none")
    problems = report.problems()
    print("\n".join(problems) or "no problems")
    sys.exit(bool(problems))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="duration of the test")
    parser.add_argument("--clients", type=int, default=50, help="number of clients that are connected at a time")
    parser.add_argument("--pause", type=float, default=0.2, help="mean seconds between two requests of a client")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random number generator")
    return parser.parse_args()


if __name__ == "__main__":
    main()
