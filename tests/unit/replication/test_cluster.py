"""A node among others: who is let in, where reads and writes go, and what a later primary ends."""

import asyncio
import errno
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from kvnode.node.api import Acks, ReadToken, WriteResult
from kvnode.node.errors import (
    MemberNotFound,
    NoPrimary,
    NotCaughtUp,
    NotEnoughReplicas,
    NotPrimary,
    NotReplica,
    OutcomeUnknown,
)
from kvnode.node.replication import cluster as cluster_module
from kvnode.node.storage.datadir import StateFiles
from kvnode.protocol.fields import Member
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    Hello,
    HistoryFrame,
    Ping,
    Purpose,
    Read,
    Role,
    Status,
    StatusResult,
    Subscribe,
    Welcome,
    Write,
)
from kvnode.protocol.messages import ReadResult as ReadResultFrame
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.types import Epoch, History, Position, put
from support.cluster_node import Primary, know_members, member, replica, replica_of, running
from support.crash_plan import KEPT, Failure
from support.fake_replicated_store import make_identity
from support.peers import (
    CLUSTER_ID,
    EPOCH,
    HISTORY,
    PRIMARY_ID,
    REPLICA_ID,
    PeerServer,
    hello,
    observe_from,
    records,
    subscribe_from,
    welcome,
)
from support.simulated_node import LAYOUT, Machine

OP = (put(b"k", b'"v"'),)

OTHER_NODE: dict[str, Any] = {"node_id": b"o" * 16, "name": "other"}


# ---- who is let in ---------------------------------------------------------------------------------------------


async def test_welcome_says_who_and_how_far_the_node_is() -> None:
    async with running() as node:
        await node.cluster.write(OP)
        for purpose in Purpose:
            async with node.session(purpose, name="r9", node_id=b"9" * 16) as (_, said):
                identity = node.opened.identity
                assert said == Welcome(
                    1,
                    identity.cluster_bytes,
                    bytes.fromhex(identity.node_id),
                    "n1",
                    Role.PRIMARY,
                    node.store.history,
                    1,
                    ("read",),
                )


async def test_a_client_reads_what_it_wrote_from_the_cache_and_from_leveldb() -> None:
    async with running() as node, node.session(Purpose.CLIENT, name="") as (peer, said):
        peer.send(Write(1, (put(b"key", b'"a"'),), 0, 0))
        written = await peer.take(WriteResultFrame)
        for request_id in (2, 3):
            peer.send(Read(request_id, b"key", written.epoch, written.seq, 0))
            assert await peer.take(ReadResultFrame) == ReadResultFrame(
                request_id, written.epoch, written.seq, b'"a"', written.epoch, written.seq, None, None, None
            )
            node.store.cache.clear()
        peer.send(Read(4, b"key", said.history.current, written.seq + 1, 20))
        late = await peer.take(ReadResultFrame)
        assert (late.request_id, late.error_code) == (4, "not_caught_up")


async def test_who_does_not_know_the_cluster_may_ask() -> None:
    async with running() as node, node.session(Purpose.PROBE, cluster_id=b"", name="") as (_, said):
        assert said.cluster_id == node.opened.identity.cluster_bytes


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cluster_id": b"x" * 16}, "wrong_cluster"),
        ({"min_version": 2, "max_version": 3}, "unsupported_version"),
        ({"name": "n1"}, "name_taken"),
    ],
)
async def test_who_does_not_belong_here_is_refused_and_logged(changes: dict[str, Any], code: str) -> None:
    async with running() as node:
        said = {"cluster_id": node.opened.identity.cluster_bytes, **changes}
        async with node.stranger(hello(Purpose.REPLICA, **{"name": "r1", **said})) as peer:
            assert (await peer.refused()).code == code
        assert node.captured.fields_of("peer_refused")["code"] == code


async def test_a_copy_of_this_node_is_refused() -> None:
    async with running() as node:
        identity = node.opened.identity
        said = hello(Purpose.REPLICA, cluster_id=identity.cluster_bytes, node_id=bytes.fromhex(identity.node_id))
        async with node.stranger(said) as peer:
            assert (await peer.refused()).code == "self_join"


