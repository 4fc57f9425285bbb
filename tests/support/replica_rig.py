"""A node that follows a primary which the test plays: the real machine, store and files, on a simulated disk."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from kvnode.node.config import Address
from kvnode.node.replication.following import Following
from kvnode.node.replication.logtail import LogTail
from kvnode.node.replication.members import StoredMembers
from kvnode.node.replication.ports import Shared
from kvnode.node.replication.replicadisk import ReplicaDisk
from kvnode.node.startup import OpenedDirectory, open_directory
from kvnode.node.storage.datadir import StateFiles
from kvnode.node.storage.logreader import LogReader
from kvnode.node.storage.replay import reopen_engine
from kvnode.node.store import Store
from kvnode.node.worker import Worker
from kvnode.protocol.entry import decode_entry
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.messages import Ack, Entries, Subscribe
from kvnode.protocol.types import History
from support.events import CapturedEvents
from support.fake_replicated_store import make_identity
from support.holds import turns
from support.manual_loop import ManualLoop
from support.peers import HISTORY, PATIENCE_S, Peer, PeerServer, begin_stream, records
from support.simulated_node import LAYOUT, Machine, SteppingClock, tiny_config


class ReplicaRig:
    """A replica whose clock the test moves.

    Attributes:
        primaries: the node ids that `on_streamed` was told, in order.
        errors: what `on_error` was told, in order.
        failures: what ends the process.
    """

    def __init__(self, machine: Machine, opened: OpenedDirectory, shared: Shared, server: PeerServer) -> None:
        self.machine = machine
        self.opened = opened
        self.shared = shared
        self.server = server
        self.primaries: list[bytes] = []
        self.errors: list[tuple[str, str]] = []
        self.failures: list[BaseException] = []
        self.members = StoredMembers(shared.files, shared.disk)
        self.disk = ReplicaDisk(shared, opened.replica_files, self.members)
        self.following: Following

    async def follow(self, primary: Address) -> None:
        """Begin, as the node does at its start."""
        self.following = Following(
            self.shared,
            self.disk,
            await self.disk.found(),
            primary,
            self.primaries.append,
            lambda code, message: self.errors.append((code, message)),
            self.failures.append,
        )
        self.loop.advance(0)

    @property
    def store(self) -> Store:
        assert isinstance(self.shared.store, Store)
        return self.shared.store

    @property
    def loop(self) -> ManualLoop:
        assert isinstance(self.shared.loop, ManualLoop)
        return self.shared.loop

    @property
    def log(self) -> CapturedEvents:
        assert isinstance(self.shared.log, CapturedEvents)
        return self.shared.log

    @property
    def machine_state(self) -> str:
        """Of the `Follower`."""
        return self.following.machine.state.value

    async def accept(self) -> Peer:
        """The next connection, for which the time for an attempt must have come."""
        return await self.server.accept()

    async def streamed(self, last_seq: int = 0, history: History = HISTORY) -> tuple[Peer, Subscribe]:
        """The next connection, up to HISTORY."""
        peer = await self.accept()
        return peer, await begin_stream(peer, last_seq, history)

    async def applied(self, seq: int) -> None:
        """Return when this is visible."""
        await asyncio.wait_for(asyncio.shield(self.store.applied_reached(seq)), PATIENCE_S)

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when this holds; the time stands still."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self.shared.disk.run(lambda: None)
                await turns(2)

    async def retry(self) -> None:
        """Let the time for the next attempt come."""
        await self.until(lambda: self.machine_state == "waiting")
        self.loop.advance(self.following.machine.retry_at - self.loop.now)

    def log_records(self) -> list[LogRecord]:
        """The log from its beginning on."""
        reader = LogReader(self.machine.disk, self.store.wal)
        found: list[LogRecord] = []
        seq, last = self.store.wal.first_seq, self.store.wal.last_seq
        while seq + len(found) <= last:
            found += reader.read(seq + len(found), last, 1 << 20)[0]
        reader.close()
        return found

    async def value(self, key: bytes) -> bytes | None:
        """A key's value as a reader sees it."""
        record = self.store.cached(key) or (await self.store.read(key)).record
        return None if record is None else record.value


