"""The engine on LevelDB: the only module that knows plyvel, and where what both get wrong is made good.

What is relied on, and shown by tests on damaged files:

- Always `paranoid_checks`: only with them are the index blocks of tables verified, and only with them does a compaction
  verify what it copies, instead of giving damaged bytes a valid checksum.
- LevelDB reports a missing table file to a point read as "not found". So a hit counts, and a miss is confirmed by an
  iterator, which tells the two apart.
- plyvel's iterators look at LevelDB's status only while they find something, and a reverse one overlooks an only item
  that stands on its lower bound. So an end is confirmed by stepping back from what lies behind it, on the same
  snapshot, with a raw iterator, which always looks at the status; and the lower bound is compared here.
- No bloom filters: LevelDB never verifies a filter again once its table is open, and damage in it would bring an older
  version of a record back.
- After a failed write LevelDB takes further ones and loses them: the first failure is final here.
- `compact_range` says neither whether it failed nor whether it did anything (LevelDB drops the request when it joins
  it to a write under way). What proves a flush is that the logs of before are gone: LevelDB deletes a log once its
  contents are in synced tables that a synced manifest names. It proves nothing when somebody else removed files: a
  flush that finds no log at all, or no manifest behind it, has failed.
- A database, iterator or snapshot must not be closed while a thread is inside: everything goes through one gate.

It is long because nobody else is to know plyvel: first the factory, then the engine, then its walks over snapshots.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TypeVar

import plyvel

from kvnode.node.api import Item, KeyRange, Record
from kvnode.node.config import Config
from kvnode.node.errors import EngineClosed, EngineFailed, RecordDamaged, UnknownFormat
from kvnode.node.fs import RealFs
from kvnode.node.storage.dbfiles import has_its_root, log_names, lost_its_root, put_logs_back, set_logs_aside
from kvnode.node.storage.engine import Applied, Engine
from kvnode.node.storage.gate import Gate
from kvnode.node.storage.records import (
    APPLIED_KEY,
    DATA_PREFIX,
    FORMAT_KEY,
    FORMAT_VERSION,
    HEADER_BYTES,
    decode_applied,
    decode_format,
    decode_header,
    decode_record,
    encode_applied,
    encode_format,
    encode_header,
    stored_bounds,
)
from kvnode.protocol.entry import LoggedEntry, LoggedPut
from kvnode.protocol.snapshot import RecordFields
from kvnode.protocol.types import Entry, Epoch, Position, Put

#: How LevelDB words the errors that mean a full disk.
_DISK_FULL_TEXTS = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))

#: A flush that LevelDB dropped is asked for again: about this often, waiting about this long for logs to go.
_FLUSH_ATTEMPTS = 50
_FLUSH_POLLS = 10
_FLUSH_POLL_S = 0.005

#: The key in a stored key and the value in a stored record. Slicing with a made slice is the faster way.
_KEY = slice(len(DATA_PREFIX), None)
_VALUE = slice(HEADER_BYTES, None)

#: What a stored key and a stored record have besides the key and the value.
_OVERHEAD_BYTES = len(DATA_PREFIX) + HEADER_BYTES

#: A range of stored keys that holds none: compacting it moves the memtable to a table and does nothing else.
_NOTHING = b"\x00"


WalkT = TypeVar("WalkT", bound="_Walk")


@dataclass(frozen=True, slots=True)
class LevelDbFactory:
    """Opens engines with one set of options; implements `EngineFactory`.

    Attributes:
        write_buffer_bytes: size of a memtable, of which there may be two, and of a level-0 table.
        block_cache_bytes: memory for uncompressed blocks; scans leave it alone.
        open_files: LevelDB keeps ten fewer tables open, at least 64. Open tables are mapped, so what was read of them
            counts as resident.
        table_bytes: size of a table from level 1 on, at least 1 MiB. Small ones bound what is mapped, and are cheaper
            to open, which is what a point read in much data mostly does.
        block_bytes: size of a table's blocks, at least 1 KiB: what a point read reads and decompresses.
        compression: "snappy" or None. Compressed index blocks are held on the heap, out of reach of later damage.
    """

    write_buffer_bytes: int
    block_cache_bytes: int
    open_files: int
    table_bytes: int = 1024 * 1024
    block_bytes: int = 4 * 1024
    compression: str | None = "snappy"

    def __call__(self, path: Path, *, paranoid: bool) -> Engine:
        """Open the engine at `path`, making it if it is missing.

        Args:
            path: LevelDB's directory; its parent exists.
            paranoid: whether damage in LevelDB's own log is an error. If not, that log is set aside: what LevelDB holds
                then is all that it had in tables, which is at least what the last flush made durable.

        Raises:
            EngineFailed: it cannot be opened, or holds something else than an engine's data.
            UnknownFormat: another format version wrote it.
        """
        try:
            if lost_its_root(path):
                raise EngineFailed(f"{path}: CURRENT is missing, but tables or logs are there")
            db = self._open(path) if paranoid else self._open_or_drop_log(path)
        except (plyvel.Error, OSError) as error:
            raise _failed(f"{path}: opening failed", error) from error
        try:
            return LevelDbEngine(path, db, _load_applied(path, db))
        except BaseException as error:
            db.close()
            if isinstance(error, plyvel.Error | OSError | ValueError):
                raise _failed(f"{path}: reading what is applied failed", error) from error
            raise

    def _open(self, path: Path) -> Any:
        return plyvel.DB(
            os.fsencode(path),
            create_if_missing=True,
            paranoid_checks=True,
            write_buffer_size=self.write_buffer_bytes,
            lru_cache_size=self.block_cache_bytes,
            max_open_files=self.open_files,
            max_file_size=self.table_bytes,
            block_size=self.block_bytes,
            compression=self.compression,
        )

    def _open_or_drop_log(self, path: Path) -> Any:
        try:
            return self._open(path)
        except plyvel.CorruptionError:
            aside = set_logs_aside(path)
        try:
            return self._open(path)
        except plyvel.Error:
            put_logs_back(aside)
            raise


def leveldb_factory(config: Config) -> LevelDbFactory:
    """The factory with the options that `config` sets."""
    return LevelDbFactory(
        write_buffer_bytes=config.engine_write_buffer_bytes,
        block_cache_bytes=config.engine_block_cache_bytes,
        open_files=config.engine_open_files,
    )


class LevelDbEngine:
    """`Engine` on one open LevelDB."""

    def __init__(self, path: Path, db: Any, applied: Applied) -> None:
        """Take over an open database; `LevelDbFactory` calls this."""
        self._path = path
        self._db = db
        self._applied = applied
        self._gate = Gate(str(path))
        self._closing = threading.Lock()
        self._failure: EngineFailed | None = None
        #: What was applied when the last flush began that succeeded, by identity.
        self._flushed: Applied | None = None
        #: Those not closed yet. They are held here lest the interpreter frees one outside of the gate.
        self._scans: set[_Walk] = set()
        #: LevelDB's logs of which the names are known to be durable.
        self._named_logs: set[str] = set()
        #: Records share their epochs: a reign has millions of them.
        self._to_epoch = lru_cache(maxsize=64)(Epoch)

    @property
    def applied(self) -> Applied:
        return self._applied

    def write(self, entries: Sequence[Entry], *, synced: bool) -> None:
        if not entries:
            return
        with self._gate:
            self._check_writable()
            batch = self._db.write_batch()
            put, delete = batch.put, batch.delete
            for seq, epoch, _, ops in entries:
                header = encode_header(seq, epoch, 0)
                for op in ops:
                    if isinstance(op, Put):
                        _, key, expires_ms, value = op
                        if expires_ms:
                            put(DATA_PREFIX + key, encode_header(seq, epoch, expires_ms) + value)
                        else:
                            put(DATA_PREFIX + key, header + value)
                    else:
                        delete(DATA_PREFIX + op.key)
            last = entries[-1]
            self._write_applied(batch, Applied(last.position, synced, last.time_ms))

    def begin_replay_batch(self) -> LevelDbReplayBatch:
        with self._gate:
            return LevelDbReplayBatch(self, self._db.write_batch())

    def write_replay_batch(self, batch: Any, applied: Applied) -> None:
        """For `LevelDbReplayBatch`: write what it has collected, and with it what is applied then."""
        with self._gate:
            self._check_writable()
            self._write_applied(batch, applied)

    def contains(self, key: bytes) -> bool:
        with self._gate:
            try:
                return _find(self._db, DATA_PREFIX + key) is not None
            except plyvel.Error as error:
                raise self._damaged(key, error) from error

    def read(self, keys: Sequence[bytes]) -> tuple[list[Record | Exception | None], Position]:
        with self._gate:
            snapshot = self._db.snapshot()
            try:
                position = self._position(snapshot)
                return [self._read(snapshot, key) for key in keys], position
            finally:
                snapshot.close()

    def scan(self, wanted: KeyRange) -> LevelDbScan:
        return self._begin(lambda snapshot, applied: LevelDbScan(self, snapshot, applied, wanted))

    def scan_records(self, after_key: bytes) -> LevelDbRecordScan:
        return self._begin(lambda snapshot, applied: LevelDbRecordScan(self, snapshot, applied, after_key))

    def copy_in(self, records: Sequence[RecordFields]) -> None:
        # Nothing but the records: with a meta key in it, a table would span all that come after it, and LevelDB would
        # write every record twice more to merge them, which was two fifths of the time of a full sync.
        with self._gate:
            self._check_writable()
            batch = self._db.write_batch(sync=True)
            put = batch.put
            for key, seq, epoch, expires_ms, value in records:
                put(DATA_PREFIX + key, encode_header(seq, epoch, expires_ms) + value)
            self._write_synced(batch, "copying records in failed")

    def copied_key(self) -> bytes:
        with self._gate:
            try:
                return _last_key(self._db)
            except plyvel.Error as error:
                raise _failed(f"{self._path}: reading what was copied failed", error) from error

    def settle(self, position: Position, time_ms: int) -> None:
        with self._gate:
            self._check_writable()
            applied = Applied(position, synced=True, time_ms=time_ms)
            batch = self._db.write_batch(sync=True)
            batch.put(APPLIED_KEY, encode_applied(applied))
            self._write_synced(batch, "settling failed")
            self._applied = applied

    def flush(self) -> Position:
        with self._gate:
            self._check_writable()
            applied = self._applied
            if applied is not self._flushed:
                try:
                    self._move_to_tables(log_names(self._path))
                    if not has_its_root(self._path):
                        raise plyvel.Error("CURRENT or the manifest was removed")
                    # LevelDB does not sync the renaming of CURRENT.
                    RealFs().sync_directory(self._path)
                except (plyvel.Error, OSError) as error:
                    raise self._fail("a flush failed", error) from error
                self._flushed = applied
            return applied.position

    def level0_files(self) -> int:
        with self._gate:
            return int(self._db.get_property(b"leveldb.num-files-at-level0"))

    def close(self, timeout_s: float) -> bool:
        """Wait until no call is inside, then close; from the call on, new calls raise EngineClosed.

        The closing itself waits for a compaction to stop at its next key and for a memtable that is being written, and
        holds the interpreter's lock meanwhile.
        """
        if not self._gate.shut(timeout_s):
            return False
        with self._closing:
            while self._scans:
                self._scans.pop().release()
            self._db.close()
        return True

    # ---- for the scans ---------------------------------------------------------------------------------------------

    @property
    def gate(self) -> Gate:
        """What every use of the database goes through."""
        return self._gate

    def forget_scan(self, scan: _Walk) -> None:
        """Release an open scan. Called through the gate."""
        self._scans.discard(scan)
        scan.release()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _begin(self, make: Callable[[Any, Position], WalkT]) -> WalkT:
        """The scan that `make` makes of a new snapshot and its position."""
        with self._gate:
            snapshot = self._db.snapshot()
            try:
                scan = make(snapshot, self._position(snapshot))
            except BaseException:
                snapshot.close()
                raise
            self._scans.add(scan)
            return scan

    def _write_applied(self, batch: Any, applied: Applied) -> None:
        """Write a batch, and with it what is applied then. Called through the gate."""
        batch.put(APPLIED_KEY, encode_applied(applied))
        try:
            batch.write()
        except plyvel.Error as error:
            raise self._fail("a write failed", error) from error
        self._applied = applied

    def _write_synced(self, batch: Any, failing: str) -> None:
        """Write a synced batch, so that it survives anything. Called through the gate."""
        self._flushed = None
        try:
            batch.write()
            # LevelDB syncs a log, but not the name of a new one.
            logs = log_names(self._path)
            if not logs <= self._named_logs:
                RealFs().sync_directory(self._path)
                self._named_logs = logs
        except (plyvel.Error, OSError) as error:
            raise self._fail(failing, error) from error

    def _position(self, snapshot: Any) -> Position:
        try:
            stored = _find(snapshot, APPLIED_KEY)
            return decode_applied(stored).position if stored is not None else Position(Epoch(0), 0)
        except (plyvel.Error, ValueError) as error:
            raise _failed(f"{self._path}: reading what is applied failed", error) from error

    def _read(self, snapshot: Any, key: bytes) -> Record | Exception | None:
        try:
            stored = _find(snapshot, DATA_PREFIX + key)
            return None if stored is None else decode_record(stored, self._to_epoch)
        except (plyvel.Error, ValueError) as error:
            return self._damaged(key, error)

    def _move_to_tables(self, logs: set[str]) -> None:
        """Return once the memtables of `logs` are synced tables.

        Raises:
            plyvel.Error: the error that keeps LevelDB from it.
            OSError: the directory cannot be read.
        """
        if not logs:
            raise plyvel.Error("LevelDB's log was removed")
        for _ in range(_FLUSH_ATTEMPTS):
            self._db.compact_range(start=_NOTHING, stop=_NOTHING)
            for _ in range(_FLUSH_POLLS):
                if logs.isdisjoint(log_names(self._path)):
                    return
                time.sleep(_FLUSH_POLL_S)
            # An empty write changes nothing and is answered with the error that stopped LevelDB's background work.
            self._db.write_batch().write()
        raise plyvel.Error(f"cannot show that the memtable reached the disk: {', '.join(sorted(logs))} stay")

    def _check_writable(self) -> None:
        if self._failure is not None:
            raise EngineFailed(f"failed before: {self._failure.message}", disk_full=self._failure.disk_full)

    def _fail(self, what: str, error: Exception) -> EngineFailed:
        self._failure = _failed(f"{self._path}: {what}", error)
        return self._failure

    def _damaged(self, key: bytes, error: Exception) -> RecordDamaged:
        return RecordDamaged(f"{self._path}: {key!r} cannot be read: {error}")


class LevelDbReplayBatch:
    """`ReplayBatch` of a `LevelDbEngine`."""

    def __init__(self, engine: LevelDbEngine, batch: Any) -> None:
        """Begin with an empty WriteBatch; `LevelDbEngine.begin_replay_batch` calls this."""
        self._engine = engine
        self._batch = batch
        self._last: LoggedEntry | None = None

    def add(self, entries: Sequence[LoggedEntry]) -> None:
        with self._engine.gate:
            put, delete = self._batch.put, self._batch.delete
            for entry in entries:
                seq, epoch = entry.seq, entry.epoch
                header = encode_header(seq, epoch, 0)
                for op in entry.ops:
                    if type(op) is LoggedPut:
                        if op.expires_ms:
                            put(DATA_PREFIX + op.key, encode_header(seq, epoch, op.expires_ms) + op.value)
                        else:
                            put(DATA_PREFIX + op.key, header + op.value)
                    else:
                        delete(DATA_PREFIX + op.key)
            self._last = entries[-1]

    def write(self) -> None:
        assert self._last is not None, "an empty batch"
        last = self._last
        applied = Applied(Position(Epoch(last.epoch), last.seq), synced=True, time_ms=last.time_ms)
        self._engine.write_replay_batch(self._batch, applied)


class _Walk:
    """A walk over a half-open range of stored keys in one snapshot of a `LevelDbEngine`, which confirms its end."""

    def __init__(
        self, engine: LevelDbEngine, snapshot: Any, applied: Position, start: bytes, stop: bytes, *, reverse: bool
    ) -> None:
        """Begin a walk; owns `snapshot` once this has returned.

        Args:
            start: the lowest stored key that may come; the range is empty if it is not below `stop`.
            stop: above all that may come; a stored key lies there or behind it.

        Raises:
            RecordDamaged: a table cannot be opened.
        """
        self.applied = applied
        self._engine = engine
        self._snapshot = snapshot
        self._reverse = reverse
        self._start, self._stop = start, stop
        #: The stored key of the last item handed out.
        self._last: bytes | None = None
        self._damage: RecordDamaged | None = None
        self._ended = start >= stop
        try:
            self._iterator = snapshot.iterator(
                reverse=reverse,
                start=None if reverse else start,
                stop=stop,
                verify_checksums=True,
                fill_cache=False,
            )
        except plyvel.Error as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        try:
            with self._engine.gate:
                self._engine.forget_scan(self)
        except EngineClosed:
            # Whoever closes the engine releases its scans.
            return

    def release(self) -> None:
        """Give the snapshot back. Called by the engine only, when no call is inside this scan."""
        if self._snapshot is not None:
            self._iterator.close()
            self._snapshot.close()
            self._iterator = self._snapshot = None

    def _check(self) -> None:
        """Raise what ended this scan before its end, if something did. Called through the gate."""
        if self._damage is not None:
            raise self._damage
        if self._snapshot is None:
            raise EngineClosed("the scan is closed")

    def _confirm_end(self) -> None:
        """Step back from behind the end: what comes first is the last item handed out, or outside of the range.

        Raises:
            plyvel.Error: a block on the way is damaged, or items are missing.
        """
        raw = self._snapshot.raw_iterator(verify_checksums=True, fill_cache=False)
        try:
            raw.seek(self._start if self._reverse else self._stop)
            if not raw.valid():
                raise plyvel.CorruptionError("the meta keys are missing behind the data")
            if not self._reverse:
                raw.prev()
            neighbour = raw.key() if raw.valid() else b""
        finally:
            raw.close()
        last = neighbour if self._start <= neighbour < self._stop else None
        if last != self._last:
            raise plyvel.CorruptionError(f"the walk ended at {self._last!r}, but the last key is {last!r}")

    def _damaged(self, error: Exception) -> RecordDamaged:
        return RecordDamaged(f"a range read met damage: {error}")


class LevelDbScan(_Walk):
    """`Scan` over one snapshot of a `LevelDbEngine`."""

    def __init__(self, engine: LevelDbEngine, snapshot: Any, applied: Position, wanted: KeyRange) -> None:
        """Begin a walk; owns `snapshot` once this has returned.

        Raises:
            RecordDamaged: a table cannot be opened.
        """
        super().__init__(engine, snapshot, applied, *stored_bounds(wanted), reverse=wanted.reverse)
        self.next_key: bytes | None = None
        self._left = wanted.limit
        self._items: Iterator[tuple[bytes, bytes]] = self._iterator
        if wanted.reverse:
            lowest = self._start
            self._items = takewhile(lambda item: item[0] >= lowest, self._iterator)

    @property
    def ended(self) -> bool:
        return self._ended

    def next_items(self, max_items: int, max_bytes: int) -> list[Item]:
        with self._engine.gate:
            self._check()
            if self._ended:
                return []
            try:
                return self._take(max_items, max_bytes)
            except plyvel.Error as error:
                self._damage = self._damaged(error)
                raise self._damage from error

    def _take(self, max_items: int, max_bytes: int) -> list[Item]:
        count = max_items if self._left is None else min(max_items, self._left)
        items: list[Item] = []
        append = items.append
        size = 0
        exhausted = False
        for key, stored in islice(self._items, count):
            append((key[_KEY], stored[_VALUE]))
            # Counting the keys too would be felt, and their number is bounded.
            size += len(stored)
            if size >= max_bytes:
                break
        else:
            exhausted = len(items) < count
        if items:
            self._last = DATA_PREFIX + items[-1][0]
        if self._left is not None and not exhausted:
            self._left -= len(items)
            if not self._left:
                exhausted = not self._peek()
        if exhausted:
            self._confirm_end()
            self._ended = True
        return items

    def _peek(self) -> bool:
        """Whether something lies behind the limit; if so, it is the `next_key`."""
        following = next(self._items, None)
        if following is None:
            return False
        self.next_key = following[0][_KEY]
        self._ended = True
        return True


class LevelDbRecordScan(_Walk):
    """`RecordScan` over one snapshot of a `LevelDbEngine`."""

    def __init__(self, engine: LevelDbEngine, snapshot: Any, applied: Position, after_key: bytes) -> None:
        """Begin a walk; owns `snapshot` once this has returned.

        Raises:
            RecordDamaged: a table cannot be opened.
        """
        start, stop = stored_bounds(KeyRange())
        if after_key:
            # The smallest byte string above a key is that key and a zero byte.
            start = DATA_PREFIX + after_key + b"\x00"
        super().__init__(engine, snapshot, applied, start, stop, reverse=False)
        #: Read, but not handed out yet, as it did not fit.
        self._kept: RecordFields | None = None

    def next_records(self, max_bytes: int) -> list[RecordFields]:
        with self._engine.gate:
            self._check()
            if self._ended:
                return []
            try:
                return self._take(max_bytes)
            except (plyvel.Error, struct.error) as error:
                self._damage = self._damaged(error)
                raise self._damage from error

    def _take(self, max_bytes: int) -> list[RecordFields]:
        records: list[RecordFields] = []
        append = records.append
        size = 0
        if self._kept is not None:
            append(self._kept)
            size = len(self._kept[0]) + len(self._kept[-1])
            self._kept = None
        for key, stored in self._iterator:
            seq, epoch, expires_ms = decode_header(stored)
            record = key[_KEY], seq, epoch, expires_ms, stored[_VALUE]
            size += len(key) + len(stored) - _OVERHEAD_BYTES
            if size > max_bytes and records:
                self._kept = record
                break
            append(record)
        if records:
            self._last = DATA_PREFIX + records[-1][0]
        if self._kept is None:
            self._confirm_end()
            self._ended = True
        return records


def _find(source: Any, stored_key: bytes) -> bytes | None:
    """The value of a stored key in a database or snapshot, None when it is shown that there is none.

    Raises:
        plyvel.Error: what could tell is damaged or missing.
    """
    value: bytes | None = source.get(stored_key, verify_checksums=True)
    if value is not None:
        return value
    raw = source.raw_iterator(verify_checksums=True, fill_cache=False)
    try:
        raw.seek(stored_key)
        return raw.value() if raw.valid() and raw.key() == stored_key else None
    finally:
        raw.close()


def _last_key(db: Any) -> bytes:
    """The highest key that has a record, without the prefix; empty when none has.

    Raises:
        plyvel.Error: what could tell is damaged or missing.
    """
    start, stop = stored_bounds(KeyRange())
    raw = db.raw_iterator(verify_checksums=True, fill_cache=False)
    try:
        raw.seek(stop)
        if not raw.valid():
            raise plyvel.CorruptionError("the meta keys are missing behind the data")
        raw.prev()
        stored_key: bytes = raw.key() if raw.valid() else b""
        return stored_key[_KEY] if stored_key >= start else b""
    finally:
        raw.close()


def _load_applied(path: Path, db: Any) -> Applied:
    """What a just opened database says is applied; marks an empty one with the format version.

    Raises:
        UnknownFormat: another format version wrote it.
        ValueError: it holds data, but no format version, or one of the two is malformed.
        plyvel.Error, OSError: it cannot be read or marked.
    """
    stored = _find(db, FORMAT_KEY)
    if stored is None:
        _mark_format(path, db)
    elif (version := decode_format(stored)) != FORMAT_VERSION:
        raise UnknownFormat(path, version, FORMAT_VERSION)
    stored = _find(db, APPLIED_KEY)
    return decode_applied(stored) if stored is not None else Applied(Position(Epoch(0), 0), synced=False)


def _mark_format(path: Path, db: Any) -> None:
    raw = db.raw_iterator(verify_checksums=True, fill_cache=False)
    try:
        raw.seek_to_first()
        if raw.valid():
            raise ValueError("there is data, but no format version")
    finally:
        raw.close()
    db.put(FORMAT_KEY, encode_format(FORMAT_VERSION), sync=True)
    for directory in (path, path.parent):
        RealFs().sync_directory(directory)


def _failed(what: str, error: Exception) -> EngineFailed:
    text = str(error)
    return EngineFailed(f"{what}: {text}", disk_full=any(full in text for full in _DISK_FULL_TEXTS))
