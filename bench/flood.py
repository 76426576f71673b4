"""``python -m bench.flood``: many connections that all send the largest body at once, and what memory that takes."""

from __future__ import annotations

import argparse
import contextlib
import resource
import selectors
import socket
from collections import Counter

from bench.requests import bodies, request
from bench.server import running_server

BODY_BYTES = 5_242_880


def largest_request() -> bytes:
    """A signed request with a body of just the limit."""
    body = next(bodies(1, 1000))
    padding = b'],"ignored":"%s"}' % (b"x" * (BODY_BYTES - len(body) - 13))
    return request(body[:-2] + padding)


def flood(port: int, connections: int) -> Counter[str]:
    """Send the largest body over every connection at once.

    :return: how often each status was answered; ``closed`` where a connection ended without an answer.
    """
    to_send = largest_request()
    outcomes: Counter[str] = Counter()
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        peer = socket.create_connection(("127.0.0.1", port))
        peer.setblocking(False)
        selector.register(peer, selectors.EVENT_READ | selectors.EVENT_WRITE, memoryview(to_send))
    while selector.get_map():
        for key, events in selector.select():
            outcome = _proceed(selector, key, events)
            if outcome:
                outcomes[outcome] += 1
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
    return outcomes


def _proceed(selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> str | None:
    """Read what has come and send some more; the outcome, when there is one."""
    peer: socket.socket = key.fileobj  # type: ignore[assignment]
    with contextlib.suppress(BlockingIOError):
        try:
            if events & selectors.EVENT_READ:
                return peer.recv(65536)[9:12].decode() or "closed"
            unsent = key.data[peer.send(key.data[:262_144]) :]
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            return "closed"
        selector.modify(peer, selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0), unsent)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=__doc__)
    parser.add_argument("connections", type=int, nargs="?", default=2000)
    connections = parser.parse_args().connections
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, connections + 1000), hard))
    with running_server() as server:
        print(f"{connections} connections, {BODY_BYTES} bytes each: {dict(flood(server.port, connections))}")
        print(f"resident memory of the server: {server.rss_mb:.0f} MB, at the most {server.peak_rss_mb:.0f} MB")


if __name__ == "__main__":
    main()
