"""Promotions, a cluster that was divided, and primaries that are none any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster, Load, Rest, events, kvnode, name_of, records, wait_until
from support.node_process import NodeProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def put(node: NodeProcess, **items: Any) -> None:
    """Write, each as soon as the node has somebody to order it."""
    with Rest(node) as rest:
        for key, value in items.items():
            body = {"key": key, "value": value}
            wait_until(lambda: rest.post("/put", body)[0] == 200, "the write is taken", node)  # noqa: B023


def put_code(node: NodeProcess) -> str:
    """What a write that must not be taken is answered with."""
    with Rest(node) as rest:
        status, answer = rest.post("/put", {"key": "refused", "value": "x"})
    assert status == 503, answer
    return str(answer["error"]["code"])


def promote(node: NodeProcess, *flags: str) -> str:
    """`kvnode promote`; returns what it said."""
    done = kvnode("promote", "--url", node.url, *flags)
    assert done.returncode == 0, done.stderr
    node.join = None
    return done.stdout


def rejoin(node: NodeProcess, primary: NodeProcess) -> None:
    """Stop a node, and `kvnode join` another primary with its directory."""
    node.join = primary.peer
    node.restart()
    wait_until(lambda: node.status()["primary"]["connected"], f"{name_of(node)} follows", node, primary)


def test_promotion_of_a_replica_and_the_return_of_the_old_primary(tmp_path: Path) -> None:
    with Cluster(tmp_path, divisible=True) as cluster:
        web1, web2, web3 = cluster.nodes
        with Load(web1, web3, acks=("majority",)) as load:
            load.wait_for(30, *cluster.nodes)
            load.stop()
        cluster.agree()

        # While the primary answers, nobody takes its place.
        refused = kvnode("promote", "--url", web2.url)
        assert refused.returncode == 1
        assert "web1 answers as the primary" in refused.stderr
        assert "web3" in refused.stdout + refused.stderr
        assert web2.status()["role"] == "replica"

        # Some writes reach nobody else any more.
        cluster.divide()
        put(web1, lost1=1, both="old")
        common = web2.status()["last_seq"]
        web1.kill()
        said = promote(web2)
        assert "web2 is the primary now" in said
        put(web2, both="new", new2=2)
        # The third follows when it is told to, and not before.
        rejoin(web3, web2)
        put(web3, new3=3)
        # The old one comes back alone, knows nothing of it, and takes writes.
        web1.start()
        web1.wait_ready()
        put(web1, lost2=2, both="older")
        assert web1.status()["role"] == web2.status()["role"] == "primary"
        last = web1.status()["last_seq"]

        assert web1.stop() == 0
        cluster.unite()
        rejoin(web1, web2)
        cluster.agree(web2, web1, web3)
        cluster.agree(web2, web1, web3, dumps=True)
        held = records(web1)
        assert (held["both"], held["new2"], held["new3"]) == ("new", 2, 3)
        assert not held.keys() & {"lost1", "lost2"}
        load.ledger.check(*cluster.nodes)
        # What only the old one had is kept, and named.
        (name,) = web1.status()["diverged"]
        (logged,) = events(web1, "log_diverged")
        assert f"entries={last - common}" in logged
        assert str(web1.data / "diverged" / name) in logged
        dumped = kvnode("wal", "dump", web1.data / "diverged" / name)
        assert dumped.returncode == 0, dumped.stderr
        entries = [json.loads(line) for line in dumped.stdout.splitlines()]
        assert [each["seq"] for each in entries] == list(range(common + 1, last + 1))
        assert [(op["key"], op["value"]) for each in entries for op in each["ops"]] == [
            ("lost1", 1),
            ("both", "old"),
            ("lost2", 2),
            ("both", "older"),
        ]
        assert (web1.status()["full_syncs_received"], web2.status()["full_syncs_sent"]) == (1, 1)
        # All three take writes.
        with Load(*cluster.nodes, acks=("0", "2")) as load:
            load.wait_for(30, *cluster.nodes, acks=2)
            load.stop()
        cluster.agree(web2, web1, web3)


def test_primary_that_hears_of_a_later_one_takes_no_more_writes(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1, divisible=True) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        cluster.divide()
        promote(web2)
        put(web2, new=1)
        put(web1, old=1)
        cluster.unite()
        wait_until(lambda: "fenced" in web1.status(), "web1 hears of web2", *cluster.nodes)
        for way in ("running", "restarted", "alone"):
            if way == "alone":
                cluster.divide()
            if way != "running":
                web1.restart()
            assert put_code(web1) == "not_primary", way
            assert web1.status()["fenced"]
            assert records(web1) == {"a": 1, "old": 1}
            with Rest(web1) as rest:
                assert (rest.get("/primary")[0], rest.get("/health")[0]) == (503, 200)
        cluster.unite()
        rejoin(web1, web2)
        cluster.agree(web2, web1)
        assert len(web1.status()["diverged"]) == 1
        assert "fenced" not in web1.status()


def test_primary_that_learns_of_a_later_one_when_it_starts_remembers_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1, divisible=True) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        web1.kill()
        promote(web2)
        put(web2, new=1)
        web1.start()
        web1.wait_ready()
        assert events(web1, "later_primary_found")
        assert put_code(web1) == "not_primary"
        cluster.divide()
        web1.restart()
        assert put_code(web1) == "not_primary"
        cluster.unite()
        rejoin(web1, web2)
        cluster.agree(web2, web1)
        # It wrote nothing meanwhile.
        assert "diverged" not in web1.status()
        assert cluster.count_full_syncs() == (0, 0)


def test_a_promoted_node_that_the_old_primary_outranks_is_promoted_again(tmp_path: Path) -> None:
    with Cluster(tmp_path, replicas=1, divisible=True) as cluster:
        web1, web2 = cluster.nodes
        put(web1, a=1)
        cluster.agree()
        cluster.divide()
        promote(web2)
        put(web2, new=1)
        # Each start of the old one, alone, is a reign with a higher term.
        web1.restart()
        web1.restart()
        put(web1, old=1)
        assert web1.stop() == 0
        cluster.unite()
        # It will not follow what has the lower term, which might be the older one.
        web1.join = web2.peer
        web1.start()
        assert web1.wait() == 1
        (line,) = events(web1, "start_refused")
        assert "code=stale_primary" in line
        assert "promote web2 again" in line
        web1.join = None
        web1.start()
        web1.wait_ready()
        web2.restart()
        assert put_code(web2) == "not_primary"
        assert web2.status()["fenced"]
        assert web1.stop() == 0
        promote(web2)
        put(web2, newer=1)
        rejoin(web1, web2)
        cluster.agree(web2, web1)
        assert records(web1) == {"a": 1, "new": 1, "newer": 1}
        assert len(web1.status()["diverged"]) == 1
