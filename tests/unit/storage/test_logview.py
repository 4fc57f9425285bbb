"""Reading a log from outside, also while its node writes, closes and drops segments."""

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest

from kvnode.node.errors import UnknownFormat
from kvnode.node.fs import File
from kvnode.node.storage.logview import (
    FaultKind,
    LogPlace,
    LogView,
    LogWalk,
    NoLog,
    SegmentsDropped,
    find_log,
    view_log,
)
from kvnode.node.storage.recovery import Storage
from kvnode.node.storage.segment import HEADER_BYTES, encode_header
from kvnode.node.storage.wal import WalOptions
from support.crash_plan import KEPT
from support.memory_disk import MemoryDisk
from support.storage_rig import CLUSTER_ID, StorageRig

#: Entries of `write_puts` fill segments that begin with seq 1, 10 and 18.
OPTIONS = WalOptions(segment_bytes=700, keep_bytes=0)


class WatchedDisk:
    """An `Fs` on a memory disk that calls back before each read of a segment, as if the node ran in between."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self.before_read: Callable[[Path], None] = lambda path: None

    def __getattr__(self, name: str) -> object:
        return getattr(self._disk, name)

    def open(self, path: Path, *, writable: bool) -> File:
        assert not writable
        self.before_read(path)
        return self._disk.open(path, writable=False)


class Watched:
    """A running node's log, and a view of it from outside."""

    def __init__(self, entries: int) -> None:
        self.rig = StorageRig(OPTIONS)
        self.storage: Storage = self.rig.start()
        self.rig.write_puts(self.storage, entries)
        self.disk = WatchedDisk(self.rig.disk)
        self.view = view_log(self.disk, LogPlace(self.rig.layout.wal, self.rig.layout))  # type: ignore[arg-type]
        self.reader = LogWalk(self.view)

    def seqs(self, first: int | None = None, last: int | None = None, *, skip_damage: bool = False) -> list[int]:
        return [record.entry.seq for record in self.reader.records(first, last, skip_damage=skip_damage)]

    def kinds(self) -> list[FaultKind]:
        return [fault.kind for fault in self.reader.faults]

    def drop_closed(self) -> None:
        self.rig.checkpoint(self.storage)
        assert self.rig.trim(self.storage)


# ---- where a log is ------------------------------------------------------------------------------------------------


def test_log_of_a_data_directory_and_of_a_directory_of_segments() -> None:
    rig = Watched(3).rig
    assert find_log(rig.disk, rig.root) == LogPlace(rig.layout.wal, rig.layout)
    assert find_log(rig.disk, rig.layout.wal) == LogPlace(rig.layout.wal, None)


def test_other_directories_have_no_log() -> None:
    disk = MemoryDisk()
    disk.put_file(Path("/home/notes.txt"), b"")
    with pytest.raises(NoLog, match="/home: neither"):
        find_log(disk, Path("/home"))
    with pytest.raises(FileNotFoundError):
        find_log(disk, Path("/missing"))


# ---- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (None, None, range(1, 21)),
        (1, 1, range(1, 2)),
        (8, 12, range(8, 13)),
        (20, None, range(20, 21)),
        (None, 7, range(1, 8)),
        (21, None, range(0)),
        (5, 99, range(5, 21)),
    ],
)
def test_entries_from_one_seq_to_another(first: int | None, last: int | None, expected: range) -> None:
    log = Watched(20)
    assert len(log.view.first_seqs()) == 3
    assert log.seqs(first, last) == list(expected)
    assert log.reader.faults == []


def test_reading_begins_in_the_segment_that_has_the_first_entry() -> None:
    log = Watched(20)
    paths: list[Path] = []
    log.disk.before_read = paths.append
    log.seqs(10, 10)
    assert paths == [log.view.path(seq) for seq in log.view.first_seqs() if seq <= 10][-1:]


def test_seq_before_the_log_is_refused() -> None:
    log = Watched(20)
    log.drop_closed()
    with pytest.raises(SegmentsDropped, match="begins at seq 18, not at 3"):
        log.seqs(3)
    assert log.seqs() == [18, 19, 20]


def test_damage_ends_the_reading_or_is_skipped() -> None:
    log = Watched(20)
    path, offset = log.rig.damage_record(12)
    assert log.seqs() == list(range(1, 12))
    (fault,) = log.reader.faults
    assert (fault.kind, fault.path, fault.offset, fault.seq) == (FaultKind.DAMAGE, path, offset, 12)
    log.reader = LogWalk(log.view)
    assert log.seqs(skip_damage=True) == [seq for seq in range(1, 21) if seq != 12]
    assert log.kinds() == [FaultKind.DAMAGE]


def test_missing_segment_ends_the_reading_or_is_skipped() -> None:
    log = Watched(20)
    first, second, third = log.view.first_seqs()
    log.rig.disk.remove_file(log.view.path(second))
    assert log.seqs() == list(range(first, second))
    (fault,) = log.reader.faults
    assert (fault.kind, fault.path, fault.seq) == (FaultKind.MISSING, log.view.path(third), second)
    assert f"seq {second} to {third - 1} are missing" in fault.reason
    log.reader = LogWalk(log.view)
    assert log.seqs(skip_damage=True) == [*range(first, second), *range(third, 21)]


