"""The repair of a log: cuts it where start-up would refuse it, and keeps what is cut off.

LevelDB is neither opened nor changed: what it holds beyond the cut counts at the next start. What neither of the two
holds is lost, and the file ``repair`` tells start-up that the operator has accepted that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kvnode.node.errors import DataLost, StorageError
from kvnode.node.fs import File, Fs
from kvnode.node.storage.audit import Audit, AuditedSegment
from kvnode.node.storage.datadir import Layout, Repair, StateFiles
from kvnode.node.storage.logview import Fault, FaultKind, LogPlace
from kvnode.node.storage.segment import HEADER_BYTES, segment_name
from kvnode.protocol.types import Seq

#: How much of a segment is copied at a time.
_COPY_BYTES = 1024 * 1024


class SwapPending(StorageError):
    """A full sync's data are about to take the place of the directory's."""

    code = "swap_pending"


@dataclass(frozen=True, slots=True)
class Cut:
    """A segment to be cut.

    Attributes:
        first_seq: of the segment.
        offset: the size that it is cut to, in bytes.
    """

    first_seq: Seq
    offset: int


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repair will do.

    Attributes:
        damage: why: the first thing wrong with the part of the log that the next start needs; None if that is whole.
        cut: the segment that is cut, after it was copied; None if none is.
        removed: the segments after the cut, which are moved aside.
        unneeded: damaged segments, and those before them, whose entries LevelDB holds durably; moved aside as well.
        aside: the directory that keeps all of these.
        log_last_seq: the last entry of the log afterwards, 0 if none is left.
        lost_first: the first entry that is no longer in the log, or that was durable once and is not there.
        lost_last: the last such entry of which anything is known; below `lost_first` if there is none.
        accepted_last: the last entry whose loss was accepted by an earlier repair, 0 if none was.
        checkpoint_seq: LevelDB holds the entries up to here durably; 0 if it is lost.
    """

    damage: Fault | None
    cut: Cut | None
    removed: tuple[Seq, ...]
    unneeded: tuple[Seq, ...]
    aside: Path
    log_last_seq: Seq
    lost_first: Seq
    lost_last: Seq
    accepted_last: Seq
    checkpoint_seq: Seq

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        accepts = self.loses_entries and self.lost_last > self.accepted_last
        return accepts or self.cut is not None or bool(self.removed or self.unneeded)

    @property
    def loses_entries(self) -> bool:
        """Whether the log does not have entries afterwards of which something is known."""
        return self.lost_first <= self.lost_last

    @property
    def only_torn(self) -> bool:
        """Whether all that is wrong is a torn tail, which start-up cuts off by itself."""
        return self.damage is not None and self.damage.kind is FaultKind.TORN_TAIL and not self.unneeded


def plan_repair(fs: Fs, layout: Layout, *, db_lost: bool = False) -> RepairPlan:
    """Find out what a repair would do; changes nothing. The caller holds the directory's lock.

    Args:
        db_lost: LevelDB is damaged beyond use, and is to be rebuilt from the log.

    Raises:
        SwapPending: the next start replaces the log.
        FileDamaged, UnknownFormat: a small file without which the log cannot be judged.
        DataLost: no cut leaves a log from which the node could start.
        OSError: something cannot be read.
    """
    audit = Audit(fs, LogPlace(layout.wal, layout))
    for _ in audit.run():
        pass
    if audit.problems:
        raise audit.problems[0]
    if audit.swap is not None:
        raise SwapPending(
            f"{layout.root}: the data are being replaced by those of a full sync",
            hint="start the node: it completes that before it opens the log",
        )
    segments = audit.segments
    if (
        audit.history is not None
        and not audit.history.reigns
        and any(each.highest_seq >= each.first_seq for each in segments)
    ):
        raise StateFiles(fs, layout).missing(layout.history, "though the log has entries")
    db_lost = db_lost or not fs.exists(layout.db / "CURRENT")
    checkpoint_seq = 0 if db_lost else audit.checkpoint_seq
    needed = next((i for i in reversed(range(len(segments))) if segments[i].first_seq <= checkpoint_seq + 1), 0)
    kept = _first_whole(segments[: needed + 1])
    stop, damage, cut = _find_end(segments, needed)
    if segments and segments[0].first_seq > checkpoint_seq + 1:
        reason = f"the log begins with seq {segments[0].first_seq}, but LevelDB is durable only up to {checkpoint_seq}"
        damage = Fault(FaultKind.MISSING, layout.wal, 0, checkpoint_seq + 1, reason)
        kept, stop, cut = 0, 0, None
    moved_from = stop if cut is None else stop + 1
    remaining = segments[kept:moved_from]
    if db_lost and not remaining and audit.known_durable > 0:
        raise DataLost(
            f"{layout.root}: LevelDB is lost, and no part of the log reaches back to seq 1",
            hint="restore the directory as a whole; `kvnode wal dump` prints what the log still holds",
        )
    if cut is not None and damage is not None:
        log_last_seq = damage.seq - 1
    else:
        log_last_seq = remaining[-1].last_seq if remaining else 0
    lost_first = damage.seq if damage is not None else log_last_seq + 1
    accepted_last = audit.accepted.lost_last if audit.accepted is not None else 0
    unneeded = tuple(each.first_seq for each in segments[:kept])
    removed = tuple(each.first_seq for each in segments[moved_from:])
    return RepairPlan(
        damage=damage,
        cut=cut,
        removed=removed,
        unneeded=unneeded,
        aside=_choose_directory(fs, layout, lost_first, [*unneeded, *removed], cut),
        log_last_seq=log_last_seq,
        lost_first=lost_first,
        lost_last=max(audit.known_durable, accepted_last, *(each.highest_seq for each in segments[stop:])),
        accepted_last=accepted_last,
        checkpoint_seq=checkpoint_seq,
    )


