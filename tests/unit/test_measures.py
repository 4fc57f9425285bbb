"""The families of a scrape, made from parts that a test sets."""

import asyncio
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kvnode.node import measures as measures_module
from kvnode.node.config import Config
from kvnode.node.errors import Syncing
from kvnode.node.fs import Space
from kvnode.node.measures import NodeMetrics, families_of_requests
from kvnode.node.metrics import ClusterMeasures, PrimaryMeasures, ReplicaMeasures, ReplicationCounters, RequestCounters
from kvnode.node.replication.cluster import Cluster
from kvnode.node.replication.ports import Shared
from kvnode.node.rest.front import RestFront
from support.running_node import RunningNode, running

#: Has all that must be escaped.
NAME = 'we"b\\1\n'

ALONE = ClusterMeasures(
    is_primary=True,
    is_fenced=False,
    members=1,
    peer_connections=0,
    full_syncs_sent=0,
    full_syncs_received=0,
    replicas=(),
    primary=None,
)


def replica(name: str, **changes: Any) -> ReplicaMeasures:
    """One that streams."""
    return ReplicaMeasures(name, "streaming", 9, 8, 1, 0.5, 2, 1000)._replace(**changes)


class FakeCluster:
    """What is asked of a `Cluster`."""

    def __init__(self) -> None:
        self.measures = ALONE
        self.pinned: int | None = None

    def pinned_seq(self) -> int | None:
        return self.pinned


class Parts:
    """A node's parts, of which the store alone is real.

    Attributes:
        not_ready: why the node is not, if it is not.
        looks: how often the disk was asked for its space.
        answers: cleared, the disk does not answer.
        space_error: raised by it, if set.
    """

    def __init__(self, node: RunningNode) -> None:
        self.node = node
        self.cluster = FakeCluster()
        self.not_ready: Exception | None = None
        self.looks = 0
        self.answers = threading.Event()
        self.answers.set()
        self.space_error: OSError | None = None
        self.requests = RequestCounters(["/put", "/read/"])
        self.replication = ReplicationCounters()
        identity = SimpleNamespace(cluster_id="c0ffee", name=NAME, role="primary")
        shared = SimpleNamespace(identity=identity, config=Config(), counters=self.replication)
        admission = SimpleNamespace(surplus=1, max_connections=2)
        front = SimpleNamespace(counters=self.requests, connection_count=3, held_bytes=4, admission=admission)
        self.metrics = NodeMetrics(
            "1.2.3",
            cast(Shared, shared),
            node.store,
            cast(Cluster, self.cluster),
            cast(RestFront, front),
            self._check_ready,
            self._space,
        )

    async def scrape(self) -> dict[str, Metric]:
        """The families by name, those without samples included."""
        content_type, body = await self.metrics.render("")
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        return {family.name: family for family in text_string_to_metric_families(body.decode())}

    async def values(self, family: str) -> dict[tuple[str, ...], float]:
        """A family's values by its labels' values, in the order of the labels' names."""
        samples = (await self.scrape())[family].samples
        found = {tuple(each.labels[name] for name in sorted(each.labels)): each.value for each in samples}
        assert len(found) == len(samples), "the same labels twice"
        return found

    def _check_ready(self) -> None:
        if self.not_ready is not None:
            raise self.not_ready

    def _space(self) -> Space:
        self.looks += 1
        assert self.answers.wait(30)
        if self.space_error is not None:
            raise self.space_error
        return Space(1000, 250)


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    async with running() as node:
        parts = Parts(node)
        yield parts
        parts.answers.set()
        if parts.metrics._looking is not None:
            await asyncio.wait([parts.metrics._looking])


async def test_who_the_node_is(parts: Parts) -> None:
    (sample,) = (await parts.scrape())["kvnode_node_info"].samples
    assert sample.value == 1
    assert sample.labels == {
        "version": "1.2.3",
        "cluster": "c0ffee",
        "name": NAME,
        "role": "primary",
        "fsync": "always",
    }


@pytest.mark.parametrize(
    "accept", ["text/plain;version=abc", "application/openmetrics-text;version=1..0", ";=;,", "*/*"]
)
async def test_any_accept_header_gets_an_answer(parts: Parts, accept: str) -> None:
    content_type, body = await parts.metrics.render(accept)
    assert content_type.startswith("text/plain")
    assert b"kvnode_ready" in body


async def test_whether_it_is_ready_and_may_write(parts: Parts) -> None:
    assert (await parts.values("kvnode_ready"), await parts.values("kvnode_fenced")) == ({(): 1}, {(): 0})
    parts.not_ready = Syncing("not yet")
    parts.cluster.measures = ALONE._replace(is_primary=False, is_fenced=True)
    assert (await parts.values("kvnode_ready"), await parts.values("kvnode_fenced")) == ({(): 0}, {(): 1})
    assert await parts.values("kvnode_is_primary") == {(): 0}


async def test_each_of_many_replicas_has_its_samples_until_it_is_forgotten(parts: Parts) -> None:
    names = [f"r{number}" for number in range(99)] + [NAME]
    parts.cluster.measures = ALONE._replace(replicas=[replica(name, acked_seq=n) for n, name in enumerate(names)])
    assert await parts.values("kvnode_replica_acked_seq") == {(name,): n for n, name in enumerate(names)}
    states = await parts.values("kvnode_replica_state")
    assert len(states) == 100 * 5
    assert {key for key, value in states.items() if value} == {(name, "streaming") for name in names}
    parts.cluster.measures = ALONE._replace(replicas=[replica("r1")])
    for family in ("acked_seq", "sent_seq", "lag_entries", "lag_seconds", "connected", "sessions", "sent_bytes"):
        assert set(await parts.values(f"kvnode_replica_{family}")) == {("r1",)}


