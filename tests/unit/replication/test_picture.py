"""The nodes of a cluster as one of them shows them: what it knows itself, and what its primary says when asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from kvnode.node.replication import picture as picture_module
from kvnode.node.replication.picture import ClusterPicture
from kvnode.node.replication.ports import Shared
from kvnode.node.watching import MAX_ENTRIES, MAX_OPS
from kvnode.protocol.messages import Error, Hello, Message, Ping, Purpose, Status, StatusResult
from kvnode.protocol.types import Epoch, Position, put
from support.cluster_node import running
from support.fake_replicated_store import sharing
from support.holds import turns
from support.peers import PATIENCE_S, Peer, PeerServer, welcome

MEMBERS = [
    {"name": "p1", "address": "10.0.0.1:7001"},
    {"name": "r1", "address": "10.0.0.2:7001"},
    {"name": "r2", "address": "10.0.0.3:7001"},
]

REPLICAS = [
    {
        "name": name,
        "address": f"{name}.lan:7001",
        "state": state,
        "sent_seq": 9,
        "acked_seq": 8,
        "applied_seq": 7,
        "lag_entries": 2,
        "lag_s": lag_s,
        "retention": "reserved",
    }
    for name, state, lag_s in (("r1", "streaming", 0.5), ("r2", "disconnected", None))
]

OF_PRIMARY = {"name": "p1", "role": "primary", "applied_seq": 10, "primary": None, "replicas": REPLICAS}


def of_replica(address: object, *, connected: bool = True, **members: Any) -> dict[str, Any]:
    """The /status of r1."""
    primary = {"address": str(address), "connected": connected, "lag_entries": 3, "lag_s": 0.25}
    status = {"name": "r1", "role": "replica", "applied_seq": 7, "primary": primary, "replicas": [], "members": MEMBERS}
    return status | members


def states(drawn: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {node["name"]: (node["role"], node["state"]) for node in drawn["nodes"]}


async def asked(server: PeerServer, *answers: Message) -> Peer:
    """Take the primary's part when it is asked."""
    peer = await server.accept()
    assert (await peer.take(Hello)).purpose is Purpose.PROBE
    peer.send(welcome())
    request = await peer.take(Status)
    for answer in answers:
        peer.send(replace(answer, request_id=request.request_id) if isinstance(answer, StatusResult) else answer)
    return peer


def told(status: Any) -> StatusResult:
    return StatusResult(0, json.dumps(status).encode())


