"""A short soak test: the server leaks nothing while clients of all kinds connect and disconnect."""

from __future__ import annotations

from random import Random

import pytest

from bench.clients import ACTIONS, SimulatedClients
from bench.server import running_server
from bench.soak import soak

SECONDS = 100.0
"""Together with starting the server and waiting for it to be idle, this makes two minutes."""


@pytest.mark.timeout(300)
def test_server_leaks_nothing_in_two_minutes() -> None:
    """Memory, files, Deferreds and connections do not grow, each response is right, and no accepted event is lost."""
    clients = SimulatedClients(clients=50, pause=0.2, random=Random(1))
    with running_server(module="bench.instrumented", TK__SERVER__TRUSTED_PROXIES="127.0.0.1") as server:
        report = soak(server, clients, SECONDS)
    assert report.problems() == []
    assert len({name for name, _ in clients.responses}) == len(ACTIONS) - 1  # two actions are counted as "reset"
    assert len(clients.accepted) > 10_000
