"""An engine in memory with LevelDB's crash semantics, and the directory of it that survives crashes.

Writes go to the current memtable and to its log, which nobody syncs. When the memtable is full a new one with
a new log takes its place, and the old one is written to a table some time later; only then is it durable. So
after a power loss the old log may have lost more than the new one has: what survives need be no prefix of
what was written. A process kill loses nothing, and what `flush` covered is never lost. `copy_in` and `settle` sync the
log that they write to.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from kvnode.node.api import Item, KeyRange, Record
from kvnode.node.errors import EngineClosed, EngineFailed, RecordDamaged
from kvnode.node.storage.engine import Applied
from kvnode.protocol.entry import LoggedEntry
from kvnode.protocol.snapshot import RecordFields, SnapshotRecord
from kvnode.protocol.types import Entry, Epoch, Position, Put
from support.crash_plan import CrashPlan, Interruption, Survival, SurvivalMode
from support.logged import entry_of
from support.memory_disk import MemoryDisk

#: The file by which a directory says which of the disk's databases it holds, so that it can be renamed.
_MARKER = "CURRENT"

_EMPTY = Applied(Position(Epoch(0), 0), synced=False)


class Batch(NamedTuple):
    """One write.

    Attributes:
        changes: the keys' new records, in order; None deletes.
        applied: what it sets `applied` to; None leaves that alone.
        synced: whether its log was synced behind it.
    """

    changes: tuple[tuple[bytes, Record | None], ...]
    applied: Applied | None = None
    synced: bool = False


@dataclass(slots=True)
class State:
    """What a database holds.

    Attributes:
        records: by key.
        applied: as of the last batch.
    """

    records: dict[bytes, Record] = field(default_factory=dict)
    applied: Applied = _EMPTY

    def apply(self, batches: Sequence[Batch]) -> None:
        """Apply batches in order."""
        for batch in batches:
            for key, record in batch.changes:
                if record is None:
                    self.records.pop(key, None)
                else:
                    self.records[key] = record
            if batch.applied is not None:
                self.applied = batch.applied

    def copy(self) -> State:
        """A copy that lives on its own."""
        return State(dict(self.records), self.applied)


@dataclass(slots=True)
class Database:
    """The files of one engine.

    Attributes:
        tables: durable.
        logs: those of the memtables that are in no table, oldest first; the last one is written to. What comes
            after the last synced batch of each may be lost.
        damaged: whether opening with paranoid checks will find damage.
        earlier: the tables as they were before each flush, oldest first.
        is_open: whether an engine has it open; LevelDB lets nobody open it again then.
        is_new: whether no engine ever had it open.
        broken: whether it cannot be opened at all.
    """

    tables: State = field(default_factory=State)
    logs: list[list[Batch]] = field(default_factory=lambda: [[]])
    damaged: bool = False
    earlier: list[State] = field(default_factory=list)
    is_open: bool = False
    is_new: bool = True
    broken: bool = False

    def flush_log(self) -> None:
        """Write the oldest memtable to a table, so that it is durable and its log is gone."""
        if self.logs[0]:
            self.earlier.append(self.tables.copy())
            self.tables.apply(self.logs[0])
        self.logs.pop(0)

    def after_crash(self, survival: Survival, rng: Random) -> Database:
        """What a crash leaves of it."""
        survivor = Database(self.tables.copy(), damaged=self.damaged, earlier=list(self.earlier))
        survivor.is_new, survivor.broken = self.is_new, self.broken
        if survival.mode is SurvivalMode.KEPT:
            survivor.logs = [list(log) for log in self.logs]
        else:
            survivor.logs = []
            for log in self.logs:
                synced = next((i for i in range(len(log), 0, -1) if log[i - 1].synced), 0)
                kept = survivor._tear(log[synced:], rng) if survival.mode is SurvivalMode.TORN else []
                survivor.logs.append([*log[:synced], *kept])
        return survivor

    def _tear(self, log: list[Batch], rng: Random) -> list[Batch]:
        """Nothing, all, a prefix, or a log with holes, which LevelDB skips unless it is paranoid."""
        fate = rng.randrange(4)
        if fate == 3 and len(log) > 1:
            self.damaged = True
            return [batch for batch in log if rng.random() < 0.6]
        return log[: (0, len(log), rng.randint(0, len(log)), 0)[fate]]


def changes_of(entries: Sequence[Entry]) -> tuple[tuple[bytes, Record | None], ...]:
    """What entries change, in order."""
    return tuple(
        (op.key, Record(entry.position, op.expires_ms, op.value) if isinstance(op, Put) else None)
        for entry in entries
        for op in entry.ops
    )


class ModelReplayBatch:
    """`ReplayBatch` of a `ModelEngine`."""

    def __init__(self, engine: ModelEngine) -> None:
        self._engine = engine
        self._entries: list[Entry] = []

    def add(self, entries: Sequence[LoggedEntry]) -> None:
        self._entries += map(entry_of, entries)

    def write(self) -> None:
        self._engine.write(self._entries, synced=True)


class ModelEngineDisk:
    """All databases on one `MemoryDisk`, and the `EngineFactory` that opens them.

    Which database a directory holds is written in a file in it, which follows the directory when it is renamed and
    vanishes with it when its name was not durable. Calls are numbered by the disk's plan: ``engine_open_paranoid``,
    ``engine_open``, ``engine_write``, ``engine_copy_in``, ``engine_settle``, ``engine_flush``, ``engine_close``. A
    failure of one is reported as EngineFailed, `disk_full` if its error is ENOSPC. The `partial` of a crash or failure
    means, for a write: 0 not written, 1 written (and not synced, though it was to be), between (failure only): visible
    until the engine is closed, then lost, as LevelDB does; for a flush from 0.5 on: the memtables before the current
    one became durable; for the open that makes a database: it is there and unusable.

    Attributes:
        disk: where the directories are.
        memtable_batches: how many writes fill a memtable, at most.
        seed: decides when memtables are switched and become durable, and what a torn log holds.
    """

    def __init__(self, disk: MemoryDisk, *, memtable_batches: int = 4, seed: int = 0) -> None:
        self.disk = disk
        self.memtable_batches = memtable_batches
        self.seed = seed
        self.rng = Random(f"engine/{seed}")
        #: The engine that was opened last.
        self.last_opened: ModelEngine | None = None
        self._databases: dict[str, Database] = {}

    @property
    def plan(self) -> CrashPlan:
        """The life of the process that uses it."""
        return self.disk.plan

    def __call__(self, path: Path, *, paranoid: bool) -> ModelEngine:
        """Open the database in a directory, making both if they are missing; see `EngineFactory`."""
        with self.plan.lock:
            interruption = self.plan.begin("engine_open_paranoid" if paranoid else "engine_open", path)
            if interruption is not None:
                if interruption.partial > 0 and (database := self._find(path)).is_new:
                    database.broken = True
                raise _exception(interruption)
            database = self._find(path)
            if database.broken:
                raise EngineFailed(f"{path}: Corruption: CURRENT points to a non-existent file")
            if database.is_open:
                raise EngineFailed(f"{path}: IO error: lock {path}/LOCK: already held by process")
            if paranoid and database.damaged:
                raise EngineFailed(f"{path}: Corruption: damaged log record")
            # LevelDB writes what its logs hold to synced tables before an open returns.
            database.damaged = False
            while database.logs:
                database.flush_log()
            database.logs.append([])
            database.is_open, database.is_new = True, False
            self.last_opened = ModelEngine(self, database, path)
            return self.last_opened

    def after_crash(self, survival: Survival, disk: MemoryDisk) -> ModelEngineDisk:
        """What the next process finds, given the disk as `MemoryDisk.after_crash` made it."""
        survivor = ModelEngineDisk(disk, memtable_batches=self.memtable_batches, seed=self.seed)
        survivor.rng = copy(self.rng)
        for name, database in self._databases.items():
            rng = Random(f"{survival.seed}/{self.seed}/{name}")
            survivor._databases[name] = database.after_crash(survival, rng)
        return survivor

    def database(self, path: Path) -> Database:
        """The files of the engine in a directory, for tests to look into and to damage."""
        return self._find(path)

    def lose_everything(self, path: Path) -> None:
        """Remove the database in a directory, as somebody with `rm` would."""
        self.disk.remove_file(path / _MARKER)

    def roll_back(self, path: Path, flushes: int = 1) -> None:
        """Put back the database as it was before the last so many memtables became durable: an old copy restored."""
        database = self._find(path)
        assert len(database.earlier) >= flushes, "there were not so many flushes"
        database.tables = database.earlier[-flushes]
        del database.earlier[-flushes:]
        database.logs = [[]]

    def _find(self, path: Path) -> Database:
        marker = path / _MARKER
        content = self.disk.content_of(marker)
        if content is None:
            name = f"db{len(self._databases) + 1}"
            self._databases[name] = Database()
            self.disk.put_file(marker, name.encode(), durable_parents=False)
            return self._databases[name]
        return self._databases[content.decode()]


class ModelEngine:
    """`Engine` on one `Database`.

    Attributes:
        stuck: makes `close` find a reader inside that does not leave.
        damaged_keys: keys whose records cannot be read.
        level0: what `level0_files` answers.
    """

    def __init__(self, disk: ModelEngineDisk, database: Database, path: Path) -> None:
        self.stuck = False
        self.damaged_keys: set[bytes] = set()
        self.level0 = 0
        self._disk = disk
        self._plan = disk.plan
        self._database = database
        self._path = path
        self._state = database.tables.copy()
        self._memtable_room = disk.rng.randint(1, disk.memtable_batches)
        self._failed = False
        self._closed = False

    @property
    def applied(self) -> Applied:
        return self._state.applied

    def write(self, entries: Sequence[Entry], *, synced: bool) -> None:
        with self._plan.lock:
            self._check_writable()
            applied = Applied(entries[-1].position, synced, entries[-1].time_ms)
            seqs = f"seq {entries[0].seq}..{entries[-1].seq}"
            self._write("engine_write", seqs, Batch(changes_of(entries), applied))

    def begin_replay_batch(self) -> ModelReplayBatch:
        with self._plan.lock:
            self._check_open()
            return ModelReplayBatch(self)

    def copy_in(self, records: Sequence[RecordFields]) -> None:
        with self._plan.lock:
            self._check_writable()
            changes = tuple(
                (key, Record(Position(Epoch(epoch), seq), expires_ms, value))
                for key, seq, epoch, expires_ms, value in records
            )
            keys = f"{records[0][0]!r}..{records[-1][0]!r}"
            self._write("engine_copy_in", keys, Batch(changes, synced=True))

    def copied_key(self) -> bytes:
        with self._plan.lock:
            self._check_open()
            return max(self._state.records, default=b"")

    def settle(self, position: Position, time_ms: int) -> None:
        with self._plan.lock:
            self._check_writable()
            applied = Applied(position, synced=True, time_ms=time_ms)
            self._write("engine_settle", str(position), Batch((), applied, synced=True))

    def contains(self, key: bytes) -> bool:
        with self._plan.lock:
            self._check_open()
            self._check_damage(key)
            return key in self._state.records

    def read(self, keys: Sequence[bytes]) -> tuple[list[Record | Exception | None], Position]:
        with self._plan.lock:
            self._check_open()
            found: list[Record | Exception | None] = []
            for key in keys:
                try:
                    self._check_damage(key)
                except RecordDamaged as error:
                    found.append(error)
                else:
                    found.append(self._state.records.get(key))
            return found, self._state.applied.position

    def scan(self, wanted: KeyRange) -> ModelScan:
        with self._plan.lock:
            self._check_open()
            records = self._state.records
            keys = [key for key in sorted(records) if key.startswith(wanted.prefix)]
            first = 0 if wanted.first is None else bisect_left(keys, wanted.first)
            last = len(keys) if wanted.last is None else bisect_right(keys, wanted.last)
            keys = keys[first:last]
            if wanted.reverse:
                keys.reverse()
            limit = len(keys) if wanted.limit is None else wanted.limit
            items = [(key, records[key].value) for key in keys[:limit]]
            return ModelScan(self, items, keys[limit] if limit < len(keys) else None)

    def scan_records(self, after_key: bytes) -> ModelRecordScan:
        with self._plan.lock:
            self._check_open()
            return ModelRecordScan(self, sorted((k, r) for k, r in self._state.records.items() if k > after_key))

    def flush(self) -> Position:
        with self._plan.lock:
            self._check_writable()
            interruption = self._plan.begin("engine_flush", self._path)
            if interruption is not None:
                if interruption.partial >= 0.5:
                    self._flush_all_but_current()
                raise self._fail(interruption)
            self._flush_all_but_current()
            self._database.flush_log()
            self._database.logs.append([])
            return self._state.applied.position

    def level0_files(self) -> int:
        return 0 if self._closed else self.level0

    def close(self, timeout_s: float) -> bool:
        with self._plan.lock:
            if self._closed:
                return True
            interruption = self._plan.begin("engine_close", self._path)
            if interruption is not None:
                raise _exception(interruption)
            if self.stuck:
                return False
            self._closed = True
            self._database.is_open = False
            return True

    @property
    def is_closed(self) -> bool:
        """Whether `close` succeeded."""
        return self._closed

    def check_scan(self, keys: Iterable[bytes]) -> None:
        """Raise what a scan that comes to these keys would."""
        with self._plan.lock:
            self._check_open()
            for key in keys:
                self._check_damage(key)

    def _write(self, operation: str, detail: str, batch: Batch) -> None:
        interruption = self._plan.begin(operation, self._path, detail)
        if interruption is None:
            self._log(batch)
            self._state.apply([batch])
            return
        if interruption.partial >= 1:
            self._log(batch._replace(synced=False))
        if interruption.partial > 0:
            self._state.apply([batch])
        raise self._fail(interruption)

    def _log(self, batch: Batch) -> None:
        database, rng = self._database, self._disk.rng
        if len(database.logs) > 1 and rng.random() < 0.3:
            database.flush_log()
        if len(database.logs[-1]) >= self._memtable_room:
            # LevelDB keeps one full memtable at most: a writer waits until the one before is a table.
            self._flush_all_but_current()
            database.logs.append([])
            self._memtable_room = rng.randint(1, self._disk.memtable_batches)
        database.logs[-1].append(batch)

    def _flush_all_but_current(self) -> None:
        while len(self._database.logs) > 1:
            self._database.flush_log()

    def _fail(self, interruption: Interruption) -> BaseException:
        self._failed = True
        return _exception(interruption)

    def _check_open(self) -> None:
        self._plan.check_alive()
        if self._closed:
            raise EngineClosed(f"{self._path} is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._failed:
            raise EngineFailed(f"{self._path} failed before")

    def _check_damage(self, key: bytes) -> None:
        if key in self.damaged_keys:
            raise RecordDamaged(f"{self._path}: the block of {key!r} fails its checksum")


class ModelScan:
    """`Scan` over a copy of the records."""

    def __init__(self, engine: ModelEngine, items: list[Item], next_key: bytes | None) -> None:
        self.applied = engine.applied.position
        self.ended = False
        self.next_key: bytes | None = None
        self._engine = engine
        self._items = items
        self._left_out = next_key
        self._at = 0

    def next_items(self, max_items: int, max_bytes: int) -> list[Item]:
        stop, size = self._at, 0
        while stop < len(self._items) and stop - self._at < max_items and size < max_bytes:
            size += sum(map(len, self._items[stop]))
            stop += 1
        items = self._items[self._at : stop]
        self._engine.check_scan(key for key, _ in items)
        self._at = stop
        if stop == len(self._items):
            self.ended, self.next_key = True, self._left_out
        return items

    def close(self) -> None:
        self._items = []
        self._at = 0


class ModelRecordScan:
    """`RecordScan` over a copy of the records."""

    def __init__(self, engine: ModelEngine, records: list[tuple[bytes, Record]]) -> None:
        self.applied = engine.applied.position
        self._engine = engine
        self._left = [
            SnapshotRecord(key, record.position.seq, record.position.epoch, record.expires_ms, record.value)
            for key, record in records
        ]

    def next_records(self, max_bytes: int) -> list[SnapshotRecord]:
        stop = size = 0
        for record in self._left:
            size += len(record.key) + len(record.value)
            if size > max_bytes and stop:
                break
            stop += 1
        records, self._left = self._left[:stop], self._left[stop:]
        self._engine.check_scan(record.key for record in records)
        return records

    def close(self) -> None:
        self._left = []


def _exception(interruption: Interruption) -> BaseException:
    if interruption.error is None:
        return interruption.exception()
    return EngineFailed(
        f"{interruption.call.path}: IO error: {os.strerror(interruption.error)}",
        disk_full=interruption.error == errno.ENOSPC,
    )
