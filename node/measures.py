"""What a scrape is told: the metric families of a node, made from its parts' counters when somebody asks.

Names, labels and meanings are a contract with those who have dashboards and alerts: METRICS.md, which a test compares
with a live scrape. A family is there in every role; where it does not apply, it has no samples.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kvnode.node.errors import Unavailable
from kvnode.node.fs import Space
from kvnode.node.metrics import (
    REQUEST_BOUNDS,
    ClusterMeasures,
    Histogram,
    PrimaryMeasures,
    ReplicaMeasures,
    ReplicationCounters,
    RequestCounters,
    RouteCounters,
    cumulative,
)
from kvnode.node.replication.cluster import Cluster
from kvnode.node.replication.ports import Shared
from kvnode.node.rest.front import RestFront
from kvnode.node.rest.routes import template_of
from kvnode.node.storage.engine import Engine
from kvnode.node.store import Store
from kvnode.protocol.primary import ReplicaState

#: How long a scrape waits for what only a thread may ask; then it is told what was found last.
_LOOK_S = 0.25

_Values = Iterable[tuple[Sequence[str], float]]


class Surroundings(NamedTuple):
    """What may block, and is therefore asked for on a thread.

    Attributes:
        level0_files: LevelDB's level-0 tables.
        space: of the file system of the data directory.
    """

    level0_files: int
    space: Space


class NodeMetrics:
    """Renders a node's metrics. Used on the event loop."""

    def __init__(
        self,
        version: str,
        shared: Shared,
        store: Store,
        cluster: Cluster,
        front: RestFront,
        check_ready: Callable[[], None],
        space: Callable[[], Space],
    ) -> None:
        """Know the parts.

        Args:
            check_ready: raises `Unavailable` while the node is not ready.
            space: asks the file system of the data directory; blocks.
        """
        self._store = store
        self._space = space
        self._looking: asyncio.Task[Surroundings] | None = None
        self._surroundings: Surroundings | None = None
        self._registry = CollectorRegistry()
        self._registry.register(_NodeCollector(version, shared, store, cluster, front, check_ready, self._last_seen))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def render(self, accept: str) -> tuple[str, bytes]:
        """(Content-Type, body) of a scrape: Prometheus' text format, or OpenMetrics where that is asked for.

        Args:
            accept: the Accept header; may be empty.
        """
        await self._look()
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):
            # It asks for a version that is no number.
            encode, content_type = choose_encoder("")
        families = _Families(list(self._registry.collect()))
        # Of a hundred replicas, the text takes ten times as long as the values: too long for the loop to stand still.
        return content_type, await asyncio.to_thread(encode, families)

    def _last_seen(self) -> Surroundings | None:
        return self._surroundings

    async def _look(self) -> None:
        """Look around, or wait for the look that is under way; but not for long, and for one at a time."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._store.look(self._look_around))
            self._looking.add_done_callback(self._looked)
        await asyncio.wait([self._looking], timeout=_LOOK_S)

    def _look_around(self, engine: Engine) -> Surroundings:
        return Surroundings(engine.level0_files(), self._space())

    def _looked(self, task: asyncio.Task[Surroundings]) -> None:
        self._looking = None
        # A disk that cannot be asked has no space that could be told.
        self._surroundings = None if task.cancelled() or task.exception() is not None else task.result()


class _Families(Collector):
    """Families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _NodeCollector(Collector):
    """Makes the families from the parts."""

    def __init__(
        self,
        version: str,
        shared: Shared,
        store: Store,
        cluster: Cluster,
        front: RestFront,
        check_ready: Callable[[], None],
        last_seen: Callable[[], Surroundings | None],
    ) -> None:
        self._version = version
        self._shared = shared
        self._store = store
        self._cluster = cluster
        self._front = front
        self._check_ready = check_ready
        self._last_seen = last_seen

    def collect(self) -> Iterable[Metric]:
        measures = self._cluster.measures
        yield from self._of_node(measures)
        yield from self._of_requests()
        yield from self._of_commits()
        yield from self._of_reads()
        yield from self._of_storage()
        yield from _of_cluster(measures)
        yield from _of_replicas(measures.replicas)
        yield from _of_primary(measures.primary, self._shared.counters)

    def _of_node(self, measures: ClusterMeasures) -> Iterable[Metric]:
        identity = self._shared.identity
        labels = {
            "version": self._version,
            "cluster": identity.cluster_id,
            "name": identity.name,
            "role": identity.role,
            "fsync": self._shared.config.fsync,
        }
        yield InfoMetricFamily("kvnode_node", "Who the node is; the value is 1.", value=labels)
        try:
            self._check_ready()
            is_ready = True
        except Unavailable:
            is_ready = False
        yield _gauge("kvnode_ready", "Whether GET /ready answers 200.", is_ready)
        yield _gauge("kvnode_is_primary", "Whether the node orders writes.", measures.is_primary)
        yield _gauge(
            "kvnode_fenced", "Whether the node is a primary that a later one has replaced.", measures.is_fenced
        )
        yield _gauge("kvnode_epoch_term", "The term of the current epoch.", self._store.epoch.term)

    def _of_requests(self) -> Iterable[Metric]:
        front = self._front
        yield from families_of_requests(front.counters)
        yield _gauge("kvnode_http_connections", "Open connections of REST clients.", front.connection_count)
        yield _gauge(
            "kvnode_http_surplus_connections",
            "Those of them beyond the limit, which are refused.",
            front.admission.surplus,
        )
        yield _gauge(
            "kvnode_http_max_connections", "The limit: connections served at a time.", front.admission.max_connections
        )
        yield _gauge("kvnode_http_held_bytes", "What request bodies under way hold in memory.", front.held_bytes)

    def _of_commits(self) -> Iterable[Metric]:
        store, counters = self._store, self._store.counters
        yield _counter("kvnode_writes_total", "Writes ordered here, those without effect included.", counters.writes)
        yield _counter("kvnode_entries_total", "Entries appended to the log.", counters.entries)
        yield _counters(
            "kvnode_commit_failures_total",
            "Group commits that failed.",
            ("reason",),
            [((reason,), count) for reason, count in counters.commit_failures.items()],
        )
        yield _gauge("kvnode_commit_queued_bytes", "What waits for its group commit.", store.queued_bytes)
        yield _histogram(
            "kvnode_commit_group_writes",
            "Writes, on a replica entries, that shared one group commit.",
            counters.group_writes,
        )
        yield _histogram(
            "kvnode_commit_group_bytes", "What one group commit appended to the log.", counters.group_bytes
        )
        yield _histogram(
            "kvnode_wal_append_duration_seconds",
            "Writing a group to the log and syncing it.",
            counters.append_seconds,
        )
        yield _histogram("kvnode_wal_fsync_duration_seconds", "One fdatasync of the log, alone.", counters.sync_seconds)
        yield _histogram("kvnode_engine_write_duration_seconds", "Applying a group to LevelDB.", counters.apply_seconds)

    def _of_reads(self) -> Iterable[Metric]:
        counters, cache = self._store.counters, self._store.cache
        yield _counter("kvnode_cache_hits_total", "Point reads that the cache answered.", cache.hits)
        yield _counter("kvnode_cache_misses_total", "Point reads that it could not answer.", cache.misses)
        yield _gauge("kvnode_cache_entries", "Records in the cache.", cache.entries)
        yield _gauge("kvnode_cache_bytes", "Memory that they take, as the cache counts it.", cache.bytes)
        yield _histogram(
            "kvnode_engine_read_keys", "Keys that shared one trip of point reads to LevelDB.", counters.trip_reads
        )
        yield _counter("kvnode_range_chunks_total", "Chunks read from LevelDB for range reads.", counters.range_chunks)
        yield _counter("kvnode_range_items_total", "Items in them.", counters.range_items)

    def _of_storage(self) -> Iterable[Metric]:
        store, counters = self._store, self._store.counters
        segments, pinned_seq = store.wal.segments, self._cluster.pinned_seq()
        pinned_bytes = 0 if pinned_seq is None else store.log_bytes_from(pinned_seq)
        yield _gauge("kvnode_wal_segments", "Segments of the log on disk.", len(segments))
        yield _gauge("kvnode_wal_bytes", "Bytes used in them.", sum([segment.end for segment in segments]))
        yield _gauge("kvnode_wal_pinned_bytes", "What of the log full syncs under way hold back.", pinned_bytes)
        yield _gauge("kvnode_wal_first_seq", "The first entry that the log holds.", segments[0].first_seq)
        yield _gauge("kvnode_wal_last_seq", "The last entry in the log.", segments[-1].last_seq)
        yield _gauge("kvnode_applied_seq", "The last published entry: what readers see.", store.applied.seq)
        yield _gauge("kvnode_checkpoint_seq", "LevelDB is durable up to this entry.", store.checkpoint_seq)
        yield _counter("kvnode_checkpoints_total", "Checkpoints taken while running.", counters.checkpoints)
        yield _counter(
            "kvnode_engine_rebuilds_total", "Times LevelDB was reopened after a failure.", counters.engine_rebuilds
        )
        seen = self._last_seen()
        yield _gauge(
            "kvnode_engine_level0_files",
            "LevelDB's level-0 tables; it blocks writers at 12.",
            None if seen is None else seen.level0_files,
        )
        yield _gauge(
            "kvnode_data_filesystem_size_bytes",
            "The size of the data directory's file system.",
            None if seen is None else seen.space.size_bytes,
        )
        yield _gauge(
            "kvnode_data_filesystem_free_bytes",
            "What of it is free for the node.",
            None if seen is None else seen.space.free_bytes,
        )


