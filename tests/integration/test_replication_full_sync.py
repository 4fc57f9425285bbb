"""Full syncs between real nodes: past retention, cut again and again, and with either side killed in the middle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.cluster import Cluster, Load, Rest, events, records, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

#: Little of the log is kept, so that a replica is soon past it.
FLAGS = ("--wal-segment-bytes=256KiB", "--wal-keep-bytes=0")

#: What is loaded into a primary: chunks of a full sync, and more than what is held back between two nodes.
ITEMS, ITEM_BYTES = 1000, 20_000
CHUNK_BYTES = 1024 * 1024


def fill(cluster: Cluster) -> None:
    """Write more than the log keeps."""
    with Rest(cluster.web1) as rest:
        for first in range(0, ITEMS, 50):
            items = [{"key": f"a{n:06}", "value": f"{n} " + "v" * ITEM_BYTES} for n in range(first, first + 50)]
            assert rest.post("/batchput", items)[0] == 200
    wait_until(lambda: cluster.web1.status()["wal"]["first_seq"] > 1, "the log is trimmed", cluster.web1)


@contextmanager
def reading(cluster: Cluster) -> Iterator[list[int]]:
    """Read from the primary all the time; yields the statuses of the answers."""
    statuses: list[int] = []
    done = threading.Event()

    def read() -> None:
        with Rest(cluster.web1) as rest:
            while not done.wait(0.005):
                statuses.append(rest.get(f"/read/a{len(statuses) % ITEMS:06}")[0])

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield statuses
    finally:
        done.set()
        thread.join(60)


def test_replica_that_was_stopped_past_retention_takes_one_full_sync(tmp_path: Path) -> None:
    with Cluster(tmp_path, *FLAGS) as cluster, Load(cluster.web1, acks=("0", "1"), value_bytes=500) as load:
        web1, _, web3 = cluster.nodes
        load.wait_for(100, *cluster.nodes)
        assert web3.stop() == 0
        behind = web1.status()["last_seq"]
        fill(cluster)
        wait_until(lambda: web1.status()["wal"]["first_seq"] > behind + 1, "web3 is past the log", *cluster.nodes)
        (lost,) = [each for each in web1.status()["replicas"] if each["name"] == "web3"]
        assert (lost["state"], lost["retention"]) == ("disconnected", "lost")
        with reading(cluster) as statuses:
            web3.start()
            web3.wait_ready()
            cluster.wait_following(web3)
            load.wait_for(50, *cluster.nodes, acks=1)
        assert set(statuses) == {200}
        load.stop()
        assert set(load.ledger.codes) == {""}
        load.ledger.check(web1)
        cluster.agree()
        assert cluster.count_full_syncs() == (1, 1)
        assert web3.status()["full_syncs_received"] == web1.status()["full_syncs_sent"] == 1
        assert len(events(web3, "full_sync_done")) == 1


def test_full_sync_that_is_cut_three_times_goes_on_where_it_was(tmp_path: Path) -> None:
    with Cluster(tmp_path, *FLAGS, proxied=["web2"], replicas=1, start_replicas=False) as cluster:
        web1, web2 = cluster.nodes
        fill(cluster)
        link = cluster.links["web2"]
        link.let(2 * CHUNK_BYTES + 500_000, "down")
        cluster.start_replicas()
        with Load(web1, value_bytes=500) as load:
            keys = 0
            for _ in range(3):
                wait_until(
                    lambda: link.is_stalled("down") and web2.status().get("sync", {}).get("keys", 0) > keys,  # noqa: B023
                    "some more is stored",
                    *cluster.nodes,
                )
                sync = web2.status()["sync"]
                keys = sync["keys"]
                assert (sync["state"], web1.status()["replicas"][0]["state"]) == ("receiving", "full_sync")
                assert web1.status()["replicas"][0]["retention"] == "extended"
                before = len(load.ledger.acked)
                link.let(2 * CHUNK_BYTES + 500_000, "down")
                link.cut(reset=True)
                load.wait_for(max(0, 50 - before), *cluster.nodes)
            link.heal()
            cluster.wait_following()
            load.stop()
        begun = events(web2, "full_sync_begins")
        assert ["resumed=true" in line for line in begun] == [False, True, True, True]
        cluster.agree()
        assert cluster.count_full_syncs() == (1, 1)
        load.ledger.check(web1, web2)


@pytest.mark.parametrize("victim", ["web1", "web2"])
def test_stop_and_a_kill_in_the_middle_of_a_full_sync(tmp_path: Path, victim: str) -> None:
    with Cluster(tmp_path, *FLAGS, proxied=["web2"], replicas=1, start_replicas=False) as cluster:
        web1, web2 = cluster.nodes
        node = web1 if victim == "web1" else web2
        fill(cluster)
        link = cluster.links["web2"]
        link.let(2 * CHUNK_BYTES + 500_000, "down")
        cluster.start_replicas()
        with Load(web1, value_bytes=500) as load:
            load.wait_for(20, web1)
            for end in (node.stop, node.kill):
                wait_until(
                    lambda: link.is_stalled("down") and web2.status().get("sync", {}).get("keys", 0) > 0,
                    "some is stored",
                    *cluster.nodes,
                )
                assert end() in (0, None)
                # What the link holds of the session before must not count.
                link.cut()
                link.let(2 * CHUNK_BYTES + 500_000, "down")
                node.start()
                node.wait_ready()
            link.heal()
            load.wait_for(20, *cluster.nodes)
            cluster.wait_following()
            load.stop()
        cluster.agree()
        begun = events(web2, "full_sync_begins")
        assert len(begun) >= 3
        # A primary forgets its pins, and so may have to begin anew.
        assert victim == "web1" or ["resumed=true" in line for line in begun] == [False, True, True]
        assert len(events(web2, "full_sync_done")) == 1
        load.ledger.check(web1, web2)
        assert len(records(web2)) >= ITEMS
