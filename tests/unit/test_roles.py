"""A node on its way from one role to another, and what it may show, refuse and remember there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from kvnode.node.api import Acks, ReadToken, WriteResult
from kvnode.node.applied import AppliedSeq
from kvnode.node.config import Address
from kvnode.node.errors import (
    Draining,
    HistoryLost,
    JoinRefused,
    NoPrimary,
    NotCaughtUp,
    NotPrimary,
    ReplicationTimeout,
    Syncing,
)
from kvnode.node.joining import join, later_term
from kvnode.node.replication import forwarding as forwarding_module
from kvnode.node.replication.forwarding import Forwarder
from kvnode.node.replication.ports import Shared
from kvnode.node.rest.errors import STATUS_OF_CODE
from kvnode.node.startup import OpenedDirectory, begin_reign, open_directory, remember_later
from kvnode.node.storage.datadir import StateFiles
from kvnode.protocol.codec import encode
from kvnode.protocol.fields import Member
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    Hello,
    HistoryFrame,
    Purpose,
    Role,
    SnapshotBegin,
    SnapshotEnd,
    Subscribe,
    Write,
)
from kvnode.protocol.messages import WriteResult as WriteResultFrame
from kvnode.protocol.snapshot import SnapshotRecord, encode_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign, put
from support import cluster_node, running_node
from support.cluster_node import ClusterNode, know_members, replica_of
from support.crash_plan import DROPPED, KEPT, SimulatedCrash, torn
from support.events import CapturedEvents
from support.fake_replicated_store import FakeReplicatedStore, make_identity, sharing, store_of
from support.holds import Hold, turns
from support.peers import (
    EPOCH,
    HISTORY,
    MEMBERS,
    PATIENCE_S,
    PRIMARY_ID,
    REPLICA_ID,
    Peer,
    PeerServer,
    entry,
    record,
    records,
    welcome,
)
from support.replica_rig import prefill
from support.simulated_node import LAYOUT, Machine, tiny_config

MiB = 1024 * 1024

LATER = Epoch.of(4, 0x11111111)
#: Of a primary that was promoted when the log had two entries.
FORKED = History((Reign(EPOCH, 1), Reign(LATER, 3)))
SYNC_ID = b"s" * 16


class Primary:
    """The primary of the node under test, played; it answers every HELLO.

    Attributes:
        welcome: what it says of itself.
        streams: sessions of the replica that subscribed, with what they asked for.
    """

    def __init__(self, server: PeerServer) -> None:
        self.server = server
        self.welcome = welcome(60)
        self.streams: asyncio.Queue[tuple[Peer, Subscribe]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._accept())]

    @property
    def address(self) -> Address:
        return self.server.address

    async def stream(self) -> tuple[Peer, Subscribe]:
        """The next session of the replica, which was told the history."""
        return await asyncio.wait_for(self.streams.get(), PATIENCE_S)

    async def _accept(self) -> None:
        while True:
            self._tasks.append(asyncio.create_task(self._greet(await self.server._accepted.get())))

    async def _greet(self, peer: Peer) -> None:
        hello = await peer.take(Hello)
        peer.send(self.welcome)
        if hello.purpose is Purpose.REPLICA:
            subscribe = await peer.take(Subscribe)
            peer.send(HistoryFrame(self.welcome.history, MEMBERS))
            self.streams.put_nowait((peer, subscribe))

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def primary() -> AsyncIterator[Primary]:
    """A primary that has 60 entries of HISTORY."""
    async with PeerServer() as server:
        played = Primary(server)
        try:
            yield played
        finally:
            played.end()


async def sent(peer: Peer, first: int, last: int) -> None:
    """Send entries, and wait until they are durable."""
    peer.send(Entries(records(first, last)))
    while (await peer.take(Ack)).durable < last:
        pass


def nobody() -> Address:
    """An address at which nothing listens."""
    return Address("127.0.0.1", 1)


# ---- what a replica shows ----------------------------------------------------------------------------------------


async def test_a_token_of_a_reign_that_a_replica_has_not_heard_of_is_not_lost_but_not_there_yet() -> None:
    async with primary() as far, cluster_node.running(replica_of(far.address)) as node:
        # Before it has anything, too.
        for token in (ReadToken(5, EPOCH, 0), ReadToken(5, LATER, 0)):
            with pytest.raises(NotCaughtUp):
                await node.cluster.wait_applied(token)
        peer, _ = await far.stream()
        await sent(peer, 1, 3)
        await node.store.applied_reached(3)
        await node.cluster.wait_applied(ReadToken(3, EPOCH, 0))
        for token in (ReadToken(2, LATER, 0), ReadToken(3, LATER, 0), ReadToken(9, EPOCH, 0)):
            with pytest.raises(NotCaughtUp) as refused:
                await node.cluster.wait_applied(token)
            assert STATUS_OF_CODE[refused.value.code] == 503
        # What can never come is lost all the same.
        with pytest.raises(HistoryLost):
            await node.cluster.wait_applied(ReadToken(2, Epoch.of(2, 7), 0))
        far.server.stop()
        await node.cluster.promote(force=True)
        # Whoever orders writes has heard of every reign that its clients may.
        with pytest.raises(HistoryLost):
            await node.cluster.wait_applied(ReadToken(3, Epoch.of(99, 7), 0))


async def test_what_is_held_back_is_not_in_the_cache_either() -> None:
    async with running_node.running() as node:
        key = b"k1"
        await node.put(key)
        assert node.store.cached(key) is not None
        node.store.hold_back("a test says so")
        assert node.store.cached(key) is None
        added = entry(2, put(key, b"2"), epoch=node.store.epoch)
        sent_record = record(2, put(key, b"2"), epoch=node.store.epoch)
        # Whether or not the store knows that another node orders: a single put goes to the cache of one that does.
        await node.store.append([sent_record], [added], lambda: None)
        assert node.store.applied.seq == 2
        assert node.store.cached(key) is None
        with pytest.raises(Syncing):
            await node.store.read(key)
        node.store.hold_back(None)
        assert await node.get(key) == b"2"


# ---- a full sync and a promotion ---------------------------------------------------------------------------------


def snapshot(first: int, last: int) -> list[SnapshotRecord]:
    return [SnapshotRecord(b"new%04d" % number, 5, EPOCH, 0, b"%d" % number) for number in range(first, last + 1)]


async def resume_sync(far: Primary, node: ClusterNode) -> Peer:
    """Let a full sync be cut and resumed, and all of it be sent: copied from 50 to 55."""
    peer, _ = await far.stream()
    peer.send(SnapshotBegin(SYNC_ID, Position(EPOCH, 50), Position(EPOCH, 50), resumed=False))
    peer.send(encode_chunk(snapshot(1, 20)))
    await node.until(lambda: node.cluster._replica_disk.incoming_keys == 20)
    peer.reset()
    peer, subscribe = await far.stream()
    assert subscribe.incoming == Incoming(SYNC_ID, Position(EPOCH, 50), Position(EPOCH, 50), b"new0020")
    peer.send(SnapshotBegin(SYNC_ID, Position(EPOCH, 55), Position(EPOCH, 50), resumed=True))
    peer.send(encode_chunk(snapshot(21, 40)), SnapshotEnd(Position(EPOCH, 55), 20))
    return peer


@pytest.mark.parametrize("when", ["before", "in"])
async def test_no_promotion_while_the_data_are_being_replaced(when: str) -> None:
    async with primary() as far, cluster_node.running(replica_of(far.address)) as node:
        following = node.cluster._following
        assert following is not None
        files = node.cluster._files
        serving: list[int] = []

        async def watch() -> None:
            while True:
                seq = node.store.applied.seq
                if 50 <= seq < 55 and (node.store.serving or node.store.cached(b"new0001") is not None):
                    serving.append(seq)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        with Hold(files.incoming, "prepare_swap") if when == "before" else Hold(files, "swap") as hold:
            peer = await resume_sync(far, node)
            await hold.reached()
            promoting = asyncio.create_task(node.cluster.promote(force=True))
            await node.until(lambda: following._stopping or promoting.done())
            assert promoting.done() is (when == "in")
            hold.release()
            with pytest.raises(Syncing) as refused:
                await promoting
            assert STATUS_OF_CODE[refused.value.code] == 503
            if when == "in":
                await node.until(lambda: node.store.applied.seq == 50)
        assert node.identity.role == "replica"
        assert node.files.load_serve_from() == Position(EPOCH, 55)
        for force in (False, True):
            with pytest.raises(Syncing):
                await node.cluster.promote(force=force)
        with pytest.raises(Syncing):
            await node.cluster.read(b"new0001")
        with pytest.raises(Syncing):
            node.cluster.write((put(b"k", b"1"),))
        # It goes on following, over the same session or a new one.
        if when == "before":
            peer, subscribe = await far.stream()
            assert subscribe.position == Position(EPOCH, 50)
        await sent(peer, 51, 54)
        with pytest.raises(Syncing):
            await node.cluster.read(b"new0001")
        await sent(peer, 55, 56)
        await node.store.applied_reached(56)
        assert (await node.cluster.read(b"new0030")).record is not None
        watching.cancel()
        assert serving == [], "a mix of two states was shown"


# ---- a log that has diverged -------------------------------------------------------------------------------------


async def test_a_replica_that_has_diverged_serves_nothing_after_a_restart_without_its_primary() -> None:
    async with primary() as far:
        far.welcome = welcome(20, FORKED)
        machine = replica_of(far.address)
        prefill(machine, records(1, 5), name="r1")
        async with cluster_node.running(machine, name="r1") as node:
            _, subscribe = await far.stream()
            assert subscribe.position == Position(EPOCH, 5)
            (name,) = node.cluster.status()["diverged"]
            far.server.stop()
            machine = node.machine
        for survival in (KEPT, DROPPED):
            async with cluster_node.running(machine.after_crash(survival), name="r1") as node:
                assert node.cluster.status()["diverged"] == [name]
                for refused in (
                    lambda: node.cluster.check_ready(None),
                    lambda: node.cluster.write((put(b"k", b"1"),)),
                ):
                    with pytest.raises(Syncing):
                        refused()
                with pytest.raises(Syncing, match="diverged"):
                    await node.cluster.read(b"k1")
                with pytest.raises(Syncing, match="diverged"):
                    await node.cluster.promote(force=False)
                assert node.identity.role == "replica"
                # With force it goes on with what only it has.
                await node.cluster.promote(force=True)
                assert (await node.cluster.read(b"k5")).record is not None
                assert (await node.cluster.write((put(b"k", b"1"),))).position.seq == 6


# ---- a crash in a promotion --------------------------------------------------------------------------------------


def plain() -> Machine:
    """A replica with three entries."""
    machine = replica_of(nobody())
    prefill(machine, records(1, 3), name="r1")
    return machine


def ahead(first_seq: int) -> Callable[[], Machine]:
    """A replica that knows of a reign of which it has no entry."""

    def make() -> Machine:
        machine = replica_of(nobody())
        prefill(machine, records(1, 3), HISTORY.begin(LATER, first_seq), name="r1")
        return machine

    return make


def syncing() -> Machine:
    """A replica that has begun a full sync from a later primary."""
    machine = plain()
    opened = open_directory(tiny_config(name="r1"), machine.disk, machine.engines, CapturedEvents())
    at = Position(Epoch.of(9, 1), 50)
    opened.replica_files.incoming.begin(Incoming(SYNC_ID, at, at), resumed=False)
    opened.replica_files.incoming.store(snapshot(1, 5))
    opened.replica_files.incoming.close()
    close(opened)
    return machine


def superseded() -> Machine:
    """A primary that has heard of a later one."""
    machine = plain()
    files = StateFiles(machine.disk, LAYOUT)
    files.save_identity(make_identity("primary", node_id=REPLICA_ID.hex(), name="r1", superseded_term=9))
    return machine


def close(opened: OpenedDirectory) -> None:
    assert opened.storage.engine.close(PATIENCE_S)
    opened.storage.wal.close()


async def crash_in_promotion(machine: Machine, number: int, seen_term: int) -> list[Machine]:
    """What several crashes in the call of that number of it leave; nothing when there is no such call."""
    async with cluster_node.running(machine, name="r1") as node:
        plan = machine.plan
        plan.crash_at = len(plan.calls) + number
        left: list[Machine] = []
        with suppress(SimulatedCrash):
            await node.cluster._promote(seen_term, force=True)
        if plan.dead:
            left = [machine.after_crash(survival) for survival in (KEPT, DROPPED, torn(number))]
        # It lives on, to be stopped.
        plan.crash_at, plan.dead = None, False
    return left


def check_left(machine: Machine, floor_term: int) -> str:
    """Check that a directory opens, as what it may be; returns its role."""
    log = CapturedEvents()
    opened = open_directory(tiny_config(name="r1"), machine.disk, machine.engines, log)
    identity, history = opened.identity, opened.storage.history
    try:
        if identity.role == "replica":
            return "replica"
        if identity.superseded_term is not None:
            assert identity.superseded_term == floor_term
            return "superseded"
        begin_reign(opened, log)
        assert opened.storage.history.current.term > floor_term, f"{history} became {opened.storage.history}"
        assert opened.storage.history.reigns[-1].first_seq == 4
        assert opened.storage.wal.last_seq == 3
        return "primary"
    finally:
        close(opened)


@pytest.mark.parametrize(
    ("make", "seen_term", "floor_term"),
    [
        pytest.param(plain, 0, 3, id="plain"),
        pytest.param(plain, 12, 12, id="others-have-seen-more"),
        pytest.param(ahead(4), 0, 4, id="history-one-ahead"),
        pytest.param(ahead(9), 0, 4, id="history-ahead"),
        pytest.param(syncing, 0, 9, id="sync-begun"),
        pytest.param(superseded, 0, 9, id="superseded"),
    ],
)
async def test_a_crash_in_any_step_of_a_promotion_leaves_a_directory_that_opens(
    make: Callable[[], Machine], seen_term: int, floor_term: int
) -> None:
    prepared = make()
    roles = set()
    for number in count(1):
        left = await crash_in_promotion(prepared.after_crash(KEPT), number, seen_term)
        if not left:
            break
        roles |= {check_left(machine, floor_term) for machine in left}
    assert roles == {"primary", "superseded" if make is superseded else "replica"}
    assert number > 10


# ---- joining -----------------------------------------------------------------------------------------------------

OLD = "OLD"


@pytest.mark.parametrize(
    ("identity", "own_term", "found_term", "code"),
    [
        # Promoted from OLD: only a later reign of OLD is one to follow.
        ({"promoted_from": OLD}, 4, 3, "stale_primary"),
        ({"promoted_from": OLD}, 4, 4, "stale_primary"),
        ({"promoted_from": OLD}, 4, 5, None),
        # Of those that it did not follow before, one of the same term may be the one that is to go on.
        ({"promoted_from": "127.0.0.1:2"}, 4, 3, "stale_primary"),
        ({"promoted_from": "127.0.0.1:2"}, 4, 4, None),
        # The former primary.
        ({}, 3, 4, None),
        ({}, 4, 4, None),
        ({"superseded_term": 4}, 3, 4, None),
        ({"superseded_term": 4, "promoted_from": OLD}, 4, 4, None),
        # One that follows somebody.
        ({"role": "replica", "primary": "127.0.0.1:2"}, 4, 3, None),
    ],
)
async def test_who_has_reigned_since_does_not_follow_an_older_primary(
    identity: dict[str, Any], own_term: int, found_term: int, code: str | None
) -> None:
    machine = Machine.new()
    files = StateFiles(machine.disk, LAYOUT)
    async with primary() as far:
        far.welcome = welcome(20, History((Reign(Epoch.of(found_term, 5), 1),)))
        named = {name: str(far.address) if value == OLD else value for name, value in identity.items()}
        files.save_identity(make_identity(**{"role": "primary", "node_id": REPLICA_ID.hex(), "name": "r1", **named}))
        files.save_history(History((Reign(Epoch.of(own_term, 7), 1),)))
        before = files.load_identity()
        joining = join(tiny_config(name="r1"), machine.disk, far.address, CapturedEvents())
        if code is None:
            await joining
            after = files.load_identity()
            assert after is not None
            assert before is not None
            assert after == replace(
                before,
                role="replica",
                primary=str(far.address),
                primary_id=PRIMARY_ID.hex(),
                superseded_term=None,
                promoted_from=None,
            )
        else:
            with pytest.raises(JoinRefused) as refused:
                await joining
            assert refused.value.code == code
            assert refused.value.hint is not None
            assert "kvnode start" in refused.value.hint
            assert files.load_identity() == before


async def test_a_later_primary_that_was_found_at_a_start_is_remembered() -> None:
    machine = Machine.new()
    async with cluster_node.running(machine) as node:
        cluster_id = node.opened.identity.cluster_bytes
        machine = node.machine
    async with primary() as far:
        far.welcome = welcome(20, FORKED, cluster_id=cluster_id)
        know_members(machine, Member(PRIMARY_ID, "p1", str(far.address)))
        log = CapturedEvents()
        opened = open_directory(tiny_config(), machine.disk, machine.engines, log)
        later, seen_term = await later_term(opened, log)
        assert later == seen_term == 4
        remember_later(opened, later)
        close(opened)
    for survival in (KEPT, DROPPED):
        async with cluster_node.running(machine.after_crash(survival)) as node:
            assert node.identity.superseded_term == 4
            with pytest.raises(NotPrimary):
                node.cluster.write((put(b"k", b"1"),))
            async with node.session(Purpose.PROBE) as (_, said):
                assert said.role is Role.REPLICA


# ---- forwarding --------------------------------------------------------------------------------------------------


class Forwarding:
    """A forwarder, and its primary's port."""

    def __init__(self, shared: Shared, server: PeerServer) -> None:
        self.shared = shared
        self.server = server
        self.forwarder = Forwarder(shared, server.address)

    @property
    def store(self) -> FakeReplicatedStore:
        return store_of(self.shared)

    async def connected(self) -> Peer:
        """The next connection, over which writes can be sent."""
        peer = await self.server.accept()
        await peer.take(Hello)
        peer.send(welcome())
        await self.until(lambda: self.forwarder.ready)
        return peer

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when this holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await turns(1)

    def write(self, timeout_s: float = PATIENCE_S) -> asyncio.Future[WriteResult]:
        return self.forwarder.write((put(b"k", b"1"),), Acks(0, timeout_s), 10)