def families_of_requests(counters: RequestCounters) -> Iterable[Metric]:
    """The families of what REST was asked; of routes that were, for each of the others would cost 20 lines."""
    routes: Mapping[str, RouteCounters] = {
        template_of(path): route for path, route in counters.routes.items() if any(route.counts)
    }
    requests = CounterMetricFamily(
        "kvnode_http_requests", "Requests that were answered, by route and HTTP status.", labels=("route", "status")
    )
    errors = CounterMetricFamily(
        "kvnode_http_errors", "Requests that were answered with an error, by its code.", labels=("route", "code")
    )
    durations = HistogramMetricFamily(
        "kvnode_http_request_duration_seconds",
        "From a request's head to its answer; of a streamed range to its first part.",
        labels=("route",),
    )
    for name, route in routes.items():
        total = sum(route.counts)
        requests.add_metric((name, "200"), total - sum(route.statuses.values()))
        for status, count in sorted(route.statuses.items()):
            requests.add_metric((name, str(status)), count)
        for code, count in sorted(route.errors.items()):
            errors.add_metric((name, code), count)
        durations.add_metric((name,), _buckets(cumulative(REQUEST_BOUNDS, route.counts)), route.seconds)
    yield requests
    yield errors
    yield durations
    yield _counter("kvnode_http_broken_answers_total", "Answers that broke off for an error here.", counters.broken)
    yield _counter("kvnode_http_malformed_total", "Requests that were no HTTP.", counters.malformed)


