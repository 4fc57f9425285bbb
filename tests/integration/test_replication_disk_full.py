"""A replica whose disk is full: the primary goes on, the replica says so, and goes on when there is room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.cluster import Cluster, Load, Rest, events, records, wait_until
from support.node_process import NodeProcess
from support.small_disk import fill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MiB = 1024 * 1024


def says_full(node: NodeProcess) -> bool:
    """Whether a node's /status says that it cannot follow for want of room. While it tries again, it says nothing."""
    said = node.status()["primary"]
    return not said["connected"] and said.get("error", {}).get("code") == "storage_full"


def test_replica_goes_on_when_its_log_has_room_again(tmp_path: Path, small_disk: Path) -> None:
    # The next segment needs more than what is left, while LevelDB gets along with that.
    flags = ("--wal-segment-bytes=4MiB", "--wal-keep-bytes=0", "--cache-bytes=0")
    with Cluster(tmp_path, data={"web2": small_disk / "web2"}, more={"web2": flags}) as cluster:
        web1, web2, web3 = cluster.nodes
        with Load(web1, web3, acks=("0", "1"), writers=4, value_bytes=8000) as load:
            wait_until(lambda: web2.status()["wal"]["bytes"] > 3_000_000, "the segment is nearly full", *cluster.nodes)
            ballast = fill(small_disk, 2 * MiB)
            wait_until(lambda: events(web2, "following_failed", "code=storage_full"), "no room", *cluster.nodes)
            load.wait_for(100, *cluster.nodes, acks=1)
            # It serves what it has, and says what is wrong.
            wait_until(lambda: says_full(web2), "web2 says so", *cluster.nodes)
            assert web2.status()["primary"]["lag_entries"] > 0
            with Rest(web2) as rest:
                assert rest.get("/ready")[0] == 200
                assert rest.get("/ready?max_lag=10")[0] == 503
            held = records(web2)
            assert held
            assert held.items() <= records(web1).items()
            ballast.unlink()
            load.wait_for(20, *cluster.nodes, acks=1)
            load.stop()
        assert set(load.ledger.codes) == {""}, load.ledger.codes
        assert load.answer_s < 2
        load.ledger.check(web1)
        cluster.agree()
        assert cluster.count_full_syncs() == (0, 0)


def test_replica_goes_on_when_its_leveldb_has_room_again(tmp_path: Path, small_disk: Path) -> None:
    # The log has its segment reserved; LevelDB finds no room to grow into.
    flags = ("--wal-segment-bytes=16MiB", "--engine-write-buffer-bytes=64KiB")
    with Cluster(tmp_path, data={"web2": small_disk / "web2"}, more={"web2": flags}) as cluster:
        web1, web2, web3 = cluster.nodes
        with Load(web1, web3, acks=("0", "1"), writers=4, value_bytes=4000) as load:
            load.wait_for(20, *cluster.nodes, acks=1)
            ballast = fill(small_disk, 100 * 1024)
            wait_until(lambda: events(web2, "engine_waits_for_room"), "no room", *cluster.nodes)
            load.wait_for(100, *cluster.nodes, acks=1)
            with Rest(web2) as rest:
                status, answer = rest.get("/ready")
                assert (status, answer["error"]["code"]) == (503, "syncing")
                assert rest.get("/read/load")[1]["error"]["code"] == "syncing"
            ballast.unlink()
            load.wait_for(20, *cluster.nodes, acks=1)
            load.stop()
        assert set(load.ledger.codes) == {""}, load.ledger.codes
        assert load.answer_s < 2
        load.ledger.check(web1)
        cluster.agree()
        assert events(web2, "engine_rebuilt")
        assert cluster.count_full_syncs() == (0, 0)


def test_full_sync_goes_on_when_there_is_room_again(tmp_path: Path, small_disk: Path) -> None:
    flags = ("--wal-segment-bytes=256KiB", "--wal-keep-bytes=0")
    data = {"web2": small_disk / "web2"}
    with Cluster(tmp_path, *flags, data=data, replicas=1, start_replicas=False) as cluster:
        web1, web2 = cluster.nodes
        with Rest(web1) as rest:
            for first in range(0, 400, 50):
                value = os.urandom(5000).hex()
                items = [{"key": f"a{number:06}", "value": value} for number in range(first, first + 50)]
                assert rest.post("/batchput", items)[0] == 200
        wait_until(lambda: web1.status()["wal"]["first_seq"] > 1, "the log is trimmed", web1)
        ballast = fill(small_disk, 3 * MiB)
        cluster.start_replicas()
        with Load(web1, value_bytes=500) as load:
            wait_until(lambda: events(web2, "following_failed", "code=storage_full"), "no room", *cluster.nodes)
            load.wait_for(50, *cluster.nodes)
            wait_until(lambda: says_full(web2), "web2 says so", *cluster.nodes)
            assert web2.status()["sync"]["state"] == "receiving"
            ballast.unlink()
            cluster.wait_following()
            load.stop()
        cluster.agree()
        load.ledger.check(web1, web2)
        assert len(events(web2, "full_sync_done")) == 1