async def test_a_second_process_of_a_node_is_refused_and_the_same_one_replaces_its_session() -> None:
    async with running() as node, node.session(Purpose.REPLICA) as (first, _):
        first.send(subscribe_from(0))
        await first.take(HistoryFrame)
        said = {"cluster_id": node.opened.identity.cluster_bytes}
        async with node.stranger(hello(Purpose.REPLICA, boot_id=b"2" * 16, **said)) as copy:
            assert (await copy.refused()).code == "duplicate_node"
        async with node.session(Purpose.REPLICA) as (again, _):
            await first.ended()
            again.send(subscribe_from(0))
            await again.take(HistoryFrame)
            assert [each["state"] for each in node.cluster.status()["replicas"]] == ["streaming"]


async def test_a_replica_is_known_by_where_it_comes_from_if_it_names_every_interface() -> None:
    async with running() as node:
        async with node.session(Purpose.REPLICA, address="0.0.0.0:7009") as (peer, _):
            peer.send(subscribe_from(0))
            frame = await peer.take(HistoryFrame)
            assert Member(REPLICA_ID, "r1", "127.0.0.1:7009") in frame.members
        async with node.session(Purpose.REPLICA, address="[::]:7010", node_id=b"6" * 16, name="r6") as (peer, _):
            peer.send(subscribe_from(0))
            frame = await peer.take(HistoryFrame)
            assert Member(b"6" * 16, "r6", "127.0.0.1:7010") in frame.members


async def test_status_over_the_peer_port_is_that_of_rest() -> None:
    async with running() as node, node.session(Purpose.PROBE, name="") as (peer, _):
        peer.send(Status(5))
        frame = await peer.take(StatusResult)
        assert frame.request_id == 5
        said, shown = json.loads(frame.status), json.loads(json.dumps(node.node.status()))
        assert {**said, "uptime_s": 0} == {**shown, "uptime_s": 0}


# ---- the primary -----------------------------------------------------------------------------------------------


async def test_a_write_over_the_peer_port_is_one_like_any_other() -> None:
    async with running() as node, node.session() as (peer, _):
        peer.send(Write(1, OP, 0, 0), Write(2, (put(b"k", b"nonsense"),), 0, 0), Write(3, OP, 1, 0))
        answers = [await peer.take(WriteResultFrame) for _ in range(3)]
        by_id = {each.request_id: each for each in answers}
        assert by_id[1] == WriteResultFrame(1, node.store.epoch, 1, 0, None, None, None)
        assert (by_id[2].error_code, by_id[3].error_code) == ("invalid_json", "not_enough_replicas")
        record = node.cluster.cached(b"k") or (await node.cluster.read(b"k")).record
        assert record is not None
        assert record.value == b'"v"'


async def test_a_write_that_wants_acks_is_answered_by_them() -> None:
    async with running() as node:
        with pytest.raises(NotEnoughReplicas):
            node.cluster.write(OP, Acks(1))
        async with node.session(Purpose.REPLICA) as (peer, _):
            peer.send(subscribe_from(0))
            await peer.take(HistoryFrame)
            future = node.cluster.write(OP, Acks(1))
            frame = await peer.take(Entries)
            assert len(frame.records) == 1
            assert not future.done()
            peer.send(Ack(1, 1, 1))
            assert await future == WriteResult(Position(node.store.epoch, 1), 0)
            majority = node.cluster.write(OP, Acks(None, 0.05))
            error = await asyncio.gather(majority, return_exceptions=True)
            assert getattr(error[0], "code", None) == "replication_timeout"


async def test_an_observer_sees_what_is_written() -> None:
    async with running() as node, node.session(Purpose.OBSERVE) as (peer, _):
        peer.send(observe_from(1))
        await peer.take(HistoryFrame)
        for seq in range(1, 4):
            await node.cluster.write(OP)
            (record,) = (await peer.take(Entries)).records
            assert node.store.applied.seq == seq
            assert b"v" in record.payload