async def test_how_long_one_that_is_away_lacks_something_is_not_known(parts: Parts) -> None:
    away = replica("r2", state="disconnected", lag_s=None)
    parts.cluster.measures = ALONE._replace(replicas=[replica("r1"), away])
    assert await parts.values("kvnode_replica_connected") == {("r1",): 1, ("r2",): 0}
    assert await parts.values("kvnode_replica_lag_entries") == {("r1",): 1, ("r2",): 1}
    assert await parts.values("kvnode_replica_lag_seconds") == {("r1",): 0.5}


async def test_on_a_replica_there_is_a_primary(parts: Parts) -> None:
    families = await parts.scrape()
    assert families["kvnode_primary_connected"].samples == []
    parts.cluster.measures = ALONE._replace(primary=PrimaryMeasures(True, 7, 1.5, 2, 3000))
    assert await parts.values("kvnode_replication_lag_entries") == {(): 7}
    assert await parts.values("kvnode_replication_lag_seconds") == {(): 1.5}
    assert await parts.values("kvnode_primary_connections") == {(): 2}
    assert await parts.values("kvnode_primary_received_bytes") == {(): 3000}
    assert set(await parts.scrape()) == set(families)


async def test_what_the_store_counted(parts: Parts) -> None:
    await asyncio.gather(*[parts.node.put(b"%d" % number) for number in range(3)])
    await parts.node.get(b"missing")
    await parts.node.scan()
    parts.node.store.counters.commit_failures["disk_full"] += 2
    parts.replication.forwarded_write("unknown", 3.0)
    assert await parts.values("kvnode_writes") == {(): 3}
    assert await parts.values("kvnode_range_items") == {(): 3}
    assert await parts.values("kvnode_commit_failures") == {
        ("disk_full",): 2,
        ("engine_failed",): 0,
        ("log_failed",): 0,
    }
    assert (await parts.values("kvnode_forwarded_writes"))[("unknown",)] == 1
    samples = (await parts.scrape())["kvnode_commit_group_writes"].samples
    assert {each.labels["le"]: each.value for each in samples if each.labels}["4.0"] == 1
    assert {each.name.rpartition("_")[2]: each.value for each in samples if not each.labels} == {"count": 1, "sum": 3}
    (family,) = [each for name, each in (await parts.scrape()).items() if name == "kvnode_engine_read_keys"]
    assert [each.value for each in family.samples if each.name.endswith("_sum")] == [1]


async def test_what_a_full_sync_holds_back(parts: Parts) -> None:
    await parts.node.put(b"a")
    assert await parts.values("kvnode_wal_pinned_bytes") == {(): 0}
    parts.cluster.pinned = 1
    assert await parts.values("kvnode_wal_pinned_bytes") == await parts.values("kvnode_wal_bytes")
    parts.cluster.pinned = 2
    assert await parts.values("kvnode_wal_pinned_bytes") == {(): 0}


def test_routes_appear_when_they_are_asked_for() -> None:
    counters = RequestCounters(["/put", "/read/", "/status"])
    counters.count("/read/", 0.00005, 404, "key_not_found")
    counters.routes["/read/"].counts[2] += 2
    counters.routes["/read/"].seconds = 0.25
    counters.broken, counters.malformed = 5, 6
    families = {family.name: family for family in families_of_requests(counters)}
    requests = {
        (each.labels["route"], each.labels["status"]): each.value for each in families["kvnode_http_requests"].samples
    }
    assert requests == {("/read/{key}", "200"): 2, ("/read/{key}", "404"): 1}
    (error,) = families["kvnode_http_errors"].samples
    assert (error.labels, error.value) == ({"route": "/read/{key}", "code": "key_not_found"}, 1)
    durations = families["kvnode_http_request_duration_seconds"].samples
    assert {each.labels["route"] for each in durations} == {"/read/{key}"}
    assert [each.value for each in durations if each.labels.get("le") == "2.5e-05"] == [0]
    assert [each.value for each in durations if each.labels.get("le") == "5e-05"] == [3]
    assert [each.value for each in durations if each.name.endswith("_sum")] == [0.25]
    assert [
        each.value for name in ("broken_answers", "malformed") for each in families[f"kvnode_http_{name}"].samples
    ] == [5, 6]


# ---- what may block --------------------------------------------------------------------------------------------


async def test_the_disk_is_asked_for_each_scrape(parts: Parts) -> None:
    assert await parts.values("kvnode_data_filesystem_size_bytes") == {(): 1000}
    assert await parts.values("kvnode_data_filesystem_free_bytes") == {(): 250}
    assert await parts.values("kvnode_engine_level0_files") == {(): 0}
    assert parts.looks == 3


async def test_a_disk_that_does_not_answer_holds_no_scrape_up(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures_module, "_LOOK_S", 0.01)
    parts.answers.clear()
    for _ in range(3):
        assert await parts.values("kvnode_data_filesystem_free_bytes") == {}
    # Nothing piles up behind it.
    assert parts.looks == 1
    parts.answers.set()
    while not await parts.values("kvnode_data_filesystem_free_bytes"):
        pass
    # What was told last is told on when it fails to answer again.
    parts.answers.clear()
    assert await parts.values("kvnode_data_filesystem_free_bytes") == {(): 250}


async def test_a_disk_that_cannot_be_asked_has_no_space(parts: Parts) -> None:
    assert await parts.values("kvnode_data_filesystem_free_bytes") == {(): 250}
    parts.space_error = OSError(5, "Input/output error")
    assert await parts.values("kvnode_data_filesystem_free_bytes") == {}
    parts.space_error = None
    assert await parts.values("kvnode_data_filesystem_free_bytes") == {(): 250}
