"""Histograms with logarithmic buckets, which can be added and subtracted. Percentiles have an error below 5 %."""

from __future__ import annotations

import math
from array import array
from collections import Counter

from tkserver.insight.statistics import nearest_rank

GROWTH = 1.1
"""The ratio of the limits of two neighbouring buckets. The middle of a bucket is at most 4.8 % from all its values."""

SMALLEST = 1e-3
"""Values up to this one are in bucket 0."""

LARGEST = 1e15

Histogram = Counter[int]
"""The number of values in each bucket."""


def bucket(value: float) -> int:
    """Return the bucket of a value.

    :param value: at least 0.
    """
    if value <= SMALLEST:
        return 0
    return math.ceil(math.log(min(value, LARGEST) / SMALLEST) / math.log(GROWTH))


def middle(number: int) -> float:
    """Return the value that represents a bucket; 0 for the first one."""
    if number == 0:
        return 0.0
    return SMALLEST * GROWTH**number * 2 / (1 + GROWTH)


def percentile(histogram: Histogram, fraction: float) -> float:
    """Return a percentile by the nearest-rank method.

    :param histogram: not empty.
    :param fraction: in (0, 1].
    """
    rank = nearest_rank(fraction, histogram.total())
    for number in sorted(histogram):
        rank -= histogram[number]
        if rank <= 0:
            return middle(number)
    raise AssertionError("the rank is at most the number of values")


def encode(histogram: Histogram) -> bytes:
    """Return a compact representation; empty for an empty histogram."""
    numbers = sorted(number for number, count in histogram.items() if count)
    return array("H", numbers).tobytes() + array("I", [histogram[number] for number in numbers]).tobytes()


def decode(data: bytes) -> Histogram:
    """Return the histogram that :func:`encode` represented."""
    size = len(data) // 6
    numbers, counts = array("H"), array("I")
    numbers.frombytes(data[: 2 * size])
    counts.frombytes(data[2 * size :])
    return Counter(dict(zip(numbers, counts, strict=True)))
