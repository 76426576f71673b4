"""Arithmetic definitions of statistics: confidence intervals, multiple testing, and percentiles of sorted values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z_95 = 1.959963984540054
"""The standard normal quantile of a two-sided interval of 95 %."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson(successes: int, trials: int, z: float = Z_95) -> Interval:
    """Return the Wilson score interval of a proportion.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    :param trials: at least 1.
    :param z: the standard normal quantile of the confidence level.
    """
    p = successes / trials
    return Interval(_wilson_limit(p, trials, -z), _wilson_limit(p, trials, z))


def newcombe(successes: int, trials: int, other_successes: int, other_trials: int, z: float = Z_95) -> Interval:
    """Return the interval of the difference between two independent proportions, first minus second.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions, 1998, method 10.

    :param trials: at least 1; the same for ``other_trials``.
    """
    p, q = successes / trials, other_successes / other_trials
    first, second = wilson(successes, trials, z), wilson(other_successes, other_trials, z)
    difference = p - q
    low = difference - math.hypot(p - first.low, second.high - q)
    high = difference + math.hypot(first.high - p, q - second.low)
    return Interval(low, high)


def newcombe_p_value(successes: int, trials: int, other_successes: int, other_trials: int) -> float:
    """Return the p-value of the test that corresponds to :func:`newcombe`: whether two proportions are equal.

    It is the smallest error probability at which the interval excludes 0. The limits of the interval move monotonically
    with ``z``, so it is found by bisection.
    """
    p, q = successes / trials, other_successes / other_trials
    if p == q:
        return 1.0
    if p < q:
        return newcombe_p_value(other_successes, other_trials, successes, trials)
    low, high = 0.0, 40.0
    for _ in range(40):  # then z is known to ten digits
        z = (low + high) / 2
        if p - q > math.hypot(p - _wilson_limit(p, trials, -z), _wilson_limit(q, other_trials, z) - q):
            low = z
        else:
            high = z
    return math.erfc(low / math.sqrt(2))


def _wilson_limit(p: float, trials: int, z: float) -> float:
    """Return a limit of the interval of :func:`wilson`: the lower one if ``z`` is negative, otherwise the upper one."""
    square = z * z / trials
    limit = (p + square / 2 + z * math.sqrt(p * (1 - p) / trials + square / (4 * trials))) / (1 + square)
    return min(1.0, max(0.0, limit))


def benjamini_hochberg(p_values: Sequence[float], rate: float) -> list[bool]:
    """Return which hypotheses are rejected if the false discovery rate must be at most ``rate``.

    Source: Y. Benjamini and Y. Hochberg, Controlling the false discovery rate, 1995.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = 0
    for rank, index in enumerate(order, start=1):
        if p_values[index] <= rate * rank / len(p_values):
            rejected = rank
    result = [False] * len(p_values)
    for index in order[:rejected]:
        result[index] = True
    return result


def nearest_rank(fraction: float, count: int) -> int:
    """Return the position (from 1) of a percentile in ``count`` sorted values, by the nearest-rank method.

    :param fraction: in (0, 1], for example 0.95.
    """
    return max(1, math.ceil(round(fraction * count, 9)))
