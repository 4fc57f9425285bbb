"""One byte of the data directory is wrong, or a file is cut short: the node starts with the right values or refuses to.

Every byte of a small log and of every small file is flipped, and every file is cut at every length, for a node that
stopped in order and for nodes that did not, with a LevelDB that has all and with one that lost what was not synced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest

from kvnode.node.api import KeyRange
from kvnode.node.errors import DataLost, FileDamaged, LogDamaged, StorageError
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.segment import read_records
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.types import Op, Seq, delete, put
from support.crash_plan import DROPPED, KEPT
from support.storage_rig import StorageRig

#: What a flipped byte is combined with.
FLIPS = (0x01, 0x80, 0xFF)

#: Groups of entries, each entry a list of operations. Two segments hold them, the second one several groups; the last
#: group is of two entries.
GROUPS: list[list[list[Op]]] = [
    [[put(b"a", b'"%s"' % (b"1" * 90))]],
    [[put(b"b", b"2"), put(b"c", b"3")], [delete(b"a")]],
    [[put(b"d", b'"four"')]],
    [[put(b"e", b"[5]")]],
    [[put(b"b", b"6")]],
    [[put(b"f", b'"seven"')], [put(b"c", b"8"), delete(b"b")]],
]
ENTRIES = [ops for group in GROUPS for ops in group]
LAST_SEQ = len(ENTRIES)
BEFORE_LAST_GROUP = LAST_SEQ - len(GROUPS[-1])


def values_after(seq: Seq) -> dict[bytes, bytes]:
    """What the node holds after an entry."""
    values: dict[bytes, bytes] = {}
    for ops in ENTRIES[:seq]:
        for op in ops:
            if len(op) == 4:
                values[op.key] = op[3]
            else:
                values.pop(op.key, None)
    return values


def values_in(storage: Storage) -> dict[bytes, bytes]:
    """What LevelDB holds."""
    return dict(storage.engine.scan(KeyRange()).next_items(1000, 1 << 20))


@dataclass(frozen=True, slots=True)
class Stop:
    """How the node stopped.

    Attributes:
        name: for the test's id.
        checkpoint_after: how many groups were written before a checkpoint.
        clean: whether it stopped in order at the end.
        leveldb_survives: whether LevelDB has what was written since the checkpoint.
    """

    name: str
    checkpoint_after: int
    clean: bool
    leveldb_survives: bool

    def make(self) -> StorageRig:
        """The directory after it."""
        rig = StorageRig(options=WalOptions(segment_bytes=300, keep_bytes=1 << 30))
        rig.engines.memtable_batches = 1000
        storage = rig.start()
        rig.write(storage, GROUPS[: self.checkpoint_after])
        if self.checkpoint_after:
            rig.checkpoint(storage)
        rig.write(storage, GROUPS[self.checkpoint_after :])
        if self.clean:
            rig.stop(storage)
        crashed = rig.crashed(KEPT if self.leveldb_survives else DROPPED)
        assert [int(path.stem) for path in crashed.segment_paths()] == [1, 5]
        return crashed

    @property
    def may_lose_the_last_group(self) -> bool:
        """Whether nothing but the log itself knows of the last group, so that its damage looks like a torn tail."""
        return not self.clean and not self.leveldb_survives and self.checkpoint_after < len(GROUPS)


STOPS = [
    Stop("clean", 0, clean=True, leveldb_survives=True),
    Stop("clean-then-power-loss", 2, clean=True, leveldb_survives=False),
    Stop("killed", 0, clean=False, leveldb_survives=True),
    Stop("killed-after-checkpoint", 5, clean=False, leveldb_survives=True),
    Stop("power-loss", 0, clean=False, leveldb_survives=False),
    Stop("power-loss-after-checkpoint", 2, clean=False, leveldb_survives=False),
    Stop("power-loss-after-last-checkpoint", 6, clean=False, leveldb_survives=False),
]
by_stop = pytest.mark.parametrize("stop", STOPS, ids=[stop.name for stop in STOPS])


def flips(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, content with that byte changed) for every byte and every flip."""
    for offset, value in enumerate(content):
        for flip in FLIPS:
            changed = bytearray(content)
            changed[offset] = value ^ flip
            yield offset, bytes(changed)


def recover(rig: StorageRig, path: Path, content: bytes | None) -> Storage | StorageError:
    """Damage a file (None: remove it) of a copy of the directory and start; what came of it.

    Where the node refused, it must have left everything as it was. Where it started, it is killed and started again,
    and must find the same; only a log that it did not look at after a clean stop, its size being right, may be refused.
    """
    damaged = rig.crashed(KEPT)
    if content is None:
        damaged.disk.remove_file(path)
    else:
        damaged.disk.put_file(path, content)
    try:
        storage = damaged.start()
    except StorageError as error:
        before = {**rig.disk.snapshot(), path: content}
        assert damaged.disk.snapshot() == {each: data for each, data in before.items() if data is not None}, (
            "a start that was refused has changed something"
        )
        return error
    assert storage.history.current.term > rig_term(rig)
    if storage.wal.last_seq == LAST_SEQ and not storage.clean and crc32(content or b"") % 5:
        return storage  # nothing was cut, so a sample is enough
    killed = damaged.crashed(DROPPED)
    if storage.clean and content is not None and len(content) == len(rig.read(path)):
        with contextlib.suppress(LogDamaged):
            killed.start()
        return storage
    again = killed.start()
    assert values_in(again) == values_in(storage)
    assert again.wal.last_seq == storage.wal.last_seq
    assert again.history.current.term > storage.history.current.term
    return storage