def _of_cluster(measures: ClusterMeasures) -> Iterable[Metric]:
    yield _gauge("kvnode_members", "Members of the cluster, this node included.", measures.members)
    yield _gauge("kvnode_peer_connections", "Open connections of the peer port.", measures.peer_connections)
    yield _counter("kvnode_full_syncs_sent_total", "Full syncs sent to replicas, whole.", measures.full_syncs_sent)
    yield _counter(
        "kvnode_full_syncs_received_total", "Full syncs taken over from a primary.", measures.full_syncs_received
    )


def _of_replicas(replicas: Sequence[ReplicaMeasures]) -> Iterable[Metric]:
    """On a primary, what it knows of every other member."""
    label = ("replica",)
    yield _gauges(
        "kvnode_replica_connected",
        "Whether the replica has a session here.",
        label,
        [((each.name,), each.state != ReplicaState.DISCONNECTED) for each in replicas],
    )
    yield _gauges(
        "kvnode_replica_state",
        "1 for the state that the replica is in, 0 for the others.",
        ("replica", "state"),
        [((each.name, state), each.state == state) for each in replicas for state in ReplicaState],
    )
    yield _gauges(
        "kvnode_replica_sent_seq",
        "The last entry that the replica was sent.",
        label,
        [((each.name,), each.sent_seq) for each in replicas],
    )
    yield _gauges(
        "kvnode_replica_acked_seq",
        "The last entry that the replica is known to hold durably.",
        label,
        [((each.name,), each.acked_seq) for each in replicas],
    )
    yield _gauges(
        "kvnode_replica_lag_entries",
        "Entries that the replica lacks, as far as is known.",
        label,
        [((each.name,), each.lag_entries) for each in replicas],
    )
    yield _gauges(
        "kvnode_replica_lag_seconds",
        "For how long the replica has lacked something; absent while it is not connected.",
        label,
        [((each.name,), each.lag_s) for each in replicas if each.lag_s is not None],
    )
    yield _counters(
        "kvnode_replica_sessions_total",
        "Sessions that the replica began with this primary.",
        label,
        [((each.name,), each.sessions) for each in replicas],
    )
    yield _counters(
        "kvnode_replica_sent_bytes_total",
        "Bytes sent to the replica.",
        label,
        [((each.name,), each.sent_bytes) for each in replicas],
    )


