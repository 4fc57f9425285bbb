"""What the node counts: the instruments alone."""

from math import inf

import pytest

from kvnode.node.metrics import (
    GROUP_BOUNDS,
    GROUP_BYTES_BOUNDS,
    REQUEST_BOUNDS,
    SECONDS_BOUNDS,
    Histogram,
    ReplicationCounters,
    RequestCounters,
)


def test_bounds_are_inclusive_and_counts_cumulative() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.0001, 2, 3, 4, 5, 1000):
        histogram.observe(value)
    assert histogram.cumulative == [(1, 2), (2, 4), (4, 6), (inf, 8)]
    assert histogram.count == 8
    assert histogram.sum == pytest.approx(0.5 + 1 + 1.0001 + 2 + 3 + 4 + 5 + 1000)


def test_an_empty_histogram_has_all_its_buckets() -> None:
    assert Histogram((0.1,)).cumulative == [(0.1, 0), (inf, 0)]


@pytest.mark.parametrize("bounds", [GROUP_BOUNDS, GROUP_BYTES_BOUNDS, REQUEST_BOUNDS, SECONDS_BOUNDS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_what_is_not_200_is_counted_by_status_and_code() -> None:
    counters = RequestCounters(["/put", "/read/"])
    counters.count("/put", 0.1, 503, "overloaded")
    counters.count("/put", 0.1, 503, "overloaded")
    counters.count("/read/", 0.1, 304, None)
    counters.count("", 0.1, 404, "route_not_found")
    assert (counters.routes["/put"].statuses, counters.routes["/put"].errors) == ({503: 2}, {"overloaded": 2})
    assert (counters.routes["/read/"].statuses, counters.routes["/read/"].errors) == ({304: 1}, {})
    assert (counters.routes[""].statuses, counters.routes[""].errors) == ({404: 1}, {"route_not_found": 1})


def test_a_forwarded_write_is_counted_by_its_outcome() -> None:
    counters = ReplicationCounters()
    counters.forwarded_write("ok", 0.5)
    counters.forwarded_write("unknown", 1.5)
    assert counters.forwarded == {"ok": 1, "refused": 0, "timeout": 0, "unknown": 1}
    assert (counters.forwarded_seconds.count, counters.forwarded_seconds.sum) == (2, 2.0)
