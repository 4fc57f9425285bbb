"""The audit of a data directory: every small file and every byte of the log, checked against each other.

It judges as start-up does, from the same evidence but one: what LevelDB says of itself. Opening LevelDB writes to its
directory, and nobody else can while the node runs. It reads more of the log than start-up, which leaves out what
LevelDB does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kvnode.node.errors import FileDamaged, StorageError, UnknownFormat
from kvnode.node.fs import Fs
from kvnode.node.storage.datadir import CleanStop, Identity, Layout, Member, Repair, StateFiles, Swap
from kvnode.node.storage.logview import Fault, FaultKind, LogPlace, LogView, missing_segments
from kvnode.node.storage.recovery import evidence_of_durability, reigned
from kvnode.node.storage.segment import SegmentRecord
from kvnode.protocol.types import History, Position, Seq

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at.

    Attributes:
        subject: a small file's name, or a segment's.
        found: what it holds, or what is wrong with it, in a few words.
        sound: whether nothing is wrong with it but, perhaps, a torn tail.
    """

    subject: str
    found: str
    sound: bool = True


@dataclass(frozen=True, slots=True)
class AuditedSegment:
    """What the audit found in a segment.

    Attributes:
        first_seq: as the name says.
        last_seq: of the last record before any damage.
        highest_seq: of any intact record in it, also behind damage; first_seq - 1 if there is none.
        end: the offset after the record of `last_seq`.
        size: of the file in bytes.
        gap: that it does not begin where the one before ended.
        fault: the first place in it at which start-up would stop reading: damage, a torn tail or a foreign epoch.
    """

    first_seq: Seq
    last_seq: Seq
    highest_seq: Seq
    end: int
    size: int
    gap: Fault | None = None
    fault: Fault | None = None


