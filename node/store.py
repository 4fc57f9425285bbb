"""The store: the one owner of the sequence number, which orders log, LevelDB and cache.

A write is queued here, committed with its group on the commit thread (`kvnode.node.commit`), and published here: cache
updated, applied seq advanced, request answered. One group is in flight at a time; all that arrives meanwhile is the
next.

On a replica nothing is queued: what the primary ordered is taken over by `append`, through the same thread and the same
publication. Which of the two it is changes with `begin_reign` and `end_reign`.

States: *serving*; *rebuilding*, while LevelDB, which had failed, is reopened and replayed from the log; *replacing*,
while log and LevelDB are swapped for those of a full sync; *stopping*, while what is queued is still committed;
*failed*, when the log is lost and the process is about to exit; *closed*.

The module is long because these states and the one group in flight concern every part of it.
"""

from __future__ import annotations

import asyncio
import enum
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from kvnode.node.api import Acks, Item, KeyRange, RangeStream, ReadResult, ReadToken, Record, WriteResult
from kvnode.node.applied import AppliedSeq
from kvnode.node.checkpoints import Checkpoints
from kvnode.node.clock import Clock
from kvnode.node.commit import Committed, Committer
from kvnode.node.config import Config
from kvnode.node.errors import (
    Draining,
    EngineClosed,
    EngineFailed,
    NotCaughtUp,
    OutcomeUnknown,
    Overloaded,
    StorageFull,
    Syncing,
    history_lost,
)
from kvnode.node.eventlog import EventLog
from kvnode.node.followers import Followers, Nobody
from kvnode.node.limits import check_limits
from kvnode.node.metrics import CommitFailure, StoreCounters
from kvnode.node.reads import PointReads, RangeRead, rebuilding
from kvnode.node.storage.cache import LruCache
from kvnode.node.storage.checkpoint import take_checkpoint
from kvnode.node.storage.datadir import CleanStop, StateFiles
from kvnode.node.storage.engine import Engine, RecordScan
from kvnode.node.storage.logreader import LogReader
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.wal import DISK_FULL_ERRNOS, Wal
from kvnode.node.worker import Worker
from kvnode.protocol.errors import KvError
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.follow import LogExtent
from kvnode.protocol.types import Entry, History, Op, Position, Put, Seq

T = TypeVar("T")

#: A group stops growing here, so that a queue full of batches does not become one huge log write.
_GROUP_BYTES = 8 * 1024 * 1024

#: Waiting times between attempts to reopen LevelDB while the disk is full.
_RETRY_FIRST_S = 0.25
_RETRY_LAST_S = 5.0

#: How long readers may take to leave LevelDB before it is reopened.
_READERS_DRAIN_S = 30.0


class _State(enum.Enum):
    SERVING = "serving"
    REBUILDING = "rebuilding"
    REPLACING = "replacing"
    STOPPING = "stopping"
    FAILED = "failed"
    CLOSED = "closed"


class _Write:
    """A queued write.

    Attributes:
        size: what it holds in memory, about, in bytes.
        wanted: how many replicas must hold it before it is answered.
        timeout_s: how long it may wait for them.
    """

    __slots__ = ("future", "ops", "size", "timeout_s", "wanted")

    def __init__(
        self, ops: Sequence[Op], size: int, future: asyncio.Future[WriteResult], wanted: int, timeout_s: float
    ) -> None:
        self.ops = ops
        self.size = size
        self.future = future
        self.wanted = wanted
        self.timeout_s = timeout_s


class _Append(NamedTuple):
    """What a primary ordered, on its way into this node.

    Attributes:
        on_durable: called on the loop when it is in the log.
        future: resolves when it is published.
    """

    records: Sequence[LogRecord]
    entries: Sequence[Entry]
    on_durable: Callable[[], None]
    future: asyncio.Future[None]