@asynccontextmanager
async def forwarding() -> AsyncIterator[Forwarding]:
    async with PeerServer() as server, sharing(role="replica") as shared:
        at = Forwarding(shared, server)
        try:
            yield at
        finally:
            await at.forwarder.stop()
            await turns()


def answer(request_id: int, seq: int) -> WriteResultFrame:
    return WriteResultFrame(request_id, EPOCH, seq, 0, None, None, None)


async def test_a_link_that_is_closing_takes_no_write() -> None:
    async with forwarding() as at:
        await at.connected()
        link = at.forwarder._link
        assert link is not None
        # In the turn of the loop in which this comes, the end of the link is not told yet.
        at.forwarder.frame_received(link, Error("draining", "this node is stopping"))
        assert at.forwarder._link is link
        with pytest.raises(NoPrimary) as refused:
            at.write()
        assert STATUS_OF_CODE[refused.value.code] == 503
        assert at.forwarder._sent == {}


async def test_a_late_end_of_an_old_link_is_none_of_the_new_one() -> None:
    async with forwarding() as at:
        peer = await at.connected()
        old = at.forwarder._link
        assert old is not None
        peer.reset()
        await at.until(lambda: at.forwarder._link is not old)
        peer = await at.connected()
        future = at.write()
        frame = await peer.take(Write)
        at.forwarder.link_lost(old, "late")
        assert at.forwarder.ready
        assert not future.done()
        at.store.publish(1)
        peer.send(answer(frame.request_id, 1))
        assert (await future).position.seq == 1


