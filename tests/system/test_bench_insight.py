"""The benchmark of statistics."""

from __future__ import annotations

import pytest

from bench import insight
from tkserver.insight.panels import PANELS


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_benchmark_of_few_events(capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark aggregates a population, and measures every panel with and without filters."""
    population = ("--events", "3000", "--users", "200", "--days", "40", "--versions", "4", "--commands", "8")
    assert insight.main((*population, "--rounds", "1")) in (0, 1)  # 1 if a limit is exceeded
    printed = capsys.readouterr().out
    assert "generated 3,000 events" in printed
    for panel in PANELS:
        for days in insight.PERIODS:
            assert [line for line in printed.splitlines() if line.startswith(f"{panel:12} {days:4} ")], panel
    assert "tkserver stats sample-cli: " in printed
