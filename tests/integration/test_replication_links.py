"""Replicas behind links that are cut, stall, or are slow: they heal by themselves, and nobody else notices."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster, Load, events, name_of, wait_until
from support.node_process import NodeProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def replica(cluster: Cluster, node: NodeProcess) -> dict[str, Any]:
    """What the primary's /status says of a replica."""
    (found,) = [each for each in cluster.web1.status()["replicas"] if each["name"] == name_of(node)]
    return found


def test_cuts_in_the_middle_of_streaming_heal_without_a_full_sync(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1, proxied=["web2"]) as cluster:
        link, web2 = cluster.links["web2"], cluster.web2
        with Load(cluster.web1, acks=("0", "1"), value_bytes=3000) as load:
            for number in range(20):
                before = web2.status()["applied_seq"]
                # In the middle of a frame, nearly always.
                link.let(5_000 + 1_777 * number, "down")
                wait_until(lambda: link.is_stalled("down"), "the link stalls", *cluster.nodes)
                link.cut(reset=number % 2 == 1)
                link.heal()
                wait_until(lambda: web2.status()["applied_seq"] > before, "web2 goes on", *cluster.nodes)  # noqa: B023
            load.stop()
        load.ledger.check(cluster.web1)
        cluster.agree()
        assert len(events(cluster.web1, "replica_connected", "name=web2")) >= 20
        assert cluster.count_full_syncs() == (0, 0)


def test_stalled_and_slow_replicas_slow_nobody_and_are_named(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=5, proxied=["web2", "web3", "web4"]) as cluster:
        web1, cut_off, deaf, slow, frozen, fine = cluster.nodes
        behind = (cut_off, deaf, slow, frozen)
        links = cluster.links
        with Load(web1, fine, acks=("0", "1"), writers=4, value_bytes=2000) as load:
            load.wait_for(50, *cluster.nodes, acks=1)
            links[name_of(cut_off)].stall()
            links[name_of(deaf)].stall("down")
            links[name_of(slow)].throttle(20_000, "down")
            os.kill(frozen.pid, signal.SIGSTOP)
            try:
                for node in behind:
                    load.wait_for(50, web1, fine, acks=1)
                    wait_until(lambda: replica(cluster, node)["lag_entries"] > 50, "lag", web1)  # noqa: B023
                    wait_until(lambda: events(web1, "replica_lags", f"name={name_of(node)}"), "an alarm", web1)  # noqa: B023
                states = [replica(cluster, node)["state"] for node in (fine, frozen)]
                assert states == ["streaming", "disconnected"]
                assert not events(web1, "replica_lags", f"name={name_of(fine)}")
                # Each side drops the other by its silence, as far as it can.
                for node in (cut_off, frozen):
                    assert events(web1, "replica_session_closed", f"name={name_of(node)}", "code=peer_silent")
                for node in (cut_off, deaf):
                    wait_until(lambda: events(node, "following_failed", "code=peer_silent"), "silence", node)  # noqa: B023
                # A slow one is sent no more than its window, and keeps its session, however long a frame takes.
                state = replica(cluster, slow)
                assert (state["sent_seq"] - state["acked_seq"]) * 2000 < 16 * 1024 * 1024
                assert not events(web1, "replica_gone", f"name={name_of(slow)}")
                load.wait_for(50, web1, fine, acks=1)
            finally:
                os.kill(frozen.pid, signal.SIGCONT)
            for link in links.values():
                link.heal()
            load.stop()
        assert set(load.ledger.codes) == {""}, load.ledger.codes
        assert load.answer_s < 2, "somebody waited for a replica that was stalled"
        load.ledger.check(web1)
        cluster.agree()
        assert cluster.count_full_syncs() == (0, 0)
