"""Replay: entries of the log are applied in order and in batches, and what fails meanwhile is told."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.node.errors import EngineClosed, EngineFailed, LogDamaged
from kvnode.node.storage import replay as replaying
from kvnode.node.storage.replay import read_segments, replay
from kvnode.node.storage.segment import Stretch, encode_header, encode_record, read_stretches, segment_name
from kvnode.node.storage.wal import Segment
from kvnode.protocol.entry import EntryEncoder, decode_logged
from kvnode.protocol.types import Entry, Epoch, Op, Position, delete, put
from support.engines import EPOCH, SMALL, opened
from support.memory_disk import MemoryDisk
from support.model_engine import ModelEngineDisk
from support.storage_rig import log_record

PATH = Path("/db")


def entry(seq: int, *ops: Op) -> Entry:
    return Entry(seq, EPOCH, 1000 + seq, ops or (put(b"last", b"%d" % seq), put(b"k%d" % seq, b"%d" % seq)))


def stretches_of(entries: list[Entry], stretch_bytes: int) -> Iterator[Stretch]:
    records = [encode_record(log_record(EntryEncoder().encode(each)), marked=False) for each in entries]
    data = encode_header(bytes(16), entries[0].seq) + b"".join(records)
    return read_stretches(data, entries[0].seq, stretch_bytes)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_BATCH_BYTES", 200)


@pytest.mark.parametrize("stretch_bytes", [1, 130, 1 << 20])
@pytest.mark.parametrize("after_seq", [0, 4, 5, 6, 19])
def test_entries_above_a_seq_are_applied_in_order(stretch_bytes: int, after_seq: int, small_batches: None) -> None:
    disk = MemoryDisk()
    engine = ModelEngineDisk(disk)(PATH, paranoid=True)
    entries = [entry(seq) for seq in range(5, 20)]
    assert replay(engine, stretches_of(entries, stretch_bytes), after_seq) == 19 - max(after_seq, 4)
    spans = [call.detail.removeprefix("seq ").split("..") for call in disk.calls if call.operation == "engine_write"]
    seqs = [seq for first, last in spans for seq in range(int(first), int(last) + 1)]
    assert seqs == list(range(max(after_seq, 4) + 1, 20))
    if seqs:
        assert engine.applied == (Position(EPOCH, 19), True, 1019)
        (record,), _ = engine.read([b"last"])
        assert record is not None
        assert not isinstance(record, Exception)
        assert record.value == b"19"
    if stretch_bytes < 200 and len(seqs) > 10:
        assert len(spans) == 3


def test_nothing_to_apply_changes_nothing() -> None:
    disk = MemoryDisk()
    engine = ModelEngineDisk(disk)(PATH, paranoid=True)
    assert replay(engine, iter(()), 0) == 0
    assert "engine_write" not in {call.operation for call in disk.calls}


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_refusal_of_the_engine_is_told_and_nothing_is_written_after_it(skip: int, small_batches: None) -> None:
    disk = MemoryDisk()
    engine = ModelEngineDisk(disk)(PATH, paranoid=True)
    disk.plan.fail(("engine_write", "*"), errno.ENOSPC, skip=skip)
    with pytest.raises(EngineFailed) as raised:
        replay(engine, stretches_of([entry(seq) for seq in range(1, 30)], 100), 0)
    assert raised.value.disk_full
    assert [call.operation for call in disk.calls].count("engine_write") == skip + 1


def test_damage_ends_a_replay_with_what_was_whole_before_it(small_batches: None) -> None:
    disk = MemoryDisk()
    engine = ModelEngineDisk(disk)(PATH, paranoid=True)

    def damaged() -> Iterator[Stretch]:
        yield from stretches_of([entry(seq) for seq in range(1, 10)], 1000)
        raise LogDamaged(PATH, 1, 10, "damaged meanwhile")

    with pytest.raises(LogDamaged):
        replay(engine, damaged(), 0)
    assert engine.applied.position.seq == 9


# ---- the log of a running node -------------------------------------------------------------------------------------


def segment_of(disk: MemoryDisk, count: int, behind: bytes = b"") -> Segment:
    """A segment whose file holds so many entries and something behind them."""
    records = [
        encode_record(log_record(EntryEncoder().encode(entry(seq))), marked=False) for seq in range(1, count + 1)
    ]
    data = encode_header(bytes(16), 1) + b"".join(records)
    disk.put_file(PATH / segment_name(1), data + behind)
    return Segment(1, count, len(data))


@pytest.mark.parametrize("behind", [b"", bytes(100), b"what a full disk left behind the end"])
def test_a_segment_is_read_up_to_its_known_end(behind: bytes) -> None:
    disk = MemoryDisk()
    segment = segment_of(disk, 5, behind)
    found = [each.seq for stretch in read_segments(disk, PATH, [segment]) for each in stretch.entries]
    assert found == [1, 2, 3, 4, 5]


def test_a_segment_that_ends_before_its_known_end_is_damaged() -> None:
    disk = MemoryDisk()
    whole = segment_of(disk, 5)
    shorter = segment_of(disk, 3)
    with pytest.raises(LogDamaged, match="reached up to seq 5") as caught:
        list(read_segments(disk, PATH, [whole]))
    assert caught.value.fields["seq"] == 4
    assert caught.value.fields["offset"] == shorter.end


# ---- the batch of LevelDB ------------------------------------------------------------------------------------------

ENTRIES = [
    entry(1, put(b"a", b"1"), put(b"b", b"2", 77), delete(b"a"), put(b"a", b"3")),
    entry(2, delete(b"b"), put(b"c", b"")),
    Entry(3, Epoch(2**64 - 1), 2**63, (put(b"d", b"4", 2**64 - 1), delete(b"missing"))),
]


def test_batch_writes_what_write_does(tmp_path: Path) -> None:
    states = []
    for name in ("written", "replayed"):
        with opened(SMALL, tmp_path / name) as engine:
            engine.write([entry(0, put(b"b", b"before"))], synced=False)
            if name == "written":
                engine.write(ENTRIES, synced=True)
            else:
                batch = engine.begin_replay_batch()
                batch.add([decode_logged(EntryEncoder().encode(each)) for each in ENTRIES[:2]])
                batch.add([decode_logged(EntryEncoder().encode(each)) for each in ENTRIES[2:]])
                assert engine.applied.position.seq == 0
                batch.write()
            states.append((engine.read([b"a", b"b", b"c", b"d"]), engine.applied))
        with opened(SMALL, tmp_path / name) as engine:
            states.append((engine.read([b"a", b"b", b"c", b"d"]), engine.applied))
    assert states[0] == states[1] == states[2] == states[3]
    assert states[0][1] == (Position(Epoch(2**64 - 1), 3), True, 2**63)


def test_batch_of_a_closed_engine_is_refused(tmp_path: Path) -> None:
    with opened(SMALL, tmp_path / "db") as engine:
        batch = engine.begin_replay_batch()
        batch.add([decode_logged(EntryEncoder().encode(ENTRIES[0]))])
        assert engine.close(10)
        with pytest.raises(EngineClosed):
            batch.write()
        with pytest.raises(EngineClosed):
            engine.begin_replay_batch()
