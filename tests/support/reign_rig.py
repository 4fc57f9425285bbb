"""A reign under test: its replicas are played frame by frame, over connections to nobody or over real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from kvnode.node.api import WriteResult
from kvnode.node.replication.feed import FeedSession
from kvnode.node.replication.members import StoredMembers, save_members
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.reign import Reign
from kvnode.protocol.codec import FrameDecoder, encode
from kvnode.protocol.fields import Member
from kvnode.protocol.messages import Ack, Entries, Message, Ping
from kvnode.protocol.snapshot import SnapshotRecord
from kvnode.protocol.types import Position
from support.fake_replicated_store import FakeReplicatedStore, settled, sharing, store_of
from support.holds import turns
from support.link_rig import Owner, unconnected
from support.manual_loop import ManualLoop
from support.memory_disk import MemoryDisk
from support.peers import EPOCH, PRIMARY_ID, hello, subscribe_from

M = TypeVar("M", bound=Message)

#: The primary as a member.
ME = Member(PRIMARY_ID, "p1", "127.0.0.1:1")


def member(name: str) -> Member:
    """The member that `ReignRig.replica` makes of this name."""
    return Member(name.encode().ljust(16, b"."), name, f"{name}.lan:7001")


def snapshot(count: int, value: bytes = b"1") -> list[SnapshotRecord]:
    """What a scan finds."""
    return [SnapshotRecord(b"key%06d" % number, 1, EPOCH, 0, value) for number in range(count)]


class Replica:
    """One session of one replica, over a connection to nobody.

    Attributes:
        feed: of the reign.
        sent: what the reign has sent, PINGs left out; `settle` brings it up to date.
        is_lost: whether the connection is gone.
    """

    def __init__(self, rig: ReignRig, name: str, **changes: Any) -> None:
        self.member = member(name)
        self.sent: list[Message] = []
        self.is_lost = False
        self._rig = rig
        self._decoder = FrameDecoder()
        self.link, self.transport = unconnected(Owner())
        said = hello(name=name, **{"node_id": self.member.node_id, "address": self.member.address, **changes})
        self.feed: FeedSession = rig.reign.begin_feed(self.link, said, said.address)
        self.link.owner = self.feed
        rig.replicas.append(self)

    def say(self, *messages: Message) -> None:
        """Send frames to the reign."""
        for message in messages:
            self.link.data_received(encode(message))

    async def subscribe(self, seq: int = 0) -> None:
        """Ask for the entries after `seq`; settled."""
        self.say(subscribe_from(seq))
        await self._rig.settle()

    def ack(self, seq: int) -> None:
        """Say that all up to there is durable and applied."""
        self.say(Ack(seq, seq, seq))

    async def leave(self) -> None:
        """End the connection."""
        self.lose()
        await self._rig.settle()

    def take(self, kind: type[M]) -> list[M]:
        """The frames of this kind that came since the last call, which drops all others."""
        found = [each for each in self.sent if isinstance(each, kind)]
        self.sent.clear()
        return found

    @property
    def entries(self) -> list[int]:
        """How many entries each ENTRIES frame had since the last call of this or of `take`."""
        return [len(each.records) for each in self.take(Entries)]

    def lose(self) -> None:
        """The transport says that it is gone."""
        if not self.is_lost:
            self.is_lost = True
            self.link.connection_lost(None)

    def collect(self) -> None:
        """Take what was written, and let a transport that was closed be gone."""
        for data in self.transport.writes:
            self._decoder.feed(data)
            self.sent += [each for each in self._decoder if not isinstance(each, Ping)]
        self.transport.writes.clear()
        if self.transport.is_closing():
            self.lose()


class ReignRig:
    """A reign over a `FakeReplicatedStore`, whose clock the test moves.

    Attributes:
        superseded: what `on_superseded` was called with.
    """

    def __init__(self, shared: Shared, members: StoredMembers) -> None:
        self.shared = shared
        self.members = members
        self.superseded: list[int] = []
        self.replicas: list[Replica] = []
        self.reign = Reign(shared, members, self.superseded.append)

    @property
    def store(self) -> FakeReplicatedStore:
        return store_of(self.shared)

    @property
    def loop(self) -> ManualLoop:
        assert isinstance(self.shared.loop, ManualLoop)
        return self.shared.loop

    def replica(self, name: str = "r1", **changes: Any) -> Replica:
        """A session that was answered with WELCOME."""
        return Replica(self, name, **changes)

    async def streaming(self, name: str = "r1", **changes: Any) -> Replica:
        """A replica that has everything."""
        replica = self.replica(name, **changes)
        await replica.subscribe(self.store.last_seq)
        replica.ack(self.store.last_seq)
        await self.settle()
        replica.sent.clear()
        return replica

    def publish(self, count: int = 1, value: bytes = b"1") -> None:
        """Let entries be published, as the store does."""
        first = self.store.last_seq + 1
        self.shared.tail.add(first, self.store.publish(count, value=value))
        self.reign.log_advanced()

    def write(self, wanted: int, timeout_s: float = 5.0) -> asyncio.Future[WriteResult]:
        """Publish an entry that waits for replicas."""
        first = self.store.last_seq + 1
        future: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        self.shared.tail.add(first, self.store.publish())
        self.reign.hold(future, WriteResult(Position(EPOCH, first), 0), wanted, timeout_s)
        self.reign.log_advanced()
        return future

    async def settle(self) -> None:
        """Let the loop turn and the threads work until neither has anything left; the time stands still."""
        for _ in range(3):
            if self.store.may_scan.is_set() and self.store.may_read.is_set():
                await settled(self.shared)
            else:
                await self.shared.disk.run(lambda: None)
            await turns(3)
            for replica in self.replicas:
                replica.collect()

    async def until(self, condition: Callable[[], object]) -> None:
        """Settle until this holds."""
        for _ in range(200):
            if condition():
                return
            await self.settle()
        raise AssertionError("it does not come")

    async def until_scanning(self) -> None:
        """Settle until a thread waits in a scan for `may_scan`."""
        await self.until(lambda: self.store.scanning)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and what it leads to happen."""
        self.loop.advance(seconds)
        await self.settle()


@asynccontextmanager
async def reigning(*members: Member, disk: MemoryDisk | None = None, **settings: Any) -> AsyncIterator[ReignRig]:
    """A reign of `ME`, with these other members."""
    async with sharing(loop=ManualLoop(), disk=disk, **settings) as shared:
        save_members(shared.files, (ME, *members))
        rig = ReignRig(shared, StoredMembers(shared.files, shared.disk))
        try:
            yield rig
        finally:
            rig.store.may_read.set()
            rig.store.may_scan.set()
            rig.reign.end("draining", "the end of the test")
            await rig.settle()
            for replica in rig.replicas:
                replica.lose()
            await rig.settle()
            assert rig.reign.sessions == []
            assert rig.loop.timers == []
            assert [each for each in rig.store.scans if each.is_open] == []
            assert [each for each in rig.store.readers if each.is_open] == []
