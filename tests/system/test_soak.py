"""After some time with clients of all kinds, the server uses no more resources than before."""

from __future__ import annotations

from random import Random

import pytest

from bench.crowd import ACTIONS, Crowd
from bench.server import running_server
from bench.soak import soak

SECONDS = 100.0
"""Together with the start of the server and the pauses, the test takes about two minutes."""


@pytest.mark.timeout(300)
def test_resources_do_not_grow() -> None:
    """Memory, files, Deferreds and connections do not grow, all responses are as expected, and no event is lost."""
    crowd = Crowd(clients=50, pause=0.2, random=Random(1))
    with running_server(watched=True, TK__SERVER__TRUSTED_PROXIES="127.0.0.1") as server:
        report = soak(server, crowd, SECONDS)
    assert report.problems() == []
    assert len({name for name, _ in crowd.answers}) == len(ACTIONS) - 1  # two of them hang up
    assert len(crowd.accepted) > 10_000