class Audit:
    """One audit. Create it, iterate over `run` to its end, then look at the attributes.

    Attributes:
        problems: the small files that cannot be trusted.
        faults: what is wrong with the log, in its order; a torn tail is not among them.
        torn: the torn tail, if there is one.
        segments: what each segment holds, in order.
        identity: None if it cannot be read.
        history: None if it cannot be read, empty if there is none.
        checkpoint_seq: LevelDB is durable up to here, as far as the files say.
        known_durable: the highest seq of which the files say that it was durable; 0 for a log that was set aside.
        accepted: a loss that the operator has accepted, and from which the node has not started yet.
        swap: the data are being replaced by a full sync's, so that the log was not looked at; None if they are not.
    """

    def __init__(self, fs: Fs, place: LogPlace) -> None:
        self._fs = fs
        self._place = place
        self.problems: list[StorageError] = []
        self.faults: list[Fault] = []
        self.torn: Fault | None = None
        self.segments: list[AuditedSegment] = []
        self.identity: Identity | None = None
        self.history: History | None = None
        self.checkpoint_seq: Seq = 0
        self.known_durable: Seq = 0
        self.accepted: Repair | None = None
        self.swap: Swap | None = None
        self._last_time_ms = 0
        # Of the segment read last: whether its end was not reached; whether it and all before were dropped instead.
        self._broken = False
        self._all_dropped = False

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong but, perhaps, a torn tail."""
        return not self.problems and not self.faults

    @property
    def last_seq(self) -> Seq:
        """The last entry before any damage in the last segment, 0 without segments."""
        return self.segments[-1].last_seq if self.segments else 0

    def run(self) -> Iterator[Checked]:
        """Check one thing after the other.

        Raises:
            UnknownFormat: of a segment.
            OSError: something cannot be read.
        """
        layout = self._place.layout
        clean: CleanStop | None = None
        if layout is not None:
            checked, clean = self._check_files(layout)
            yield from checked
            if self.swap is not None:
                return
        # What says that entries were durable was read before the log, so it holds for all that is read of it now.
        view = LogView(self._fs, self._place.wal, self.identity.cluster_bytes if self.identity else None)
        first_seqs = view.first_seqs()
        if layout is not None:
            if self.identity is None and first_seqs and not self.problems:
                self.problems.append(self._files(layout).missing(layout.node, "though the directory holds a log"))
            history = reigned(self.identity, self.history or History())
            self.known_durable = evidence_of_durability(first_seqs, history, self.checkpoint_seq, clean)
            view.known_durable = self.known_durable
        for first_seq in first_seqs:
            yield self._check_segment(view, first_seq)
        if layout is not None:
            self._check_reach(layout, view)

    def _files(self, layout: Layout) -> StateFiles:
        return StateFiles(self._fs, layout)

    # ---- the small files -----------------------------------------------------------------------------------------

    def _check_files(self, layout: Layout) -> tuple[list[Checked], CleanStop | None]:
        files = self._files(layout)
        checked: list[Checked] = []

        def check(subject: str, load: Callable[[], T | None], describe: Callable[[T], str]) -> T | None:
            try:
                content = load()
            except FileNotFoundError:
                # A running node removes the marker of its last clean stop.
                content = None
            except (FileDamaged, UnknownFormat) as problem:
                self.problems.append(problem)
                checked.append(Checked(subject, problem.message.partition(": ")[2], sound=False))
                return None
            checked.append(Checked(subject, "not there" if content is None else describe(content)))
            return content

        self.identity = check("node.json", files.load_identity, _describe_identity)
        known_problems = len(self.problems)
        self.history = check("history", files.load_history, _describe_history)
        if self.history is None and len(self.problems) == known_problems:
            self.history = History()
        check("members", files.load_members, _describe_members)
        self.checkpoint_seq = check("checkpoint", files.load_checkpoint, _describe_checkpoint) or 0
        clean = check("clean", files.load_clean_stop, _describe_clean)
        self.accepted = check("repair", files.load_repair, _describe_repair)
        # Nobody misses what only a full sync leaves on a replica.
        if self._fs.exists(layout.serve_from):
            check("serve_from", files.load_serve_from, _describe_serve_from)
        if self._fs.exists(layout.swap):
            self.swap = check("swap", files.load_swap, _describe_swap)
        return checked, clean

    # ---- the log -------------------------------------------------------------------------------------------------

    def _check_segment(self, view: LogView, first_seq: Seq) -> Checked:
        walk = view.walk(first_seq)
        epoch_fault = time_fault = None
        count = 0
        try:
            for record in walk:
                count += 1
                if epoch_fault is None and not self._epoch_is_known(record):
                    reason = f"the record has epoch {record.entry.epoch}, which is not this node's history"
                    epoch_fault = Fault(FaultKind.EPOCH, walk.path, record.offset, record.entry.seq, reason)
                if time_fault is None and record.entry.time_ms < self._last_time_ms:
                    reason = f"the entry's time {record.entry.time_ms} is below an earlier one's, {self._last_time_ms}"
                    time_fault = Fault(FaultKind.TIME, walk.path, record.offset, record.entry.seq, reason)
                self._last_time_ms = max(self._last_time_ms, record.entry.time_ms)
        except FileNotFoundError:
            if not view.was_dropped(first_seq):
                raise
            self.segments.clear()
            self._all_dropped = True
            return Checked(walk.path.name, "dropped by the running node before it was read")
        gap = self._gap_before(walk.path, first_seq)
        self._broken, self._all_dropped = walk.fault is not None, False
        highest_seq = walk.last_seq
        if walk.fault is not None:
            highest_seq = max((record.entry.seq for record in walk.later_records()), default=highest_seq)
        self.segments.append(
            AuditedSegment(first_seq, walk.last_seq, highest_seq, walk.end, walk.size, gap, epoch_fault or walk.fault)
        )
        if walk.fault is not None and walk.fault.kind is FaultKind.TORN_TAIL:
            self.torn = walk.fault
        found = [
            each for each in (gap, epoch_fault, time_fault, walk.fault) if each is not None and each is not self.torn
        ]
        self.faults += found
        seqs = f"seq {first_seq} to {walk.last_seq}" if count else "no entries"
        tail = f"; torn tail at offset {self.torn.offset}" if self.torn is not None else ""
        wrong = "".join(f"; offset {fault.offset}, seq {fault.seq}: {fault.reason}" for fault in found)
        return Checked(walk.path.name, f"{seqs}, {walk.end} of {walk.size} bytes{tail}{wrong}", sound=not found)

    def _epoch_is_known(self, record: SegmentRecord) -> bool:
        """Whether a record's epoch is the history's; without a readable history every one is."""
        layout = self._place.layout
        if layout is None or self.history is None:
            return True
        epoch, seq = record.entry.position
        if epoch == self.history.epoch_of(seq):
            return True
        # The node may have been started since the history was read.
        files = self._files(layout)
        try:
            self.history = files.load_history() or History()
        except StorageError:
            return False
        if not self.history.reigns:
            # One file is missing, rather than every segment wrong.
            self.problems.append(files.missing(layout.history, "though the log has entries"))
            self.history = None
            return True
        return epoch == self.history.epoch_of(seq)

    def _gap_before(self, path: Path, first_seq: Seq) -> Fault | None:
        """That a segment does not go on where the one before, as far as it could be read, has ended."""
        if not self.segments:
            return None
        expected = self.segments[-1].last_seq + 1
        if first_seq == expected or (first_seq > expected and self._broken):
            return None
        return missing_segments(path, expected, first_seq)

    def _check_reach(self, layout: Layout, view: LogView) -> None:
        """Whether the log reaches from the checkpoint to the last seq known durable."""
        if self._all_dropped:
            return
        segments = self.segments
        if segments and segments[0].first_seq > self.checkpoint_seq + 1 and not self.problems:
            # A running node may have taken another checkpoint, and only then have dropped segments.
            self.checkpoint_seq = self._files(layout).load_checkpoint() or 0
            if segments[0].first_seq > self.checkpoint_seq + 1:
                reason = f"the log begins here, but LevelDB is durable only up to seq {self.checkpoint_seq}"
                path = view.path(segments[0].first_seq)
                self.faults.insert(0, Fault(FaultKind.MISSING, path, 0, self.checkpoint_seq + 1, reason))
        accepted = self.accepted.lost_last if self.accepted is not None else 0
        if self.last_seq < self.known_durable and self.known_durable > accepted and not self._broken:
            path, end = (view.path(segments[-1].first_seq), segments[-1].end) if segments else (view.directory, 0)
            reason = f"the log ends here, but entries up to seq {self.known_durable} were durable"
            self.faults.append(Fault(FaultKind.MISSING, path, end, self.last_seq + 1, reason))


def _describe_identity(identity: Identity) -> str:
    return f"{identity.role} {identity.name}, node {identity.node_id}, cluster {identity.cluster_id}"


def _describe_history(history: History) -> str:
    return ", ".join(f"{epoch} from seq {first_seq}" for epoch, first_seq in history) or "empty"


def _describe_members(members: tuple[Member, ...]) -> str:
    return ", ".join(member.name for member in members) or "none"


def _describe_checkpoint(seq: Seq) -> str:
    return f"LevelDB is durable up to seq {seq}"


def _describe_clean(clean: CleanStop) -> str:
    return f"stopped in order after seq {clean.last_seq}"


def _describe_serve_from(latest: Position) -> str:
    return f"nothing is served before seq {latest.seq} is applied, as the data were copied up to {latest}"


def _describe_swap(swap: Swap) -> str:
    return (
        f"the data are being replaced by those of a full sync, which stand at {swap.first}; "
        "if the node is not running, its next start completes that; the log was not looked at"
    )


def _describe_repair(repair: Repair) -> str:
    return f"the loss of entries up to seq {repair.lost_last} was accepted; the node has not started since"
