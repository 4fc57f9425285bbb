"""The log's appending side: groups, marks, rotation, retention, and what a failing disk makes of each."""

import errno
import threading
from pathlib import Path

import pytest

from kvnode.node.errors import LogFailed, StorageFull
from kvnode.node.storage.segment import HEADER_BYTES, SegmentRecord, read_records, segment_name
from kvnode.node.storage.wal import Segment, Wal, WalOptions
from kvnode.protocol.entry import EntryEncoder
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import Entry, Epoch, put
from support.crash_plan import DROPPED
from support.memory_disk import MemoryDisk
from support.storage_rig import log_record

WAL = Path("/wal")
CLUSTER = bytes(16)
EPOCH = Epoch.of(1, 1)

#: What `payload` of a seq below 128 takes in a segment.
RECORD = 8 + 64


def payload(seq: int) -> bytes:
    """A payload of 64 bytes, whatever the seq below 65,536."""
    encoded = EntryEncoder().encode(Entry(seq, EPOCH, 1, (put(b"k", b""),)))
    filled = EntryEncoder().encode(Entry(seq, EPOCH, 1, (put(b"k", bytes(64 - len(encoded))),)))
    assert len(filled) == 64
    return filled


def group(first: int, count: int = 1) -> list[LogRecord]:
    return [log_record(payload(seq)) for seq in range(first, first + count)]


class Log:
    """A log on a memory disk, with what a test asks of it."""

    def __init__(self, *, records_a_segment: int = 4, keep_bytes: int = 1 << 40, sync: bool = True) -> None:
        self.disk = MemoryDisk()
        self.disk.make_directory(WAL)
        self.disk.sync_directory(WAL.parent)
        self.options = WalOptions(HEADER_BYTES + records_a_segment * RECORD, keep_bytes, sync)
        self.wal = Wal.create(self.disk, WAL, CLUSTER, self.options, 1)

    def append(self, count: int = 1) -> bool:
        return self.wal.append(group(self.wal.last_seq + 1, count))

    def trim(self, checkpoint_seq: int) -> list[int]:
        """Drop what can be; returns the first seqs of the dropped segments."""
        target = self.wal.trim_target(checkpoint_seq, None)
        return [segment.first_seq for segment in self.wal.drop_before(target)]

    def seqs(self, disk: MemoryDisk | None = None) -> dict[int, list[int]]:
        """The seqs in each segment by its first, on this disk or another."""
        return {first: [each.entry.seq for each in records] for first, records in self.records(disk).items()}

    def records(self, disk: MemoryDisk | None = None) -> dict[int, list[SegmentRecord]]:
        files = (disk or self.disk).snapshot(WAL)
        return {int(path.stem): list(read_records(data, int(path.stem))) for path, data in files.items()}

    def sizes(self) -> dict[int, int]:
        return {int(path.stem): len(data) for path, data in self.disk.snapshot(WAL).items()}


# ---- appending and rotating ----------------------------------------------------------------------------------------


def test_appended_group_is_durable_on_return() -> None:
    log = Log()
    assert log.append(3) is False
    assert log.wal.last_seq == 3
    assert log.seqs(log.disk.after_crash(DROPPED)) == {1: [1, 2, 3]}


def test_without_sync_a_group_is_only_written() -> None:
    log = Log(sync=False)
    log.append(3)
    assert log.seqs() == {1: [1, 2, 3]}
    assert not log.records(log.disk.after_crash(DROPPED))[1]


def test_sync_makes_durable_what_was_only_written() -> None:
    log = Log(sync=False)
    log.append(3)
    log.wal.sync()
    assert log.seqs(log.disk.after_crash(DROPPED)) == {1: [1, 2, 3]}


def test_group_takes_one_write_and_one_sync() -> None:
    log = Log()
    before = len(log.disk.calls)
    log.append(4)
    assert [call.operation for call in log.disk.calls[before:]] == ["write_at", "sync"]


def test_first_record_after_a_sync_is_marked() -> None:
    log = Log(records_a_segment=100)
    for count in (2, 1, 3):
        log.append(count)
    assert [record.marked for record in log.records()[1]] == [True, False, True, True, False, False]


def test_without_sync_only_the_first_record_of_a_segment_is_marked() -> None:
    log = Log(records_a_segment=3, sync=False)
    for _ in range(5):
        log.append()
    assert [[record.marked for record in records] for records in log.records().values()] == [
        [True, False, False],
        [True, False],
    ]


def test_rotation_closes_a_segment_and_begins_the_next() -> None:
    log = Log(records_a_segment=4)
    assert [log.append(3), log.append(1), log.append(1), log.append(3), log.append(2)] == [False] * 2 + [
        True,
        False,
    ] + [True]
    assert log.seqs() == {1: [1, 2, 3, 4], 5: [5, 6, 7, 8], 9: [9, 10]}
    end = HEADER_BYTES + 4 * RECORD
    assert log.wal.segments == [Segment(1, 4, end), Segment(5, 8, end), Segment(9, 10, HEADER_BYTES + 2 * RECORD)]
    assert log.sizes() == {1: end, 5: end, 9: log.options.segment_bytes}


