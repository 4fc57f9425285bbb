"""The store as replication sees it, in memory, and what the shells of a node share, for tests of single shells."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from kvnode.node.api import Acks, WriteResult
from kvnode.node.applied import AppliedSeq
from kvnode.node.clock import RealClock
from kvnode.node.config import Config
from kvnode.node.errors import LogDamaged, LogTrimmed, NotCaughtUp
from kvnode.node.replication.logtail import LogTail
from kvnode.node.replication.ports import Shared
from kvnode.node.storage.datadir import Identity, StateFiles
from kvnode.node.worker import Worker
from kvnode.protocol.errors import KvError
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.follow import LogExtent, position_of
from kvnode.protocol.snapshot import SnapshotRecord
from kvnode.protocol.types import Entry, Epoch, History, Op, Position, Seq
from support.events import CapturedEvents
from support.memory_disk import MemoryDisk
from support.peers import CLUSTER_ID, EPOCH, HISTORY, records
from support.simulated_node import DATA, LAYOUT

#: Ends a thread that nobody lets go on.
_PATIENCE_S = 20.0


class FakeReader:
    """Implements `RecordReader` over the store's list."""

    def __init__(self, store: FakeReplicatedStore) -> None:
        self.is_open = True
        self._store = store

    def read(self, first_seq: Seq, last_seq: Seq, max_bytes: int) -> tuple[tuple[LogRecord, ...], int]:
        store = self._store
        store.log_reads += 1
        assert store.may_read.wait(_PATIENCE_S)
        assert self.is_open, "read after it was closed"
        if store.read_error is not None:
            raise store.read_error
        if store.damaged:
            raise LogDamaged(DATA / "wal" / "00000000000000000001.wal", 100, first_seq, "a test says so")
        if first_seq < store.first_seq:
            raise LogTrimmed(DATA / "wal", first_seq, store.first_seq)
        found: list[LogRecord] = []
        size = 0
        for each in store.log[first_seq - store.first_seq : last_seq + 1 - store.first_seq]:
            if found and size + len(each.payload) > max_bytes:
                break
            found.append(each)
            size += len(each.payload)
        assert found, f"a read of {first_seq}, which is not in the log"
        return tuple(found), size

    def close(self) -> None:
        self.is_open = False


class FakeScan:
    """Implements `RecordScan` over the store's snapshot."""

    def __init__(self, store: FakeReplicatedStore, after_key: bytes) -> None:
        self.is_open = True
        self.applied = store.applied
        self._store = store
        self._records = [each for each in store.snapshot if each.key > after_key]

    def next_records(self, max_bytes: int) -> list[SnapshotRecord]:
        self._store.scanning = True
        assert self._store.may_scan.wait(_PATIENCE_S)
        assert self.is_open, "read after it was closed"
        if self._store.scan_error is not None:
            raise self._store.scan_error
        taken: list[SnapshotRecord] = []
        size = 0
        while self._records and (not taken or size < max_bytes):
            taken.append(self._records.pop(0))
            size += len(taken[-1].key) + len(taken[-1].value)
        return taken

    def close(self) -> None:
        self.is_open = False


