"""What a primary streams after SUBSCRIBE: checked frame by frame, and turned into work for the replica's disk.

Frames are taken in the order of these phases:

    refused     none but ERROR, which is not for this module: the replica has seen a later primary, and said so
    history     HISTORY must come
    log         ENTRIES or HISTORY, or SNAPSHOT_BEGIN, which leads to
    snapshot    SNAPSHOT_CHUNK or HISTORY, until SNAPSHOT_END, which leads to log

The work has to be done in the order in which it is returned. Then an entry is appended only when the history that
ordered it is durable, and only to a log that is a prefix of the primary's.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from kvnode.protocol.errors import RemoteProtocolError
from kvnode.protocol.fields import Member
from kvnode.protocol.follow import position_of
from kvnode.protocol.messages import Entries, HistoryFrame, Message, SnapshotBegin, SnapshotChunk, SnapshotEnd
from kvnode.protocol.received import check_records
from kvnode.protocol.replica_events import (
    AppendEntries,
    BeginIncoming,
    DropIncoming,
    FinishIncoming,
    SaveHistory,
    StoreChunk,
    Work,
)
from kvnode.protocol.snapshot import unpack_chunk
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import History, Seq


class HistoryChanged(RemoteProtocolError):
    """The primary's history is not the one it named in WELCOME: all that was decided on that is void."""

    code = "history_changed"


class SyncUseless(RemoteProtocolError):
    """A full sync would put less in the log's place than is known to be common. A later one will not."""

    code = "sync_aborted"


class Phase(Enum):
    """What may come."""

    REFUSED = "refused"
    HISTORY = "history"
    LOG = "log"
    SNAPSHOT = "snapshot"


class Reception:
    """One stream of one session.

    Attributes (read only):
        phase: what may come.
        received_seq: the last entry that came, or that is there without having come.
        must_sync: whether the log has diverged: a full sync must come before any entry.
    """

    def __init__(
        self,
        history: History,
        last_seq: Seq,
        *,
        floor_seq: Seq,
        must_sync: bool = False,
        refused: bool = False,
        offered: Incoming | None = None,
        stale_incoming: bool = False,
    ) -> None:
        """Expect HISTORY.

        Args:
            history: the primary's, from WELCOME.
            last_seq: of the replica's log.
            floor_seq: up to here, the replica's log is a prefix of the primary's; a full sync must not begin below.
            offered: the full sync that SUBSCRIBE offered to resume.
            stale_incoming: whether there is a full sync on disk that the first entry makes worthless.
        """
        self.phase = Phase.REFUSED if refused else Phase.HISTORY
        self.received_seq = last_seq
        self.must_sync = must_sync
        self._history = history
        self._members: tuple[Member, ...] = ()
        self._floor_seq = floor_seq
        self._offered = offered
        self._stale_incoming = stale_incoming
        # The snapshot that comes.
        self._snapshot: SnapshotBegin | None = None
        self._incoming: Incoming | None = None
        self._keys = 0

    def take(self, message: Message) -> list[Work]:
        """Check a frame; returns the work that it asks for.

        Raises:
            RemoteProtocolError: the stream must end, with the error's code.
        """
        match self.phase, message:
            case Phase.HISTORY | Phase.LOG | Phase.SNAPSHOT, HistoryFrame():
                return self._take_history(message)
            case Phase.LOG, Entries() if not self.must_sync:
                return self._take_entries(message)
            case Phase.LOG, SnapshotBegin():
                return self._take_begin(message)
            case Phase.SNAPSHOT, SnapshotChunk():
                return self._take_chunk(message)
            case Phase.SNAPSHOT, SnapshotEnd():
                return self._take_end(message)
        wanted = " where only a full sync can help" if self.must_sync else ""
        raise RemoteProtocolError(f"{message.TYPE.name} came in phase {self.phase.value}{wanted}")

    def _take_history(self, frame: HistoryFrame) -> list[Work]:
        if frame.history != self._history:
            raise HistoryChanged("the primary's history changed, it is asked again")
        self._members = frame.members
        if self.phase is Phase.HISTORY:
            self.phase = Phase.LOG
        # A log that has diverged keeps its own history until it is replaced.
        return [] if self.must_sync else [SaveHistory(frame.history, frame.members)]

    def _take_entries(self, frame: Entries) -> list[Work]:
        entries = check_records(frame.records, self.received_seq, self._history)
        self.received_seq = entries[-1].seq
        append = AppendEntries(frame.records, entries)
        if self._stale_incoming:
            self._stale_incoming = False
            return [DropIncoming(), append]
        return [append]

    def _take_begin(self, frame: SnapshotBegin) -> list[Work]:
        for position in (frame.first_position, frame.position):
            if position != position_of(self._history, position.seq):
                raise RemoteProtocolError(f"a snapshot shows {position}, which is not in the primary's history")
        # Entries that came ahead of this are about to be durable.
        floor_seq = self._floor_seq if self.must_sync else self.received_seq
        if frame.first_position.seq < floor_seq:
            raise SyncUseless(f"a full sync from {frame.first_position} would lose entries up to {floor_seq}")
        incoming = Incoming(frame.sync_id, frame.first_position, frame.position)
        if frame.resumed:
            known = self._offered
            if known is None or (known.sync_id, known.first) != (incoming.sync_id, incoming.first):
                raise RemoteProtocolError("a full sync is resumed that was not offered")
            latest = known.latest if known.latest.seq > frame.position.seq else frame.position
            incoming = replace(known, latest=latest)
        self.phase = Phase.SNAPSHOT
        self._offered = None
        self._stale_incoming = False
        self._snapshot, self._incoming, self._keys = frame, incoming, 0
        return [BeginIncoming(incoming, frame.resumed)]

    def _take_chunk(self, frame: SnapshotChunk) -> list[Work]:
        assert self._incoming is not None
        records = unpack_chunk(frame)
        if records[0][0] <= self._incoming.last_key:
            raise RemoteProtocolError("a chunk's keys are not above those before it")
        self._incoming = replace(self._incoming, last_key=records[-1][0])
        self._keys += len(records)
        return [StoreChunk(records)]

    def _take_end(self, frame: SnapshotEnd) -> list[Work]:
        begun, incoming = self._snapshot, self._incoming
        assert begun is not None
        assert incoming is not None
        if (frame.position, frame.keys) != (begun.position, self._keys):
            raise RemoteProtocolError(f"after {self._keys} keys of {begun.position} came {frame}")
        self.phase = Phase.LOG
        self._snapshot = self._incoming = None
        self.must_sync = False
        self.received_seq = incoming.first.seq
        return [FinishIncoming(incoming.first, incoming.latest, self._history, self._members)]

    def validate(self) -> None:
        """Check the invariants."""
        assert (self._snapshot is not None) is (self.phase is Phase.SNAPSHOT)
        assert (self._incoming is not None) is (self.phase is Phase.SNAPSHOT)
        assert self.received_seq >= 0
