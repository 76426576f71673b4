"""Send the largest allowed body over many connections at once, and print the server's memory usage."""

from __future__ import annotations

import argparse
import contextlib
import resource
import selectors
import socket
from collections import Counter

from bench.requests import new_bodies, signed_request
from bench.server import running_server

BODY_BYTES = 5_242_880
"""The limit of the server."""


def largest_request() -> bytes:
    """Return a signed request with a body of exactly ``BODY_BYTES``."""
    body = next(new_bodies(1, 1000))
    padding = b'],"ignored":"%s"}' % (b"x" * (BODY_BYTES - len(body) - 13))
    return signed_request(body[:-2] + padding)


def flood(port: int, connections: int) -> Counter[str]:
    """Send the largest request over every connection at once.

    :return: the number of responses by status; ``closed`` is the number of connections that ended without a response.
    """
    request = largest_request()
    outcomes: Counter[str] = Counter()
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE, memoryview(request))
    while selector.get_map():
        for key, events in selector.select():
            outcome = _continue(selector, key, events)
            if outcome:
                outcomes[outcome] += 1
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
    return outcomes


def _continue(selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int) -> str | None:
    """Read the response if it has arrived, otherwise send more of the request.

    :return: the outcome, or ``None`` while there is none.
    """
    client: socket.socket = key.fileobj  # type: ignore[assignment]
    with contextlib.suppress(BlockingIOError):
        try:
            if events & selectors.EVENT_READ:
                return client.recv(65536)[9:12].decode() or "closed"
            unsent = key.data[client.send(key.data[:262_144]) :]
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            return "closed"
        selector.modify(client, selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0), unsent)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=__doc__)
    parser.add_argument(
        "connections", type=int, nargs="?", default=2000, help="the number of connections (default: 2000)"
    )
    connections = parser.parse_args().connections
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, connections + 1000), hard))
    with running_server() as server:
        print(f"{connections} connections, {BODY_BYTES} bytes each: {dict(flood(server.port, connections))}")
        print(f"resident memory of the server: {server.rss_mb:.0f} MB, peak {server.peak_rss_mb:.0f} MB")


if __name__ == "__main__":
    main()
