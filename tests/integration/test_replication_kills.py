"""kill -9 of a primary, of replicas, and of all, under a load of writes that ask for different numbers of acks."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster import Cluster, Load, name_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ACKS = ("0", "1", "2", "majority")


@pytest.mark.parametrize("victims", [["web1"], ["web2"], ["web1", "web2"]], ids=lambda names: "+".join(names))
def test_all_that_was_acknowledged_outlives_kills(tmp_path: Path, victims: list[str]) -> None:
    # Small segments, so that kills hit rotations and checkpoints too; all of them are kept.
    with Cluster(tmp_path, "--wal-segment-bytes=64KiB") as cluster, Load(cluster.web1, acks=ACKS, writers=4) as load:
        nodes = cluster.nodes
        replicas = cluster.nodes[1:]
        killed = [node for node in nodes if name_of(node) in victims]
        for _ in range(2):
            load.wait_for(40, *nodes)
            load.wait_for(10, *nodes, acks=2)
            for node in killed:
                node.kill()
            if cluster.web1 in killed:
                # What replicas have by themselves, with the primary away, is what they promised.
                for node in killed[1:]:
                    node.start()
                for node in killed[1:]:
                    node.wait_ready()
                with load.paused():
                    load.ledger.check_acks(replicas)
                cluster.web1.start()
                cluster.web1.wait_ready()
            else:
                load.wait_for(40, *nodes)
                for node in killed:
                    node.start()
                    node.wait_ready()
        load.wait_for(10, *nodes, acks=2)
        load.stop()
        load.ledger.check(cluster.web1)
        cluster.agree()
        load.ledger.check(*replicas)
        assert cluster.count_full_syncs() == (0, 0)
        assert load.ledger.codes[""] > 100