async def test_waits_that_have_ended_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding_module, "_SWEEP_S", 0.001)
    async with forwarding() as at:
        peer = await at.connected()
        for _ in range(6):
            futures = [at.write(timeout_s=0) for _ in range(50)]
            for _ in futures:
                frame = await peer.take(Write)
                # Of a seq that never comes here.
                peer.send(answer(frame.request_id, 10_000))
            for outcome in await asyncio.gather(*futures, return_exceptions=True):
                assert isinstance(outcome, ReplicationTimeout)
        applied: AppliedSeq = at.store._applied
        await turns()
        assert [each for each in applied._waiters if not each[2].done()] == []
        assert len(applied._waiters) <= 128
        assert at.forwarder._waiting == set()


@pytest.mark.parametrize("fields", [b"{", b"[1]", b"null", b"3", b"\xff\xfe", b"[" * 5000, b'{"hint":3}'])
async def test_error_fields_that_are_none_do_no_harm(fields: bytes) -> None:
    async with forwarding() as at:
        at.store.publish(5)
        peer = await at.connected()
        future, other = at.write(), at.write()
        frames = [await peer.take(Write) for _ in range(2)]
        peer.send(WriteResultFrame(frames[0].request_id, Epoch(0), 0, 0, "draining", "it stops", fields))
        with pytest.raises(Draining, match="it stops"):
            await future
        peer.send(answer(frames[1].request_id, 5))
        assert (await other).position.seq == 5
        assert at.forwarder.ready


