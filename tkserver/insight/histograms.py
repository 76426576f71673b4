"""Histograms with logarithmic buckets, which can be added and subtracted. Percentiles have an error below 5 %."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tkserver.insight.statistics import nearest_rank

GROWTH = 1.1
"""The ratio of the limits of two neighbouring buckets. The middle of a bucket is at most 4.8 % from all its values."""

SMALLEST = 1e-3
"""Values up to this one are in bucket 0."""

LARGEST = 1e15

Histogram = Counter[int]
"""The number of values in each bucket."""


def buckets(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the bucket of each value.

    :param values: at least 0.
    """
    return np.ceil(np.log(np.clip(values, SMALLEST, LARGEST) / SMALLEST) / math.log(GROWTH)).astype(np.int64)


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


def decode_sum(parts: Sequence[bytes]) -> Histogram:
    """Return the sum of the histograms that :func:`encode` represented."""
    sizes = [len(part) // 6 for part in parts]
    numbers = b"".join(part[: 2 * size] for part, size in zip(parts, sizes, strict=True))
    counts = b"".join(part[2 * size :] for part, size in zip(parts, sizes, strict=True))
    sums = np.bincount(np.frombuffer(numbers, np.uint16), weights=np.frombuffer(counts, np.uint32))
    known = np.flatnonzero(sums)
    return Counter(dict(zip(known.tolist(), sums[known].astype(np.int64).tolist(), strict=True)))


def decode(data: bytes) -> Histogram:
    """Return the histogram that :func:`encode` represented."""
    size = len(data) // 6
    numbers, counts = array("H"), array("I")
    numbers.frombytes(data[: 2 * size])
    counts.frombytes(data[2 * size :])
    return Counter(dict(zip(numbers, counts, strict=True)))