async def test_roles_of_a_primary() -> None:
    async with running() as node:
        node.cluster.check_role("primary")
        node.cluster.check_ready(0)
        with pytest.raises(NotReplica):
            node.cluster.check_role("replica")
        status = node.cluster.status()
        assert (status["role"], status["primary"], status["replicas"]) == ("primary", None, [])
        assert status["members"] == [{"name": "n1", "address": str(node.address)}]


async def test_forget_on_a_primary() -> None:
    async with running() as node:
        async with node.session(Purpose.REPLICA) as (peer, _):
            peer.send(subscribe_from(0))
            await peer.take(HistoryFrame)
        await node.until(lambda: node.cluster.status()["replicas"][0]["state"] == "disconnected")
        await node.cluster.forget("r1")
        assert [each["name"] for each in node.cluster.status()["members"]] == ["n1"]
        with pytest.raises(MemberNotFound):
            await node.cluster.forget("r1")


# ---- a later primary -------------------------------------------------------------------------------------------


async def test_a_replica_that_has_seen_a_later_primary_ends_the_reign_durably() -> None:
    async with running() as node:
        async with (
            node.session(Purpose.REPLICA) as (waiting, _),
            node.session(Purpose.REPLICA, **OTHER_NODE) as (late, _),
        ):
            waiting.send(subscribe_from(0))
            await waiting.take(HistoryFrame)
            future = node.cluster.write(OP, Acks(1))
            await waiting.take(Entries)
            late.send(Subscribe(Position(Epoch.of(9, 1), 4), None))
            assert (await late.refused()).code == "stale_primary"
            assert [each.code for each in await waiting.rest() if isinstance(each, Error)] == ["stale_primary"]
            with pytest.raises(OutcomeUnknown):
                await future
        with pytest.raises(NotPrimary, match="a later primary"):
            node.cluster.write(OP)
        with pytest.raises(NotPrimary):
            node.cluster.check_role("primary")
        with pytest.raises(NotPrimary):
            await node.cluster.forget("r1")
        await node.until(lambda: node.identity.superseded_term == 9)
        assert "fenced" in node.cluster.status()
        assert (await node.cluster.read(b"k")).record is not None, "reads go on"
        async with node.session() as (client, _):
            client.send(Write(1, OP, 0, 0))
            assert (await client.take(WriteResultFrame)).error_code == "not_primary"
        async with node.session(Purpose.REPLICA) as (again, _):
            again.send(subscribe_from(0))
            assert (await again.refused()).code == "not_primary"
        machine = node.machine
    async with running(machine.after_crash(KEPT)) as node:
        assert "fenced" in node.cluster.status()
        with pytest.raises(NotPrimary):
            node.cluster.write(OP)


async def test_a_member_that_follows_somebody_else_is_asked_and_ends_the_reign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_WATCH_S", 0.01)
    async with member(welcome(0, History(), Role.REPLICA)) as other, running() as node:
        async with node.session(Purpose.REPLICA, address=str(other.server.address)) as (peer, _):
            peer.send(subscribe_from(0))
            await peer.take(HistoryFrame)
        await node.until(lambda: len(other.asked) > 2)
        assert {each.purpose for each in other.asked} == {Purpose.PROBE}
        assert "fenced" not in node.cluster.status()
        other.answer = welcome(3, HISTORY, Role.REPLICA)
        await node.until(lambda: "fenced" in node.cluster.status())
        await node.until(lambda: node.identity.superseded_term == 3)


async def test_a_member_that_cannot_be_asked_is_asked_again(monkeypatch: pytest.MonkeyPatch, soon: None) -> None:
    monkeypatch.setattr(cluster_module, "_WATCH_S", 0.01)
    async with PeerServer() as server, running() as node:
        for address, name in (("a..b:7001", "m1"), (str(server.address), "m2")):
            async with node.session(Purpose.REPLICA, address=address, name=name, node_id=name.ljust(16).encode()) as (
                peer,
                _,
            ):
                peer.send(subscribe_from(0))
                await peer.take(HistoryFrame)
        for _ in range(3):
            asked = await server.accept()
            await asked.take(Hello)
            asked.send(welcome(0, History(), Role.REPLICA))
        assert "fenced" not in node.cluster.status()


OLD_ID = b"o" * 16
#: What a node remembers that was promoted.
PROMOTED = {"promoted_from": "localhost:1", "promoted_from_id": OLD_ID.hex()}


