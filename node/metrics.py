"""What the node counts: instruments that cost next to nothing where they are used, plain attributes and histograms.

The parts count here, and know nothing of Prometheus; `kvnode.node.measures` makes the families of a scrape from it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Literal, NamedTuple, TypeAlias

#: Upper bounds in seconds of what waits for a disk or another node: from a fast NVMe's sync to a disk in trouble.
SECONDS_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

#: Upper bounds in seconds of a request, from a read that the cache answers to one that waits for replicas.
REQUEST_BOUNDS = (0.00001, 0.000025, 0.00005, *SECONDS_BOUNDS, 5.0, 10.0)

#: Upper bounds of how many writes share a group commit, or reads a trip to LevelDB.
GROUP_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

#: Upper bounds in bytes of a group in the log, from one small entry to the largest group.
GROUP_BYTES_BOUNDS = (128, 512, 2048, 8192, 32768, 131072, 524288, 2097152, 8388608)

#: Why a group commit failed.
CommitFailure: TypeAlias = Literal["disk_full", "engine_failed", "log_failed"]

#: What became of a forwarded write: applied here; refused by the primary; ordered there, but not held by enough nodes
#: in time; nobody knows.
ForwardOutcome: TypeAlias = Literal["ok", "refused", "timeout", "unknown"]


class Histogram:
    """Counts observations in buckets. One thread observes at a time; reading is possible at any time."""

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

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """Of all that was observed."""
        return self._sum

    @property
    def cumulative(self) -> list[tuple[float, int]]:
        """(upper bound, how many observations are not above it), in order; the last bound is infinity."""
        return cumulative(self._bounds, self._counts)


def cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[float, int]]:
    """As `Histogram.cumulative`, of one count for each of these upper bounds, and one above."""
    return list(zip((*bounds, inf), accumulate(counts), strict=True))


class StoreCounters:
    """What the store counts since the process started. Used on the event loop, but for `sync_seconds`.

    Attributes:
        writes: committed, those without effect included.
        entries: appended to the log; on a replica, taken over.
        commit_failures: groups that failed, by the reason.
        group_writes: how many writes, on a replica entries, shared a group.
        group_bytes: what a group took in the log.
        append_seconds: writing and syncing a group.
        sync_seconds: one fdatasync of the log; observed by whoever syncs, under the log's lock.
        apply_seconds: a group's batch in LevelDB.
        trip_reads: keys that shared a trip to LevelDB.
        range_chunks: read from LevelDB for range reads.
        range_items: in them.
    """

    def __init__(self) -> None:
        self.writes = 0
        self.entries = 0
        self.commit_failures: dict[CommitFailure, int] = {"disk_full": 0, "engine_failed": 0, "log_failed": 0}
        self.engine_rebuilds = 0
        self.checkpoints = 0
        self.group_writes = Histogram(GROUP_BOUNDS)
        self.group_bytes = Histogram(GROUP_BYTES_BOUNDS)
        self.append_seconds = Histogram(SECONDS_BOUNDS)
        self.sync_seconds = Histogram(SECONDS_BOUNDS)
        self.apply_seconds = Histogram(SECONDS_BOUNDS)
        self.trip_reads = Histogram(GROUP_BOUNDS)
        self.range_chunks = 0
        self.range_items = 0


class ReplicationCounters:
    """What a node counts of its primary since the process started. Used on the event loop.

    Attributes:
        primary_connections: that were made to the primary to take its log over.
        received_bytes: what came over those that are closed.
        forwarded: writes that were sent to the primary, by what became of them.
        forwarded_seconds: from sending one to what became of it.
    """

    def __init__(self) -> None:
        self.primary_connections = 0
        self.received_bytes = 0
        self.forwarded: dict[ForwardOutcome, int] = {"ok": 0, "refused": 0, "timeout": 0, "unknown": 0}
        self.forwarded_seconds = Histogram(SECONDS_BOUNDS)

    def forwarded_write(self, outcome: ForwardOutcome, seconds: float) -> None:
        """Count a forwarded write whose outcome is known, or known to stay unknown."""
        self.forwarded[outcome] += 1
        self.forwarded_seconds.observe(seconds)


class RouteCounters:
    """What is counted of one route.

    Attributes:
        counts: requests by duration: one for each of `REQUEST_BOUNDS`, and one above.
        seconds: of all of them together.
        statuses: of them those that were not answered with 200, by HTTP status.
        errors: of them those that were answered with an error, by its code.
    """

    __slots__ = ("counts", "errors", "seconds", "statuses")

    def __init__(self) -> None:
        self.counts = [0] * (len(REQUEST_BOUNDS) + 1)
        self.seconds = 0.0
        self.statuses: dict[int, int] = {}
        self.errors: dict[str, int] = {}


class RequestCounters:
    """What the REST front counts since the process started. Used on the event loop only.

    Attributes:
        routes: by path as in the front's tables; the empty path is for requests that no route is for.
        broken: answers that broke off while they were sent.
        malformed: what was no HTTP, and reached no route.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.routes: Mapping[str, RouteCounters] = {path: RouteCounters() for path in ("", *paths)}
        self.broken = 0
        self.malformed = 0

    def count(self, path: str, took_s: float, status: int, code: str | None) -> None:
        """Count a request that is answered.

        Args:
            path: one of `routes`.
            took_s: how long it took until there was an answer.
            status: of HTTP.
            code: of the error, if it is answered with one.
        """
        route = self.routes[path]
        route.counts[bisect_left(REQUEST_BOUNDS, took_s)] += 1
        route.seconds += took_s
        if status != 200:
            route.statuses[status] = route.statuses.get(status, 0) + 1
            if code is not None:
                route.errors[code] = route.errors.get(code, 0) + 1


class ReplicaMeasures(NamedTuple):
    """A replica as its primary sees it at the moment.

    Attributes:
        name: as a member; unique.
        state: one of `kvnode.protocol.primary.ReplicaState`.
        sent_seq: the last entry that it was sent.
        acked_seq: the last entry that it is known to hold durably.
        lag_entries: how many it lacks.
        lag_s: for how long it has lacked something; None while it is not connected, for then nobody knows.
        sessions: connections of it that were welcomed.
        sent_bytes: what it was sent over them.
    """

    name: str
    state: str
    sent_seq: int
    acked_seq: int
    lag_entries: int
    lag_s: float | None
    sessions: int
    sent_bytes: int


class PrimaryMeasures(NamedTuple):
    """A primary as one of its replicas sees it at the moment.

    Attributes:
        is_connected: whether it streams to this node.
        lag_entries: how many of its entries are not applied here.
        lag_s: for how long something has been lacking here.
        connections: that were made to it to take its log over.
        received_bytes: what came over them.
    """

    is_connected: bool
    lag_entries: int
    lag_s: float
    connections: int
    received_bytes: int


class ClusterMeasures(NamedTuple):
    """The node among others at the moment.

    Attributes:
        is_primary: whether it orders writes.
        is_fenced: whether it is a primary that another one has replaced.
        members: how many the cluster has.
        replicas: on a primary, all other members.
        primary: on a replica.
    """

    is_primary: bool
    is_fenced: bool
    members: int
    peer_connections: int
    full_syncs_sent: int
    full_syncs_received: int
    replicas: Sequence[ReplicaMeasures]
    primary: PrimaryMeasures | None
