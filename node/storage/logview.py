"""A log read from outside: by commands that look at a directory whose node may be running.

Nothing is locked or written, and a file may grow, be closed or be dropped while it is read. A reader then sees parts of
a write that was under way, also a later part without an earlier one. So damage counts only when the bytes are still the
same in a second read, and what speaks for corruption was there before that read.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kvnode.node.errors import FileDamaged, LogDamaged, StorageError
from kvnode.node.fs import Fs, read_file
from kvnode.node.storage.datadir import Layout, StateFiles
from kvnode.node.storage.recovery import evidence_of_durability, explain_corruption, reigned
from kvnode.node.storage.segment import (
    HEADER_BYTES,
    Damage,
    SegmentRecord,
    check_header,
    find_later_records,
    header_cluster_id,
    parse_segment_name,
    read_records,
    segment_name,
)
from kvnode.protocol.types import History, Seq

T = TypeVar("T")


class NoLog(StorageError):
    """The directory is neither a node's data directory nor one that holds log segments."""

    code = "no_log"


class SegmentsDropped(StorageError):
    """The running node dropped segments before they were read."""

    code = "segments_dropped"


class FaultKind(enum.Enum):
    """What is wrong at a place in the log."""

    #: An unfinished write at the log's end, which start-up cuts off (or which the node is just writing).
    TORN_TAIL = "torn_tail"
    #: Bytes that are no record, or not the one expected there.
    DAMAGE = "damage"
    #: An intact record of an epoch that is not in the node's history.
    EPOCH = "epoch"
    #: Segments, or the log's end, are missing.
    MISSING = "missing"
    #: An entry's time is below the one before; start-up does not mind.
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        kind: what it is.
        path: the segment, or the log's directory.
        offset: where in it, in bytes.
        seq: the seq expected there.
        reason: for people, without the place.
    """

    kind: FaultKind
    path: Path
    offset: int
    seq: Seq
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: offset {self.offset}, seq {self.seq}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where a log is.

    Attributes:
        wal: the directory that holds the segments.
        layout: of the data directory that it belongs to; None for segments that were set aside.
    """

    wal: Path
    layout: Layout | None


def find_log(fs: Fs, directory: Path) -> LogPlace:
    """The log of a node's data directory, or of a directory that holds segments itself.

    Raises:
        NoLog: it is neither.
        OSError: it cannot be read.
    """
    names = fs.list_names(directory)
    layout = Layout(directory)
    if layout.node.name in names or layout.wal.name in names:
        return LogPlace(layout.wal, layout)
    if any(parse_segment_name(name) is not None for name in names):
        return LogPlace(directory, None)
    raise NoLog(
        f"{directory}: neither a node's data directory nor a directory with log segments",
        hint="name the directory that the node was started with (--data)",
    )


class LogView:
    """The segments in a directory."""

    def __init__(self, fs: Fs, directory: Path, cluster_id: bytes | None = None, known_durable: Seq = 0) -> None:
        """Look at a log.

        Args:
            cluster_id: 16 bytes that every header must have; None to take those of the first intact one.
            known_durable: the highest seq of which the directory's files said, before this, that it was durable.
        """
        self.fs = fs
        self.directory = directory
        self.known_durable = known_durable
        self._cluster_id = cluster_id

    def first_seqs(self) -> list[Seq]:
        """The first seqs of the segments that are there now, ascending, as their names say."""
        if not self.fs.exists(self.directory):
            return []
        seqs = map(parse_segment_name, self.fs.list_names(self.directory))
        return sorted(seq for seq in seqs if seq is not None)

    def path(self, first_seq: Seq) -> Path:
        """The segment's file."""
        return self.directory / segment_name(first_seq)

    def walk(self, first_seq: Seq) -> SegmentWalk:
        """Begin to read a segment."""
        return SegmentWalk(self, first_seq)

    def check_header(self, first_seq: Seq, data: bytes) -> Fault | None:
        """What is wrong with a segment's header, None if nothing.

        Raises:
            UnknownFormat: it is intact, and of another version.
        """
        if self._cluster_id is None:
            self._cluster_id = header_cluster_id(data)
        try:
            check_header(self.path(first_seq), data, self._cluster_id or bytes(16))
        except LogDamaged as error:
            return Fault(FaultKind.DAMAGE, error.path, error.offset, error.seq, error.reason)
        return None

    def read_header(self, first_seq: Seq) -> tuple[Fault | None, int]:
        """What is wrong with a segment's header, and the size of its file in bytes.

        Raises:
            UnknownFormat: as `check_header`.
            FileNotFoundError: the segment was dropped.
        """
        file = self.fs.open(self.path(first_seq), writable=False)
        try:
            return self.check_header(first_seq, file.read_at(0, HEADER_BYTES)), file.size()
        finally:
            file.close()

    def was_dropped(self, first_seq: Seq) -> bool:
        """Whether a segment that is gone can have been dropped by the node: it drops the oldest ones."""
        return all(other > first_seq for other in self.first_seqs())


def view_log(fs: Fs, place: LogPlace) -> LogView:
    """A view that judges damage by what the directory's small files say; of a damaged one it knows nothing."""
    if place.layout is None:
        return LogView(fs, place.wal)
    files = StateFiles(fs, place.layout)
    identity = _load(files.load_identity)
    history, checkpoint_seq, clean = (
        _load(files.load_history),
        _load(files.load_checkpoint),
        _load(files.load_clean_stop),
    )
    view = LogView(fs, place.wal, identity.cluster_bytes if identity is not None else None)
    view.known_durable = evidence_of_durability(
        view.first_seqs(), reigned(identity, history or History()), checkpoint_seq or 0, clean
    )
    return view


