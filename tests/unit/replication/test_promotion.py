"""Promotion: what speaks against it, what it does, and what is left of it after any crash."""

import asyncio
import errno
from contextlib import AsyncExitStack
from typing import Any

import pytest

from kvnode.node.api import ReadToken, WriteResult
from kvnode.node.errors import (
    AlreadyPrimary,
    NotCaughtUp,
    NotPrimary,
    OutcomeUnknown,
    PromotionRefused,
    Syncing,
)
from kvnode.node.startup import begin_reign, open_directory
from kvnode.node.storage.datadir import StateFiles
from kvnode.protocol.fields import Member
from kvnode.protocol.messages import (
    Entries,
    Hello,
    HistoryFrame,
    Purpose,
    Role,
    Subscribe,
    Welcome,
    Write,
)
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.types import Epoch, History, Position, Reign, put
from support.cluster_node import ClusterNode, member, replica, replica_of, running
from support.crash_plan import DROPPED, KEPT, Failure, SimulatedCrash
from support.events import CapturedEvents
from support.peers import (
    CLUSTER_ID,
    EPOCH,
    HISTORY,
    PRIMARY_ID,
    PeerServer,
    records,
    subscribe_from,
    welcome,
)
from support.replica_rig import prefill
from support.simulated_node import LAYOUT, Machine, tiny_config

OP = (put(b"k", b'"v"'),)
#: What a test's other member has seen.
SEEN = History((Reign(EPOCH, 1), Reign(Epoch.of(40, 1), 9)))


# ---- promotion: what is refused --------------------------------------------------------------------------------


async def unchanged(node: ClusterNode, before: tuple[Any, ...]) -> None:
    assert (node.identity, node.files.load_history(), node.cluster.status()["role"]) == before
    assert node.failure is None


def state(node: ClusterNode) -> tuple[Any, ...]:
    return node.identity, node.files.load_history(), node.cluster.status()["role"]


async def test_a_primary_is_one_already() -> None:
    async with running() as node:
        before = state(node)
        for force in (False, True):
            with pytest.raises(AlreadyPrimary, match="n1 is the primary") as refused:
                await node.cluster.promote(force=force)
            assert refused.value.fields == {"name": "n1"}
        await unchanged(node, before)


async def test_while_the_primary_answers_it_is_refused(soon: None) -> None:
    async with replica(3) as (node, primary):
        before = state(node)
        answering = asyncio.create_task(answer_probes(primary.server, welcome(3)))
        with pytest.raises(PromotionRefused, match="p1 answers as the primary; nothing was changed") as refused:
            await node.cluster.promote(force=False)
        answering.cancel()
        assert refused.value.fields["reason"] == "primary_answers"
        assert refused.value.hint
        mine, theirs = refused.value.fields["members"]
        assert (mine["name"], mine["role"], mine["last_seq"], mine["reachable"]) == ("r1", "replica", 3, True)
        assert theirs == {
            "name": "p1",
            "address": str(primary.server.address),
            "reachable": True,
            "role": "primary",
            "epoch": str(EPOCH),
            "last_seq": 3,
        }
        await unchanged(node, before)
        # It follows on.
        await primary.send(4, 5)


async def answer_probes(server: PeerServer, answer: Welcome) -> None:
    while True:
        peer = await server.accept()
        await peer.take(Hello)
        peer.send(answer)


@pytest.mark.parametrize(
    ("history", "last_seq"),
    [(HISTORY, 4), (History((Reign(EPOCH, 1), Reign(Epoch.of(9, 1), 3))), 3)],
    ids=["more entries", "a later reign"],
)
async def test_while_a_member_is_ahead_it_is_refused(soon: None, history: History, last_seq: int) -> None:
    ahead = welcome(last_seq, history, Role.REPLICA, name="r2", node_id=b"2" * 16)
    async with member(ahead) as other:
        members = (Member(PRIMARY_ID, "p1", ""), Member(b"2" * 16, "r2", str(other.server.address)))
        async with replica(3, attached=False, members=members) as (node, _):
            before = state(node)
            with pytest.raises(PromotionRefused, match=r"r2 is ahead: it holds .*; nothing was changed") as refused:
                await node.cluster.promote(force=False)
            assert refused.value.fields["reason"] == "member_ahead"
            assert [each["name"] for each in refused.value.fields["members"]] == ["r1", "r2", None]
            await unchanged(node, before)
            answer = await node.cluster.promote(force=True)
            assert Epoch.parse(answer["epoch"]).term == history.current.term + 1


