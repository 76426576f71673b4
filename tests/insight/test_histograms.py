"""Histograms with logarithmic buckets."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkserver.insight.histograms import Histogram, buckets, decode, encode, middle, percentile

VALUES = st.lists(st.one_of(st.just(0.0), st.floats(0.001, 1e12)), min_size=1, max_size=200)


def histogram_of(values: list[float]) -> Histogram:
    """Return the histogram of values."""
    return Counter(buckets(np.array(values)).tolist())


@given(VALUES, st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_percentiles(values: list[float], fraction: float) -> None:
    """A percentile differs by at most 5 % from the nearest rank in the sorted values."""
    exact = sorted(values)[max(1, math.ceil(round(fraction * len(values), 9))) - 1]
    assert percentile(histogram_of(values), fraction) == pytest.approx(exact, rel=0.05, abs=0.001)


@given(st.floats(0.001, 1e12))
def test_buckets(value: float) -> None:
    """The middle of a bucket is at most 5 % from each of its values."""
    assert middle(int(buckets(np.array([value]))[0])) == pytest.approx(value, rel=0.05, abs=0.001)


@given(VALUES)
def test_encoding(values: list[float]) -> None:
    """A histogram is equal to what its encoded form represents, without buckets that are empty."""
    histogram = histogram_of(values)
    assert decode(encode(histogram + Counter())) == histogram
    assert decode(encode(Counter({3: 0}))) == Counter()
