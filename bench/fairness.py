"""Compare the latency of small requests before and while another application sends its most expensive bodies.

Both applications use one server. The expensive bodies are sent over sixteen connections without a pause. The ratio of
two latencies of the same round is robust, although other processes use the machine, too. The longest iterations of the
reactor are CPU times, which other processes hardly change.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from uuid import uuid4

from bench import load
from bench.recipes import ORDINARY_EVENT
from bench.requests import Sender, new_bodies, signed_request
from bench.server import CHECKOUT, Server, running_server

CONNECTIONS = 16
"""Connections of the application that sends expensive bodies."""

CLIENTS = 4
"""Connections of the other application."""

MAX_RATIO = 4.0
"""The 99th percentile of the latency may be so many times the normal one."""

WARM_UP = 1.0
"""Seconds for which expensive bodies are sent before latencies are measured."""

IDLE_CPU = 0.1
"""CPU seconds of a server in half a second if it has nothing to do, at most."""

IDENTITY, GZIP = "identity", "gzip"

_BEFORE_DATA, _, _REST = ORDINARY_EVENT.partition(b'"data":')
_AFTER_DATA = _REST.partition(b"}")[2]
_BEFORE_ID, _, _REST = _BEFORE_DATA.partition(b'"event_id":"')
_AFTER_ID = _REST[36:]


def _event(data: bytes) -> bytes:
    """Return a valid event with a new id."""
    return b'%s"event_id":"%s%s"data":%s%s' % (_BEFORE_ID, str(uuid4()).encode(), _AFTER_ID, data, _AFTER_DATA)


def _batch(events: list[bytes]) -> bytes:
    return b'{"events":[' + b",".join(events) + b"]}"


def _nested_lists() -> bytes:
    data = b"[" + b"{}," * 30_000 + b"[" * 400 + b"]" * 400 + b"]"
    return gzip.compress(_batch([_event(data) for _ in range(50)]), 1)


def _tiny_events() -> bytes:
    return _batch([b'{"":%d}' % number for number in range(1000)])


def _large_batch() -> bytes:
    return _batch([_event(b'"' + b"x" * 90_000 + b'"') for _ in range(100)])


def _one_event() -> bytes:
    return _batch([_event(b"[" + b"[]," * 4_000_000 + b"1]")])


def _exponents() -> bytes:
    return _batch([_event(b"[" + b"1e100," * 16_000 + b"1]") for _ in range(50)])


def _unknown_members() -> bytes:
    return b"{" + b'"a":1,' * 2_000_000 + _batch([_event(b"1")])[1:]


KINDS: Mapping[str, tuple[Callable[[], bytes], str, int]] = {
    "nested lists, gzip": (_nested_lists, GZIP, 48),
    "1000 tiny invalid events": (_tiny_events, IDENTITY, 2000),
    "100 events of 90 KB": (_large_batch, IDENTITY, 16),
    "numbers with exponents": (_exponents, IDENTITY, 32),
    "one event of 12 MB": (_one_event, IDENTITY, 16),
    "unknown members": (_unknown_members, IDENTITY, 16),
}
"""Functions that return an expensive body, its encoding, and the number of requests that are prepared."""


@dataclass(frozen=True)
class Measurement:
    """A round.

    :ivar normal: the result of small requests while nothing else is sent.
    :ivar attacked: the same while expensive bodies are sent.
    :ivar iterations: CPU seconds of the longest iterations of the reactor, longest first; empty if not measured.
    """

    normal: load.Result
    attacked: load.Result
    iterations: Sequence[float]

    @property
    def ratio(self) -> float:
        return self.attacked.p99 / self.normal.p99


def measure(server: Server, attacker: Sender, kind: str, requests: int) -> Measurement:
    """Measure one round.

    :param attacker: the application that sends expensive bodies.
    :param requests: the number of small requests.
    """
    _wait_until_idle(server)
    normal = load.run(server.port, _small_requests(requests), CLIENTS)
    build, encoding, count = KINDS[kind]
    prepared = [signed_request(build(), attacker, encoding) for _ in range(count)]
    with _sent_repeatedly(server.port, prepared):
        time.sleep(WARM_UP)
        server.next_report()
        attacked = load.run(server.port, _small_requests(requests), CLIENTS)
        iterations = server.next_report()
    return Measurement(normal, attacked, iterations)


def _wait_until_idle(server: Server) -> None:
    """Wait until the database has written everything, and the server has nothing to do."""
    server.query("TRUNCATE events")
    server.query("CHECKPOINT")
    used = -1.0
    while server.cpu_seconds - used > IDLE_CPU:
        used = server.cpu_seconds
        time.sleep(0.5)


def _small_requests(count: int) -> list[bytes]:
    return [signed_request(body) for body in new_bodies(count, 1)]


@contextmanager
def _sent_repeatedly(port: int, requests: list[bytes]) -> Iterator[None]:
    """Send requests again and again from another process. Their nonces are used up after the first time."""
    process = get_context("fork").Process(target=_send_forever, args=(port, requests))
    process.start()
    try:
        yield
        if not process.is_alive():
            raise SystemExit("The load generator failed.")
    finally:
        process.terminate()
        process.join()


def _send_forever(port: int, requests: list[bytes]) -> None:
    while True:
        load.send_all(port, requests, CONNECTIONS)


def _create_sender(server: Server) -> Sender:
    created = json.loads(server.run_command("apps", "create", f"app {uuid4()}", "--json"))
    return Sender(f"/v1/ingest/{created['org_id']}/{created['app_id']}", created["secret"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, and return 1 if a limit is exceeded."""
    options = _parse_options(arguments)
    is_exceeded = False
    with running_server(checkout=options.checkout, module="bench.stalls") as server:
        attacker = _create_sender(server)
        load.run(server.port, _small_requests(options.requests), CLIENTS)  # warm up
        print(HEADINGS)
        for kind in options.kinds or KINDS:
            rounds = [measure(server, attacker, kind, options.requests) for _ in range(options.rounds)]
            print(_row(kind, rounds), flush=True)
            ratio = statistics.median(measured.ratio for measured in rounds)
            is_exceeded |= ratio > MAX_RATIO or any(measured.attacked.errors for measured in rounds)
    print(f"limit of the ratio: {MAX_RATIO:g}")
    return int(is_exceeded)


