"""Primaries that stop, come back, or begin to reign beside each other: who takes writes, and who follows whom."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.cluster import STOP_S, Cluster, Load, Rest, events, kvnode, name_of, records, wait_until
from support.node_process import NodeProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def put(node: NodeProcess, **items: Any) -> None:
    """Write to a primary."""
    with Rest(node) as rest:
        for key, value in items.items():
            rest.put(key, value)


def put_code(node: NodeProcess) -> str:
    """What a write is answered with; empty if it is taken."""
    with Rest(node) as rest:
        status, answer = rest.post("/put", {"key": "asked", "value": "x"})
    return "" if status == 200 else str(answer["error"]["code"])


def promote(node: NodeProcess) -> None:
    done = kvnode("promote", "--url", node.url)
    assert done.returncode == 0, done.stderr


def term(node: NodeProcess) -> int:
    """Of the reign that a node knows of."""
    return int(node.status()["epoch"].partition(".")[0])


def start(node: NodeProcess) -> None:
    """`kvnode start`, whatever the node was started with before."""
    node.join = None
    node.start()
    node.wait_ready()


def join(node: NodeProcess, primary: NodeProcess) -> None:
    """`kvnode join`."""
    node.join = primary.peer
    node.restart()


def succeed(old: NodeProcess, new: NodeProcess) -> None:
    """A primary dies, its replica is promoted, takes a write, and stops before anybody tells the old one."""
    old.kill()
    promote(new)
    put(new, new=2)
    assert new.stop() == 0


def test_a_primary_that_stops_leaves_its_replica_with_all_that_it_acknowledged(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1) as cluster:
        web1, web2 = cluster.nodes
        for _ in range(3):
            with Load(web1, writers=6, pause_s=0) as load:
                load.wait_for(100, *cluster.nodes)
                assert web1.stop(STOP_S) == 0
                load.stop()
            # The primary is gone: it can tell nothing any more.
            held = records(web2)
            lost = [key for key, acked in load.ledger.acked.items() if held.get(key) != acked.value]
            assert not lost, f"web2 lacks {len(lost)} of {len(load.ledger.acked)} acknowledged writes"
            web1.start()
            web1.wait_ready()
            cluster.wait_following()


def test_a_promoted_node_does_not_follow_its_old_primary_again(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        succeed(web1, web2)
        # The old one is back, knows nothing of it, and takes writes: in a reign of the same term.
        web1.start()
        web1.wait_ready()
        assert put_code(web1) == ""
        # Whoever starts nodes runs the old command for web2.
        web2.join = web1.peer
        web2.start()
        assert web2.wait() == 1
        refused = events(web2, "start_refused")[-1]
        for text in ("code=stale_primary", "kvnode start", "join web1"):
            assert text in refused, refused
        # Nothing was changed by it.
        web1.kill()
        start(web2)
        assert web2.status()["role"] == "primary"
        assert records(web2) == {"a": 1, "new": 2}
        # The other way round is the right one.
        join(web1, web2)
        cluster.wait_following(web1, primary=web2)
        cluster.agree(web2, web1)
        assert len(web1.status()["diverged"]) == 1


def test_a_primary_that_learned_of_a_later_one_at_its_start_takes_no_writes_when_nobody_answers(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        web1.kill()
        promote(web2)
        web1.start()
        web1.wait_ready()
        assert events(web1, "later_primary_found")
        web2.kill()
        web1.restart()
        assert put_code(web1) == "not_primary"
        assert web1.status()["fenced"]
        assert records(web1) == {"a": 1}


def test_a_promoted_node_does_not_give_way_to_its_old_primary_when_all_are_started_again(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        succeed(web1, web2)
        # The old one comes first, cannot be told, and takes writes: in a reign of the same term.
        web1.start()
        web1.wait_ready()
        put(web1, old=3)
        assert term(web1) == 2
        start(web2)
        assert put_code(web2) == ""
        assert term(web2) == 3
        wait_until(lambda: fenced([web1]), "the old one ends", web1)
        assert put_code(web1) == "not_primary"
        assert records(web2) == {"a": 1, "new": 2, "asked": "x"}


def fenced(nodes: Sequence[NodeProcess]) -> list[NodeProcess]:
    return [node for node in nodes if "fenced" in node.status()]


def test_a_promoted_node_knows_its_old_primary_by_any_address(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        web2.stop()
        web2.join = web1.peer.replace("127.0.0.1", "localhost")
        assert web2.join != web1.peer
        web2.start()
        cluster.wait_following()
        cluster.agree()
        web1.kill()
        # It may be a later process than the one that followed.
        web2.restart()
        promote(web2)
        put(web2, new=2)
        assert web2.stop() == 0
        web1.start()
        web1.wait_ready()
        assert term(web1) == 2
        # The old command, in either spelling.
        for spelling in (web2.join, web1.peer):
            web2.join = spelling
            web2.start()
            assert web2.wait() == 1
            assert "code=stale_primary" in events(web2, "start_refused")[-1]
        start(web2)
        assert put_code(web2) == ""
        assert term(web2) == 3
        wait_until(lambda: fenced([web1]), "the old one ends", web1)
        assert records(web2) == {"a": 1, "new": 2, "asked": "x"}


def test_a_node_gives_way_to_its_old_primary_that_was_promoted_after_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        assert web1.stop() == 0
        promote(web2)
        join(web1, web2)
        cluster.wait_following(web1, primary=web2)
        put(web2, b=2)
        cluster.agree(web2, web1)
        assert web2.stop() == 0
        promote(web1)
        put(web1, c=3)
        assert term(web1) == 3
        # Started while nobody answers, the other one comes to the same term.
        os.kill(web1.pid, signal.SIGSTOP)
        try:
            start(web2)
            assert term(web2) == 3
            assert web2.stop() == 0
        finally:
            os.kill(web1.pid, signal.SIGCONT)
        start(web2)
        assert events(web2, "later_primary_found")
        assert put_code(web2) == "not_primary"
        assert put_code(web1) == ""
        # The command that once made it a replica is the right one again.
        join(web2, web1)
        cluster.wait_following()
        cluster.agree()
        assert records(web2) == {"a": 1, "b": 2, "c": 3, "asked": "x"}
        assert "diverged" not in web2.status()


def test_of_two_reigns_of_one_term_one_ends_for_good(tmp_path: Path) -> None:
    with Cluster(tmp_path, divisible=True) as cluster:
        web1, web2, web3 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        web1.kill()
        cluster.divide()
        for node in (web2, web3):
            promote(node)
            put(node, **{name_of(node): 1})
        rivals = (web2, web3)
        assert term(web2) == term(web3)
        assert fenced(rivals) == []
        cluster.unite()
        wait_until(lambda: fenced(rivals), "one of them ends", *rivals)
        (loser,) = fenced(rivals)
        winner = web2 if loser is web3 else web3
        assert put_code(loser) == "not_primary"
        assert put_code(winner) == ""
        # It stays so when it starts anew and can ask nobody.
        cluster.divide()
        loser.join = None
        loser.restart()
        assert put_code(loser) == "not_primary"
        assert records(loser).keys() == {"a", name_of(loser)}
        # It ends the reign of nobody else.
        cluster.unite()
        winner.join = None
        winner.restart()
        assert put_code(winner) == ""
