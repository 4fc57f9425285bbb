"""What replication asks of the rest of the node: the store and what is shared by the shells, as small interfaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvnode.node.api import Acks, WriteResult
from kvnode.node.clock import Clock
from kvnode.node.config import Config
from kvnode.node.eventlog import EventLog
from kvnode.node.metrics import ReplicationCounters
from kvnode.node.replication.logtail import LogTail
from kvnode.node.storage.datadir import Identity, StateFiles
from kvnode.node.storage.engine import RecordScan
from kvnode.node.storage.wal import Wal
from kvnode.node.worker import Worker
from kvnode.protocol.errors import KvError
from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.follow import LogExtent
from kvnode.protocol.types import Entry, History, Op, Position, Seq


class RecordReader(Protocol):
    """Reads the log's records for one reader, on a worker thread."""

    def read(self, first_seq: Seq, last_seq: Seq, max_bytes: int) -> tuple[tuple[LogRecord, ...], int]:
        """Consecutive records from `first_seq` on, at least one, and their payload bytes.

        Raises:
            LogTrimmed: the log begins later.
            LogDamaged: it does not hold what it held.
        """

    def close(self) -> None:
        """Let go of the open file."""


class ReplicatedStore(Protocol):
    """The store as replication sees it. Called on the event loop unless said otherwise."""

    @property
    def applied(self) -> Position:
        """The last published entry's position."""

    @property
    def history(self) -> History:
        """The reigns that the log went through; durable."""

    @property
    def wal(self) -> Wal:
        """The log; for the storage's own functions."""

    @property
    def extent(self) -> LogExtent:
        """Where the log begins, and up to where it is published."""

    def log_bytes_from(self, seq: Seq) -> int:
        """The size of the log from an entry on, in bytes."""

    def read_log(self) -> RecordReader:
        """A reader of the log as it is now; of no use once `replace_storage` was called."""

    def scan_records(self, after_key: bytes) -> RecordScan:
        """Begin a walk over a new snapshot; on a worker thread.

        Raises:
            EngineFailed, EngineClosed, RecordDamaged.
        """

    def write(self, ops: Sequence[Op], acks: Acks | None = None) -> asyncio.Future[WriteResult]:
        """Order a write here; as `StoreApi.write`."""

    def append(
        self, records: Sequence[LogRecord], entries: Sequence[Entry], on_durable: Callable[[], None]
    ) -> asyncio.Future[None]:
        """Take over what the primary ordered: log, `on_durable`, LevelDB, publication; one call at a time.

        Raises (from the future):
            StorageFull: nothing of it took effect.
        """

    def begin_reign(self, history: History) -> None:
        """Order writes from now on under the current epoch of `history`, which is durable."""

    def end_reign(self, error: Callable[[], KvError]) -> None:
        """Order no more writes: each gets an error that `error` makes, those that are queued included."""

    def use_history(self, history: History) -> None:
        """The history that the next entries belong to, durable already."""

    def hold_back(self, reason: str | None) -> None:
        """Refuse reads as `syncing` for this reason, or (None) serve them again."""

    async def replace_storage(self, job: Callable[[], Any]) -> None:
        """Close log and LevelDB, run `job` on a worker thread, and go on with the `Storage` that it returns.

        A failure of `job` ends the node.
        """

    def applied_reached(self, seq: Seq) -> asyncio.Future[None]:
        """Resolves when `seq` is published here; fails with `NotCaughtUp` when it may never be."""

    def end_applied_waits(self, reason: str) -> None:
        """Fail all that wait for a seq."""


@dataclass(slots=True)
class Shared:
    """What the shells of one node share.

    Attributes:
        identity: who the node is; replaced when its role changes.
        boot_id: 16 bytes, random at every start.
        address: where this node takes peer sessions, as it says to others; empty until it listens.
        tail: the newest records.
        disk: the thread for small files and for what a full sync stores here.
        log_reads: the thread that reads the log for replicas.
        snapshot_reads: the thread that reads snapshots for them.
        counters: of what it does as a replica.
    """

    config: Config
    store: ReplicatedStore
    files: StateFiles
    identity: Identity
    clock: Clock
    log: EventLog
    loop: asyncio.AbstractEventLoop
    boot_id: bytes
    tail: LogTail
    disk: Worker
    log_reads: Worker
    snapshot_reads: Worker
    address: str = ""
    counters: ReplicationCounters = field(default_factory=ReplicationCounters)

    @property
    def node_id(self) -> bytes:
        """This node's id, 16 bytes."""
        return bytes.fromhex(self.identity.node_id)

    @property
    def cluster_id(self) -> bytes:
        """Its cluster's, 16 bytes."""
        return self.identity.cluster_bytes

    @property
    def me(self) -> Member:
        """This node as a member."""
        return Member(self.node_id, self.identity.name, self.address)
