"""What the node counts, and how Prometheus is told.

Counting must cost next to nothing on the paths that are counted, so counters are plain attributes of the parts, and
`NodeCollector` turns them into metric families when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Histogram:
    """Counts observations in buckets. One thread observes; reading is possible at any time."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Count into buckets with these ascending, inclusive upper bounds; one more takes what is above."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """The counts in Prometheus' cumulative form."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, amount in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += amount
            buckets.append((bound, total))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self._sum)


#: Upper bounds in seconds, from a fast NVMe's sync to a disk in trouble.
SECONDS_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

#: Upper bounds of how many writes share a group commit.
GROUP_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class StoreCounters:
    """What the store counts since the process started."""

    def __init__(self) -> None:
        self.writes = 0
        self.entries = 0
        self.commit_failures = 0
        self.engine_rebuilds = 0
        self.checkpoints = 0
        self.group_writes = Histogram(GROUP_BOUNDS)
        self.log_seconds = Histogram(SECONDS_BOUNDS)
        self.apply_seconds = Histogram(SECONDS_BOUNDS)


class NodeCollector(Collector):
    """Makes a scrape's metric families from the node's counters.

    Args:
        gauges: (name, documentation, current value) when called.
        counters: likewise, for values that only rise; names end in ``_total``.
    """

    def __init__(
        self,
        store: StoreCounters,
        gauges: Callable[[], Iterable[tuple[str, str, float]]],
        counters: Callable[[], Iterable[tuple[str, str, float]]],
    ) -> None:
        self._store = store
        self._gauges = gauges
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        for name, documentation, value in self._counters():
            yield CounterMetricFamily(name, documentation, value=value)
        for name, documentation, value in self._gauges():
            yield GaugeMetricFamily(name, documentation, value=value)
        store = self._store
        yield store.group_writes.family("kvnode_commit_group_writes", "Writes that shared one group commit.")
        yield store.log_seconds.family("kvnode_log_append_seconds", "Writing and syncing one group to the log.")
        yield store.apply_seconds.family("kvnode_engine_write_seconds", "Applying one group to LevelDB.")
