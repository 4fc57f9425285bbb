"""Writes that replicas take, while the primary is killed and comes back: no answer is false."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster import Cluster, Load, Rest, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_no_forwarded_write_is_answered_falsely_while_the_primary_comes_and_goes(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        web1, web2, web3 = cluster.nodes
        with Load(web2, web3, acks=("0", "1"), writers=6, reads_back=True, pause_s=0) as load:
            for stop in (web1.kill, web1.stop, web1.kill):
                load.wait_for(200, *cluster.nodes)
                stop()
                # Without a primary nothing is written, and reads go on.
                for node in (web2, web3):
                    with Rest(node) as rest:
                        wait_until(lambda: rest.post("/put", {"key": "none", "value": 1})[0] == 503, "503", node)
                        assert rest.get("/readrange?limit=10")[1]["count"] == 10
                        assert rest.get("/ready")[0] == 200
                web1.start()
                web1.wait_ready()
            load.wait_for(200, *cluster.nodes)
            load.stop()
        # What was cut off while it was under way is unknown; nothing else is answered than these.
        assert load.ledger.codes.keys() <= {
            "",
            "no_primary",
            "outcome_unknown",
            "replication_timeout",
            "not_enough_replicas",
            "draining",
        }
        assert load.ledger.codes["no_primary"] > 0
        cluster.agree()
        load.ledger.check(*cluster.nodes)
        assert cluster.count_full_syncs() == (0, 0)

        # A reign that has ordered nothing answers a delete that changes nothing.
        web1.restart()
        last_seq = web1.status()["last_seq"]
        for node in (web2, web3):
            with Rest(node) as rest:
                wait_until(lambda: rest.post("/delete", {"key": "none"})[0] == 200, "an answer", *cluster.nodes)
                status, answer = rest.post("/delete", {"key": "none"})
                assert (status, answer["deleted"], answer["seq"]) == (200, False, last_seq)