async def test_two_promotions_at_a_time_are_one(soon: None) -> None:
    async with PeerServer() as silent:
        members = (Member(b"2" * 16, "r2", str(silent.address)),)
        async with replica(3, attached=False, members=members) as (node, _):
            first = asyncio.create_task(node.cluster.promote(force=False))
            await silent.accept()
            with pytest.raises(PromotionRefused, match="under way") as refused:
                await node.cluster.promote(force=True)
            assert refused.value.fields == {"reason": "promotion_under_way", "members": []}
            assert (await first)["status"] == "OK"
            with pytest.raises(AlreadyPrimary):
                await node.cluster.promote(force=True)


async def test_data_that_show_no_single_state_are_not_reigned_over_even_by_force() -> None:
    async with PeerServer() as server:
        server.stop()
        machine = replica_of(server.address)
        prefill(machine, records(1, 3), name="r1")
        StateFiles(machine.disk, LAYOUT).save_serve_from(Position(EPOCH, 9))
        async with running(machine, name="r1") as node:
            before = state(node)
            for force in (False, True):
                with pytest.raises(Syncing):
                    await node.cluster.promote(force=force)
            await unchanged(node, before)
            with pytest.raises(Syncing):
                node.cluster.check_ready(None)
            with pytest.raises(Syncing):
                node.cluster.write(OP)
            assert node.cluster.status()["sync"]["state"] == "replaying"


# ---- promotion: what it does -----------------------------------------------------------------------------------


async def test_promoted_it_reigns_with_a_term_above_all_that_were_seen(soon: None) -> None:
    behind = welcome(2, HISTORY, Role.REPLICA, name="r2", node_id=b"2" * 16)
    seen = welcome(1, SEEN, Role.REPLICA, name="r3", node_id=b"3" * 16)
    async with AsyncExitStack() as stack:
        r2 = await stack.enter_async_context(member(behind))
        r3 = await stack.enter_async_context(member(seen))
        gone = await stack.enter_async_context(PeerServer())
        gone.stop()
        members = (
            Member(PRIMARY_ID, "p1", str(gone.address)),
            Member(b"2" * 16, "r2", str(r2.server.address)),
            Member(b"3" * 16, "r3", str(r3.server.address)),
        )
        node, _ = await stack.enter_async_context(replica(3, attached=False, members=members))
        answer = await node.cluster.promote(force=False)
        epoch = Epoch.parse(answer["epoch"])
        assert epoch.term == 41
        assert (answer["status"], answer["name"], answer["last_seq"]) == ("OK", "r1", 3)
        rows = {each["name"]: each for each in answer["members"] if each["name"] is not None}
        assert [rows[name]["reachable"] for name in ("r1", "r2", "r3", "p1")] == [True, True, True, False]
        assert rows["p1"]["reason"]
        assert rows["r3"]["last_seq"] == 1
        assert node.identity.role == "primary"
        assert node.identity.primary is None
        assert node.files.load_history() == node.store.history == HISTORY.begin(epoch, 4)
        node.cluster.check_role("primary")
        assert await node.cluster.write(OP) == WriteResult(Position(epoch, 4), 0)
        assert node.captured.fields_of("promoted")["epoch"] == epoch
        async with node.session(Purpose.REPLICA, cluster_id=CLUSTER_ID, node_id=b"2" * 16, name="r2") as (peer, said):
            assert (said.role, said.history.current) == (Role.PRIMARY, epoch)
            peer.send(subscribe_from(2))
            await peer.take(HistoryFrame)
            assert len((await peer.take(Entries)).records) == 2
        machine = node.machine
    # The next start goes on as the primary.
    machine = machine.after_crash(KEPT)
    async with running(machine, name="r1") as node:
        assert node.store.epoch.term == 42
        node.cluster.check_role("primary")


async def test_a_node_alone_can_be_promoted(soon: None) -> None:
    async with replica(attached=False) as (node, _):
        answer = await node.cluster.promote(force=False)
        assert answer["last_seq"] == 0
        assert (await node.cluster.write(OP)).position.seq == 1