def test_group_is_not_split_over_segments() -> None:
    log = Log(records_a_segment=4)
    log.append(3)
    log.append(2)
    assert log.seqs() == {1: [1, 2, 3], 4: [4, 5]}
    assert log.sizes()[1] == HEADER_BYTES + 3 * RECORD


def test_group_larger_than_a_segment_gets_a_larger_one() -> None:
    log = Log(records_a_segment=4)
    log.append(1)
    log.append(6)
    log.append(1)
    assert log.seqs() == {1: [1], 2: [2, 3, 4, 5, 6, 7], 8: [8]}
    assert log.sizes()[2] == HEADER_BYTES + 6 * RECORD


def test_first_group_may_be_larger_than_the_first_segment() -> None:
    log = Log(records_a_segment=2)
    assert log.append(5) is False
    assert log.seqs() == {1: [1, 2, 3, 4, 5]}
    assert log.seqs(log.disk.after_crash(DROPPED)) == {1: [1, 2, 3, 4, 5]}


def test_closed_segment_is_cut_and_durable_before_the_next_has_its_name() -> None:
    log = Log(records_a_segment=2, sync=False)
    log.append(2)
    begin = len(log.disk.calls)
    log.append(1)
    first, second = WAL / segment_name(1), WAL / segment_name(3)
    steps = [(call.operation, call.path) for call in log.disk.calls[begin:]]
    assert steps == [
        ("truncate", str(first)),
        ("sync", str(first)),
        ("create", f"{second}.tmp"),
        ("allocate", f"{second}.tmp"),
        ("write_at", f"{second}.tmp"),
        ("sync", f"{second}.tmp"),
        ("rename", f"{second}.tmp"),
        ("sync_directory", str(WAL)),
        ("write_at", str(second)),
    ]


def test_reopened_log_goes_on_and_marks_its_first_record() -> None:
    log = Log(records_a_segment=4, sync=False)
    log.append(2)
    log.wal.sync()
    log.wal = Wal(log.disk, WAL, CLUSTER, log.options, log.wal.segments)
    log.append(1)
    log.append(2)
    assert log.seqs() == {1: [1, 2, 3], 4: [4, 5]}
    assert [record.marked for record in log.records()[1]] == [True, False, True]


def test_close_cuts_the_tail_to_its_end() -> None:
    log = Log(records_a_segment=100, sync=False)
    log.append(2)
    tail = log.wal.close()
    assert tail == Segment(1, 2, HEADER_BYTES + 2 * RECORD)
    assert len(log.disk.stable_snapshot()[WAL / tail.name]) == tail.end
    assert log.disk.open_handles() == []


# ---- retention ---------------------------------------------------------------------------------------------------


def test_segments_are_dropped_oldest_first_while_the_log_is_larger_than_kept() -> None:
    log = Log(records_a_segment=1, keep_bytes=3 * (HEADER_BYTES + RECORD))
    for _ in range(6):
        log.append()
    assert log.trim(6) == [1, 2, 3]
    assert log.seqs() == {4: [4], 5: [5], 6: [6]}
    assert [segment.first_seq for segment in log.wal.segments] == [4, 5, 6]
    assert sorted(log.records(log.disk.after_crash(DROPPED))) == [4, 5, 6]


def test_segments_above_the_checkpoint_are_kept() -> None:
    log = Log(records_a_segment=2, keep_bytes=0)
    for _ in range(7):
        log.append()
    assert log.trim(3) == [1]
    assert log.trim(3) == []
    assert log.seqs() == {3: [3, 4], 5: [5, 6], 7: [7]}


@pytest.mark.parametrize(
    ("pinned_seq", "target"), [(None, 7), (0, 1), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 7), (100, 7)]
)
def test_pinned_entries_are_kept(pinned_seq: int | None, target: int) -> None:
    log = Log(records_a_segment=2, keep_bytes=0)
    for _ in range(8):
        log.append()
    assert log.wal.trim_target(8, pinned_seq) == target


def test_deciding_what_to_drop_changes_nothing() -> None:
    log = Log(records_a_segment=1, keep_bytes=0)
    for _ in range(4):
        log.append()
    before = len(log.disk.calls)
    assert log.wal.trim_target(3, None) == 4
    assert log.wal.first_seq == 1
    assert log.disk.calls[before:] == []