def test_header_of_another_cluster_is_damage_and_of_another_version_an_error() -> None:
    log = Watched(3)
    path = log.view.path(1)
    data = log.rig.read(path)
    log.rig.disk.put_file(path, encode_header(bytes(16), 1) + data[HEADER_BYTES:])
    assert log.seqs() == []
    assert log.kinds() == [FaultKind.DAMAGE]
    # Without a node's identity the first header says whose log it is.
    assert [record.entry.seq for record in LogView(log.rig.disk, path.parent).walk(1)] == [1, 2, 3]
    header = bytearray(encode_header(CLUSTER_ID, 1)[:36])
    header[11] = 2
    log.rig.disk.put_file(path, bytes(header) + crc32(header).to_bytes(4, "big") + data[HEADER_BYTES:])
    with pytest.raises(UnknownFormat):
        log.seqs()


@pytest.mark.parametrize("kill", [True, False])
def test_torn_tail_and_known_damage_are_told_apart_as_at_start_up(kill: bool) -> None:
    rig = StorageRig(WalOptions(4096, 0))
    storage = rig.start()
    rig.write_puts(storage, 5)
    if not kill:
        rig.checkpoint(storage)
    rig = rig.crashed(KEPT)
    path, offset = rig.damage_record(5)
    walk = view_log(rig.disk, LogPlace(rig.layout.wal, rig.layout)).walk(1)
    assert [record.entry.seq for record in walk] == [1, 2, 3, 4]
    assert walk.fault is not None
    assert walk.fault.kind is (FaultKind.TORN_TAIL if kill else FaultKind.DAMAGE)
    assert (walk.fault.path, walk.fault.offset, walk.end, walk.last_seq) == (path, offset, offset, 4)


# ---- while the node runs -------------------------------------------------------------------------------------------


def test_preallocated_space_of_a_running_node_is_no_damage() -> None:
    log = Watched(12)
    walk = log.view.walk(10)
    assert [record.entry.seq for record in walk] == [10, 11, 12]
    assert (walk.fault, walk.size) == (None, OPTIONS.segment_bytes)
    assert walk.end < walk.size


def test_entries_written_while_reading_are_not_taken_for_damage() -> None:
    """A read that misses a group but has the one after it finds a hole; a second read does not."""
    log = Watched(12)
    path = log.view.path(10)
    whole = log.rig.read(path)
    _, eleventh = log.rig.find_record(11)
    hole = bytearray(whole)
    hole[eleventh.offset : eleventh.end] = bytes(eleventh.end - eleventh.offset)
    log.rig.disk.put_file(path, bytes(hole))
    reads: list[Path] = []

    def finish_write(read: Path) -> None:
        reads.append(read)
        if len(reads) == 2:
            log.rig.disk.put_file(path, whole)

    log.disk.before_read = finish_write
    walk = log.view.walk(10)
    assert [record.entry.seq for record in walk] == [10, 11, 12]
    assert walk.fault is None
    assert len(reads) == 2


def test_what_speaks_for_corruption_must_have_been_there_before_the_damage_was_seen_again() -> None:
    """A group under way is seen as torn twice; marked records in the second read only do not make it corruption."""
    log = Watched(12)
    path = log.view.path(10)
    whole = log.rig.read(path)
    _, eleventh = log.rig.find_record(11)
    torn = whole[: eleventh.offset + 10] + bytes(len(whole) - eleventh.offset - 10)
    hole = torn[: eleventh.end] + whole[eleventh.end :]
    log.rig.disk.put_file(path, torn)
    reads: list[Path] = []

    def go_on(read: Path) -> None:
        reads.append(read)
        if len(reads) == 2:
            log.rig.disk.put_file(path, hole)

    log.disk.before_read = go_on
    walk = log.view.walk(10)
    assert [record.entry.seq for record in walk] == [10]
    assert walk.fault is not None
    assert walk.fault.kind is FaultKind.TORN_TAIL


def test_segment_that_is_closed_while_it_is_read_is_whole() -> None:
    log = Watched(12)
    log.disk.before_read = lambda path: None if log.storage.wal.last_seq > 12 else log.rig.write_puts(log.storage, 12)
    assert log.seqs() == list(range(1, 18))
    assert log.reader.faults == []


def test_segments_dropped_before_the_first_was_read_are_left_out() -> None:
    log = Watched(20)
    log.disk.before_read = lambda path: log.drop_closed() if len(log.rig.segment_paths()) == 3 else None
    assert log.seqs() == [18, 19, 20]
    assert log.reader.faults == []


def test_segments_dropped_in_the_middle_of_a_reading_are_an_error() -> None:
    log = Watched(20)
    second = log.view.path(10)
    log.disk.before_read = lambda path: log.drop_closed() if path == second else None
    records = log.reader.records(None, None)
    assert [next(records).entry.seq for _ in range(9)] == list(range(1, 10))
    with pytest.raises(SegmentsDropped, match="dropped this segment"):
        next(records)


def test_segments_dropped_though_they_were_asked_for_are_an_error() -> None:
    log = Watched(20)
    log.disk.before_read = lambda path: log.drop_closed() if len(log.rig.segment_paths()) == 3 else None
    with pytest.raises(SegmentsDropped, match="dropped this segment"):
        log.seqs(2)