def promoted() -> Machine:
    """A machine with the directory of a node that was promoted over another one."""
    machine = Machine.new()
    StateFiles(machine.disk, LAYOUT).save_identity(make_identity(name="n1", **PROMOTED))
    return machine


async def test_a_primary_that_follows_the_one_that_was_promoted_over_it_knows_of_that() -> None:
    async with running(promoted()) as node:
        async with node.session(Purpose.REPLICA, node_id=b"x" * 16, name="x1") as (peer, _):
            peer.send(subscribe_from(0))
            await peer.take(HistoryFrame)
        assert node.identity.promoted_from_id == OLD_ID.hex()
        async with node.session(Purpose.REPLICA, node_id=OLD_ID, name="o1"):
            await node.until(lambda: node.identity.promoted_from_id is None)
        assert node.identity.promoted_from is None
        assert node.identity.role == "primary"


@pytest.mark.parametrize("role", Role)
async def test_a_primary_that_answers_as_one_no_more_knows_of_the_promotion(
    monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    monkeypatch.setattr(cluster_module, "_WATCH_S", 0.01)
    async with member(welcome(0, History(), role, node_id=OLD_ID, name="o1")) as old:
        machine = know_members(promoted(), Member(OLD_ID, "o1", str(old.server.address)))
        async with running(machine) as node:
            await node.until(lambda: len(old.asked) > 2)
            knows = role is not Role.PRIMARY
            assert (node.cluster._shared.identity.promoted_from_id is None) is knows
            if knows:
                await node.until(lambda: node.identity.promoted_from is None)


async def test_what_cannot_be_saved_of_another_node_ends_nothing() -> None:
    machine = promoted()
    async with running(machine) as node:
        machine.plan.failures.append(Failure(errno.ENOSPC, "write_at", "*node.json*"))
        async with node.session(Purpose.REPLICA, node_id=OLD_ID, name="o1"):
            await node.until(lambda: "identity_not_saved" in node.captured.names())
        assert node.identity.promoted_from_id == OLD_ID.hex()
        assert node.failure is None


# ---- the replica -----------------------------------------------------------------------------------------------


async def test_a_replica_forwards_writes_and_answers_when_it_has_them() -> None:
    async with replica() as (node, primary):
        future = node.cluster.write(OP, Acks(0))
        frame = await primary.writes.take(Write)
        assert frame.ops == OP
        primary.writes.send(WriteResultFrame(frame.request_id, EPOCH, 1, 0, None, None, None))
        primary.stream.send(Entries(records(1, 1)))
        assert await future == WriteResult(Position(EPOCH, 1), 0)
        record = (await node.cluster.read(b"k1")).record
        assert record is not None


@pytest.mark.parametrize("before", [None, "01" * 16])
async def test_a_replica_remembers_who_its_primary_is(before: str | None, soon: None) -> None:
    async with PeerServer() as server:
        primary = Primary(server, HISTORY)
        async with running(replica_of(server.address, primary_id=before), name="r1") as node:
            await primary.attach()
            await node.until(lambda: node.identity.primary_id == PRIMARY_ID.hex())
            server.stop()
            await node.cluster.promote(force=True)
            identity = node.identity
            assert (identity.promoted_from, identity.promoted_from_id) == (str(server.address), PRIMARY_ID.hex())
            assert (identity.primary, identity.primary_id) == (None, None)


async def test_a_replica_shows_its_primary_whatever_the_members_call_its_address() -> None:
    async with replica() as (node, primary):
        await primary.send(1, 1)
        assert Member(PRIMARY_ID, "p1", "") in node.cluster._members.all
        drawn = node.node.watched()["cluster"]
        assert [(each["name"], each["role"]) for each in drawn["nodes"]] == [("p1", "primary"), ("r1", "replica")]


async def test_a_replica_says_what_it_is() -> None:
    async with replica() as (node, primary):
        await primary.send(1, 3)
        node.cluster.check_role("replica")
        node.cluster.check_ready(None)
        with pytest.raises(NotPrimary, match=f"r1 is a replica, its primary is at {primary.server.address}"):
            node.cluster.check_role("primary")
        with pytest.raises(NotPrimary):
            await node.cluster.forget("p1")
        status = node.cluster.status()
        assert status["role"] == "replica"
        assert status["primary"] == {
            "address": str(primary.server.address),
            "connected": True,
            "lag_entries": 0,
            "lag_s": 0.0,
        }
        primary.stream.send(Ping(10, 0))
        await node.until(lambda: node.cluster.status()["primary"]["lag_entries"] == 7)
        node.cluster.check_ready(7)
        with pytest.raises(NotCaughtUp) as behind:
            node.cluster.check_ready(6)
        assert behind.value.fields == {"lag": 7}


async def test_a_replica_without_its_primary_reads_and_says_why_it_does_not_write() -> None:
    async with replica(3, attached=False) as (node, primary):
        await node.until(lambda: "error" in node.cluster.status()["primary"])
        assert node.cluster.status()["primary"]["error"]["code"] == "disconnected"
        node.cluster.check_ready(None)
        with pytest.raises(NoPrimary):
            node.cluster.check_ready(1000)
        assert (await node.cluster.read(b"k2")).record is not None
        with pytest.raises(NoPrimary, match="nothing was written"):
            node.cluster.write(OP)
        async with node.session(Purpose.OBSERVE, cluster_id=CLUSTER_ID, node_id=b"9" * 16) as (peer, said):
            assert (said.role, said.last_seq) == (Role.REPLICA, 3)
            peer.send(observe_from(1))
            await peer.take(HistoryFrame)
            assert (await peer.take(Entries)).records == records(1, 3)
        assert primary.server.waiting == 0


async def test_nobody_follows_or_writes_through_a_replica() -> None:
    async with replica() as (node, _):
        said: dict[str, Any] = {"cluster_id": CLUSTER_ID, "node_id": b"9" * 16, "name": "r9"}
        async with node.session(Purpose.REPLICA, **said) as (peer, _):
            peer.send(subscribe_from(0))
            error = await peer.refused()
            assert (error.code, "its primary is at" in error.message) == ("not_primary", True)
        async with node.session(Purpose.CLIENT, **said) as (peer, _):
            peer.send(Write(1, OP, 0, 0))
            assert (await peer.take(WriteResultFrame)).error_code == "not_primary"
        await node.until(lambda: [each["name"] for each in node.cluster.status()["members"]] == ["p1", "r1"])


async def test_a_token_of_a_reign_that_a_replica_has_not_heard_of_is_waited_for() -> None:
    async with replica(3) as (node, _):
        with pytest.raises(NotCaughtUp):
            await node.cluster.wait_applied(ReadToken(4, Epoch.of(9, 1), 0.02))


# ---- the end ---------------------------------------------------------------------------------------------------


async def test_stopping_says_so_to_all_and_lets_replicas_have_the_last_entries() -> None:
    async with running() as node, AsyncExitStack() as stack:
        follower, _ = await stack.enter_async_context(node.session(Purpose.REPLICA))
        client, _ = await stack.enter_async_context(node.session(Purpose.CLIENT, **OTHER_NODE))
        follower.send(subscribe_from(0))
        await follower.take(HistoryFrame)
        for _ in range(20):
            await node.cluster.write(OP)
        node.cluster.stop_accepting()
        draining = asyncio.create_task(node.cluster.drain(20))
        count = 0
        while count < 20:
            count += len((await follower.take(Entries)).records)
        follower.send(Ack(20, 20, 20))
        await draining
        await node.stop()
        for peer in (follower, client):
            assert [each for each in await peer.rest() if isinstance(each, Error)] == [
                Error("draining", "this node is stopping")
            ]


async def test_a_stopping_replica_takes_no_more_writes() -> None:
    async with replica() as (node, _):
        node.cluster.stop_accepting()
        with pytest.raises(Exception, match="stopping"):
            node.cluster.write(OP)


async def test_an_address_that_cannot_be_bound_is_an_error() -> None:
    async with running() as node:
        other = Machine.new()
        with pytest.raises(OSError, match="in use"):
            async with running(other, peer=node.address):
                pass