async def send_entries(peer: Peer, first: int, last: int, **options: Any) -> Ack:
    """Send entries in one frame, and wait for the ACK that says that they are durable."""
    peer.send(Entries(records(first, last, **options)))
    return await durable(peer, last)


async def durable(peer: Peer, seq: int, applied: int = 0) -> Ack:
    """Wait for the ACK that says that this is durable, and applied up to there."""
    while True:
        ack = await peer.take(Ack)
        assert ack.durable <= seq
        if ack.durable == seq and ack.applied >= applied:
            return ack


def prefill(machine: Machine, added: Sequence[LogRecord], history: History = HISTORY, **settings: Any) -> None:
    """Put entries into a new directory's log and LevelDB, as a replica that had followed would have them."""
    log = CapturedEvents()
    opened = open_directory(tiny_config(**settings), machine.disk, machine.engines, log)
    storage = opened.storage
    if history.reigns:
        opened.files.save_history(history)
    for record in added:
        storage.wal.append([record])
        storage.engine.write([decode_entry(record.payload)], synced=True)
    opened.files.save_checkpoint(storage.engine.flush().seq)
    assert storage.engine.close(PATIENCE_S)
    storage.wal.close()


@asynccontextmanager
async def following(
    *added: LogRecord,
    history: History = HISTORY,
    listening: bool = True,
    primary: Address | None = None,
    machine: Machine | None = None,
    **settings: Any,
) -> AsyncIterator[ReplicaRig]:
    """A replica and its primary's port. Afterwards nothing of it is left, and it has not failed unnoticed.

    Args:
        added: what it has in its log already, of this history.
        listening: whether the primary is there.
        primary: the address that it follows, if that is not the port's.
        machine: whose directory to go on with; a new one, of a replica, if none is given.
    """
    loop = ManualLoop()
    async with PeerServer() as server:
        address = primary or server.address
        if machine is None:
            machine = Machine.new()
            StateFiles(machine.disk, LAYOUT).save_identity(make_identity("replica", primary=str(address)))
            if added:
                prefill(machine, added, history, **{"name": "r1", **settings})
        if not listening:
            server.stop()
        log = CapturedEvents()
        config = tiny_config(**{"name": "r1", **settings})
        opened = open_directory(config, machine.disk, machine.engines, log)
        failures: list[BaseException] = []
        store = Store(
            config,
            opened.storage,
            opened.files,
            functools.partial(reopen_engine, machine.disk, LAYOUT, machine.engines),
            SteppingClock(),
            log,
            failures.append,
            functools.partial(LogReader, machine.disk),
        )
        real = asyncio.get_running_loop()
        shared = Shared(
            config=config,
            store=store,
            files=opened.files,
            identity=opened.identity,
            clock=SteppingClock(),
            log=log,
            loop=loop,  # type: ignore[arg-type]
            boot_id=b"b" * 16,
            tail=LogTail(),
            disk=Worker("test-disk", real),
            log_reads=Worker("test-feed", real),
            snapshot_reads=Worker("test-sync", real),
            address="127.0.0.1:7002",
        )
        rig = ReplicaRig(machine, opened, shared, server)
        await rig.follow(address)
        try:
            yield rig
        finally:
            rig.failures += failures
            await rig.following.stop()
            if rig.following._link is not None:
                rig.following._link.abort("the end of the test")
            await rig.disk.close()
            store.stop_writes()
            await store.drain()
            await store.close(PATIENCE_S)
            for worker in (shared.disk, shared.log_reads, shared.snapshot_reads):
                await worker.run(lambda: None)
                worker.stop()
            await turns()
        assert loop.timers == []
