"""kill -9 of a primary, of replicas, and of all, under a load of writes that ask for different numbers of acks."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster import Cluster, Load
from support.node_process import NodeProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ACKS = ("0", "1", "2", "majority")


def test_all_that_was_acknowledged_outlives_kills(tmp_path: Path) -> None:
    # Small segments, so that kills hit rotations and checkpoints too; all of them are kept.
    with Cluster(tmp_path, "--wal-segment-bytes=64KiB") as cluster, Load(cluster.web1, acks=ACKS, writers=4) as load:
        nodes = web1, web2, web3 = cluster.nodes
        for killed in ([web2], [web1], [web1, web3], [web2], [web1], [web1, web2, web3]):
            load.wait_for(40, *nodes)
            load.wait_for(10, *nodes, acks=2)
            for node in killed:
                node.kill()
            if web1 in killed:
                # What replicas have by themselves, with the primary away, is what they promised.
                start(*killed[1:])
                with load.paused():
                    load.ledger.check_acks([web2, web3])
                start(web1)
            else:
                load.wait_for(40, *nodes)
                start(*killed)
        load.wait_for(10, *nodes, acks=2)
        load.stop()
        load.ledger.check(web1)
        cluster.agree()
        load.ledger.check(web2, web3)
        assert cluster.count_full_syncs() == (0, 0)


def start(*nodes: NodeProcess) -> None:
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_ready()
