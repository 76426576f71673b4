"""``python -m bench.soak``: hours of clients that come and go, and whether the server is afterwards as it was before.

After a warm-up, and again at the end, all clients leave, and what the server then still holds is compared. While they
are there, a line a minute says how it is doing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from random import Random

from bench.crowd import Crowd
from bench.server import Server, running_server

WARM_UP = 0.25
"""The share of the time after which nothing is to grow any more."""

QUIET = 3.0
"""Seconds for the server to notice that everyone has left."""

MOST_GROWTH = 1.1
"""Of resident memory. Python's allocator does not give back all that it once had."""

MOST_MORE_OBJECTS = 10
"""Deferreds, and objects of the server's own: timers of caches and pools are not always at the same point."""


@dataclass(frozen=True)
class Holdings:
    """What a server holds while nobody is connected.

    :ivar connections: of clients; ``database`` those to the database.
    :ivar objects: how many of each class.
    """

    rss_mb: float
    files: int
    connections: int
    database: int
    objects: Counter[str]

    @property
    def deferreds(self) -> int:
        return self.objects["twisted.internet.defer.Deferred"]

    @property
    def own_objects(self) -> int:
        """Of the server's classes, connections and requests above all: those of a rare kind are few megabytes."""
        return sum(count for name, count in self.objects.items() if name.startswith("tkserver."))

    def __str__(self) -> str:
        return (
            f"{self.rss_mb:.0f} MB, {self.files} open files, {self.connections} connections of clients,"
            f" {self.database} to the database, {self.deferreds} Deferreds,"
            f" {self.own_objects} objects of its own"
        )


@dataclass(frozen=True)
class Report:
    """What came of a soak."""

    crowd: Crowd
    warm: Holdings
    end: Holdings
    lost: int

    def problems(self) -> list[str]:
        """What is not as it should be; empty where all is well."""
        warm, end = self.warm, self.end
        wrong = self.crowd.wrong
        findings = (
            (bool(wrong), f"{len(wrong)} wrong answers, such as {wrong[:3]}"),
            (self.lost > 0, f"{self.lost} events that were accepted are not in the table"),
            (end.rss_mb > warm.rss_mb * MOST_GROWTH, f"memory: {warm.rss_mb:.0f} MB, then {end.rss_mb:.0f}"),
            (end.files > warm.files, f"open files: {warm.files}, then {end.files}"),
            (end.connections > 0, f"connections of clients: {end.connections}"),
            (end.database > warm.database, f"connections to the database: {warm.database}, then {end.database}"),
            (end.deferreds > warm.deferreds + MOST_MORE_OBJECTS, f"Deferreds: {warm.deferreds}, then {end.deferreds}"),
            (
                end.own_objects > warm.own_objects + MOST_MORE_OBJECTS,
                f"objects of its own: {warm.own_objects}, then {end.own_objects}",
            ),
        )
        return [problem for found, problem in findings if found]

    def growth(self) -> list[tuple[str, int]]:
        """The classes of which most objects were added, and how many."""
        return (self.end.objects - self.warm.objects).most_common(5)


def soak(server: Server, crowd: Crowd, seconds: float) -> Report:
    """Let the crowd in for so long.

    :param server: a watched one, which believes what is forwarded to it.
    """
    _let_in(crowd, server, seconds * WARM_UP)
    warm = _holdings(server)
    print(f"warm: {warm}", flush=True)
    _let_in(crowd, server, seconds * (1 - WARM_UP))
    end = _holdings(server)
    print(f"end:  {end}", flush=True)
    return Report(crowd, warm, end, _lost(server, crowd))


def _let_in(crowd: Crowd, server: Server, seconds: float) -> None:
    async def watch() -> None:
        while True:
            await asyncio.sleep(60)
            print(
                f"{time.strftime('%H:%M')} {server.rss_mb:.0f} MB, {sum(crowd.answers.values())} requests", flush=True
            )

    async def both() -> None:
        watching = asyncio.ensure_future(watch())
        await crowd.come_and_go(server.port, seconds)
        watching.cancel()

    asyncio.run(both())


def _holdings(server: Server) -> Holdings:
    held = server.held
    time.sleep(QUIET)
    rss_mb = server.rss_mb  # before it looks at itself, which takes some more
    before = len(held.read_text().splitlines()) if held.exists() else 0
    os.kill(server.pid, signal.SIGUSR2)
    while not held.exists() or len(held.read_text().splitlines()) == before:
        time.sleep(0.05)
    sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ((database,),) = server.query(sql)
    objects = Counter(json.loads(held.read_text().splitlines()[-1]))
    return Holdings(rss_mb, server.open_files, server.connections, database, objects)


def _lost(server: Server, crowd: Crowd) -> int:
    stored = {event_id for (event_id,) in server.query("SELECT event_id::text FROM events")}
    return len(crowd.accepted - stored)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    parser.add_argument("--clients", type=int, default=50, help="how many are there at once")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two requests of a client")
    parser.add_argument("--seed", type=int, default=1, help="for what they do")
    options = parser.parse_args()
    crowd = Crowd(options.clients, options.pause, Random(options.seed))
    with running_server(watched=True, TK__SERVER__TRUSTED_PROXIES="127.0.0.1") as server:
        report = soak(server, crowd, options.minutes * 60)
    for (name, status), count in sorted(report.crowd.answers.items()):
        print(f"{count:8} {name}: {status}")
    print("grown:", ", ".join(f"{name} +{count}" for name, count in report.growth()) or "nothing")
    problems = report.problems()
    print("\n".join(problems) or "as it was before")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