# ---- how much a peer may say at once -----------------------------------------------------------------------------

#: A write as large as this configuration allows, and how it is limited.
SMALL: dict[str, Any] = {"max_batch_items": 10, "max_batch_bytes": 200_000, "max_value_bytes": 200_000}


def frame_of(size: int) -> bytes:
    """A frame of this many bytes of value, and some."""
    return encode(Write(1, (put(b"k", b'"%b"' % (b"x" * size)),), 0, 0))


@pytest.mark.parametrize("purpose", [Purpose.OBSERVE, Purpose.REPLICA, Purpose.PROBE, Purpose.CLIENT])
async def test_a_frame_larger_than_its_purpose_can_need_is_refused(purpose: Purpose) -> None:
    async with cluster_node.running(**SMALL) as node, node.session(purpose) as (peer, _):
        peer.send(frame_of(MiB))
        error = await peer.refused()
        assert error.code == "protocol_error"
        assert "over the limit" in error.message


async def test_the_largest_write_is_not_too_large_for_a_frame() -> None:
    async with cluster_node.running(**SMALL) as node, node.session(Purpose.CLIENT) as (peer, _):
        value = b'"%b"' % (b"x" * (20_000 - 2 - 3))
        ops = tuple([put(b"k%02d" % number, value) for number in range(10)])
        assert sum(len(op.key) + len(op.value) for op in ops) == SMALL["max_batch_bytes"]
        peer.send(Write(7, ops, 0, 0))
        result = await peer.take(WriteResultFrame)
        assert (result.request_id, result.error_code, result.seq) == (7, None, 1)
