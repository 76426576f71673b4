"""TCP ports for servers that must have the same port when they are started again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a free TCP port of 127.0.0.1: no other process gets it by chance while the context lasts.

    The reserving socket is bound but does not listen. Linux allows a server that sets ``SO_REUSEADDR``, as all do, to
    bind the port as well.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield int(reservation.getsockname()[1])