async def test_promotion_ends_what_waits(soon: None) -> None:
    async with replica(3) as (node, primary):
        forwarded = node.cluster.write(OP)
        answered = node.cluster.write(OP)
        frames = [await primary.writes.take(Write) for _ in range(2)]
        primary.writes.send(WriteResultFrame(frames[1].request_id, EPOCH, 9, 0, None, None, None))
        forwarder = node.cluster._forwarder
        assert forwarder is not None
        await node.until(lambda: forwarder._waiting)
        reading = asyncio.create_task(node.cluster.wait_applied(ReadToken(20, None, 20)))
        await asyncio.sleep(0)
        primary.server.stop()
        await node.cluster.promote(force=True)
        for future in (forwarded, answered):
            with pytest.raises(OutcomeUnknown):
                await future
        with pytest.raises(NotCaughtUp):
            await reading
        await node.cluster.write(OP)


async def test_the_old_primary_is_not_followed_any_more(soon: None) -> None:
    async with replica(3) as (node, primary):
        await node.cluster.promote(force=True)
        assert [each for each in await primary.stream.rest() if isinstance(each, Entries | Subscribe)] == []
        await primary.writes.ended()
        assert node.cluster.status()["primary"] is None


async def test_a_superseded_primary_can_be_promoted(soon: None) -> None:
    async with running() as node:
        async with node.session(Purpose.REPLICA) as (late, _):
            late.send(Subscribe(Position(Epoch.of(9, 1), 4), None))
            await late.refused()
        await node.until(lambda: node.identity.superseded_term == 9)
        answer = await node.cluster.promote(force=False)
        assert Epoch.parse(answer["epoch"]).term == 10
        assert node.identity.superseded_term is None
        assert (await node.cluster.write(OP)).position.epoch.term == 10


# ---- promotion: on a failing disk ------------------------------------------------------------------------------


def reopened(machine: Machine) -> tuple[str, History]:
    """The role that the next start has, and its history then."""
    opened = open_directory(tiny_config(name="r1"), machine.disk, machine.engines, CapturedEvents())
    if opened.identity.role == "primary":
        begin_reign(opened, CapturedEvents())
    history = opened.files.load_history() or History()
    assert opened.storage.engine.close(1)
    opened.storage.wal.close()
    return opened.identity.role, history


@pytest.mark.parametrize("path", ["*/node.json*", "*/history*"])
@pytest.mark.parametrize("operation", ["write_at", "sync", "rename", "sync_directory"])
@pytest.mark.parametrize("skip", [0, 1])
async def test_a_disk_that_fails_ends_the_process_and_the_next_start_is_sound(
    soon: None, path: str, operation: str, skip: int
) -> None:
    async with replica(3, attached=False) as (node, _):
        before = state(node)
        where = "/data" if operation == "sync_directory" else path
        failure = Failure(errno.EIO, operation, where, skip=skip)
        node.machine.plan.failures.append(failure)
        try:
            await node.cluster.promote(force=False)
        except OSError:
            assert failure.hits
            assert isinstance(node.failure, OSError)
            with pytest.raises(NotPrimary):
                node.cluster.write(OP)
        else:
            assert not failure.hits
            return
        for survival in (KEPT, DROPPED):
            role, history = reopened(node.machine.after_crash(survival))
            if role == "replica":
                assert history == before[1], "it tells nobody of a term that nobody reigned with"
            else:
                assert history.current.term > EPOCH.term
                assert history.reigns[-1].first_seq == 4


@pytest.mark.parametrize("partial", [0.0, 1.0])
async def test_a_crash_in_any_call_of_a_promotion_leaves_a_replica_or_a_primary(soon: None, partial: float) -> None:
    number = 0
    roles = set()
    while True:
        number += 1
        async with replica(3, attached=False) as (node, _):
            plan = node.machine.plan
            plan.crash_at = len(plan.calls) + number
            plan.crash_partial = partial
            try:
                await node.cluster.promote(force=False)
            except SimulatedCrash:
                pass
            else:
                plan.crash_at = None
                break
            for survival in (KEPT, DROPPED):
                role, history = reopened(node.machine.after_crash(survival))
                roles.add(role)
                if role == "replica":
                    assert history == HISTORY
                else:
                    assert history.current.term > EPOCH.term
                    assert history.reigns[-1].first_seq == 4
    assert roles == {"replica", "primary"}