HEADINGS = "expensive body                     p50 ms          p99 ms  ratio of p99 errors  CPU ms of iterations"


def _row(kind: str, rounds: Sequence[Measurement]) -> str:
    """Return the medians of all rounds, and the longest and the hundredth longest iteration of a round."""
    normal, attacked = [measured.normal for measured in rounds], [measured.attacked for measured in rounds]
    p50 = f"{_median_ms(result.p50 for result in normal):.1f} > {_median_ms(result.p50 for result in attacked):.1f}"
    p99 = f"{_median_ms(result.p99 for result in normal):.1f} > {_median_ms(result.p99 for result in attacked):.1f}"
    ratio = statistics.median(measured.ratio for measured in rounds)
    errors = sum(result.errors for result in attacked)
    longest, hundredth = (max(measured.iterations[:index][-1] for measured in rounds) * 1e3 for index in (1, 100))
    return f"{kind:26} {p50:>14} {p99:>15} {ratio:13.1f} {errors:6} {longest:10.1f} {hundredth:10.1f}"


def _median_ms(seconds: Iterable[float]) -> float:
    return statistics.median(seconds) * 1e3


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="repeat each measurement (default: 3)")
    parser.add_argument("--requests", type=int, default=1500, help="small requests in each measurement (default: 1500)")
    parser.add_argument("--checkout", type=Path, default=CHECKOUT, help="the checkout whose server is measured")
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"default: {', '.join(KINDS)}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