def apply_repair(fs: Fs, layout: Layout, plan: RepairPlan) -> None:
    """Do what the plan says. The caller holds the directory's lock since before the plan was made.

    After a crash at any point the log is as it was, or as it was to be, or can be repaired again; nothing is lost that
    the plan keeps.

    Raises:
        OSError: the disk failed; the same holds as after a crash.
    """
    if plan.cut is not None or plan.removed or plan.unneeded:
        for directory in (layout.wal_old, plan.aside):
            fs.make_directory(directory)
            fs.sync_directory(directory.parent)
    if plan.cut is not None:
        name = segment_name(plan.cut.first_seq)
        _copy(fs, layout.wal / name, plan.aside / name)
    if plan.loses_entries:
        # Before the cut: without it, a start after the cut would refuse what there is no more damage to repair in.
        StateFiles(fs, layout).save_repair(Repair(plan.log_last_seq, plan.lost_last))
    # Newest first, so that the log has no gap in between.
    _move(fs, layout.wal, plan.aside, plan.removed[::-1])
    if plan.cut is not None:
        file = fs.open(layout.wal / segment_name(plan.cut.first_seq), writable=True)
        try:
            file.truncate(plan.cut.offset)
            file.sync()
        finally:
            file.close()
    _move(fs, layout.wal, plan.aside, plan.unneeded)


def _first_whole(segments: Sequence[AuditedSegment]) -> int:
    """The index from which on segments are whole and without gap; the last one's own content is not looked at."""
    first = 0
    for index, segment in enumerate(segments):
        if segment.gap is not None:
            first = index
        if segment.fault is not None and index < len(segments) - 1:
            first = index + 1
    return first


def _find_end(segments: Sequence[AuditedSegment], begin: int) -> tuple[int, Fault | None, Cut | None]:
    """Where the log, read from a segment on, stops being whole.

    Returns:
        The index of the first segment that cannot stay as it is, why, and where it is cut if a part of it stays.
    """
    for index, segment in enumerate(segments):
        if index > begin and segment.gap is not None:
            return index, segment.gap, None
        if index >= begin and segment.fault is not None:
            offset = segment.fault.offset
            cut = Cut(segment.first_seq, offset) if offset >= HEADER_BYTES else None
            return index, segment.fault, cut
    return len(segments), None, None


def _choose_directory(fs: Fs, layout: Layout, seq: Seq, moved: Sequence[Seq], cut: Cut | None) -> Path:
    """A directory that holds none of what will be put there, but perhaps more from an attempt that was cut short."""

    def fits(directory: Path) -> bool:
        if any(fs.exists(directory / segment_name(first_seq)) for first_seq in moved):
            return False
        if cut is None:
            return True
        name = segment_name(cut.first_seq)
        return not fs.exists(directory / name) or _same_content(fs, directory / name, layout.wal / name)

    name = f"repair-{seq:020d}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(directory for directory in map(layout.wal_old.joinpath, names) if fits(directory))


def _move(fs: Fs, source: Path, target: Path, first_seqs: Sequence[Seq]) -> None:
    for first_seq in first_seqs:
        fs.rename(source / segment_name(first_seq), target / segment_name(first_seq))
    if first_seqs:
        fs.sync_directory(target)
        fs.sync_directory(source)


def _copy(fs: Fs, source: Path, target: Path) -> None:
    """Copy a file, durably; `target` is there only when it is whole."""
    temporary = target.with_name(target.name + ".tmp")
    original = fs.open(source, writable=False)
    try:
        copy = fs.create(temporary)
        try:
            for offset, block in _blocks(original):
                copy.write_at(offset, block)
            copy.sync()
        finally:
            copy.close()
    finally:
        original.close()
    fs.rename(temporary, target)
    fs.sync_directory(target.parent)


def _same_content(fs: Fs, first: Path, second: Path) -> bool:
    files: list[File] = []
    try:
        files += [fs.open(first, writable=False)]
        files += [fs.open(second, writable=False)]
        return files[0].size() == files[1].size() and all(
            block == files[1].read_at(offset, len(block)) for offset, block in _blocks(files[0])
        )
    finally:
        for file in files:
            file.close()


def _blocks(file: File) -> Iterator[tuple[int, bytes]]:
    """A file's content in parts, each with its offset."""
    for offset in range(0, file.size(), _COPY_BYTES):
        yield offset, file.read_at(offset, _COPY_BYTES)
