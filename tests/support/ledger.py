"""What the clients of a node were told, and what the node must therefore hold after whatever happened to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy

from kvnode.node.api import Item, KeyRange, Record, WriteResult
from kvnode.node.errors import CallerError, OutcomeUnknown, StorageFull, Unavailable
from kvnode.node.storage.engine import Engine
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.segment import HEADER_BYTES, read_records
from kvnode.protocol.types import OP_PUT, Epoch, Op, Position, Put, Seq
from support.logged import entries_in
from support.memory_disk import MemoryDisk
from support.simulated_node import LAYOUT


class Known:
    """An entry that the log holds for certain, or may hold."""

    __slots__ = ("epoch", "ops")

    def __init__(self, epoch: Epoch, ops: Sequence[Op]) -> None:
        self.epoch = epoch
        self.ops = tuple(ops)


class Ledger:
    """One client's view of a node over all of its lives.

    Attributes:
        entries: those that were acknowledged or found after a recovery; the first has seq 1.
        unknown: the writes whose outcome nobody knows, in order; some prefix of them follows `entries` in the log.
        epoch: of the node's present life.
    """

    def __init__(self) -> None:
        self.entries: list[Known] = []
        self.unknown: list[Known] = []
        self.epoch = Epoch(0)

    def copy(self) -> Ledger:
        """A ledger that goes on by itself."""
        copied = copy(self)
        copied.entries = list(self.entries)
        copied.unknown = list(self.unknown)
        return copied

    @property
    def last_seq(self) -> Seq:
        """The last seq that is known to exist."""
        return len(self.entries)

    def records(self) -> dict[bytes, Record]:
        """What the node must hold, by key, if no unknown write took effect."""
        return _apply(self.entries)

    def told(self, writes: Sequence[Sequence[Op]], results: Sequence[WriteResult | BaseException]) -> None:
        """Note what was answered to the writes of one group, and check that it fits what was answered before."""
        for ops, result in zip(writes, results, strict=True):
            if isinstance(result, WriteResult):
                self._acknowledged(ops, result)
            elif isinstance(result, OutcomeUnknown):
                if self._is_logged(ops):
                    self.unknown.append(Known(self.epoch, ops))
            else:
                assert isinstance(result, StorageFull | Unavailable | CallerError), f"unexpected answer {result!r}"

    def check_recovered(self, storage: Storage, disk: MemoryDisk) -> None:
        """Check what start-up found, and take over which of the unknown writes are there."""
        acknowledged, last_seq = self.last_seq, storage.wal.last_seq
        assert last_seq >= acknowledged, f"the log ends at {last_seq}, but {acknowledged} was acknowledged"
        assert last_seq <= acknowledged + len(self.unknown), f"the log has entries up to {last_seq} that nobody wrote"
        self.entries += self.unknown[: last_seq - acknowledged]
        self.unknown.clear()
        current = storage.history.current
        assert current.term > self.epoch.term, f"term {current.term} was begun after {self.epoch.term}"
        self.epoch = current
        for seq, known in enumerate(self.entries, 1):
            assert storage.history.epoch_of(seq) == known.epoch, f"the history has another epoch for seq {seq}"
        assert storage.history.epoch_of(last_seq + 1) == current
        self.check_engine(storage.engine)
        self._check_log(storage, disk)

    def check_started(self, storage: Storage) -> None:
        """Check what start-up made of a log that was not synced: it holds no entry that nobody wrote.

        Which of the entries it holds is not said: any may be lost.
        """
        written = [*self.entries, *self.unknown]
        assert storage.history.current.term > self.epoch.term
        assert storage.wal.last_seq <= len(written)
        keys = [key for key, _ in read_all(storage.engine)]
        for key, record in zip(keys, storage.engine.read(keys)[0], strict=True):
            assert isinstance(record, Record)
            assert record.position.seq <= storage.wal.last_seq
            known = written[record.position.seq - 1]
            assert known.epoch == record.position.epoch
            assert [op for op in known.ops if op.key == key][-1:] == [Put(OP_PUT, key, record.expires_ms, record.value)]

    def check_engine(self, engine: Engine) -> None:
        """Check that the engine holds exactly the known entries."""
        expected = self.records()
        items = read_all(engine)
        assert [key for key, _ in items] == sorted(expected), "the keys are not those written"
        found, position = engine.read([key for key, _ in items])
        assert dict(zip((key for key, _ in items), found, strict=True)) == expected
        assert [(key, record.value) for key, record in sorted(expected.items())] == items
        if self.entries:
            assert position == engine.applied.position == Position(self.entries[-1].epoch, self.last_seq)

    def _check_log(self, storage: Storage, disk: MemoryDisk) -> None:
        segments = storage.wal.segments
        assert segments[0].first_seq <= storage.checkpoint_seq + 1, "the log does not reach back to the checkpoint"
        entries = entries_in(disk, LAYOUT.wal, segments)
        assert [entry.seq for entry in entries] == list(range(segments[0].first_seq, self.last_seq + 1))
        for entry in entries:
            known = self.entries[entry.seq - 1]
            assert (entry.epoch, tuple(entry.ops)) == (known.epoch, known.ops), f"seq {entry.seq} is another entry"
        assert _never_falls(entry.time_ms for entry in entries)
        seen, stable = disk.snapshot(LAYOUT.wal), disk.stable_snapshot(LAYOUT.wal)
        for segment in segments:
            path = LAYOUT.wal / segment.name
            assert not any(seen[path][segment.end :]), f"{path}: something follows the last record"
            if segment is not segments[-1]:
                assert segment.end == len(seen[path]) == _end_of_records(seen[path], segment.first_seq)
            if segment.last_seq > storage.checkpoint_seq:
                assert stable[path][: segment.end] == seen[path][: segment.end], f"{path} is served but not stable"

    def _acknowledged(self, ops: Sequence[Op], result: WriteResult) -> None:
        if not self._is_logged(ops):
            assert result.position.seq == self.last_seq + len(self.unknown)
            assert result.deleted == 0
            return
        if self.unknown and result.position.seq == self.last_seq + len(self.unknown) + 1:
            # The node got over a failure of LevelDB, which leaves in the log what was logged.
            self.entries += self.unknown
            self.unknown.clear()
        assert result.position == Position(self.epoch, self.last_seq + 1), "the seq is not the next one"
        assert result.deleted == _count_deleted(set(self.records()), ops)
        self.entries.append(Known(self.epoch, ops))

    def _is_logged(self, ops: Sequence[Op]) -> bool:
        """Whether the write changes anything, so that it becomes an entry."""
        if any(isinstance(op, Put) for op in ops):
            return True
        return _count_deleted(set(_apply([*self.entries, *self.unknown])), ops) > 0


def read_all(engine: Engine) -> list[Item]:
    """Everything in an engine, in order."""
    scan = engine.scan(KeyRange())
    items: list[Item] = []
    while some := scan.next_items(100, 1 << 20):
        items += some
    scan.close()
    return items


def _end_of_records(data: bytes, first_seq: Seq) -> int:
    end = HEADER_BYTES
    for record in read_records(data, first_seq):
        end = record.end
    return end


def _apply(entries: Iterable[Known]) -> dict[bytes, Record]:
    records: dict[bytes, Record] = {}
    for seq, known in enumerate(entries, 1):
        for op in known.ops:
            if isinstance(op, Put):
                records[op.key] = Record(Position(known.epoch, seq), op.expires_ms, op.value)
            else:
                records.pop(op.key, None)
    return records


def _count_deleted(keys: set[bytes], ops: Sequence[Op]) -> int:
    deleted = 0
    for op in ops:
        if isinstance(op, Put):
            keys.add(op.key)
        elif op.key in keys:
            keys.remove(op.key)
            deleted += 1
    return deleted


def _never_falls(values: Iterable[int]) -> bool:
    listed = list(values)
    return listed == sorted(listed)
