"""SIGTERM of a primary and of its replicas, with the others attached and under load: exit code 0, in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster import STOP_S, Cluster, Load, events, name_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_each_node_stops_cleanly_under_load(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        web1, web2, web3 = cluster.nodes
        with Load(*cluster.nodes, acks=("0", "1", "2"), writers=6) as load:
            for node in (web2, web1, web3):
                load.wait_for(60, *cluster.nodes)
                assert node.stop(STOP_S) == 0, name_of(node)
                assert events(node, "stopped"), "it did not stop by itself"
                node.start()
                node.wait_ready()
                assert "clean=true replayed=0" in events(node, "storage_opened")[-1]
            load.wait_for(60, *cluster.nodes, acks=2)
            load.stop()
        cluster.agree()
        load.ledger.check(*cluster.nodes)
        assert cluster.count_full_syncs() == (0, 0)

        # All of a primary's entries reach its replicas before it is gone, and all can stop, one after the other.
        cluster.wait_following()
        with Load(web1, writers=6, pause_s=0) as load:
            load.wait_for(300, *cluster.nodes)
            assert web1.stop(STOP_S) == 0
            load.stop()
        load.ledger.check(web2, web3)
        for node in (web3, web2):
            assert node.stop(STOP_S) == 0
