"""What a benchmark asks: only its own keys, in the proportions wanted, the same for the same seed."""

import json
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.cli.bench.workload import Distribution, Kind, Request, Requests, Workload, Zipf, value_text


def workload(**changes: Any) -> Workload:
    defaults: dict[str, Any] = {
        "mix": {Kind.PUT: 1.0, Kind.GET: 1.0},
        "keys": 100,
        "prefix": "bench/",
        "key_bytes": 16,
        "value_bytes": (1, 20),
        "distribution": Distribution.UNIFORM,
        "batch_items": 3,
        "range_items": 5,
        "seed": 1,
    }
    return Workload(**{**defaults, **changes})


def requests_of(asked: Workload, count: int, stream: int = 0) -> list[Request]:
    requests = Requests(asked, value_text(asked), stream)
    return [requests.next() for _ in range(count)]


@pytest.mark.parametrize("distribution", Distribution)
def test_keys_are_its_own_and_values_as_long_as_wanted(distribution: Distribution) -> None:
    asked = workload(mix=dict.fromkeys(Kind, 1.0), distribution=distribution, prefix="bänch/", keys=1000)
    for request in requests_of(asked, 2000):
        keys = [key for key, _ in request.items] or [request.key]
        assert keys[0] == request.key
        assert all(asked.is_own(key) and len(key.encode()) == 16 for key in keys)
        assert len(request.items) == {Kind.PUT: 1, Kind.BATCH: 3}.get(request.kind, 0)
        for _, value in request.items:
            assert 1 <= len(json.loads(value)) <= 20
            assert len(value) == len(json.loads(value)) + 2


@pytest.mark.parametrize(
    "key", ["bench/", "bench/x", "bench/1", "bench/0000000100", "other/0000000001", "bench/٠٠٠٠٠٠٠٠٠١"]
)
def test_other_keys_are_not_its_own(key: str) -> None:
    assert not workload().is_own(key)
    assert workload().is_own("bench/0000000099")


def test_the_mix_is_kept() -> None:
    asked = workload(mix={Kind.PUT: 50, Kind.GET: 45, Kind.RANGE: 5})
    counts = Counter(request.kind for request in requests_of(asked, 10_000))
    assert 4800 < counts[Kind.PUT] < 5200
    assert 4300 < counts[Kind.GET] < 4700
    assert 400 < counts[Kind.RANGE] < 600


def test_the_same_seed_asks_the_same_and_streams_differ() -> None:
    assert requests_of(workload(), 50) == requests_of(workload(), 50)
    assert requests_of(workload(), 50) != requests_of(workload(), 50, stream=1)
    assert requests_of(workload(), 50) != requests_of(workload(seed=2), 50)


def test_filling_writes_every_key_once() -> None:
    asked = workload()
    requests = Requests(asked, value_text(asked))
    keys = [key for first in range(0, 100, 30) for key, _ in requests.fill(first, min(100, first + 30))]
    assert keys == [asked.key(number) for number in range(100)] == sorted(keys)


@pytest.mark.parametrize("changes", [{"key_bytes": 7}, {"keys": 10**12}, {"value_bytes": (1, 10**9)}])
def test_what_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bytes"):
        workload(**changes)


@given(count=st.integers(1, 2_000_000_000), uniform=st.floats(0, 1, exclude_max=True))
def test_ranks_are_ranks(count: int, uniform: float) -> None:
    assert 0 <= Zipf(count).rank(uniform) < count


def test_popularity_falls_as_it_should() -> None:
    count, draws = 1000, 100_000
    counts = Counter(Zipf(count).rank((number + 0.5) / draws) for number in range(draws))
    total = sum(1 / rank**0.99 for rank in range(1, count + 1))
    for rank in range(2, 100):
        expected = draws / rank**0.99 / total
        assert counts[rank - 1] == pytest.approx(expected, rel=0.04, abs=2)
    assert counts[0] == pytest.approx(draws / total, rel=0.11)


def test_popular_keys_are_scattered_and_no_two_become_one() -> None:
    asked = workload(distribution=Distribution.ZIPF, keys=500, mix={Kind.GET: 1.0})
    counts = Counter(request.key for request in requests_of(asked, 20_000))
    popular = [key for key, _ in islice(counts.most_common(), 5)]
    assert popular != sorted(popular)
    assert len(counts) > 400
