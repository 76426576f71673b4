"""The server is after a while of all kinds of clients as it was before."""

from __future__ import annotations

from random import Random

import pytest

from bench.crowd import ACTIONS, Crowd
from bench.server import running_server
from bench.soak import soak

SECONDS = 100.0
"""Two minutes, with the start and the quiet in between."""


@pytest.mark.timeout(300)
def test_two_minutes() -> None:
    """Memory, open files, Deferreds and connections are flat at the end; each answer was right, and nothing is lost."""
    crowd = Crowd(clients=50, pause=0.2, random=Random(1))
    with running_server(watched=True, TK__SERVER__TRUSTED_PROXIES="127.0.0.1") as server:
        report = soak(server, crowd, SECONDS)
    assert report.problems() == []
    assert len({name for name, _ in crowd.answers}) == len(ACTIONS) - 1  # two of them hang up
    assert len(crowd.accepted) > 10_000
