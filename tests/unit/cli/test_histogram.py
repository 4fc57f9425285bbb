"""The histogram against the values themselves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.cli.bench.histogram import MAX_VALUE, PRECISION, Histogram, _bucket, _highest

VALUES = st.integers(0, 2**12) | st.integers(0, MAX_VALUE) | st.integers(0, 40).map(lambda power: 2**power)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(
    values=st.lists(VALUES, min_size=1, max_size=300), percent=st.sampled_from([0.1, 1, 25, 50, 75, 90, 99, 99.9, 100])
)
def test_a_percentile_is_not_below_the_exact_one_and_hardly_above(values: list[int], percent: float) -> None:
    rank = max(1, math.ceil(round(len(values) * percent / 100, 6)))
    exact = sorted(values)[rank - 1]
    found = filled(values).percentile(percent)
    assert exact <= found <= exact * (1 + PRECISION)


@given(values=st.lists(VALUES, max_size=100))
def test_count_mean_and_maximum_are_exact(values: list[int]) -> None:
    histogram = filled(values)
    assert histogram.count == len(values)
    assert histogram.max == max(values, default=0)
    assert histogram.mean == (sum(values) / len(values) if values else 0)


@given(parts=st.lists(st.lists(VALUES, max_size=30), max_size=5))
def test_parts_add_up(parts: list[list[int]]) -> None:
    total = Histogram.sum_of(map(filled, parts))
    whole = filled([value for part in parts for value in part])
    assert vars(total) == vars(whole)


@given(value=st.integers(0, MAX_VALUE))
def test_buckets_are_in_order_and_without_gaps(value: int) -> None:
    bucket = _bucket(value)
    assert value <= _highest(bucket)
    assert _bucket(_highest(bucket)) == bucket
    assert _bucket(_highest(bucket) + 1) == bucket + 1


def test_what_is_too_high_counts_as_the_highest() -> None:
    histogram = filled([MAX_VALUE * 1000])
    assert histogram.count == 1
    assert histogram.max == MAX_VALUE * 1000
    assert histogram.percentile(50) >= MAX_VALUE


def test_memory_is_bounded() -> None:
    assert len(Histogram()._counts) < 5000


@pytest.mark.parametrize("percent", [0.1, 50, 100])
def test_without_values_all_is_zero(percent: float) -> None:
    assert Histogram().percentile(percent) == 0
