"""The commit of one group of writes, on the commit thread: evaluate, order, encode, log, apply.

This is where a write gets its seq. Everything before it is admission, everything after it is publication; both are
`kvnode.node.store.Store`'s and happen on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from kvnode.node.api import WriteResult
from kvnode.node.clock import Clock
from kvnode.node.errors import EngineClosed, EngineFailed, RecordDamaged
from kvnode.node.storage.engine import Engine
from kvnode.node.storage.wal import Wal
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import OP_DELETE, OP_PUT, Entry, Epoch, Op, Position, new_tuple

_kind_of = attrgetter("kind")


@dataclass(slots=True)
class Committed:
    """What became of a group.

    Attributes:
        outcomes: one per write of the group, in order: its result, or why nothing of it was written.
        entries: those that are in the log now, in order.
        records: the same as the log holds them; at the same index in both.
        closed_segment: whether a log segment was closed, so that a checkpoint is due.
        engine_failure: the entries are durable in the log, but LevelDB failed to take them; None when it did.
        log_bytes: what the entries take in the log.
        append_s: seconds spent in writing and syncing the log.
        apply_s: seconds spent in LevelDB.
    """

    outcomes: list[WriteResult | RecordDamaged]
    entries: Sequence[Entry] = ()
    records: Sequence[LogRecord] = ()
    closed_segment: bool = False
    engine_failure: EngineFailed | EngineClosed | None = None
    log_bytes: int = 0
    append_s: float = 0.0
    apply_s: float = 0.0


class Committer:
    """Commits groups, one at a time, on one thread."""

    def __init__(self, wal: Wal, engine: Engine, epoch: Epoch, clock: Clock, *, synced: bool) -> None:
        """Commit to `wal` and `engine` under `epoch`.

        Args:
            synced: whether the log is fsynced before an entry is applied.
        """
        self._wal = wal
        self._engine = engine
        self._epoch = epoch
        self._clock = clock
        self._synced = synced
        self._encoder = EntryEncoder()
        self._last_time_ms = engine.applied.time_ms
        #: Of the last logged entry: what a write without effect is answered with.
        self._last_position = engine.applied.position

    def commit(self, group: Sequence[Sequence[Op]]) -> Committed:
        """Make a group of writes durable and apply it.

        Either all entries of the group end up in the log or none; seqs are given only to those that do.

        Raises:
            StorageFull, EngineFailed, EngineClosed: the group is not in the log.
            LogFailed: what the disk holds of the group is unknown; final.
        """
        committed = self._evaluate(group)
        if committed.entries:
            committed.records = [
                new_tuple(LogRecord, (payload_crc(payload), payload))
                for payload in map(self._encoder.encode, committed.entries)
            ]
            self._store(committed, None)
        return committed

    def take_over(
        self, records: Sequence[LogRecord], entries: Sequence[Entry], on_durable: Callable[[], None]
    ) -> Committed:
        """Make what a primary ordered durable here, untouched, and apply it.

        Args:
            records: they follow the log's last entry, and were checked.
            entries: the same, decoded; at least one.
            on_durable: called on this thread between the two.

        Raises:
            As `commit` does.
        """
        committed = Committed([], entries, records)
        self._store(committed, on_durable)
        return committed

    def _store(self, committed: Committed, on_durable: Callable[[], None] | None) -> None:
        """Log and apply the entries, of which there is at least one."""
        last = committed.entries[-1]
        started_s, logged_bytes = self._clock.monotonic_s(), self._wal.appended_bytes
        committed.closed_segment = self._wal.append(committed.records)
        self._last_time_ms = max(last.time_ms, self._last_time_ms)
        self._last_position = last.position
        if on_durable is not None:
            on_durable()
        logged_s = self._clock.monotonic_s()
        try:
            self._engine.write(committed.entries, synced=self._synced)
        except (EngineFailed, EngineClosed) as error:
            committed.engine_failure = error
        committed.log_bytes = self._wal.appended_bytes - logged_bytes
        committed.append_s = logged_s - started_s
        committed.apply_s = self._clock.monotonic_s() - logged_s

    def _evaluate(self, group: Sequence[Sequence[Op]]) -> Committed:
        """Decide, in order, what each write comes to, and which entries that makes."""
        epoch, position, seq = self._epoch, self._last_position, self._last_position.seq
        time_ms = max(self._clock.now_ms(), self._last_time_ms)
        outcomes: list[WriteResult | RecordDamaged] = []
        entries: list[Entry] = []
        overlay = _Overlay(self._engine)
        for ops in group:
            deleted = 0
            if OP_DELETE in map(_kind_of, ops):
                try:
                    deleted = overlay.count_deleted(entries, ops)
                except RecordDamaged as error:
                    outcomes.append(error)
                    continue
                if not deleted and OP_PUT not in map(_kind_of, ops):
                    # Nothing to log; answered with the position up to which it saw everything.
                    outcomes.append(WriteResult(position, 0))
                    continue
            seq += 1
            position = new_tuple(Position, (epoch, seq))
            entries.append(new_tuple(Entry, (seq, epoch, time_ms, ops)))
            outcomes.append(new_tuple(WriteResult, (position, deleted)))
        return Committed(outcomes, entries)


class _Overlay:
    """Which keys exist: LevelDB's state plus the group's earlier entries, which are read only once somebody asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._exists: dict[bytes, bool] = {}
        self._entries_seen = 0

    def count_deleted(self, entries: Sequence[Entry], ops: Sequence[Op]) -> int:
        """How many existing keys `ops` delete, after `entries`.

        Raises:
            RecordDamaged: LevelDB cannot tell.
        """
        for entry in entries[self._entries_seen :]:
            for op in entry.ops:
                self._exists[op.key] = op.kind == OP_PUT
        self._entries_seen = len(entries)
        within: dict[bytes, bool] = {}
        deleted = 0
        for op in ops:
            if op.kind == OP_PUT:
                within[op.key] = True
                continue
            exists = within.get(op.key)
            if exists is None:
                exists = self._exists.get(op.key)
            if exists is None:
                exists = self._engine.contains(op.key)
            deleted += exists
            within[op.key] = False
        return deleted