class Store:
    """The store of a node. Lives on one event loop; implements `kvnode.node.api.StoreApi` for one that is alone."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        files: StateFiles,
        reopen_engine: Callable[[Wal, Seq], Engine],
        clock: Clock,
        log: EventLog,
        on_failure: Callable[[BaseException], None],
        open_reader: Callable[[Wal], LogReader] | None = None,
    ) -> None:
        """Serve what recovery handed over; for a primary, the current epoch has begun and is durable.

        Args:
            open_reader: makes a reader of the log, for replicas.
            reopen_engine: opens LevelDB again and replays the log after a checkpoint seq into it; blocks.
            on_failure: called once, on the loop, when the node must stop.
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._config = config
        self._files = files
        self._reopen_engine = reopen_engine
        self._clock = clock
        self._log = log
        self._on_failure = on_failure
        self._open_reader = open_reader
        self._followers: Followers = Nobody()
        self._state = _State.SERVING
        self._stopping = False
        self._disk_full = False
        #: Makes the error of a write on a node that orders none; None = it orders writes.
        self._no_reign: Callable[[], KvError] | None = None
        #: Why reads are refused although LevelDB is fine; None = they are not.
        self._held_back: str | None = None

        self.wal = storage.wal
        self.history: History = storage.history
        self.epoch = storage.history.current
        self.checkpoint_seq = storage.checkpoint_seq
        self.cache = LruCache(config.cache_bytes)
        self.counters = StoreCounters()
        self._engine = storage.engine
        #: The last published entry's position; of an epoch before the current one until this one has an entry.
        self.applied = storage.engine.applied.position
        self._applied = AppliedSeq(self.applied.seq, loop)
        self._commits = Worker("kvnode-commit", loop)
        self._point_reads = Worker("kvnode-read", loop)
        self._range_reads = (Worker("kvnode-range-0", loop), Worker("kvnode-range-1", loop))
        self._maintenance = Worker("kvnode-maintenance", loop)
        self._reads = PointReads(
            storage.engine, self.cache, self._applied, self._point_reads, loop, self.engine_failed, self.counters
        )
        self._committer = self._new_committer()
        self._ranges_begun = 0
        self._time_syncs()

        self._queue: deque[_Write] = deque()
        self._queued_bytes = 0
        self._group: list[_Write] = []
        self._append: _Append | None = None
        #: Whether a group or an append is in the commit thread.
        self._busy = False
        self._group_scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._checkpoints = Checkpoints(self, files, self._maintenance, log)
        self._rebuild_task: asyncio.Task[None] | None = None

    # ---- what fronts ask -----------------------------------------------------------------------------------------

    @property
    def queued_bytes(self) -> int:
        """What waits for its commit, or is in the group in flight."""
        return self._queued_bytes

    @property
    def serving(self) -> bool:
        """Whether reads are taken, and writes, if this node orders any."""
        return self._state is _State.SERVING and self._held_back is None

    async def look(self, job: Callable[[Engine], T]) -> T:
        """Run a short look at LevelDB, or at the disk, on the maintenance thread; return or raise what it does.

        It waits for a checkpoint or a rebuilding that is under way, and for the disk.
        """
        engine = self._engine
        return await self._maintenance.run(lambda: job(engine))

    def write(self, ops: Sequence[Op], acks: Acks | None = None) -> asyncio.Future[WriteResult]:
        if self._state is not _State.SERVING:
            raise self._refusal()
        if self._no_reign is not None:
            raise self._no_reign()
        size = check_limits(self._config, ops)
        wanted, timeout_s = (0, 0.0) if acks is None else (self._followers.admit(acks), acks.timeout_s)
        if self._queued_bytes + size > self._config.max_queued_bytes:
            raise Overloaded(
                "too many bytes are queued for commit; nothing was written",
                limit="max_queued_bytes",
                max=self._config.max_queued_bytes,
                queued=self._queued_bytes,
                sent=size,
            )
        future: asyncio.Future[WriteResult] = self._loop.create_future()
        self._queue.append(_Write(ops, size, future, wanted, timeout_s))
        self._queued_bytes += size
        if not self._busy and not self._group_scheduled:
            self._idle.clear()
            self._schedule_group()
        return future

    def cached(self, key: bytes) -> Record | None:
        return None if self._held_back is not None else self.cache.get(key)

    def read(self, key: bytes) -> asyncio.Future[ReadResult]:
        self._check_readable()
        return self._reads.read(key)

    async def read_range(self, wanted: KeyRange, encode: Callable[[Sequence[Item]], bytes]) -> RangeStream:
        self._check_readable()
        worker = self._range_reads[self._ranges_begun % len(self._range_reads)]
        self._ranges_begun += 1
        stream = RangeRead(self._engine, wanted, encode, worker, self.counters)
        try:
            await stream.open()
            await self._applied.reached(stream.applied.seq)
        except BaseException as error:
            await stream.aclose()
            if isinstance(error, EngineFailed):
                self.engine_failed(error)
            if isinstance(error, EngineFailed | EngineClosed):
                raise rebuilding() from error
            raise
        return stream

    async def wait_applied(self, token: ReadToken) -> None:
        if token.seq == 0 or self._has(token):
            return
        try:
            async with asyncio.timeout(token.wait_s):
                while not self._has(token):
                    # What is applied may be of an older reign than the token's, until the newer one is heard of.
                    await self._applied.reached(max(token.seq, self._applied.seq + 1))
        except TimeoutError:
            raise NotCaughtUp(
                f"seq {token.seq} is not applied here yet", min_seq=token.seq, applied_seq=self._applied.seq
            ) from None

    def _has(self, token: ReadToken) -> bool:
        """Whether what a read wants to see is published here.

        Raises:
            HistoryLost: it never will be.
        """
        seq, epoch, applied_seq = token.seq, token.epoch, self._applied.seq
        if epoch is None:
            return seq <= applied_seq
        if epoch.term > self.history.current.term and self._no_reign is not None:
            # A replica may not have heard of that reign yet.
            return False
        end = self.history.end(epoch, applied_seq)
        if end is None or (seq > end and epoch != self.epoch):
            raise history_lost(epoch, seq)
        return seq <= applied_seq

    def _check_readable(self) -> None:
        """Raise `Syncing` while there is nothing that may be read."""
        if self._state in (_State.REBUILDING, _State.REPLACING):
            raise rebuilding()
        if self._held_back is not None:
            raise Syncing(f"{self._held_back}; try again soon")

    # ---- what replication asks -----------------------------------------------------------------------------------

    def attach(self, followers: Followers) -> None:
        """Tell these of every entry from now on."""
        self._followers = followers

    @property
    def extent(self) -> LogExtent:
        """Where the log begins, and up to where it is published."""
        return LogExtent(max(self._checkpoints.first_seq, self.wal.first_seq), self._applied.seq)

    def log_bytes_from(self, seq: Seq) -> int:
        """The size of the log from an entry on, in bytes."""
        return self.wal.bytes_from(seq)

    def read_log(self) -> LogReader:
        """A reader of the log as it is now; of no use once `replace_storage` was called."""
        assert self._open_reader is not None, "this store was made without readers of its log"
        return self._open_reader(self.wal)

    def scan_records(self, after_key: bytes) -> RecordScan:
        """Begin a walk over a new snapshot. Called on a worker thread.

        Raises:
            EngineFailed, EngineClosed, RecordDamaged.
        """
        return self._engine.scan_records(after_key)

    def append(
        self, records: Sequence[LogRecord], entries: Sequence[Entry], on_durable: Callable[[], None]
    ) -> asyncio.Future[None]:
        """Take over what a primary ordered, on a node that orders nothing itself; one call at a time.

        Args:
            records: they follow the log's last entry, and were checked.
            entries: the same, decoded.
            on_durable: called when they are in the log, before they are applied.

        Raises (from the future, which resolves when they are published):
            StorageFull: nothing of it took effect.
        """
        assert self._append is None, "two appends at a time"
        future: asyncio.Future[None] = self._loop.create_future()
        self._append = _Append(records, entries, on_durable, future)
        if not self._busy:
            self._idle.clear()
            self._start_group()
        return future

    def begin_reign(self, history: History) -> None:
        """Order writes from now on, under the current epoch of `history`, which is durable."""
        assert not self._busy, "a reign begins while something is committed"
        self.use_history(history)
        self._no_reign = None
        self._committer = self._new_committer()

    def end_reign(self, error: Callable[[], KvError]) -> None:
        """Order no more writes: each gets an error that `error` makes, those that are queued included."""
        self._no_reign = error
        self._answer_queue(error())

    def use_history(self, history: History) -> None:
        """The history that the next entries belong to; it is durable."""
        self.history = history
        self.epoch = history.current

    def hold_back(self, reason: str | None) -> None:
        """Refuse reads for this reason, or (None) serve them again."""
        if reason is not None:
            self.cache.clear()
            # Reads under way must not fill it again.
            self._reads.use(self._engine)
        self._held_back = reason

    def applied_reached(self, seq: Seq) -> asyncio.Future[None]:
        """Resolves when `seq` is published; fails with `NotCaughtUp` when it may never be."""
        return self._applied.reached(seq)

    def end_applied_waits(self, reason: str) -> None:
        """Fail all that wait for a seq, because what they wait for may never come."""
        self._applied.end_waits(NotCaughtUp(reason))

    async def replace_storage(self, job: Callable[[], Storage]) -> None:
        """Close log and LevelDB, run `job` on a thread, and go on with what it returns. Nothing is being appended.

        Raises:
            KvError, OSError: of `job` or of the closing; the node has failed then.
        """
        while self._rebuild_task is not None and not self._rebuild_task.done():
            await asyncio.wait([self._rebuild_task])
        if self._state not in (_State.SERVING, _State.STOPPING):
            raise Draining("this node is stopping")
        self._state = _State.REPLACING
        self.cache.clear()
        try:
            if self._checkpoints.task is not None:
                await asyncio.wait([self._checkpoints.task])
            storage = await self._maintenance.run(functools.partial(self._swap_storage, job))
        except Exception as error:
            self.fail(error)
            raise
        self.wal, self._engine = storage.wal, storage.engine
        self._time_syncs()
        self.checkpoint_seq = storage.checkpoint_seq
        self._checkpoints.first_seq = 0
        self.use_history(storage.history)
        self._reads.use(storage.engine)
        self.cache.clear()
        self._committer = self._new_committer()
        self.applied = storage.engine.applied.position
        self._applied.restart(self.applied.seq, NotCaughtUp("this node's data were replaced by a full sync"))
        self._state = _State.STOPPING if self._stopping else _State.SERVING
        self._followers.log_replaced()

    def _swap_storage(self, job: Callable[[], Storage]) -> Storage:
        if not self._engine.close(_READERS_DRAIN_S):
            raise EngineFailed("LevelDB is to be replaced, and its readers did not leave it")
        self.wal.abandon()
        return job()

    # ---- stopping ------------------------------------------------------------------------------------------------

    def stop_writes(self) -> None:
        """Refuse new writes from now on; what is queued is committed."""
        self._stopping = True
        if self._state is _State.SERVING:
            self._state = _State.STOPPING

    async def drain(self) -> None:
        """Return when all that was queued is committed and published, or never will be by this process."""
        await self._idle.wait()
        if self._rebuild_task is not None:
            await asyncio.wait([self._rebuild_task])

    def end_waits(self) -> None:
        """End every wait for a seq, because the node is stopping."""
        self._applied.end_waits(NotCaughtUp("this node is stopping"))

    async def close(self, timeout_s: float) -> bool:
        """Stop the workers, take a last checkpoint, close everything, and leave the clean-stop marker.

        Call it after `stop_writes` and `drain`. Blocks the loop only for the closing of the small files.

        Returns:
            Whether all that could be done within `timeout_s`. If not, nothing was closed under a thread that uses it,
            there is no marker, and the next start recovers.
        """
        if not self._idle.is_set():
            self._log.error("stop_incomplete", reason="a group commit did not come back from the disk in time")
            return False
        deadline = self._loop.time() + timeout_s
        if self._state is _State.REBUILDING:
            self._log.error("stop_incomplete", reason="LevelDB, which had failed, is not back; the next start recovers")
        clean = self._state is _State.STOPPING
        self._state = _State.CLOSED
        for task in (self._checkpoints.task, self._rebuild_task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        try:
            async with asyncio.timeout_at(deadline):
                return await self._maintenance.run(lambda: self._close_storage(clean, deadline - self._loop.time()))
        except TimeoutError:
            self._log.error("stop_incomplete", reason="a thread did not come back from the disk in time")
            return False
        except (KvError, OSError) as error:
            self._log.error("stop_incomplete", reason=str(error))
            return False
        finally:
            for worker in (self._commits, self._point_reads, *self._range_reads, self._maintenance):
                worker.stop()

    def _close_storage(self, clean: bool, timeout_s: float) -> bool:
        if clean:
            self.checkpoint_seq = take_checkpoint(self._files, self.wal, self._engine, self._log)
        if not self._engine.close(timeout_s):
            self._log.error("stop_incomplete", reason="a reader did not leave LevelDB in time")
            return False
        tail = self.wal.close()
        if clean:
            self._files.save_clean_stop(CleanStop(tail.last_seq, tail.name, tail.end))
        return clean

    # ---- writing ---------------------------------------------------------------------------------------------------

    def _refusal(self) -> KvError:
        """Why no write is taken in this state."""
        if self._state is _State.REBUILDING:
            if self._disk_full:
                return StorageFull("the disk is full; nothing was written", hint="free some space; writes resume")
            return Syncing("this node is rebuilding its data from its log; nothing was written")
        if self._state is _State.REPLACING:
            return Syncing("this node is taking over its primary's data; nothing was written")
        return Draining("this node is stopping and takes no more writes; nothing was written")

    def _schedule_group(self) -> None:
        """Start a group in the next turn of the loop, before the answers of the last one are written.

        Starting at once would commit a part of what arrived together and make the rest wait for another sync.
        """
        self._group_scheduled = True
        self._loop.call_soon(self._start_group)

    def _start_group(self) -> None:
        self._group_scheduled = False
        if self._busy:
            return
        if self._state not in (_State.SERVING, _State.STOPPING):
            self._idle.set()
            return
        if self._append is not None:
            self._start_append(self._append)
            return
        queue, group = self._queue, self._group
        size = 0
        while queue and (not group or size + queue[0].size <= _GROUP_BYTES):
            write = queue.popleft()
            size += write.size
            group.append(write)
        if not group:
            self._idle.set()
            return
        self._idle.clear()
        self._busy = True
        ops = [write.ops for write in group]
        committer = self._committer
        self._commits.hand_over(lambda: committer.commit(ops), self._group_committed, self._group_failed)

    def _take_group(self) -> list[_Write]:
        """The group in flight, which is over."""
        self._busy = False
        group, self._group = self._group, []
        self._queued_bytes -= sum([write.size for write in group])
        return group

    def _group_committed(self, committed: Committed) -> None:
        group = self._take_group()
        counters = self.counters
        counters.entries += len(committed.entries)
        if committed.engine_failure is not None:
            counters.commit_failures["engine_failed"] += 1
            self._answer(group, OutcomeUnknown("the write is in the log, but LevelDB failed; read it back to be sure"))
            self._rebuild(committed.engine_failure)
            return
        self._publish(committed)
        self._schedule_group()
        for write, outcome in zip(group, committed.outcomes, strict=True):
            if not isinstance(outcome, WriteResult):
                self._answer([write], outcome)
            elif write.wanted:
                self._followers.hold(write.future, outcome, write.wanted, write.timeout_s)
            elif not write.future.done():
                write.future.set_result(outcome)
        if committed.entries:
            self._followers.published(committed.entries[0].seq, committed.records)
        counters.writes += len(group)
        counters.group_writes.observe(len(group))
        if committed.entries:
            self._count_log(committed)
        if committed.closed_segment:
            self._checkpoints.request()

    def _count_log(self, committed: Committed) -> None:
        counters = self.counters
        counters.group_bytes.observe(committed.log_bytes)
        counters.append_seconds.observe(committed.append_s)
        counters.apply_seconds.observe(committed.apply_s)

    def _publish(self, committed: Committed) -> None:
        """Make a group visible: the cache first, then the applied seq and those who wait for it."""
        if not committed.entries:
            return
        # What others ask of another node says nothing of what is asked here. And a batch refreshes what is cached: were
        # all of it put there, a bulk load would push out the hot keys.
        is_foreign = self._no_reign is not None
        if not is_foreign or self.cache.entries or self._reads.filling:
            for entry in committed.entries:
                if is_foreign or len(entry.ops) > 1:
                    self._refresh(entry)
                else:
                    self._cache(entry.position, entry.ops[0])
        self._advance(committed.entries[-1].position)

    def _refresh(self, entry: Entry) -> None:
        """Bring what is cached of an entry's keys up to date."""
        cache, reads = self.cache, self._reads
        if not (cache.entries or reads.filling):
            return
        position = entry.position
        for op in entry.ops:
            if op.key in cache:
                self._cache(position, op)
            else:
                reads.forget(op.key)

    def _cache(self, position: Position, op: Op) -> None:
        """Note in the cache, and to reads under way, what a key is now."""
        self._reads.forget(op.key)
        if isinstance(op, Put):
            self.cache.put(op.key, Record(position, op.expires_ms, op.value))
        else:
            self.cache.discard(op.key)

    def _advance(self, position: Position) -> None:
        self.applied = position
        self._applied.advance(position.seq)

    def _group_failed(self, error: BaseException) -> None:
        group = self._take_group()
        self.counters.commit_failures[_kind_of(error)] += 1
        if isinstance(error, StorageFull):
            self._log.warning("storage_full", writes=len(group), reason=error.message)
            self._answer(group, error)
            self._start_group()
        elif isinstance(error, EngineFailed | EngineClosed):
            self._answer(group, Syncing("LevelDB failed while looking at this write; nothing was written"))
            self._rebuild(error)
        else:
            self._answer(group, OutcomeUnknown("the log failed during this write; it may or may not be durable"))
            self.fail(error)

    def _start_append(self, append: _Append) -> None:
        self._busy = True
        self._idle.clear()
        committer, loop = self._committer, self._loop

        def tell() -> None:
            loop.call_soon_threadsafe(append.on_durable)

        self._commits.submit(
            lambda: committer.take_over(append.records, append.entries, tell),
            self._append_committed,
            self._append_failed,
        )

    def _append_committed(self, committed: Committed) -> None:
        self._busy = False
        counters = self.counters
        counters.entries += len(committed.entries)
        if committed.engine_failure is not None:
            # It is in the log, from which the rebuilding brings it to LevelDB: `_rebuild_engine` ends it.
            counters.commit_failures["engine_failed"] += 1
            self._rebuild(committed.engine_failure)
            return
        self._publish(committed)
        counters.group_writes.observe(len(committed.entries))
        self._count_log(committed)
        self._end_append()
        self._followers.published(committed.entries[0].seq, committed.records)
        if committed.closed_segment:
            self._checkpoints.request()

    def _append_failed(self, error: BaseException) -> None:
        self._busy = False
        self.counters.commit_failures[_kind_of(error)] += 1
        append, self._append = self._append, None
        self._idle.set()
        if isinstance(error, StorageFull):
            self._log.warning("storage_full", reason=error.message)
        if append is not None and not append.future.done():
            append.future.set_exception(error)
            append.future.exception()
        if not isinstance(error, StorageFull):
            self.fail(error)

    def _end_append(self) -> None:
        """What was appended is published."""
        append, self._append = self._append, None
        if append is not None and not append.future.done():
            append.future.set_result(None)
        self._start_group()

    def _answer(self, writes: Sequence[_Write], error: KvError) -> None:
        for write in writes:
            if not write.future.done():
                write.future.set_exception(error)
                # Its client may have left: an answer that nobody fetches is no event.
                write.future.exception()

    def _answer_queue(self, error: KvError) -> None:
        writes = list(self._queue)
        self._queue.clear()
        self._queued_bytes -= sum(write.size for write in writes)
        self._answer(writes, error)

    # ---- for the checkpoints -------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine | None:
        """LevelDB, None while there is nothing that may be flushed."""
        return self._engine if self._state is _State.SERVING else None

    @property
    def followers(self) -> Followers:
        """Who reads the log."""
        return self._followers

    def checkpoint_taken(self, seq: Seq) -> None:
        """LevelDB is durable up to here."""
        self.checkpoint_seq = seq
        self.counters.checkpoints += 1

    # ---- failures --------------------------------------------------------------------------------------------------

    def engine_failed(self, error: EngineFailed) -> None:
        """LevelDB failed outside of a commit."""
        if self._state in (_State.SERVING, _State.STOPPING):
            self._rebuild(error)

    def _rebuild(self, error: EngineFailed | EngineClosed) -> None:
        """Begin to reopen LevelDB, unless that is already under way or there is no need for it any more."""
        if not self._busy:
            self._idle.set()
        if self._state not in (_State.SERVING, _State.STOPPING):
            return
        self._log.error("engine_failed", reason=error.message, action="reopening and replaying from the checkpoint")
        self._disk_full = isinstance(error, EngineFailed) and error.disk_full
        self._state = _State.REBUILDING
        self._answer_queue(self._refusal())
        self.cache.clear()
        self._rebuild_task = self._loop.create_task(self._rebuild_engine())

    async def _rebuild_engine(self) -> None:
        try:
            engine = await self._replace_engine()
        except Exception as error:
            self.fail(error)
            return
        if engine is None or self._state is not _State.REBUILDING:
            return
        self._engine = engine
        self._reads.use(engine)
        # Reads that were under way when LevelDB failed may have filled it with what is old by now.
        self.cache.clear()
        self._committer = self._new_committer()
        self._disk_full = False
        self._state = _State.STOPPING if self._stopping else _State.SERVING
        self._rebuild_task = None
        self.counters.engine_rebuilds += 1
        self._advance(engine.applied.position)
        # Of entries that were logged when LevelDB failed, followers hear only now.
        self._followers.published(self._applied.seq + 1, ())
        if self._append is not None and self._append.entries[-1].seq <= self._applied.seq:
            self._end_append()
        else:
            self._start_group()

    async def _replace_engine(self) -> Engine | None:
        """LevelDB, closed and opened again; None when the node fails meanwhile."""
        started_s = self._clock.monotonic_s()
        if self._busy:
            # It is in the commit thread, and its outcome, whatever it is, sets `_idle`.
            await self._idle.wait()
        old = self._engine
        if not await self._maintenance.run(lambda: old.close(_READERS_DRAIN_S)):
            raise EngineFailed("LevelDB failed, and its readers did not leave it")
        engine = await self._reopen_when_there_is_room()
        if engine is not None:
            seconds = self._clock.monotonic_s() - started_s
            self._log.info("engine_rebuilt", applied_seq=engine.applied.position.seq, seconds=seconds)
        return engine

    async def _reopen_when_there_is_room(self) -> Engine | None:
        """LevelDB, opened and level with the log; None when the node fails while it waits for room.

        Raises:
            EngineFailed, LogDamaged, OSError: it cannot be had, and that is not for want of room.
        """
        delay_s = _RETRY_FIRST_S
        while self._state is _State.REBUILDING:
            try:
                return await self._maintenance.run(lambda: self._reopen_engine(self.wal, self.checkpoint_seq))
            except (EngineFailed, StorageFull, OSError) as error:
                self._disk_full = _is_disk_full(error)
                if not self._disk_full:
                    raise
                self._log.warning("engine_waits_for_room", reason=str(error), retry_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_LAST_S)
        return None

    def _new_committer(self) -> Committer:
        synced = self._config.fsync == "always"
        return Committer(self.wal, self._engine, self.epoch, self._clock, synced=synced)

    def _time_syncs(self) -> None:
        self.wal.time_syncs(self._clock.monotonic_s, self.counters.sync_seconds.observe)

    def fail(self, error: BaseException) -> None:
        """The node cannot go on: nothing that waits is told "not written", and the process will exit."""
        if not self._busy:
            self._idle.set()
        if self._state is _State.FAILED:
            return
        self._state = _State.FAILED
        self._answer_queue(OutcomeUnknown("this node is stopping after a failure; the write may or may not be durable"))
        self._on_failure(error)


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, StorageFull):
        return True
    if isinstance(error, EngineFailed):
        return error.disk_full
    return isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS


def _kind_of(error: BaseException) -> CommitFailure:
    """How the failure of a group that is not in the log, or may not be, is counted."""
    if isinstance(error, StorageFull):
        return "disk_full"
    return "engine_failed" if isinstance(error, EngineFailed | EngineClosed) else "log_failed"
