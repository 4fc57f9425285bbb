"""Reading the running log for replicas: in order, from anywhere, across segments, beside writing and dropping."""

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep
from zlib import crc32

import pytest

from kvnode.node.errors import LogDamaged, LogTrimmed, UnknownFormat
from kvnode.node.fs import File, RealFs
from kvnode.node.storage.logreader import LogReader
from kvnode.node.storage.segment import HEADER_BYTES, RECORD_HEADER_BYTES, payload_seq
from kvnode.node.storage.wal import Wal, WalOptions
from kvnode.protocol.entry import EntryEncoder, decode_entry
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import Entry, Epoch, put
from support.engines import fast_directory
from support.memory_disk import MemoryDisk
from support.storage_rig import log_record

WAL = Path("/data/wal")
CLUSTER = bytes(range(16))
EPOCH = Epoch.of(1, 1)

#: A payload of `record` with an empty value, in bytes, while the seq is below 128.
SMALL = 21
BIG = 1 << 30


def record(seq: int, value_bytes: int = 0) -> LogRecord:
    return log_record(EntryEncoder().encode(Entry(seq, EPOCH, 1, (put(b"k", bytes(value_bytes)),))))


class CountingFile:
    """A file that counts what is read of it."""

    def __init__(self, file: File, reads: list[tuple[int, int]]) -> None:
        self._file = file
        self._reads = reads

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def read_at(self, offset: int, size: int) -> bytes:
        self._reads.append((offset, size))
        return self._file.read_at(offset, size)


class CountingDisk:
    """An `Fs` on a memory disk that counts reads and can call back before a file is opened."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self.reads: list[tuple[int, int]] = []
        self.before_open: Callable[[Path], object] = lambda path: None

    def __getattr__(self, name: str) -> object:
        return getattr(self._disk, name)

    def open(self, path: Path, *, writable: bool) -> File:
        if not writable:
            self.before_open(path)
        file = self._disk.open(path, writable=writable)
        return file if writable else CountingFile(file, self.reads)  # type: ignore[return-value]


class Log:
    """A log and a reader of it."""

    def __init__(self, *, segment_bytes: int = 400) -> None:
        self.disk = MemoryDisk()
        self.disk.make_directory(WAL)
        self.wal = Wal.create(self.disk, WAL, CLUSTER, WalOptions(segment_bytes, keep_bytes=0), 1)
        self.counting = CountingDisk(self.disk)
        self.reader = LogReader(self.counting, self.wal)  # type: ignore[arg-type]
        self.records: list[LogRecord] = []

    def write(self, *value_bytes: int) -> None:
        for size in value_bytes:
            self.records.append(record(len(self.records) + 1, size))
            self.wal.append(self.records[-1:])

    def read(self, first: int, last: int | None = None, max_bytes: int = BIG) -> list[int]:
        """The seqs of one read, which must be right in all."""
        last = last or self.wal.last_seq
        records, size = self.reader.read(first, last, max_bytes)
        seqs = [decode_entry(each.payload).seq for each in records]
        assert seqs == list(range(first, first + len(seqs)))
        assert list(records) == self.records[first - 1 : first - 1 + len(seqs)]
        assert size == sum(len(each.payload) for each in records)
        assert seqs[-1] <= last
        assert size <= max_bytes or len(seqs) == 1
        return seqs

    def read_all(self, first: int, max_bytes: int = BIG) -> list[list[int]]:
        """The seqs of each of the reads that it takes to reach the log's end."""
        groups = []
        while first <= self.wal.last_seq:
            groups.append(self.read(first, max_bytes=max_bytes))
            first = groups[-1][-1] + 1
        return groups

    def path(self, seq: int) -> Path:
        return WAL / next(each.name for each in reversed(self.wal.segments) if each.first_seq <= seq)

    def offset(self, seq: int) -> int:
        """Where a record begins in its segment."""
        first = next(each.first_seq for each in reversed(self.wal.segments) if each.first_seq <= seq)
        return HEADER_BYTES + sum(RECORD_HEADER_BYTES + len(each.payload) for each in self.records[first - 1 : seq - 1])

    def overwrite(self, seq: int, at: int, data: bytes) -> None:
        """Put other bytes at an offset in a record."""
        file = self.disk.open(self.path(seq), writable=True)
        file.write_at(self.offset(seq) + at, data)
        file.close()

    def firsts(self) -> list[int]:
        return [each.first_seq for each in self.wal.segments]