class FakeReplicatedStore:
    """Implements `ReplicatedStore` with a list of records. What threads call waits while a test holds it.

    Attributes:
        log: what was published; the first one is of `first_seq`.
        snapshot: what a scan finds.
        history: the reigns.
        damaged: whether the log is.
        read_error, scan_error: raised by reads of the log, and by scans, if set.
        may_read, may_scan: cleared, reads of the log, or steps of a scan, stay on their thread.
        scanning: whether a step of a scan was ever begun.
        log_reads: how many reads of the log were begun.
        readers, scans: all that were made.
        writes: what was written, with what was asked of it; `answers` are its futures, in order.
        write_error: raised by `write`.
        appends: what `append` was given; each is answered at once, unless `hold_appends` is set: then by `end_append`.
        held_back: what `hold_back` was told, in order.
        ended_waits: the reasons that `end_applied_waits` was given.
    """

    def __init__(self, history: History = HISTORY) -> None:
        self.log: list[LogRecord] = []
        self.first_seq: Seq = 1
        self.snapshot: list[SnapshotRecord] = []
        self.history = history
        self.damaged = False
        self.read_error: Exception | None = None
        self.scan_error: Exception | None = None
        self.may_read, self.may_scan = threading.Event(), threading.Event()
        self.may_read.set()
        self.may_scan.set()
        self.log_reads = 0
        self.scanning = False
        self.readers: list[FakeReader] = []
        self.scans: list[FakeScan] = []
        self.writes: list[tuple[tuple[Op, ...], Acks | None]] = []
        self.answers: list[asyncio.Future[WriteResult]] = []
        self.write_error: KvError | None = None
        self.appends: list[tuple[LogRecord, ...]] = []
        self.append_error: BaseException | None = None
        self.hold_appends = False
        self.held_back: list[str | None] = []
        self.ended_waits: list[str] = []
        self.wrote = asyncio.Event()
        self._applied = AppliedSeq(0, asyncio.get_running_loop())
        self._appending: tuple[tuple[Entry, ...], Callable[[], None], asyncio.Future[None]] | None = None

    # ---- for tests -------------------------------------------------------------------------------------------------

    @property
    def last_seq(self) -> Seq:
        """Of the last published entry."""
        return self._applied.seq

    def publish(self, count: int = 1, *, value: bytes = b"1", epoch: Epoch = EPOCH) -> tuple[LogRecord, ...]:
        """Let so many more entries be in the log, visible, and returns them; nobody is told."""
        first = self.last_seq + 1
        added = records(first, first + count - 1, epoch=epoch, value=value)
        self.log += added
        self._applied.advance(first + count - 1)
        return added

    def trim(self, first_seq: Seq) -> None:
        """Let the log begin here."""
        del self.log[: first_seq - self.first_seq]
        self.first_seq = first_seq

    def start_at(self, seq: Seq, epoch: Epoch = EPOCH) -> None:
        """An empty log that goes on after `seq`."""
        self.log.clear()
        self.first_seq = seq + 1
        self._applied.restart(seq, NotCaughtUp("a test says so"))

    def end_append(self) -> None:
        """Let what is being appended become durable and visible."""
        assert self._appending is not None, "nothing is being appended"
        (entries, on_durable, future), self._appending = self._appending, None
        on_durable()
        self._applied.advance(entries[-1].seq)
        future.set_result(None)

    # ---- ReplicatedStore -------------------------------------------------------------------------------------------

    @property
    def applied(self) -> Position:
        return position_of(self.history, self.last_seq)

    @property
    def wal(self) -> Any:
        raise AssertionError("this store has no log of the storage's")

    @property
    def extent(self) -> LogExtent:
        return LogExtent(self.first_seq, self.last_seq)

    def log_bytes_from(self, seq: Seq) -> int:
        return sum(len(each.payload) for each in self.log[max(0, seq - self.first_seq) :])

    def read_log(self) -> FakeReader:
        self.readers.append(FakeReader(self))
        return self.readers[-1]

    def scan_records(self, after_key: bytes) -> FakeScan:
        if self.scan_error is not None:
            raise self.scan_error
        self.scans.append(FakeScan(self, after_key))
        return self.scans[-1]

    def write(self, ops: Sequence[Op], acks: Acks | None = None) -> asyncio.Future[WriteResult]:
        if self.write_error is not None:
            raise self.write_error
        self.writes.append((tuple(ops), acks))
        self.answers.append(asyncio.get_running_loop().create_future())
        self.wrote.set()
        return self.answers[-1]

    def append(
        self, added: Sequence[LogRecord], entries: Sequence[Entry], on_durable: Callable[[], None]
    ) -> asyncio.Future[None]:
        assert self._appending is None, "two appends at a time"
        assert [each.seq for each in entries] == list(range(self.last_seq + 1, self.last_seq + 1 + len(entries)))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.appends.append(tuple(added))
        if self.append_error is not None:
            future.set_exception(self.append_error)
            future.exception()
            return future
        self.log += added
        self._appending = (tuple(entries), on_durable, future)
        if not self.hold_appends:
            asyncio.get_running_loop().call_soon(self.end_append)
        return future

    def begin_reign(self, history: History) -> None:
        self.use_history(history)

    def end_reign(self, error: Callable[[], KvError]) -> None:
        self.write_error = error()

    def use_history(self, history: History) -> None:
        self.history = history

    def hold_back(self, reason: str | None) -> None:
        self.held_back.append(reason)

    async def replace_storage(self, job: Callable[[], Any]) -> None:
        raise AssertionError("this store cannot be replaced")

    def applied_reached(self, seq: Seq) -> asyncio.Future[None]:
        return self._applied.reached(seq)

    def end_applied_waits(self, reason: str) -> None:
        self.ended_waits.append(reason)
        self._applied.end_waits(NotCaughtUp(reason))


def make_identity(role: str = "primary", **changes: Any) -> Identity:
    """Who the node under test is."""
    fields: dict[str, Any] = {
        "node_id": (b"p" if role == "primary" else b"r").hex() * 16,
        "name": "p1" if role == "primary" else "r1",
        "cluster_id": CLUSTER_ID.hex(),
        "role": role,
        "primary": None if role == "primary" else "127.0.0.1:1",
        "primary_id": None if role == "primary" else (b"p" * 16).hex(),
    }
    return Identity(**{**fields, **changes})


@asynccontextmanager
async def sharing(
    store: Any = None, role: str = "primary", *, loop: Any = None, disk: MemoryDisk | None = None, **settings: Any
) -> AsyncIterator[Shared]:
    """What the shells of one node share; its threads have ended after the block.

    Args:
        store: a `FakeReplicatedStore` if none is given.
        loop: in place of the running one.
        disk: on which the small files are; it must be empty.
        settings: of the configuration.
    """
    real = asyncio.get_running_loop()
    disk = disk if disk is not None else MemoryDisk()
    disk.make_directory(DATA)
    disk.sync_directory(DATA.parent)
    shared = Shared(
        config=Config(data=DATA, **settings),
        store=store if store is not None else FakeReplicatedStore(),
        files=StateFiles(disk, LAYOUT),
        identity=make_identity(role),
        clock=RealClock(),
        log=CapturedEvents(),
        loop=real if loop is None else loop,
        boot_id=b"b" * 16,
        tail=LogTail(),
        disk=Worker("test-disk", real),
        log_reads=Worker("test-feed", real),
        snapshot_reads=Worker("test-sync", real),
        address="127.0.0.1:1",
    )
    try:
        yield shared
    finally:
        if isinstance(shared.store, FakeReplicatedStore):
            shared.store.may_read.set()
            shared.store.may_scan.set()
        await settled(shared)
        for worker in (shared.disk, shared.log_reads, shared.snapshot_reads):
            worker.stop()
            assert worker.join(_PATIENCE_S)


async def settled(shared: Shared) -> None:
    """Return when all that the threads were asked for so far is done, and its answers were heard."""
    for worker in (shared.disk, shared.log_reads, shared.snapshot_reads):
        await worker.run(lambda: None)


def events_of(shared: Shared) -> CapturedEvents:
    """What was logged."""
    assert isinstance(shared.log, CapturedEvents)
    return shared.log


def store_of(shared: Shared) -> FakeReplicatedStore:
    """The store that was made for it."""
    assert isinstance(shared.store, FakeReplicatedStore)
    return shared.store
