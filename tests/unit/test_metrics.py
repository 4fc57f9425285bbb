"""What the node counts, as Prometheus reads it."""

from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvnode.node.metrics import GROUP_BOUNDS, SECONDS_BOUNDS, Histogram, NodeCollector, StoreCounters


def buckets(histogram: Histogram) -> list[tuple[str, float]]:
    samples = histogram.family("x", "X.").samples
    return [(sample.labels["le"], sample.value) for sample in samples if sample.name == "x_bucket"]


def test_bounds_are_inclusive_and_counts_cumulative() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.0001, 2, 3, 4, 5, 1000):
        histogram.observe(value)
    assert buckets(histogram) == [("1", 2), ("2", 4), ("4", 6), ("+Inf", 8)]
    samples = {sample.name: sample.value for sample in histogram.family("x", "X.").samples}
    assert samples["x_count"] == 8
    assert samples["x_sum"] == pytest.approx(0.5 + 1 + 1.0001 + 2 + 3 + 4 + 5 + 1000)


def test_an_empty_histogram_has_all_its_buckets() -> None:
    assert buckets(Histogram((0.1,))) == [("0.1", 0), ("+Inf", 0)]


@pytest.mark.parametrize("bounds", [GROUP_BOUNDS, SECONDS_BOUNDS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_a_scrape_shows_the_present_values() -> None:
    counters = StoreCounters()
    level = {"value": 1.0}

    def gauges() -> Iterable[tuple[str, str, float]]:
        yield "kvnode_level", "A level.", level["value"]

    def totals() -> Iterable[tuple[str, str, float]]:
        yield "kvnode_writes_total", "Writes.", counters.writes

    registry = CollectorRegistry()
    registry.register(NodeCollector(counters, gauges, totals))

    def scrape() -> dict[str, float]:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return {
            sample.name + str(sample.labels.get("le", "")): sample.value
            for family in families
            for sample in family.samples
        }

    before = scrape()
    assert before["kvnode_writes_total"] == 0
    assert before["kvnode_commit_group_writes_count"] == 0
    counters.writes += 3
    counters.group_writes.observe(3)
    counters.log_seconds.observe(0.0003)
    counters.apply_seconds.observe(7)
    level["value"] = 2.5
    after = scrape()
    assert after["kvnode_writes_total"] == 3
    assert after["kvnode_level"] == 2.5
    assert after["kvnode_commit_group_writes_bucket2"] == 0
    assert after["kvnode_commit_group_writes_bucket4"] == 1
    assert after["kvnode_log_append_seconds_bucket0.0005"] == 1
    assert after["kvnode_engine_write_seconds_bucket2.5"] == 0
    assert after["kvnode_engine_write_seconds_bucket+Inf"] == 1
    assert after["kvnode_engine_write_seconds_sum"] == 7


def test_types_are_declared() -> None:
    registry = CollectorRegistry()
    registry.register(NodeCollector(StoreCounters(), lambda: [("a", "A.", 1)], lambda: [("b_total", "B.", 1)]))
    families = {each.name: each.type for each in text_string_to_metric_families(generate_latest(registry).decode())}
    assert families == {
        "a": "gauge",
        "b": "counter",
        "kvnode_commit_group_writes": "histogram",
        "kvnode_log_append_seconds": "histogram",
        "kvnode_engine_write_seconds": "histogram",
    }