@pytest.mark.parametrize("max_bytes", [1, SMALL, 2 * SMALL, 50, 100, BIG])
@pytest.mark.parametrize("first", [1, 2, 14, 15, 16, 40])
def test_everything_is_read_in_order_from_any_seq(first: int, max_bytes: int) -> None:
    log = Log()
    log.write(*[0] * 40)
    assert len(log.firsts()) > 2
    groups = log.read_all(first, max_bytes)
    assert [seq for group in groups for seq in group] == list(range(first, 41))
    if max_bytes == 2 * SMALL:
        assert {len(group) for group in groups} <= {1, 2}


def test_records_are_what_the_log_has() -> None:
    log = Log()
    log.write(5)
    ((found,), size) = log.reader.read(1, 1, BIG)
    assert found == LogRecord(crc32(found.payload), found.payload)
    assert type(found) is LogRecord
    assert size == len(found.payload)


def test_a_read_ends_where_it_is_told_though_the_log_goes_on() -> None:
    log = Log()
    log.write(0, 0, 0, 0)
    assert log.read(1, 2) == [1, 2]
    assert log.read(3, 3) == [3]


def test_a_record_larger_than_the_limit_comes_alone() -> None:
    log = Log()
    log.write(0, 9000, 0, 20_000, 0)
    assert log.read_all(1, max_bytes=100) == [[1], [2], [3], [4], [5]]
    assert log.read_all(1, max_bytes=9100)[:2] == [[1], [2]]


@pytest.mark.parametrize("room", range(SMALL, 4 * SMALL))
def test_the_limit_is_exact(room: int) -> None:
    log = Log()
    log.write(0, 0, 0, 0)
    assert len(log.read(1, max_bytes=room)) == room // SMALL


def test_reading_on_costs_one_read_of_about_what_is_handed_out() -> None:
    log = Log(segment_bytes=1 << 20)
    log.write(*[100] * 2000)
    groups = log.read_all(1, max_bytes=10_000)
    (header, *reads) = log.counting.reads
    assert header == (0, HEADER_BYTES)
    assert len(reads) == len(groups) <= 2000 * 150 / 9_000
    assert max(size for _, size in reads) < 15_000


def test_a_reader_follows_what_is_appended() -> None:
    log = Log()
    for number in range(1, 60):
        log.write(number)
        assert log.read(number) == [number]
    assert len(log.firsts()) > 5
    assert len(log.disk.open_handles()) == 2


def test_what_was_written_in_other_ways_meanwhile_is_skipped() -> None:
    """The newest entries may reach a replica without the reader, which then goes on further ahead."""
    log = Log()
    log.write(*[0] * 60)
    for first in (1, 3, 9, 10, 35, 60, 59, 2, 2):
        assert log.read(first)[0] == first


def test_going_on_in_the_same_segment_does_not_begin_at_its_begin() -> None:
    log = Log(segment_bytes=1 << 24)
    log.write(*[1000] * 2000)
    log.read(1500, max_bytes=1)
    log.counting.reads.clear()
    log.read(1900, max_bytes=1)
    assert min(offset for offset, _ in log.counting.reads) > log.offset(1500)


# ---- beside dropping -----------------------------------------------------------------------------------------------


def test_what_was_dropped_is_refused_with_the_seq_at_which_the_log_begins() -> None:
    log = Log()
    log.write(*[0] * 40)
    begins = log.firsts()[1]
    log.wal.drop_before(begins)
    with pytest.raises(LogTrimmed) as caught:
        log.read(begins - 1)
    assert (caught.value.wanted_seq, caught.value.first_seq, caught.value.code) == (begins - 1, begins, "log_trimmed")
    assert log.read(begins)[0] == begins


