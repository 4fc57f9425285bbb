"""The store: the one owner of the sequence number, which orders log, LevelDB and cache.

A write is queued here, committed with its group on the commit thread (`kvnode.node.commit`), and published here: cache
updated, applied seq advanced, request answered. One group is in flight at a time; all that arrives meanwhile is the
next.

States: *serving*; *rebuilding*, while LevelDB, which had failed, is reopened and replayed from the log; *stopping*,
while what is queued is still committed; *failed*, when the log is lost and the process is about to exit; *closed*.
"""

from __future__ import annotations

import asyncio
import enum
import functools
from collections import deque
from collections.abc import Callable, Sequence

from kvnode.node.api import Acks, Item, KeyRange, RangeStream, ReadResult, ReadToken, Record, WriteResult
from kvnode.node.applied import AppliedSeq
from kvnode.node.clock import Clock
from kvnode.node.commit import Committed, Committer
from kvnode.node.config import OPERATION_BYTES, Config
from kvnode.node.errors import (
    Draining,
    EngineClosed,
    EngineFailed,
    NotCaughtUp,
    NotEnoughReplicas,
    OutcomeUnknown,
    Overloaded,
    StorageFull,
    Syncing,
    TooLarge,
    history_lost,
)
from kvnode.node.eventlog import EventLog
from kvnode.node.metrics import StoreCounters
from kvnode.node.reads import PointReads, RangeRead, rebuilding
from kvnode.node.storage.cache import LruCache
from kvnode.node.storage.checkpoint import checkpoint_and_trim
from kvnode.node.storage.datadir import CleanStop, StateFiles
from kvnode.node.storage.engine import Engine
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.wal import DISK_FULL_ERRNOS, Wal
from kvnode.node.worker import Worker
from kvnode.protocol.errors import KvError
from kvnode.protocol.types import History, Op, Position, Put, Seq

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
    STOPPING = "stopping"
    FAILED = "failed"
    CLOSED = "closed"


class _Write:
    """A queued write.

    Attributes:
        size: what it holds in memory, about, in bytes.
    """

    __slots__ = ("future", "ops", "size")

    def __init__(self, ops: Sequence[Op], size: int, future: asyncio.Future[WriteResult]) -> None:
        self.ops = ops
        self.size = size
        self.future = future