def rig_term(rig: StorageRig) -> int:
    history = rig.files.load_history()
    assert history is not None
    return history.current.term


@by_stop
def test_a_flipped_byte_of_the_log_is_harmless_or_refused(stop: Stop) -> None:
    rig = stop.make()
    outcomes: set[object] = set()
    for path in rig.segment_paths():
        for offset, content in flips(rig.read(path)):
            where = f"{path.name} at {offset}"
            outcome = recover(rig, path, content)
            if isinstance(outcome, StorageError):
                assert isinstance(outcome, LogDamaged), f"{where}: {outcome!r}"
                assert outcome.path == path, where
                assert outcome.offset <= offset, where
                assert str(path) in str(outcome), where
                assert f"offset {outcome.offset}," in str(outcome), where
                assert outcome.hint, where
                outcomes.add("refused")
                continue
            last_seq = outcome.wal.last_seq
            assert values_in(outcome) == values_after(last_seq), where
            if last_seq != LAST_SEQ:
                assert stop.may_lose_the_last_group, f"{where}: acknowledged entries are missing"
                assert last_seq >= BEFORE_LAST_GROUP, f"{where}: more is missing than the last group"
                assert path == rig.segment_paths()[-1], where
            outcomes.add(last_seq)
    assert LAST_SEQ in outcomes
    assert "refused" in outcomes, "headers are looked at in any case"
    assert (BEFORE_LAST_GROUP in outcomes) == stop.may_lose_the_last_group


@by_stop
def test_a_segment_cut_short_is_harmless_or_refused(stop: Stop) -> None:
    rig = stop.make()
    for path in rig.segment_paths():
        whole = rig.read(path)
        is_tail = path == rig.segment_paths()[-1]
        ends = {record.end for record in read_records(whole, int(path.stem))}
        for length in range(len(whole)):
            where = f"{path.name} cut to {length}"
            outcome = recover(rig, path, whole[:length])
            if isinstance(outcome, StorageError):
                assert isinstance(outcome, LogDamaged | DataLost), f"{where}: {outcome!r}"
                assert outcome.hint, where
                if isinstance(outcome, LogDamaged):
                    assert (outcome.path, outcome.offset <= length) == (path, True) or not is_tail, where
                continue
            last_seq = outcome.wal.last_seq
            assert values_in(outcome) == values_after(last_seq), where
            if last_seq != LAST_SEQ:
                # What a cut takes away leaves no trace in the log; where LevelDB knows no better, and no other file, it
                # looks like a log that had not come further.
                assert stop.may_lose_the_last_group, f"{where}: acknowledged entries are missing"
                assert is_tail, where
                assert last_seq == last_seq_within(whole, path, length), where
        assert ends, "the segment has records"


def last_seq_within(whole: bytes, path: Path, length: int) -> Seq:
    """The last seq whose record lies within the first bytes of a segment."""
    first_seq = int(path.stem)
    return max((r.entry.seq for r in read_records(whole, first_seq) if r.end <= length), default=first_seq - 1)


@by_stop
def test_a_missing_segment_is_harmless_or_refused(stop: Stop) -> None:
    rig = stop.make()
    for path in rig.segment_paths():
        outcome = recover(rig, path, None)
        if isinstance(outcome, StorageError):
            assert isinstance(outcome, DataLost | LogDamaged)
            assert outcome.hint
        elif outcome.wal.last_seq == LAST_SEQ:
            assert values_in(outcome) == values_after(LAST_SEQ)
        else:
            assert stop.may_lose_the_last_group
            assert values_in(outcome) == values_after(outcome.wal.last_seq)
            assert path == rig.segment_paths()[-1]


def small_files(rig: StorageRig) -> list[Path]:
    """The files at the top of the directory, LevelDB's and the log's apart."""
    return [path for path in rig.disk.snapshot() if path.parent == rig.root and path != rig.layout.node]


@by_stop
def test_a_damaged_small_file_is_harmless_or_refused_by_name(stop: Stop) -> None:
    rig = stop.make()
    names = {path.name for path in small_files(rig)}
    assert names == {"history"} | ({"checkpoint"} if stop.checkpoint_after else set()) | (
        {"checkpoint", "clean"} if stop.clean else set()
    )
    for path in small_files(rig):
        whole = rig.read(path)
        # All but the line's end: without that it is the same JSON.
        damaged = [*flips(whole), *((length, whole[:length]) for length in range(len(whole) - 1))]
        for offset, content in damaged:
            outcome = recover(rig, path, content)
            assert isinstance(outcome, FileDamaged), f"{path.name} at {offset}: {outcome!r}"
            assert outcome.path == path
            assert str(path) in str(outcome)


@by_stop
def test_a_missing_small_file_is_harmless_or_refused(stop: Stop) -> None:
    rig = stop.make()
    for path in small_files(rig):
        outcome = recover(rig, path, None)
        if isinstance(outcome, StorageError):
            assert path.name in str(outcome) or isinstance(outcome, DataLost), outcome
            assert outcome.hint
        else:
            assert outcome.wal.last_seq == LAST_SEQ
            assert values_in(outcome) == values_after(LAST_SEQ)