def test_a_segment_that_is_dropped_while_it_is_read_is_read_to_its_end() -> None:
    log = Log()
    log.write(*[0] * 40)
    second, third = log.firsts()[1:3]
    log.read(1, max_bytes=1)
    log.wal.drop_before(third)
    assert log.read(2) == list(range(2, second))
    with pytest.raises(LogTrimmed) as caught:
        log.read(second)
    assert caught.value.first_seq == third
    assert log.read(third)[0] == third


def test_a_tail_that_was_closed_and_dropped_since_it_was_read_is_read_to_its_end() -> None:
    log = Log()
    log.write(0, 0)
    log.read(1, max_bytes=1)
    log.write(*[0] * 40)
    second = log.firsts()[1]
    log.wal.drop_before(second)
    assert log.read(2) == list(range(2, second))
    assert log.read(second)[0] == second


def test_a_segment_that_is_dropped_while_it_is_opened() -> None:
    log = Log()
    log.write(*[0] * 40)
    second = log.firsts()[1]
    log.counting.before_open = lambda path: log.wal.drop_before(second)
    with pytest.raises(LogTrimmed) as caught:
        log.read(1)
    assert caught.value.first_seq == second


def test_a_file_that_goes_before_the_list_says_so() -> None:
    log = Log()
    log.write(*[0] * 40)
    log.disk.unlink(log.path(1))
    with pytest.raises(LogTrimmed) as caught:
        log.read(1)
    assert caught.value.first_seq == log.firsts()[1]


# ---- damage --------------------------------------------------------------------------------------------------------


def expect_damage(log: Log, seq: int, reason: str, *, first: int | None = None) -> None:
    """The records before are handed out, then the damage is told; also to the next who asks."""
    first = first or seq
    while first < seq:
        first = log.read(first)[-1] + 1
    assert first == seq
    with pytest.raises(LogDamaged, match=reason) as caught:
        log.read(seq)
    assert (caught.value.path, caught.value.offset, caught.value.seq) == (log.path(seq), log.offset(seq), seq)
    with pytest.raises(LogDamaged, match=reason):
        log.read(seq)


@pytest.mark.parametrize("first", [1, 16, 18, 20])
@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (RECORD_HEADER_BYTES, b"?", "does not match its CRC"),
        (RECORD_HEADER_BYTES + SMALL - 1, b"?", "does not match its CRC"),
        (4, bytes(4), "does not match its CRC"),
        (0, bytes(4), "unused space where a record was"),
        (0, struct.pack(">I", 500), "500 bytes would reach past the end of the segment"),
        (0, struct.pack(">I", SMALL - 1), "does not match its CRC"),
        (0, struct.pack(">I", SMALL + 1), "does not match its CRC"),
    ],
)
def test_damage_ends_the_reading_where_it_is(first: int, at: int, data: bytes, reason: str) -> None:
    log = Log(segment_bytes=600)
    log.write(*[0] * 60)
    begin = log.firsts()[1]
    seq = begin + 5
    log.overwrite(seq, at, data)
    expect_damage(log, seq, reason, first=min(first, seq))


def test_a_length_that_leads_astray_on_the_way_to_a_seq_is_found() -> None:
    log = Log(segment_bytes=1 << 16)
    log.write(*[0] * 20)
    log.overwrite(3, 0, struct.pack(">I", 2 * SMALL + RECORD_HEADER_BYTES))
    with pytest.raises(LogDamaged, match="an intact record has seq 11"):
        log.read(10)
    log.overwrite(3, 0, struct.pack(">I", 1 << 20))
    with pytest.raises(LogDamaged, match="would reach past the end") as caught:
        LogReader(log.disk, log.wal).read(10, 20, BIG)
    assert (caught.value.seq, caught.value.offset) == (3, log.offset(3))


def test_an_intact_record_of_another_seq_is_damage() -> None:
    """Only the first record of a read and the last one are looked at; a replica looks at all."""
    log = Log(segment_bytes=1 << 16)
    log.write(*[0] * 8)
    other = record(77)
    log.overwrite(5, 0, struct.pack(">II", len(other.payload), other.crc) + other.payload)
    assert log.read(1, 5) == [1, 2, 3, 4]
    expect_damage(log, 5, "an intact record has seq 77")


