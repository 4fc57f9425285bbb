"""What the replication simulation knows and no node does: every entry with its ancestors, and who holds what.

A disk holds what its node has made durable. The truth holds every entry that any log ever held, the entry it follows,
and the data after it. From that it follows, without any epoch or history, whether a log is what it should be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.follow import position_of
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, Epoch, History, Position, Put, Seq

#: What LevelDB holds: the value of a key, and the entry that wrote it.
Data = dict[bytes, tuple[Position, bytes]]

ORIGIN = Position(Epoch(0), 0)


class LogEntry(NamedTuple):
    """An entry in a log, as bytes and decoded."""

    record: LogRecord
    entry: Entry


class Known(NamedTuple):
    """An entry that exists, the one it follows, and the data after it."""

    payload: bytes
    parent: Position
    data: Data


@dataclass(slots=True)
class AckedWrite:
    """A write that was reported as held by some replicas."""

    position: Position
    #: numbers of the nodes that hold it
    holders: set[int]


@dataclass(slots=True)
class Disk:
    """What one node has durable."""

    history: History = field(default_factory=History)
    members: tuple[Member, ...] = ()
    #: entries from `first_seq` on
    log: list[LogEntry] = field(default_factory=list)
    first_seq: Seq = 1
    #: seqs whose record cannot be read any more
    damaged: set[Seq] = field(default_factory=set)
    data: Data = field(default_factory=dict)
    applied_seq: Seq = 0
    serve_from: Position | None = None
    incoming: Incoming | None = None
    incoming_data: Data = field(default_factory=dict)
    #: for each time that entries were moved aside: the fork and what followed it
    diverged: list[tuple[Position, list[LogEntry]]] = field(default_factory=list)

    @property
    def last_seq(self) -> Seq:
        return self.first_seq + len(self.log) - 1

    @property
    def position(self) -> Position:
        """Of the last entry, from what a node has to go by."""
        return position_of(self.history, self.last_seq)

    def copy(self) -> Disk:
        """What a backup holds."""
        return replace(
            self,
            log=list(self.log),
            damaged=set(self.damaged),
            data=dict(self.data),
            incoming_data=dict(self.incoming_data),
            diverged=list(self.diverged),
        )

    def save_member(self, member: Member) -> None:
        """Add a member, in place of the one with its id if there is one."""
        if member not in self.members:
            others = [each for each in self.members if each.node_id != member.node_id]
            self.members = (*others, member)

    def after(self, seq: Seq) -> list[LogEntry]:
        """Entries above `seq`."""
        return self.log[max(0, seq + 1 - self.first_seq) :]

    def apply(self, upto_seq: Seq) -> None:
        """Bring LevelDB level with the log."""
        for _, entry in self.log[self.applied_seq + 1 - self.first_seq : upto_seq + 1 - self.first_seq]:
            assert entry.seq == self.applied_seq + 1, "applied with a gap"
            change(self.data, entry)
            self.applied_seq = entry.seq

    def trim(self, first_seq: Seq) -> None:
        """Drop entries below a seq that are applied."""
        drop = min(first_seq, self.applied_seq + 1) - self.first_seq
        if drop > 0:
            del self.log[:drop]
            self.first_seq += drop


def change(data: Data, entry: Entry) -> None:
    """Apply an entry."""
    for op in entry.ops:
        if isinstance(op, Put):
            data[op.key] = (entry.position, op.value)
        else:
            data.pop(op.key, None)


class Truth:
    """All entries that ever were, and all writes that were reported as held."""

    def __init__(self) -> None:
        self._known: dict[Position, Known] = {ORIGIN: Known(b"", ORIGIN, {})}
        self.acked: list[AckedWrite] = []
        #: of every reign, its epoch and the last entry of the log that it began with
        self._reigns: list[tuple[Epoch, Position]] = []
        #: how many writes were given up by a reign that began without them
        self.given_up = 0

    def order(self, parent: Position, ordered: LogEntry) -> None:
        """A primary made an entry durable."""
        data = dict(self._known[parent].data)
        change(data, ordered.entry)
        position = ordered.entry.position
        assert position not in self._known, f"two entries at {position}"
        self._known[position] = Known(ordered.record.payload, parent, data)

    def check_append(self, parent: Position, added: LogEntry) -> None:
        """A replica makes an entry durable after `parent`."""
        position = added.entry.position
        known = self._known.get(position)
        assert known is not None, f"{position} was never ordered"
        assert known.payload == added.record.payload, f"two different entries at {position}"
        assert known.parent == parent, f"{position} was put after {parent}, it follows {known.parent}"

    def check_data(self, disk: Disk) -> None:
        """A node serves: its data are what its last applied entry left."""
        position = position_of(disk.history, disk.applied_seq)
        assert disk.data == self._known[position].data, f"wrong data are served at {position}"

    def line(self, position: Position) -> Iterator[Position]:
        """An entry and its ancestors, latest first."""
        while position.seq:
            yield position
            position = self._known[position].parent

    def holds(self, last: Position, position: Position) -> bool:
        """Whether the log that ends with `last` holds `position`."""
        if position.seq > last.seq:
            return False
        while last.seq > position.seq:
            last = self._known[last].parent
        return position.seq == 0 or last == position

    def check_fork(self, primary: Position, replica: Position, fork: Position) -> None:
        """`fork` is the last entry that two logs share, unless one has since turned out to be a prefix of the other."""
        if self.holds(primary, replica):
            return
        shared = set(self.line(primary))
        common = next((each for each in self.line(replica) if each in shared), ORIGIN)
        assert common == fork, f"{replica} and {primary} fork after {common}, not {fork}"

    def begin_reign(self, epoch: Epoch, last: Position) -> None:
        """A node begins to reign with the log that ends with `last`.

        What it lacks of reigns that are not later than this is given up: whoever follows it loses that. A reign with a
        lower term gives up nothing, as no node that holds the write follows it.
        """
        self._reigns.append((epoch, last))
        line = set(self.line(last))
        kept = [write for write in self.acked if write.position in line or write.position.epoch.term > epoch.term]
        self.given_up += len(self.acked) - len(kept)
        self.acked = kept

    def report_acked(self, position: Position, holders: set[int]) -> None:
        """A primary says that some nodes hold a write of its reign."""
        for epoch, last in self._reigns:
            # The operator had two primaries at a time, and this one is not the later of them.
            rivals = epoch.term >= position.epoch.term and epoch != position.epoch
            if rivals and not self.holds(last, position):
                self.given_up += 1
                return
        self.acked.append(AckedWrite(position, holders))

    def check_holder(self, number: int, last: Position) -> None:
        """A node holds all that it is said to hold."""
        line = set(self.line(last))
        for write in self.acked:
            if number in write.holders:
                assert write.position in line, f"node {number} at {last} has lost {write.position}, which it had acked"

    def lose_tail(self, disk: Disk, last_seq: Seq) -> None:
        """A log loses its last entries in a repair, and LevelDB never had them."""
        del disk.log[last_seq + 1 - disk.first_seq :]
        disk.applied_seq = disk.last_seq
        disk.data = dict(self._known[disk.position].data)

    def replace_disk(self, number: int, last: Position) -> None:
        """An operator put another disk into a node."""
        line = set(self.line(last))
        for write in self.acked:
            if write.position not in line:
                write.holders.discard(number)