def _load(load: Callable[[], T | None]) -> T | None:
    try:
        return load()
    except (FileDamaged, FileNotFoundError):
        return None


class SegmentWalk:
    """One segment, record by record; iterate over it once.

    Attributes:
        path: its file.
        first_seq: as the file's name says.
        last_seq: of the last intact record that was read; first_seq - 1 before the first.
        end: the offset after it.
        fault: after the iteration: what ended it, None if it was the end of the records.

    Raises (from iteration):
        FileNotFoundError: the segment was dropped.
        UnknownFormat: another version wrote it.
    """

    def __init__(self, view: LogView, first_seq: Seq) -> None:
        self._view = view
        self.path = view.path(first_seq)
        self._data = b""
        self.first_seq = first_seq
        self.last_seq: Seq = first_seq - 1
        self.end = HEADER_BYTES
        self.fault: Fault | None = None

    @property
    def size(self) -> int:
        """Of the file in bytes, as it was read last."""
        return len(self._data)

    def __iter__(self) -> Iterator[SegmentRecord]:
        self._data = read_file(self._view.fs, self.path)
        self.fault = self._view.check_header(self.first_seq, self._data)
        if self.fault is not None:
            self.end = 0
            return
        suspected: Fault | None = None
        while True:
            try:
                for record in read_records(self._data, self.last_seq + 1, self.end):
                    self.last_seq, self.end = record.entry.seq, record.end
                    yield record
            except Damage as damage:
                if suspected is not None and suspected.offset == damage.offset:
                    self.fault = suspected
                    return
                suspected = self._judge(damage)
                self._data = read_file(self._view.fs, self.path)
            else:
                return

    def _judge(self, damage: Damage) -> Fault:
        """What the damage is, if the next read finds it again."""
        is_last = all(other <= self.first_seq for other in self._view.first_seqs())
        reason = explain_corruption(damage, self._data, self._view.known_durable, is_last=is_last)
        kind = FaultKind.TORN_TAIL if reason is None else FaultKind.DAMAGE
        return Fault(kind, self.path, damage.offset, damage.seq, reason or damage.reason)

    def later_records(self) -> Iterator[SegmentRecord]:
        """After the iteration: the intact records behind the fault, each with a higher seq than the one before."""
        last_seq = self.last_seq
        for record in find_later_records(self._data, self.end, last_seq):
            if record.entry.seq > last_seq:
                last_seq = record.entry.seq
                yield record

    def all_records(self) -> Iterator[SegmentRecord]:
        """The iteration, then `later_records`."""
        yield from self
        if self.fault is not None:
            yield from self.later_records()


class LogWalk:
    """Entries of a log from one seq to another, across its segments.

    Attributes:
        faults: after the iteration: what ended it, or, when damage was to be skipped, all that was met.
    """

    def __init__(self, view: LogView) -> None:
        self._view = view
        self.faults: list[Fault] = []

    def records(self, first: Seq | None, last: Seq | None, *, skip_damage: bool = False) -> Iterator[SegmentRecord]:
        """The records in order, up to the end of the segment that is the last one when this begins.

        Args:
            first: begin here; None for the log's first.
            last: end here; None for the log's last.
            skip_damage: go on with the intact records behind damage, instead of ending there.

        Raises:
            SegmentsDropped: entries that were asked for are no longer in the log.
            UnknownFormat: of a segment.
        """
        first_seqs = self._view.first_seqs()
        if first is not None and first_seqs and first < first_seqs[0]:
            raise SegmentsDropped(f"{self._view.directory}: the log begins at seq {first_seqs[0]}, not at {first}")
        begin = next((i for i in reversed(range(len(first_seqs))) if first_seqs[i] <= (first or 0)), 0)
        expected: Seq | None = None
        for first_seq in first_seqs[begin:]:
            if last is not None and first_seq > last:
                return
            walk = self._view.walk(first_seq)
            if expected is not None and first_seq != expected:
                self.faults.append(missing_segments(self._view.path(first_seq), expected, first_seq))
                if not skip_damage:
                    return
            try:
                for record in walk.all_records() if skip_damage else walk:
                    if first is None or record.entry.seq >= first:
                        if last is not None and record.entry.seq > last:
                            return
                        yield record
            except FileNotFoundError:
                if expected is None and first is None and self._view.was_dropped(first_seq):
                    continue
                raise SegmentsDropped(
                    f"{walk.path}: the running node dropped this segment before it was read",
                    hint="begin at a later seq, or have the node keep more of its log (--wal-keep-bytes)",
                ) from None
            expected = walk.last_seq + 1
            if walk.fault is not None:
                self.faults.append(walk.fault)
                if not skip_damage:
                    return
                expected = None


def missing_segments(path: Path, expected: Seq, found: Seq) -> Fault:
    """The fault of a segment that does not begin where the one before ended."""
    what = f"seq {expected} to {found - 1} are missing" if found > expected else "it overlaps the one before"
    return Fault(FaultKind.MISSING, path, 0, expected, f"the segment begins with seq {found}: {what}")