def test_a_file_that_was_cut_is_damage() -> None:
    log = Log(segment_bytes=1 << 16)
    log.write(*[0] * 8)
    file = log.disk.open(log.path(1), writable=True)
    for size, seq, reason in (
        (log.offset(8) + 10, 8, "would reach past the end"),
        (log.offset(6) + 7, 6, "ends inside a record header"),
        (log.offset(4), 4, "ends inside a record header"),
    ):
        file.truncate(size)
        expect_damage(log, seq, reason, first=1)
        fresh = LogReader(log.disk, log.wal)
        with pytest.raises(LogDamaged, match=reason):
            fresh.read(8, 8, BIG)
        fresh.close()


def test_a_damaged_header_is_found_when_the_segment_is_opened() -> None:
    log = Log()
    log.write(*[0] * 40)
    second = log.firsts()[1]
    file = log.disk.open(log.path(second), writable=True)
    file.write_at(20, b"?")
    assert log.read(second - 1) == [second - 1]
    for _ in range(2):
        with pytest.raises(LogDamaged, match="header"):
            log.read(second)
    assert log.read(1)[0] == 1
    file.write_at(8, struct.pack(">I", 2))
    data = log.disk.snapshot()[log.path(second)]
    file.write_at(36, struct.pack(">I", crc32(data[:36])))
    with pytest.raises(UnknownFormat):
        log.read(second)
    file.close()
    log.reader.close()
    assert log.disk.open_handles() == [log.path(log.wal.last_seq)]


def test_a_missing_segment_in_the_middle_is_damage() -> None:
    log = Log()
    log.write(*[0] * 40)
    second = log.firsts()[1]
    log.disk.unlink(log.path(second))
    with pytest.raises(LogDamaged, match="the segment is missing"):
        log.read(second)


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_closing_closes_the_file_and_is_harmless_again() -> None:
    log = Log()
    log.reader.close()
    log.write(0, 0)
    log.read(1)
    log.reader.close()
    log.reader.close()
    assert log.disk.open_handles() == [log.path(1)]
    assert log.read(1) == [1, 2]


@pytest.mark.parametrize("seq", [0, 1, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
def test_seq_of_a_payload_is_read_from_its_first_bytes(seq: int) -> None:
    payload = EntryEncoder().encode(Entry(seq, EPOCH, 1, (put(b"k", b""),)))
    assert payload_seq(payload) == seq
    if seq > 127:
        assert payload_seq(payload[:2]) is None


@pytest.mark.parametrize("payload", [b"", b"\x94", b"\x93\x01", b"\x94\xc0", b"\x94\xcd\x00", b"\x94\xff"])
def test_no_seq_is_read_from_what_is_no_entry(payload: bytes) -> None:
    assert payload_seq(payload) is None


def test_reading_beside_a_thread_that_appends_and_drops() -> None:
    with fast_directory() as directory:
        read_beside_appending(directory)


def read_beside_appending(directory: Path) -> None:
    wal = Wal.create(RealFs(), directory, CLUSTER, WalOptions(2000, 6000, sync=False), 1)
    reader = LogReader(RealFs(), wal)
    last = 3000
    durable, failures = 0, []

    def append() -> None:
        nonlocal durable
        try:
            while durable < last:
                wal.append(
                    [record(seq, seq % 90) for seq in range(durable + 1, min(durable + 1 + durable % 7, last) + 1)]
                )
                durable = wal.last_seq
                if not durable % 3:
                    wal.drop_before(wal.trim_target(durable, None))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=append)
    thread.start()
    seq = 1
    while seq <= last and not failures:
        if seq > durable:
            sleep(0)
            continue
        try:
            records, _ = reader.read(seq, durable, 700)
        except LogTrimmed as error:
            before, seq = seq, error.first_seq
            if seq <= before:
                raise
            continue
        assert [payload_seq(each.payload) for each in records] == list(range(seq, seq + len(records)))
        seq += len(records)
    thread.join()
    assert failures == []
    reader.close()
    wal.close()