@pytest.mark.parametrize(("first_seq", "left"), [(0, 1), (2, 1), (3, 3), (4, 3), (7, 7), (1000, 7)])
def test_only_segments_that_lie_wholly_before_are_dropped(first_seq: int, left: int) -> None:
    log = Log(records_a_segment=2)
    for _ in range(7):
        log.append()
    log.wal.drop_before(first_seq)
    assert log.wal.first_seq == left == min(log.seqs())


def test_dropping_goes_by_what_was_decided_though_the_log_has_grown() -> None:
    log = Log(records_a_segment=1, keep_bytes=3 * (HEADER_BYTES + RECORD))
    for _ in range(5):
        log.append()
    target = log.wal.trim_target(5, None)
    for _ in range(5):
        log.append()
    log.wal.drop_before(target)
    assert log.wal.first_seq == target == 3


def test_what_keeping_entries_costs() -> None:
    log = Log(records_a_segment=2)
    assert log.wal.bytes_from(1) == 0
    for _ in range(5):
        log.append()
    two, one = HEADER_BYTES + 2 * RECORD, HEADER_BYTES + RECORD
    costs = [log.wal.bytes_from(seq) for seq in range(8)]
    assert costs == [2 * two + one, 2 * two + one, 2 * two + one, two + one, two + one, one, 0, 0]
    log.wal.drop_before(3)
    assert log.wal.bytes_from(0) == two + one


def test_where_the_log_begins() -> None:
    log = Log(records_a_segment=1)
    assert log.wal.first_seq == 1
    log.append()
    log.append()
    assert log.wal.first_seq == 1
    log.wal.drop_before(2)
    assert log.wal.first_seq == 2


def test_tail_is_never_dropped() -> None:
    log = Log(keep_bytes=0)
    log.append(2)
    assert log.trim(2) == []
    assert log.wal.drop_before(3) == []
    assert log.seqs() == {1: [1, 2]}


def test_failed_unlink_leaves_the_list_as_the_disk_is() -> None:
    log = Log(records_a_segment=1, keep_bytes=0)
    for _ in range(4):
        log.append()
    log.disk.plan.fail(("unlink", "*"), errno.EIO, skip=1)
    with pytest.raises(OSError, match="Input/output"):
        log.trim(4)
    assert [segment.first_seq for segment in log.wal.segments] == sorted(log.seqs()) == [2, 3, 4]


