"""Numbers in the reader's language."""

from __future__ import annotations

import pytest

from tkserver.web.dashboard.formats import Formats

ENGLISH = Formats()


@pytest.mark.parametrize(
    ("accepted", "text"),
    [
        (None, "1,234,567.5"),
        ("", "1,234,567.5"),
        ("en-GB,en;q=0.9", "1,234,567.5"),
        ("de-DE,de;q=0.9,en;q=0.8", "1.234.567,5"),
        ("de-CH", "1\u2019234\u2019567.5"),
        ("fr", "1\u202f234\u202f567,5"),
        ("tlh, pt-BR;q=0.5", "1.234.567,5"),
        ("*;q=0.1", "1,234,567.5"),
        ("x" * 10_000, "1,234,567.5"),
    ],
)
def test_separators(accepted: str | None, text: str) -> None:
    """The first language that is known determines the separators."""
    assert Formats.for_languages(accepted).number(1234567.5, 1) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(None, "-"), (0, "0.0\u00a0ms"), (9.96, "10.0\u00a0ms"), (540, "540\u00a0ms"), (1000, "1.0\u00a0s"),
     (59_000, "59\u00a0s"), (90_000, "1.5\u00a0min"), (7_200_000, "2.0\u00a0h"), (864_000_000, "10\u00a0d")],
)  # fmt: skip
def test_durations(milliseconds: float | None, text: str) -> None:
    """A duration has the largest unit of which there is at least one."""
    assert ENGLISH.duration(milliseconds) == text


@pytest.mark.parametrize(
    ("now", "before", "text"),
    [(110, 100, "+10\u00a0%"), (100.5, 100, "+0.5\u00a0%"), (80, 100, "\u221220\u00a0%"), (1, 1, "±0.0\u00a0%"),
     (5, 0, ""), (5, None, ""), (None, 5, "")],
)  # fmt: skip
def test_changes(now: float | None, before: float | None, text: str) -> None:
    """A change has a sign; there is none if there was nothing before."""
    assert ENGLISH.change(now, before) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0\u00a0bytes"), (999, "999\u00a0bytes"), (1000, "1.0\u00a0kB"), (4.9e9, "4.9\u00a0GB"),
     (2e16, "20,000\u00a0TB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    """A size has a unit."""
    assert ENGLISH.size(count) == text


def test_shares() -> None:
    """A share is shown in percent; nothing is shown as a dash."""
    assert ENGLISH.percent(0.0405) == "4.0\u00a0%"
    assert ENGLISH.percent(None) == ENGLISH.number(None) == "-"