class Store:
    """The store of a primary. Lives on one event loop; implements `kvnode.node.api.StoreApi`."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        files: StateFiles,
        reopen_engine: Callable[[Wal, Seq], Engine],
        clock: Clock,
        log: EventLog,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Serve what recovery handed over; the current epoch has begun and is durable.

        Args:
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
        self._state = _State.SERVING
        self._stopping = False
        self._disk_full = False

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
            storage.engine, self.cache, self._applied, self._point_reads, loop, self._engine_failed
        )
        self._committer = self._new_committer()
        self._ranges_begun = 0
        self._level0_files = 0

        self._queue: deque[_Write] = deque()
        self._queued_bytes = 0
        self._group: list[_Write] = []
        self._group_scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._checkpoint_due = False
        self._rebuild_task: asyncio.Task[None] | None = None

    # ---- what fronts ask -----------------------------------------------------------------------------------------

    @property
    def queued_bytes(self) -> int:
        """What waits for its commit, or is in the group in flight."""
        return self._queued_bytes

    @property
    def serving(self) -> bool:
        """Whether reads and writes are taken."""
        return self._state is _State.SERVING

    @property
    def level0_files(self) -> int:
        """LevelDB's level-0 tables when this was asked last, which is also when they are counted anew.

        Counting them takes LevelDB's own lock, for which the loop must not wait.
        """
        engine = self._engine
        self._maintenance.submit(engine.level0_files, self._set_level0_files, lambda _: None)
        return self._level0_files

    def _set_level0_files(self, count: int) -> None:
        self._level0_files = count

    def write(self, ops: Sequence[Op], acks: Acks | None = None) -> asyncio.Future[WriteResult]:
        if self._state is not _State.SERVING:
            raise self._refusal()
        size = self._check_limits(ops)
        if acks is not None and acks.count:
            raise NotEnoughReplicas(
                f"{acks.count} replicas were asked for, none follows this node", asked=acks.count, following=0
            )
        if self._queued_bytes + size > self._config.max_queued_bytes:
            raise Overloaded(
                "too many bytes are queued for commit; nothing was written",
                limit="max_queued_bytes",
                max=self._config.max_queued_bytes,
                queued=self._queued_bytes,
                sent=size,
            )
        future: asyncio.Future[WriteResult] = self._loop.create_future()
        self._queue.append(_Write(ops, size, future))
        self._queued_bytes += size
        if not self._group and not self._group_scheduled:
            self._idle.clear()
            self._schedule_group()
        return future

    def cached(self, key: bytes) -> Record | None:
        return self.cache.get(key)

    async def read(self, key: bytes) -> ReadResult:
        if self._state is _State.REBUILDING:
            raise rebuilding()
        return await self._reads.read(key)

    async def read_range(self, wanted: KeyRange, encode: Callable[[Sequence[Item]], bytes]) -> RangeStream:
        if self._state is _State.REBUILDING:
            raise rebuilding()
        worker = self._range_reads[self._ranges_begun % len(self._range_reads)]
        self._ranges_begun += 1
        stream = RangeRead(self._engine, wanted, encode, worker)
        try:
            await stream.open()
            await self._applied.reached(stream.applied.seq)
        except BaseException as error:
            await stream.aclose()
            if isinstance(error, EngineFailed):
                self._engine_failed(error)
            if isinstance(error, EngineFailed | EngineClosed):
                raise rebuilding() from error
            raise
        return stream

    async def wait_applied(self, token: ReadToken) -> None:
        if token.seq == 0:
            return
        if token.epoch is not None:
            end = self.history.end(token.epoch, self._applied.seq)
            if end is None or (token.seq > end and token.epoch != self.epoch):
                raise history_lost(token.epoch, token.seq)
        if token.seq <= self._applied.seq:
            return
        try:
            async with asyncio.timeout(token.wait_s):
                await self._applied.reached(token.seq)
        except TimeoutError:
            raise NotCaughtUp(
                f"seq {token.seq} is not applied here yet", min_seq=token.seq, applied_seq=self._applied.seq
            ) from None

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
        for task in (self._checkpoint_task, self._rebuild_task):
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
            self.checkpoint_seq = checkpoint_and_trim(self._files, self.wal, self._engine, self._log)
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
        return Draining("this node is stopping and takes no more writes; nothing was written")

    def _check_limits(self, ops: Sequence[Op]) -> int:
        """What the write holds in memory, about: its keys and values, and `OPERATION_BYTES` for each operation.

        Raises:
            TooLarge: a limit is passed.
        """
        config = self._config
        max_key_bytes, max_value_bytes = config.max_key_bytes, config.max_value_bytes
        size = 0
        for op in ops:
            key_bytes = len(op.key)
            if key_bytes > max_key_bytes:
                raise TooLarge("max_key_bytes", max_key_bytes, key_bytes)
            size += key_bytes
            if isinstance(op, Put):
                value_bytes = len(op.value)
                if value_bytes > max_value_bytes:
                    raise TooLarge("max_value_bytes", max_value_bytes, value_bytes)
                size += value_bytes
        if len(ops) > 1:
            if len(ops) > config.max_batch_items:
                raise TooLarge("max_batch_items", config.max_batch_items, len(ops))
            if size > config.max_batch_bytes:
                raise TooLarge("max_batch_bytes", config.max_batch_bytes, size)
        return size + OPERATION_BYTES * len(ops)

    def _schedule_group(self) -> None:
        """Start a group in the next turn of the loop, before the answers of the last one are written.

        Starting at once would commit a part of what arrived together and make the rest wait for another sync.
        """
        self._group_scheduled = True
        self._loop.call_soon(self._start_group)

    def _start_group(self) -> None:
        self._group_scheduled = False
        if self._group:
            return
        if self._state not in (_State.SERVING, _State.STOPPING):
            self._idle.set()
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
        ops = [write.ops for write in group]
        committer = self._committer
        self._commits.submit(lambda: committer.commit(ops), self._group_committed, self._group_failed)

    def _take_group(self) -> list[_Write]:
        """The group in flight, which is over."""
        group, self._group = self._group, []
        self._queued_bytes -= sum([write.size for write in group])
        return group

    def _group_committed(self, committed: Committed) -> None:
        group = self._take_group()
        counters = self.counters
        counters.entries += len(committed.entries)
        if committed.engine_failure is not None:
            counters.commit_failures += 1
            self._answer(group, OutcomeUnknown("the write is in the log, but LevelDB failed; read it back to be sure"))
            self._rebuild(committed.engine_failure)
            return
        self._publish(committed)
        self._schedule_group()
        for write, outcome in zip(group, committed.outcomes, strict=True):
            if not isinstance(outcome, WriteResult):
                self._answer([write], outcome)
            elif not write.future.done():
                write.future.set_result(outcome)
        counters.writes += len(group)
        counters.group_writes.observe(len(group))
        if committed.entries:
            counters.log_seconds.observe(committed.sync_s)
            counters.apply_seconds.observe(committed.apply_s)
        if committed.closed_segment:
            self._request_checkpoint()

    def _publish(self, committed: Committed) -> None:
        """Make a group visible: the cache first, then the applied seq and those who wait for it."""
        if not committed.entries:
            return
        cache, reads = self.cache, self._reads
        for seq, epoch, _, ops in committed.entries:
            position = Position(epoch, seq)
            # A batch refreshes what is cached; were all of it put there, a bulk load would push out the hot keys.
            is_batch = len(ops) > 1
            for op in ops:
                key = op.key
                reads.forget(key)
                if is_batch and key not in cache:
                    continue
                if isinstance(op, Put):
                    cache.put(key, Record(position, op.expires_ms, op.value))
                else:
                    cache.discard(key)
        self._advance(committed.entries[-1].position)

    def _advance(self, position: Position) -> None:
        self.applied = position
        self._applied.advance(position.seq)

    def _group_failed(self, error: BaseException) -> None:
        group = self._take_group()
        self.counters.commit_failures += 1
        if isinstance(error, StorageFull):
            self._log.warning("storage_full", writes=len(group), reason=error.message)
            self._answer(group, error)
            self._start_group()
        elif isinstance(error, EngineFailed | EngineClosed):
            self._answer(group, Syncing("LevelDB failed while looking at this write; nothing was written"))
            self._rebuild(error)
        else:
            self._answer(group, OutcomeUnknown("the log failed during this write; it may or may not be durable"))
            self._fail(error)

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

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _request_checkpoint(self) -> None:
        self._checkpoint_due = True
        if self._checkpoint_task is None or self._checkpoint_task.done():
            self._checkpoint_task = self._loop.create_task(self._take_checkpoints())

    async def _take_checkpoints(self) -> None:
        while self._checkpoint_due and self._state is _State.SERVING:
            self._checkpoint_due = False
            job = functools.partial(checkpoint_and_trim, self._files, self.wal, self._engine, self._log)
            try:
                self.checkpoint_seq = await self._maintenance.run(job)
                self.counters.checkpoints += 1
            except EngineFailed as error:
                self._engine_failed(error)
            except EngineClosed:
                return
            except (StorageFull, OSError) as error:
                # The old checkpoint holds; the next closed segment asks for another one.
                self._log.warning("checkpoint_failed", reason=str(error))
            except Exception as error:
                self._fail(error)

    # ---- failures --------------------------------------------------------------------------------------------------

    def _engine_failed(self, error: EngineFailed) -> None:
        """LevelDB failed outside of a commit."""
        if self._state in (_State.SERVING, _State.STOPPING):
            self._rebuild(error)

    def _rebuild(self, error: EngineFailed | EngineClosed) -> None:
        """Begin to reopen LevelDB, unless that is already under way or there is no need for it any more."""
        if not self._group:
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
            self._fail(error)
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
        self._start_group()

    async def _replace_engine(self) -> Engine | None:
        """LevelDB, closed and opened again; None when the node fails meanwhile."""
        started_s = self._clock.monotonic_s()
        if self._group:
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

    def _fail(self, error: BaseException) -> None:
        """The node cannot go on: nothing that waits is told "not written", and the process will exit."""
        if not self._group:
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