def _of_primary(primary: PrimaryMeasures | None, counters: ReplicationCounters) -> Iterable[Metric]:
    """On a replica, what it knows of its primary."""
    yield _gauge(
        "kvnode_primary_connected",
        "Whether the primary streams to this replica.",
        None if primary is None else primary.is_connected,
    )
    yield _gauge(
        "kvnode_replication_lag_entries",
        "The primary's entries, as far as is known, that are not applied here.",
        None if primary is None else primary.lag_entries,
    )
    yield _gauge(
        "kvnode_replication_lag_seconds",
        "For how long something of the primary's has been lacking here.",
        None if primary is None else primary.lag_s,
    )
    yield _counter(
        "kvnode_primary_connections_total",
        "Connections made to the primary to take its log over.",
        None if primary is None else primary.connections,
    )
    yield _counter(
        "kvnode_primary_received_bytes_total",
        "Bytes received over them.",
        None if primary is None else primary.received_bytes,
    )
    yield _counters(
        "kvnode_forwarded_writes_total",
        "Writes that were sent to the primary, by what became of them.",
        ("outcome",),
        [((outcome,), count) for outcome, count in counters.forwarded.items()],
    )
    yield _histogram(
        "kvnode_forwarded_write_duration_seconds",
        "From sending a write to the primary to its outcome.",
        counters.forwarded_seconds,
    )


def _gauge(name: str, documentation: str, value: float | None) -> Metric:
    """One value, or none at the moment."""
    return _gauges(name, documentation, (), [] if value is None else [((), value)])


def _gauges(name: str, documentation: str, labels: Sequence[str], values: _Values) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _counter(name: str, documentation: str, value: float | None) -> Metric:
    """One value, or none at the moment; the name ends in ``_total``."""
    return _counters(name, documentation, (), [] if value is None else [((), value)])


def _counters(name: str, documentation: str, labels: Sequence[str], values: _Values) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, documentation, buckets=_buckets(histogram.cumulative), sum_value=histogram.sum)


def _buckets(cumulated: Sequence[tuple[float, int]]) -> list[tuple[str, float]]:
    # OpenMetrics wants bounds in one form, which this makes.
    return [(floatToGoString(bound), count) for bound, count in cumulated]  # type: ignore[no-untyped-call]