async def drawn_otherwise(picture: ClusterPicture, status: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What is drawn as soon as it is another picture."""
    async with asyncio.timeout(PATIENCE_S):
        while (drawn := picture.draw(status)) == before:
            await turns(1)
    return drawn


def assert_asking(drawn: dict[str, Any], server: PeerServer) -> None:
    """A primary that has had no time to answer is not said to be away."""
    assert (drawn["source"], drawn["reason"]) == ("asking", f"asking the primary at {server.address}")
    assert {state for name, (_, state) in states(drawn).items() if name != "r1"} == {"asking"}
    own = drawn["nodes"][-1]
    assert (own["name"], own["is_self"], own["state"]) == ("r1", True, "following")


async def follow(shared: Shared, server: PeerServer, *answers: Message, **members: Any) -> dict[str, Any]:
    """What a replica shows when its primary has answered so."""
    picture, status = ClusterPicture(shared), of_replica(server.address, **members)
    before = picture.draw(status)
    assert_asking(before, server)
    await asked(server, *answers)
    return await drawn_otherwise(picture, status, before)


async def test_a_primary_knows_it_all() -> None:
    async with sharing() as shared:
        drawn = ClusterPicture(shared).draw(OF_PRIMARY)
    assert drawn["source"] == "self"
    assert "reason" not in drawn
    assert states(drawn) == {
        "p1": ("primary", "reigning"),
        "r1": ("replica", "streaming"),
        "r2": ("replica", "disconnected"),
    }
    first, second, _ = drawn["nodes"]
    assert (first["is_self"], first["address"], first["applied_seq"]) == (True, shared.address, 10)
    assert second == {
        "name": "r1",
        "address": "r1.lan:7001",
        "role": "replica",
        "state": "streaming",
        "is_self": False,
        "applied_seq": 7,
        "lag_entries": 2,
        "lag_s": 0.5,
        "retention": "reserved",
    }


async def test_a_replica_shows_what_its_primary_says() -> None:
    async with sharing(role="replica") as shared, PeerServer() as server:
        drawn = await follow(shared, server, told(OF_PRIMARY), applied_seq=12)
    assert drawn["source"] == "primary"
    assert [node["applied_seq"] for node in drawn["nodes"]] == [10, 7, 7]
    assert "reason" not in drawn
    assert states(drawn)["r2"] == ("replica", "disconnected")
    assert [node["is_self"] for node in drawn["nodes"]] == [False, True, False]
    assert drawn["nodes"][0]["address"] == str(server.address)


async def test_one_that_its_primary_does_not_know_is_shown_all_the_same() -> None:
    async with sharing(role="replica") as shared, PeerServer() as server:
        drawn = await follow(shared, server, told(OF_PRIMARY | {"replicas": []}))
    assert states(drawn) == {"p1": ("primary", "reigning"), "r1": ("replica", "following")}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (told(OF_PRIMARY | {"role": "replica"}), "p1 at {} is not the primary any more"),
        (told(OF_PRIMARY | {"fenced": "a later one reigns"}), "p1 at {} is not the primary any more"),
        (told({}), "the primary at {} does not answer: what it says of itself is not understood"),
        (StatusResult(0, b"[1"), "the primary at {} does not answer: {} answers no JSON"),
        (told([1]), "the primary at {} does not answer: what it says of itself is not understood"),
        (told(OF_PRIMARY | {"replicas": [{}]}), "the primary at {} does not answer: what it says of itself is"),
        (Error("draining", "it is stopping"), "the primary at {} does not answer: it is stopping"),
        (Ping(1, 1), "the primary at {} does not answer: PING came instead of STATUS_RESULT"),
    ],
)
async def test_what_helps_nothing_leaves_what_the_node_knows(answer: Message, reason: str) -> None:
    async with sharing(role="replica") as shared, PeerServer() as server:
        members = [MEMBERS[0] | {"address": str(server.address)}, *MEMBERS[1:]]
        drawn = await follow(shared, server, answer, members=members)
        assert drawn["reason"].startswith(reason.replace("{}", str(server.address)))
    assert drawn["source"] == "self"
    assert states(drawn) == {
        "p1": ("primary", "no_answer"),
        "r2": ("member", "unknown"),
        "r1": ("replica", "following"),
    }
    assert drawn["nodes"][-1]["lag_entries"] == 3


@pytest.mark.parametrize(
    ("members", "state", "has_lag"),
    [
        ({"connected": True}, "following", True),
        ({"connected": False}, "disconnected", False),
        ({"connected": True, "sync": {"state": "receiving", "keys": 5}}, "full_sync", True),
    ],
)
async def test_how_a_replica_sees_itself(members: dict[str, Any], state: str, has_lag: bool) -> None:
    async with sharing(role="replica") as shared, PeerServer() as server:
        picture = ClusterPicture(shared)
        own = picture.draw(of_replica(server.address, **members))["nodes"][-1]
        picture.stop()
        await turns()
    assert (own["name"], own["state"], own["is_self"], "lag_entries" in own) == ("r1", state, True, has_lag)


async def test_one_that_was_superseded_says_so() -> None:
    async with sharing() as shared:
        status = OF_PRIMARY | {"fenced": "a later one reigns", "replicas": [], "members": MEMBERS}
        drawn = ClusterPicture(shared).draw(status)
    assert (drawn["source"], drawn["reason"]) == ("self", "a later one reigns")
    assert states(drawn)["p1"] == ("primary", "superseded")
    assert states(drawn)["r1"] == ("member", "unknown")


async def test_nobody_is_asked_more_often_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "_ASK_S", 3600.0)
    async with sharing(role="replica") as shared, PeerServer() as server:
        picture, status = ClusterPicture(shared), of_replica(server.address)
        before = picture.draw(status)
        picture.draw(status)
        await asked(server, told(OF_PRIMARY))
        drawn = await drawn_otherwise(picture, status, before)
        assert picture.draw(status) == drawn
        await turns()
        assert server.waiting == 0


async def test_an_old_answer_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "_ASK_S", 0.0)
    async with sharing(role="replica") as shared, PeerServer() as server:
        picture, status = ClusterPicture(shared), of_replica(server.address)
        before = picture.draw(status)
        await asked(server, told(OF_PRIMARY))
        assert (await drawn_otherwise(picture, status, before))["source"] == "primary"
        monkeypatch.setattr(picture_module, "_FRESH_S", -1.0)
        assert_asking(picture.draw(status), server)
        picture.stop()
        await turns()


async def test_an_old_trouble_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "_ASK_S", 0.0)
    async with sharing(role="replica") as shared, PeerServer() as server:
        picture, status = ClusterPicture(shared), of_replica(server.address)
        before = picture.draw(status)
        await asked(server, Error("draining", "it is stopping"))
        drawn = await drawn_otherwise(picture, status, before)
        assert "does not answer: it is stopping" in drawn["reason"]
        monkeypatch.setattr(picture_module, "_FRESH_S", -1.0)
        assert_asking(picture.draw(status), server)
        monkeypatch.setattr(picture_module, "_FRESH_S", PATIENCE_S)
        # While it is asked over and over, a trouble is told until there is an answer.
        assert picture.draw(status) == drawn
        await asked(server, told(OF_PRIMARY))
        assert (await drawn_otherwise(picture, status, drawn))["source"] == "primary"


async def test_a_primary_under_another_address_than_the_members_know_is_known_by_its_name() -> None:
    async with sharing(role="replica") as shared, PeerServer() as server:
        picture, status = ClusterPicture(shared), of_replica(server.address)
        before = picture.draw(status, "p1")
        assert states(before)["p1"] == ("primary", "asking")
        await asked(server, Error("draining", "it is stopping"))
        async with asyncio.timeout(PATIENCE_S):
            while (drawn := picture.draw(status, "p1")) == before:
                await turns(1)
    assert states(drawn) == {
        "p1": ("primary", "no_answer"),
        "r2": ("member", "unknown"),
        "r1": ("replica", "following"),
    }


async def test_another_primary_is_asked_at_once() -> None:
    async with sharing(role="replica") as shared, PeerServer() as first, PeerServer() as second:
        picture = ClusterPicture(shared)
        assert_asking(picture.draw(of_replica(first.address)), first)
        peer = await asked(first)
        status = of_replica(second.address)
        assert_asking(picture.draw(status), second)
        await asked(second, told(OF_PRIMARY | {"name": "p2"}))
        drawn = await drawn_otherwise(picture, status, picture.draw(status))
        assert states(drawn)["p2"] == ("primary", "reigning")
        assert await peer.rest() == []


async def test_nothing_is_left_of_a_picture_that_ends_while_it_asks() -> None:
    async with sharing(role="replica") as shared, PeerServer() as server:
        picture = ClusterPicture(shared)
        picture.draw(of_replica(server.address))
        peer = await asked(server)
        picture.stop()
        assert await peer.rest() == []


# ---- all of it, on a node --------------------------------------------------------------------------------------


async def test_a_node_shows_its_counters_and_its_newest_entries() -> None:
    async with running() as node:
        watched = node.node.watched()
        assert watched["counters"] == {
            "writes": 0,
            "entries": 0,
            "reads": 0,
            "range_items": 0,
            "cache_hits": 0,
            "cache_misses": 0,
        }
        assert watched["not_ready"] is None
        assert states(watched["cluster"]) == {"n1": ("primary", "reigning")}
        assert node.node.newest_entries(None) == ([], 0, Position(Epoch(0), 0))

        results = [await node.store.write([put(b"k%d" % number, b"1")]) for number in range(MAX_ENTRIES + 5)]
        results.append(await node.store.write([put(b"k%d" % number, b"1") for number in range(MAX_OPS + 2)]))
        assert node.store.cached(b"k1") is not None
        counters = node.node.watched()["counters"]
        assert (counters["writes"], counters["entries"], counters["reads"]) == (len(results), len(results), 1)

        last = results[-1].position
        entries, left_out, position = node.node.newest_entries(None)
        assert (len(entries), left_out, position) == (MAX_ENTRIES, 0, last)
        assert [each.entry.seq for each in entries] == list(range(last.seq - MAX_ENTRIES + 1, last.seq + 1))
        assert (len(entries[-1].entry.ops), entries[-1].ops_left_out) == (MAX_OPS, 2)

        entries, left_out, _ = node.node.newest_entries(results[0].position)
        assert (len(entries), left_out) == (MAX_ENTRIES, len(results) - 1 - MAX_ENTRIES)
        entries, left_out, _ = node.node.newest_entries(results[-3].position)
        assert ([each.entry.seq for each in entries], left_out) == ([last.seq - 1, last.seq], 0)
        assert node.node.newest_entries(last) == ([], 0, last)
        # Of another history nothing was seen.
        assert node.node.newest_entries(Position(Epoch.of(99, 1), last.seq - 1))[1] == 0
        assert len(node.node.newest_entries(Position(Epoch.of(99, 1), last.seq - 1)).entries) == MAX_ENTRIES


async def test_entries_that_are_not_in_memory_any_more_are_counted() -> None:
    async with running() as node:
        results = [await node.store.write([put(b"k", b"%d" % number)]) for number in range(4)]
        node.node._shared.tail.clear()
        results.append(await node.store.write([put(b"k", b"5")]))
        entries, left_out, _ = node.node.newest_entries(results[0].position)
        assert ([each.entry.seq for each in entries], left_out) == ([5], 3)
