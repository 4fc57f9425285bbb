"""A node among others: who is let in, where reads and writes go, and how roles change."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from kvnode.node.api import Acks, ReadToken, WriteResult
from kvnode.node.errors import (
    AlreadyPrimary,
    MemberNotFound,
    NoPrimary,
    NotCaughtUp,
    NotEnoughReplicas,
    NotPrimary,
    NotReplica,
    OutcomeUnknown,
    PromotionRefused,
    Syncing,
)
from kvnode.node.replication import cluster as cluster_module
from kvnode.node.replication import survey as survey_module
from kvnode.node.startup import begin_reign, open_directory
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
    Role,
    Status,
    StatusResult,
    Subscribe,
    Welcome,
    Write,
)
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.types import Epoch, History, Position, Reign, put
from support.cluster_node import ClusterNode, know_members, replica_of, running
from support.crash_plan import DROPPED, KEPT, Failure, SimulatedCrash
from support.events import CapturedEvents
from support.peers import (
    CLUSTER_ID,
    EPOCH,
    HISTORY,
    PRIMARY_ID,
    REPLICA_ID,
    Peer,
    PeerServer,
    hello,
    observe_from,
    records,
    subscribe_from,
    welcome,
)
from support.replica_rig import prefill
from support.simulated_node import LAYOUT, Machine, tiny_config

OP = (put(b"k", b'"v"'),)
#: What a test's other member has seen.
SEEN = History((Reign(EPOCH, 1), Reign(Epoch.of(40, 1), 9)))


class Member2:
    """Another member, which answers every probe.

    Attributes:
        answer: with what.
        asked: by whom.
    """

    def __init__(self, server: PeerServer, answer: Welcome) -> None:
        self.server = server
        self.answer = answer
        self.asked: list[Hello] = []
        self._task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            peer = await self.server._accepted.get()
            self.asked.append(await peer.take(Hello))
            peer.send(self.answer)

    def stop(self) -> None:
        self._task.cancel()


@asynccontextmanager
async def member(answer: Welcome) -> AsyncIterator[Member2]:
    async with PeerServer() as server:
        other = Member2(server, answer)
        try:
            yield other
        finally:
            other.stop()


class Primary:
    """The primary of the replica under test.

    Attributes:
        stream: the replica's session, up to HISTORY.
    """

    def __init__(self, server: PeerServer, history: History) -> None:
        self.server = server
        self.history = history
        self.stream: Peer
        self.writes: Peer

    async def attach(self, last_seq: int = 0) -> None:
        """Take the two connections of a replica, the one that follows and the one that forwards."""
        for _ in range(2):
            peer = await self.server.accept()
            said = await peer.take(Hello)
            peer.send(welcome(last_seq, self.history))
            if said.purpose is Purpose.REPLICA:
                self.stream = peer
                await peer.take(Subscribe)
                peer.send(HistoryFrame(self.history, (Member(PRIMARY_ID, "p1"), Member(REPLICA_ID, "r1"))))
            else:
                assert said.purpose is Purpose.CLIENT
                self.writes = peer

    async def send(self, first: int, last: int) -> None:
        """Stream entries until they are applied."""
        self.stream.send(Entries(records(first, last)))
        while (await self.stream.take(Ack)).applied < last:
            pass


@asynccontextmanager
async def replica(
    last_seq: int = 0, *, attached: bool = True, history: History = HISTORY, members: tuple[Member, ...] = ()
) -> AsyncIterator[tuple[ClusterNode, Primary]]:
    """A replica that has so many entries, and its primary."""
    async with PeerServer() as server:
        machine = replica_of(server.address)
        if last_seq:
            prefill(machine, records(1, last_seq), history, name="r1")
        if members:
            know_members(machine, Member(REPLICA_ID, "r1"), *members)
        primary = Primary(server, history)
        if not attached:
            server.stop()
        async with running(machine, name="r1") as node:
            if attached:
                await primary.attach(last_seq)
                await node.until(lambda: node.cluster.status()["primary"]["connected"])
                await node.until(lambda: node.cluster._forwarder is not None and node.cluster._forwarder.ready)
            yield node, primary


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens what a promotion waits for members that do not answer."""
    monkeypatch.setattr(survey_module, "_ANSWER_S", 0.3)


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
                    (),
                )


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


OTHER_NODE: dict[str, Any] = {"node_id": b"o" * 16, "name": "other"}


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
