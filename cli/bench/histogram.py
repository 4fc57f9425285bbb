"""Durations counted in buckets whose width grows with the value: bounded memory, and a stated precision.

As in HdrHistogram, each power of two is cut into the same number of buckets. Values below twice that number have a
bucket each; above, a bucket is at most 1/128 as wide as the values in it.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Buckets for each power of two, as a power of two.
_BITS = 7
_PER_POWER = 1 << _BITS

#: The highest value that is told from higher ones, about 73 minutes in nanoseconds; those count as it.
MAX_VALUE = (1 << 42) - 1

#: How much a percentile may be above the exact one, as a share of it; it is never below.
PRECISION = 1 / _PER_POWER


class Histogram:
    """Counts of whole numbers from 0 on, such as nanoseconds."""

    def __init__(self) -> None:
        self._counts = [0] * (_bucket(MAX_VALUE) + 1)
        self._count = 0
        self._sum = 0
        self._max = 0

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return self._count

    @property
    def max(self) -> int:
        """The highest value, exactly; 0 if there is none."""
        return self._max

    @property
    def mean(self) -> float:
        """The mean, exactly; 0 if there is none."""
        return self._sum / self._count if self._count else 0.0

    def record(self, value: int) -> None:
        """Count a value."""
        self._counts[_bucket(value if value <= MAX_VALUE else MAX_VALUE)] += 1
        self._count += 1
        self._sum += value
        if value > self._max:
            self._max = value

    def percentile(self, percent: float) -> int:
        """The least value that at least `percent` of the values do not exceed, up to `PRECISION` above the exact one.

        Args:
            percent: above 0, up to 100.

        Returns:
            0 if there is no value.
        """
        # Counted from 1. Rounded, as 99.9 % of 1,000 is a little more than 999 for a computer.
        wanted = max(1, -int(-round(self._count * percent / 100, 6) // 1))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_highest(bucket), self._max)
        return self._max

    def add(self, other: Histogram) -> None:
        """Count all that another one has counted."""
        self._counts = [own + its for own, its in zip(self._counts, other._counts, strict=True)]
        self._count += other._count
        self._sum += other._sum
        self._max = max(self._max, other._max)

    @classmethod
    def sum_of(cls, parts: Iterable[Histogram]) -> Histogram:
        """A new one with all that the others have counted."""
        total = cls()
        for part in parts:
            total.add(part)
        return total


def _bucket(value: int) -> int:
    """The index of the bucket that a value falls into."""
    shift = value.bit_length() - _BITS - 1
    return value if shift <= 0 else (shift << _BITS) + (value >> shift)


def _highest(bucket: int) -> int:
    """The highest value that falls into a bucket."""
    shift = max(0, (bucket >> _BITS) - 1)
    return ((bucket - (shift << _BITS) + 1) << shift) - 1