class DroppingDisk(MemoryDisk):
    """Calls back when a segment is renamed to its name: what another thread does in the middle of a rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.on_rename = lambda: None

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.on_rename()


def test_closing_a_segment_is_told_though_another_is_dropped_meanwhile() -> None:
    log = Log(records_a_segment=1, keep_bytes=0)
    disk = DroppingDisk()
    disk.make_directory(WAL)
    wal = Wal.create(disk, WAL, CLUSTER, log.options, 1)
    wal.append(group(1))
    wal.append(group(2))
    disk.on_rename = lambda: None if wal.drop_before(2) else pytest.fail("nothing was dropped")
    assert wal.append(group(3)) is True


# ---- a full disk ---------------------------------------------------------------------------------------------------


def test_full_disk_leaves_nothing_of_the_group_and_the_log_goes_on() -> None:
    log = Log(records_a_segment=2)
    log.append(2)
    log.disk.free_bytes = 10
    with pytest.raises(StorageFull):
        log.append(1)
    assert log.wal.last_seq == 2
    assert log.seqs() == {1: [1, 2]}
    assert log.seqs(log.disk.after_crash(DROPPED)) == {1: [1, 2]}
    log.disk.free_bytes = None
    assert log.append(1) is True
    assert log.seqs(log.disk.after_crash(DROPPED)) == {1: [1, 2], 3: [3]}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("partial", [0.0, 0.5, 1.0])
def test_partly_written_group_is_cut_off_durably_before_the_refusal(number: int, partial: float) -> None:
    log = Log()
    log.append(1)
    log.disk.plan.fail(("write_at", "*.wal"), number, partial=partial)
    with pytest.raises(StorageFull):
        log.append(2)
    stable = log.disk.stable_snapshot()[WAL / segment_name(1)]
    assert len(stable) == HEADER_BYTES + RECORD
    log.append(1)
    assert log.seqs(log.disk.after_crash(DROPPED)) == {1: [1, 2]}
    assert [record.marked for record in log.records()[1]] == [True, True]


def test_full_disk_when_the_larger_group_is_allocated() -> None:
    log = Log(records_a_segment=1)
    log.disk.free_bytes = RECORD
    with pytest.raises(StorageFull):
        log.append(3)
    log.disk.free_bytes = None
    assert log.append(3) is False
    assert log.seqs(log.disk.after_crash(DROPPED)) == {1: [1, 2, 3]}


def test_full_disk_while_a_segment_is_made_leaves_no_trace() -> None:
    log = Log(records_a_segment=1)
    log.append()
    log.disk.plan.fail(("write_at", "*.tmp"), errno.ENOSPC)
    with pytest.raises(StorageFull):
        log.append()
    assert sorted(log.disk.snapshot(WAL)) == [WAL / segment_name(1)]
    log.append()
    assert log.seqs() == {1: [1], 2: [2]}


def test_full_disk_at_the_creation_of_a_log() -> None:
    log = Log()
    log.disk.make_directory(Path("/other"))
    log.disk.free_bytes = 10
    with pytest.raises(StorageFull, match="no room for a log segment"):
        Wal.create(log.disk, Path("/other"), CLUSTER, log.options, 1)


# ---- failures that are final ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    ("operation", "path"), [("sync", "*.wal"), ("sync", "*.tmp"), ("sync_directory", "*"), ("sync", "*")]
)
def test_failed_sync_is_final_whatever_its_reason(operation: str, path: str, number: int) -> None:
    log = Log(records_a_segment=1)
    log.append()
    log.disk.plan.fail((operation, path), number)
    with pytest.raises(LogFailed, match="syncing"):
        log.append()
    check_refuses_everything(log)


@pytest.mark.parametrize("operation", ["write_at", "truncate", "allocate", "rename", "create"])
def test_other_failures_are_final_too(operation: str) -> None:
    log = Log(records_a_segment=1)
    log.append()
    log.disk.plan.fail((operation, "*"), errno.EIO)
    with pytest.raises(LogFailed):
        log.append()
    check_refuses_everything(log)


@pytest.mark.parametrize("operation", ["truncate", "sync"])
def test_failure_to_cut_back_after_a_full_disk_is_final(operation: str) -> None:
    log = Log()
    log.append()
    log.disk.plan.fail(("write_at", "*"), errno.ENOSPC, partial=0.5)
    log.disk.plan.fail((operation, "*"), errno.EIO)
    with pytest.raises(LogFailed):
        log.append()
    check_refuses_everything(log)


def check_refuses_everything(log: Log) -> None:
    before = log.disk.snapshot()
    for refused in (log.append, log.wal.sync, log.wal.close):
        with pytest.raises(LogFailed):
            refused()
    assert log.disk.snapshot() == before


def test_failure_of_another_threads_sync_is_not_taken_for_success() -> None:
    """The kernel tells one caller only: here the first sync fails, and a second one of the same file succeeds."""
    log = Log()
    file = log.wal._file
    in_sync, written = threading.Event(), threading.Event()
    real_sync, real_write = file.sync, file.write_at
    syncs = []

    def sync() -> None:
        syncs.append(threading.current_thread())
        if len(syncs) > 1:
            return real_sync()
        in_sync.set()
        assert written.wait(30)
        raise OSError(errno.EIO, "Input/output error")

    def write_at(offset: int, data: bytes) -> None:
        real_write(offset, data)
        written.set()

    file.sync, file.write_at = sync, write_at  # type: ignore[method-assign]
    failures: list[BaseException] = []

    def run_maintenance() -> None:
        try:
            log.wal.sync()
        except LogFailed as failure:
            failures.append(failure)

    maintenance = threading.Thread(target=run_maintenance)
    maintenance.start()
    try:
        assert in_sync.wait(30)
        with pytest.raises(LogFailed):
            log.append()
    finally:
        maintenance.join(30)
    assert len(failures) == 1


def test_abandoned_log_leaves_the_file_as_it_is() -> None:
    log = Log()
    log.append()
    before = log.disk.snapshot()
    log.wal.abandon()
    assert log.disk.snapshot() == before
    assert log.disk.open_handles() == []


# ---- what is measured ------------------------------------------------------------------------------------------


def test_syncs_are_timed_and_bytes_counted() -> None:
    log = Log(records_a_segment=2)
    now = [0.0]
    seen: list[float] = []

    def tick() -> float:
        now[0] += 0.25
        return now[0]

    log.append()
    log.wal.time_syncs(tick, seen.append)
    log.append()
    assert seen == [0.25]
    # The tail that is closed is synced, too.
    log.append()
    log.wal.sync()
    assert seen == [0.25] * 4
    assert log.wal.appended_bytes == 3 * RECORD


def test_a_sync_that_failed_is_not_among_them() -> None:
    log = Log()
    seen: list[float] = []
    log.wal.time_syncs(lambda: 0.0, seen.append)
    log.disk.plan.fail(("sync", "*"), errno.EIO)
    with pytest.raises(LogFailed):
        log.append()
    assert seen == []
    assert log.wal.appended_bytes == 0


def test_without_syncs_there_is_nothing_to_time() -> None:
    log = Log(sync=False)
    seen: list[float] = []
    log.wal.time_syncs(lambda: 0.0, seen.append)
    log.append()
    assert seen == []
    log.wal.sync()
    assert seen == [0.0]
