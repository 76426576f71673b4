"""Confidence intervals, multiple testing and percentiles."""

from __future__ import annotations

import pytest

from tkserver.insight.statistics import benjamini_hochberg, nearest_rank, newcombe, newcombe_p_value, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    """The intervals are those that Newcombe published in 1998 for Wilson's method."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
    ],
)
def test_newcombe(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    """The intervals are those that Newcombe published in 1998 for his method 10."""
    assert newcombe(*counts) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("counts", "excludes_0"), [((56, 70, 48, 80), True), ((5, 56, 0, 29), False)])
def test_p_value_agrees_with_the_interval(counts: tuple[int, int, int, int], excludes_0: bool) -> None:
    """The p-value is below 5 % if and only if the 95 % interval excludes 0."""
    assert (newcombe_p_value(*counts) < 0.05) is excludes_0


def test_p_value_of_equal_rates() -> None:
    """Equal rates are no evidence of a difference."""
    assert newcombe_p_value(1, 10, 10, 100) == 1.0


def test_benjamini_hochberg() -> None:
    """The example of the publication of 1995: of 15 p-values, the four smallest are significant."""
    p_values = [0.0459, 0.3240, 0.0001, 0.4262, 0.0004, 0.5719, 0.0019, 0.6528, 0.0095, 0.7590, 0.0201, 1.0, 0.0278]
    p_values += [0.0298, 0.0344]
    rejected = benjamini_hochberg(p_values, 0.05)
    assert {p for p, is_rejected in zip(p_values, rejected, strict=True) if is_rejected} == {
        0.0001,
        0.0004,
        0.0019,
        0.0095,
    }


def test_benjamini_hochberg_rejects_values_below_a_significant_one() -> None:
    """A p-value above its own limit is significant if a larger one is below its limit."""
    assert benjamini_hochberg([0.04, 0.045], 0.05) == [True, True]


@pytest.mark.parametrize(
    ("fraction", "count", "rank"), [(0.5, 4, 2), (0.5, 5, 3), (0.95, 20, 19), (0.95, 1, 1), (1.0, 7, 7)]
)
def test_nearest_rank(fraction: float, count: int, rank: int) -> None:
    """The rank is the smallest one that at least this fraction of the values does not exceed."""
    assert nearest_rank(fraction, count) == rank
