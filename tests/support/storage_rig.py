"""A node's storage without the store: a data directory on a `MemoryDisk`, written and recovered as a node would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvnode.node.storage.datadir import CleanStop, Identity, Layout, StateFiles
from kvnode.node.storage.recovery import Recovery, Storage
from kvnode.node.storage.segment import SegmentRecord, read_records
from kvnode.node.storage.wal import Segment, WalOptions
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import Entry, Epoch, Op, put
from support.crash_plan import Survival
from support.events import CapturedEvents
from support.memory_disk import MemoryDisk
from support.model_engine import ModelEngine, ModelEngineDisk

CLUSTER_ID = bytes.fromhex("c1" * 16)
NODE_ID = bytes.fromhex("a1" * 16)

#: Time of entry 1; each later one is 1 ms later.
FIRST_TIME_MS = 1_700_000_000_000


def epoch_of_start(number: int) -> Epoch:
    """The epoch that the so-manieth start of a rig begins, counted from 1."""
    return Epoch.of(number, 0x9F2C1A00 + number)


def log_record(payload: bytes) -> LogRecord:
    """A payload with its CRC."""
    return LogRecord(payload_crc(payload), payload)


class StorageRig:
    """One data directory, through any number of lives of its node.

    Attributes:
        disk: where it is.
        engines: its LevelDB.
        options: of the log.
        root: its path.
    """

    def __init__(
        self,
        options: WalOptions | None = None,
        *,
        disk: MemoryDisk | None = None,
        engines: ModelEngineDisk | None = None,
    ) -> None:
        self.disk = disk or MemoryDisk()
        # Nothing leaves the memtable but by a flush, so that tests know what is durable.
        self.engines = engines or ModelEngineDisk(self.disk, memtable_batches=1 << 30)
        self.options = options or WalOptions(segment_bytes=1024, keep_bytes=1 << 40)
        self.root = Path("/data")
        self.layout = Layout(self.root)
        self.files = StateFiles(self.disk, self.layout)
        self.captured = CapturedEvents()
        self.identity = Identity(NODE_ID.hex(), "n1", CLUSTER_ID.hex(), "primary")
        self._encoder = EntryEncoder()

    def start(self) -> Storage:
        """Recover, and begin a new epoch as a primary does."""
        if not self.disk.exists(self.layout.node):
            self.disk.make_directory(self.root)
            self.disk.sync_directory(self.root.parent)
            self.files.save_identity(self.identity)
        storage = self.recover()
        term = storage.history.current.term + 1
        storage.history = storage.history.begin(epoch_of_start(term), storage.wal.last_seq + 1)
        self.files.save_history(storage.history)
        return storage

    def recover(self) -> Storage:
        """Recover and nothing else."""
        log = self.captured
        return Recovery(self.disk, self.layout, self.identity, self.engines, self.options, log).run()

    def write(self, storage: Storage, groups: Sequence[Sequence[Sequence[Op]]], *, apply: bool = True) -> bool:
        """Commit groups of entries, each entry given by its operations.

        Returns:
            Whether a segment was closed.
        """
        closed = False
        for group in groups:
            seq = storage.wal.last_seq
            entries = [
                Entry(seq + number, storage.history.current, FIRST_TIME_MS + seq + number, tuple(ops))
                for number, ops in enumerate(group, start=1)
            ]
            closed |= storage.wal.append([log_record(self._encoder.encode(entry)) for entry in entries])
            if apply:
                storage.engine.write(entries, synced=self.options.sync)
        return closed

    def write_puts(self, storage: Storage, count: int, *, value_bytes: int = 20, apply: bool = True) -> None:
        """Commit so many entries, each in a group of its own: seq S puts S into the keys ``last`` and ``k<S>``."""
        for _ in range(count):
            value = b"%d" % (storage.wal.last_seq + 1)
            ops = [put(b"last", value), put(b"k" + value, b'"' + value.rjust(value_bytes, b".") + b'"')]
            self.write(storage, [[ops]], apply=apply)

    def encode(self, entry: Entry) -> bytes:
        """An entry's payload."""
        return self._encoder.encode(entry)

    def checkpoint(self, storage: Storage) -> None:
        """Make LevelDB durable and say so."""
        storage.checkpoint_seq = storage.engine.flush().seq
        storage.wal.sync()
        self.files.save_checkpoint(storage.checkpoint_seq)

    def trim(self, storage: Storage) -> list[Segment]:
        """Drop the segments that neither the checkpoint nor retention keeps."""
        wal = storage.wal
        target = wal.trim_target(storage.checkpoint_seq, None)
        dropped = wal.drop_before(target)
        assert wal.first_seq == target
        return dropped

    def stop(self, storage: Storage) -> None:
        """Stop cleanly."""
        self.checkpoint(storage)
        assert storage.engine.close(1)
        tail = storage.wal.close()
        self.files.save_clean_stop(CleanStop(tail.last_seq, tail.name, tail.end))

    def crashed(self, survival: Survival, engine_survival: Survival | None = None) -> StorageRig:
        """The directory as the next process finds it after this one died.

        Args:
            engine_survival: what survives of LevelDB, if not the same.
        """
        disk = self.disk.after_crash(survival)
        return StorageRig(self.options, disk=disk, engines=self.engines.after_crash(engine_survival or survival, disk))

    def engine(self) -> ModelEngine:
        """The engine that was opened last."""
        assert self.engines.last_opened is not None
        return self.engines.last_opened

    def segment_paths(self) -> list[Path]:
        """The log's segments."""
        return sorted(path for path in self.disk.snapshot(self.layout.wal) if path.suffix == ".wal")

    def read(self, path: Path) -> bytes:
        """A file's content."""
        return self.disk.snapshot()[path]

    def records_of(self, path: Path) -> list[SegmentRecord]:
        """The records of a sound segment."""
        return list(read_records(self.read(path), int(path.stem)))

    def find_record(self, seq: int) -> tuple[Path, SegmentRecord]:
        """The record of an entry, and the segment that it is in; segments before must be sound."""
        for path in self.segment_paths():
            for record in self.records_of(path):
                if record.entry.seq == seq:
                    return path, record
        raise AssertionError(f"seq {seq} is not in the log")

    # ---- harm ----------------------------------------------------------------------------------------------------

    def flip(self, path: Path, offset: int) -> None:
        """Change one byte of a file on stable storage."""
        data = bytearray(self.read(path))
        data[offset] ^= 0x10
        self.disk.put_file(path, bytes(data))

    def damage_record(self, seq: int) -> tuple[Path, int]:
        """Change a byte in the payload of a record; returns where the record is."""
        path, record = self.find_record(seq)
        self.flip(path, record.end - 1)
        return path, record.offset

    def cut_log_before(self, seq: int) -> None:
        """Lose the log's end, from a record on, without a trace."""
        path, record = self.find_record(seq)
        self.disk.put_file(path, self.read(path)[: record.offset])
        for later in self.segment_paths():
            if int(later.stem) > seq:
                self.disk.remove_file(later)

    def lose_engine_log(self) -> None:
        """Lose what LevelDB had not written to tables, as a power failure may."""
        self.engines.database(self.layout.db).logs = [[]]


def value_of(storage: Storage, key: bytes) -> bytes | None:
    """A key's value in LevelDB."""
    (record,), _ = storage.engine.read([key])
    assert not isinstance(record, Exception)
    return None if record is None else record.value


def check_holds(storage: Storage, last_seq: int) -> None:
    """All entries of `StorageRig.write_puts` up to a seq are there, none of later ones, and the log agrees."""
    assert storage.wal.last_seq == last_seq
    assert storage.engine.applied.position.seq == last_seq
    assert value_of(storage, b"last") == (b"%d" % last_seq if last_seq else None)
    for seq in range(1, last_seq + 3):
        assert (value_of(storage, b"k%d" % seq) is not None) is (seq <= last_seq)
