"""A node with its peer port and without REST, on a simulated disk, and the peers among which it is."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kvnode.node.clock import RealClock
from kvnode.node.config import Address, Config
from kvnode.node.replication.cluster import Cluster
from kvnode.node.replication.members import save_members
from kvnode.node.service import Node
from kvnode.node.startup import OpenedDirectory, begin_reign, open_directory
from kvnode.node.storage.datadir import Identity, StateFiles
from kvnode.node.storage.replay import reopen_engine
from kvnode.node.store import Store
from kvnode.node.worker import Worker
from kvnode.protocol.fields import Member
from kvnode.protocol.messages import Ack, Entries, Hello, HistoryFrame, Message, Purpose, Subscribe, Welcome
from kvnode.protocol.types import History
from support.events import CapturedEvents
from support.fake_replicated_store import make_identity
from support.holds import turns
from support.peers import (
    HISTORY,
    PATIENCE_S,
    PRIMARY_ID,
    REPLICA_ID,
    Peer,
    PeerServer,
    connected,
    hello,
    records,
    until,
    welcome,
)
from support.replica_rig import prefill
from support.simulated_node import DATA, LAYOUT, Machine

ANY_PORT = Address("127.0.0.1", 0)


class ClusterNode:
    """One node under way.

    Attributes:
        address: of its peer port.
    """

    def __init__(self, machine: Machine, config: Config, opened: OpenedDirectory, captured: CapturedEvents) -> None:
        self.machine = machine
        self.config = config
        self.opened = opened
        self.captured = captured
        reopen = functools.partial(reopen_engine, machine.disk, LAYOUT, machine.engines)
        self.node = Node(config, opened, reopen, RealClock(), captured)
        self.address = ANY_PORT
        self._is_stopped = False

    @property
    def cluster(self) -> Cluster:
        return self.node.cluster

    @property
    def store(self) -> Store:
        return self.node.store

    @property
    def failure(self) -> BaseException | None:
        """Why the process would end."""
        return self.node._failure

    @property
    def files(self) -> StateFiles:
        return StateFiles(self.machine.disk, LAYOUT)

    @property
    def identity(self) -> Identity:
        """As it is on the disk."""
        found = self.files.load_identity()
        assert found is not None
        return found

    @asynccontextmanager
    async def session(self, purpose: Purpose = Purpose.CLIENT, **changes: Any) -> AsyncIterator[tuple[Peer, Welcome]]:
        """A session of somebody, whose HELLO was answered."""
        async with connected(self.address) as peer:
            peer.send(hello(purpose, **{"cluster_id": self.opened.identity.cluster_bytes, **changes}))
            yield peer, await peer.take(Welcome)

    @asynccontextmanager
    async def stranger(self, *said: Message | bytes) -> AsyncIterator[Peer]:
        """A connection on which this is said."""
        async with connected(self.address) as peer:
            peer.send(*said)
            yield peer

    async def stop(self) -> None:
        """Stop in order; after a failure or a crash, end only what is left in this process."""
        if self._is_stopped:
            return
        self._is_stopped = True
        store, cluster = self.store, self.cluster
        if self.machine.plan.dead or self.failure is not None:
            shared = self.node._shared
            await cluster.abandon()
            for worker in (shared.disk, shared.log_reads, shared.snapshot_reads, *self._store_workers()):
                worker.stop()
        else:
            await cluster.stop()
            store.stop_writes()
            await store.drain()
            await store.close(PATIENCE_S)
        await turns()

    def _store_workers(self) -> tuple[Worker, ...]:
        store = self.store
        return (store._commits, store._point_reads, *store._range_reads, store._maintenance)

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when this holds."""
        await until(condition)


def replica_of(primary: Address | str, **changes: Any) -> Machine:
    """A machine whose directory is one of a replica that has nothing yet."""
    machine = Machine.new()
    StateFiles(machine.disk, LAYOUT).save_identity(make_identity("replica", primary=str(primary), **changes))
    return machine


def know_members(machine: Machine, *members: Member) -> Machine:
    """Write down who is a member."""
    save_members(StateFiles(machine.disk, LAYOUT), members)
    return machine


@asynccontextmanager
async def running(machine: Machine | None = None, **settings: Any) -> AsyncIterator[ClusterNode]:
    """A node in the role that its directory says; a new primary if none is given. Stopped in the end."""
    machine = machine if machine is not None else Machine.new()
    defaults = {"peer": ANY_PORT, "name": "n1", "wal_segment_bytes": 1 << 20}
    config = Config(data=DATA, **{**defaults, **settings})
    captured = CapturedEvents()
    opened = open_directory(config, machine.disk, machine.engines, captured)
    if opened.identity.role == "primary" and opened.superseded_term is None:
        begin_reign(opened, captured)
    node = ClusterNode(machine, config, opened, captured)
    node.address = await node.cluster.start()
    # A primary notes its own address as a member's first.
    members = node.cluster._members
    await until(lambda: members.all == members.next)
    try:
        yield node
    finally:
        await node.stop()


class OtherMember:
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
async def member(answer: Welcome) -> AsyncIterator[OtherMember]:
    async with PeerServer() as server:
        other = OtherMember(server, answer)
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
