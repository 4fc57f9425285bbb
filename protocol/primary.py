"""The primary's view of one replica, as a state machine: one for each session whose HELLO asked to replicate.

    state         what holds in it                                                  left when
    connecting    the replica has not said where it stands, or is not yet a member, SUBSCRIBE was judged
                  durably and as it is called and reached now; it was sent nothing
    full_sync     it waits for the permit, or is sent a snapshot; what it needs of  the snapshot's end was sent
                  the log afterwards is pinned from the first snapshot on
    catching_up   it is sent entries; what was durable here `tail_s` ago is not     it has that
                  durable there
    streaming     it is sent entries; what was durable here `lag_s` ago is durable  it has not, for so long: lag alarm
                  there; nothing is pinned for it
    disconnected  the session has ended; for good, as the next one has its own
                  machine

From catching_up and streaming, a log that cannot be read leads to full_sync; from everywhere, the end of the session
leads to disconnected.

Flow control. The replica's ACKs bound what it was sent as entries and did not make durable: the **window**, in bytes
and in frames. A snapshot has no acks; it is bounded by what the transport holds back, which TCP makes the replica's
business. In both cases the machine reads no more than it may send, one read at a time, so a replica costs the window,
one frame or chunk, and what the transport holds.

What the shell must do is said in `session` and, for each event and instruction, in `primary_events`. Besides:

- The machine is made after HELLO was answered with WELCOME, and after the machine of the node's earlier session, if
  any, was told `Disconnected`. It is told each later change of the log and of the members.
- The history is this reign's: when the node's role changes, every session ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from kvnode.protocol.errors import LocalProtocolError
from kvnode.protocol.fields import Member
from kvnode.protocol.follow import Continue, Diverged, FullSync, LogExtent, StalePrimary, Verdict, line_of, may_follow
from kvnode.protocol.messages import (
    Ack,
    Entries,
    Error,
    HistoryFrame,
    Message,
    Ping,
    SnapshotBegin,
    SnapshotEnd,
    Subscribe,
)
from kvnode.protocol.primary_events import (
    CloseSnapshot,
    Disconnected,
    EntriesRead,
    HoldPin,
    LogAdvanced,
    LogReadFailed,
    LogTrimmed,
    MemberSaved,
    MembersChanged,
    OpenSnapshot,
    PinLog,
    PinLost,
    PrimaryEvent,
    PrimaryInstruction,
    RaiseAlarm,
    ReadLog,
    ReadSnapshot,
    ReleaseSyncPermit,
    ReportProgress,
    ReportState,
    RequestSyncPermit,
    SaveMember,
    SnapshotEnded,
    SnapshotFailed,
    SnapshotOpened,
    SnapshotRead,
    StepDown,
    SyncPermitted,
    UnpinLog,
)
from kvnode.protocol.session import (
    CloseSession,
    FrameReceived,
    Heartbeat,
    SendFrame,
    SendPing,
    Ticked,
    Timing,
    TransportProgressed,
)
from kvnode.protocol.sync import Incoming, may_resume
from kvnode.protocol.types import History, Position, Seq

Instructions: TypeAlias = list[PrimaryInstruction]


class ReplicaState(StrEnum):
    """Where a replica is, in the words of /status."""

    CONNECTING = "connecting"
    FULL_SYNC = "full_sync"
    CATCHING_UP = "catching_up"
    STREAMING = "streaming"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """What one replica may cost, and when it counts as behind."""

    #: entries that were sent and are not durable there: payload bytes, one frame more at most
    window_bytes: int = 8 * 1024 * 1024
    #: the same in ENTRIES frames
    window_frames: int = 256
    #: payload bytes of one ENTRIES frame, one entry more at most
    frame_bytes: int = 1024 * 1024
    #: keys and values of one SNAPSHOT_CHUNK, unless one record alone has more; larger chunks keep the loops of both
    #: sides longer, and cost more time a byte
    chunk_bytes: int = 256 * 1024
    #: bytes that the transport may hold back before nothing more is read for it
    unsent_bytes: int = 4 * 1024 * 1024
    #: an entry older than this that is not durable there ends streaming, seconds
    lag_s: float = 5.0
    #: all entries older than this being durable there ends catching up, seconds
    tail_s: float = 2.0


class _Sent(NamedTuple):
    """An ENTRIES frame that is not durable at the replica."""

    last_seq: Seq
    payload_bytes: int


@dataclass(slots=True)
class _Sync:
    """A full sync that is under way in this session."""

    #: what the replica has of it from an earlier session; None = begin anew
    resumed: Incoming | None
    sync_id: bytes = b""
    #: what its first snapshot showed, and what this one shows; None = not open
    first: Position | None = None
    position: Position | None = None
    #: whether the permit was granted
    permitted: bool = False
    #: whether OpenSnapshot or ReadSnapshot waits for its answer
    reading: bool = False
    #: sent of this snapshot
    keys: int = 0


class ReplicaFeed:
    """One replica as its primary sees it. See the module's first lines for the states.

    Attributes (read only):
        state: where the replica is.
        member: who it is.
        acked_seq: durable there, as a prefix of this log. Invariant: never falls; at most `sent_seq`, once anything
            was sent.
        applied_seq: applied there, as far as it said.
        sent_seq: last entry that was sent, or that it had at the beginning. Invariant: at most `durable_seq`.
        durable_seq: last entry that is durable here, as far as this machine was told.
        pinned_seq: the log is kept for it from here on; None = not. Invariant: None while streaming.
        synced_keys: sent of the snapshot under way, or of the last one.
    """

    def __init__(
        self,
        member: Member,
        history: History,
        log: LogExtent,
        members: tuple[Member, ...],
        now: float,
        *,
        pinned_seq: Seq | None = None,
        limits: FeedLimits | None = None,
        timing: Timing | None = None,
    ) -> None:
        """A replica whose HELLO was just answered.

        Args:
            history: of this node, ending with its own reign.
            log: of this node.
            member: what it said of itself in HELLO, a wildcard in its address replaced by where it connects from.
            members: all durable ones; `member` may be missing, or be there under another name or address.
            pinned_seq: what `SyncPins` keeps for this node from an earlier session.
        """
        self.state = ReplicaState.CONNECTING
        self.member = member
        self.acked_seq: Seq = 0
        self.applied_seq: Seq = 0
        self.sent_seq: Seq = 0
        self.durable_seq = log.durable_seq
        self.pinned_seq = pinned_seq
        self.synced_keys = 0
        self._history = history
        self._first_seq = log.first_seq
        self._members = members
        self._limits = limits or FeedLimits()
        self._heartbeat = Heartbeat(timing or Timing(), now)
        self._subscribed: Subscribe | None = None
        self._sync: _Sync | None = None
        self._reading = False
        self._window: deque[_Sent] = deque()
        self._window_bytes = 0
        # All up to `_mark_seq` was durable here at `_mark_at`: how old the oldest entry is that is missing there.
        self._mark_seq = log.durable_seq
        self._mark_at = now

    @property
    def wake_at(self) -> float:
        """When to step `Ticked`, at the latest."""
        wake_at = self._heartbeat.wake_at
        if self.state is ReplicaState.STREAMING and self.acked_seq < self._mark_seq:
            wake_at = min(wake_at, self._mark_at + self._limits.lag_s)
        return wake_at

    @property
    def subscribed(self) -> bool:
        """Whether it has said where it stands."""
        return self._subscribed is not None

    @property
    def live(self) -> bool:
        """Whether it counts as following, for writes that want acks."""
        return self.state in (ReplicaState.CATCHING_UP, ReplicaState.STREAMING)

    def lag_s(self, now: float) -> float:
        """For how long, at least, the oldest entry that is not durable there has been durable here."""
        return max(0.0, now - self._mark_at) if self.acked_seq < self._mark_seq else 0.0

    def step(self, event: PrimaryEvent, now: float) -> Instructions:
        """Take in what happened; see `session` for the contract."""
        if self.state is ReplicaState.DISCONNECTED:
            return self._clean_up_after(event)
        match event:
            case FrameReceived(message):
                self._heartbeat.heard(now)
                return self._receive(message, now)
            case LogAdvanced(durable_seq):
                return self._advance(durable_seq, now)
            case EntriesRead():
                return self._send_entries(event, now)
            case TransportProgressed():
                self._heartbeat.progressed(event, now)
                return self._send_on(now)
            case Ticked():
                return self._tick(now)
            case MembersChanged(members):
                return self._tell_members(members)
            case LogTrimmed(first_seq):
                self._first_seq = first_seq
                return []
            case Disconnected():
                return self._end("the connection ended")
            case PinLost():
                return self._lose_pin()
            case LogReadFailed(message, damaged):
                self._reading = False
                alarm: Instructions = [RaiseAlarm("log_damaged", message)] if damaged else []
                return alarm + self._begin_sync(message, None, now)
            case MemberSaved(members):
                self._members = members
                return self._begin(now)
            case SyncPermitted() | SnapshotOpened() | SnapshotRead() | SnapshotEnded() | SnapshotFailed():
                return self._step_sync(event, now)

    # ---- frames --------------------------------------------------------------------------------------------------

    def _receive(self, message: Message, now: float) -> Instructions:
        match message:
            case Ack():
                return self._take_ack(message, now)
            case Ping():
                return []
            case Subscribe():
                return self._subscribe(message, now)
            case Error(code, text):
                return self._close(code, f"the replica says: {text}", tell=False)
            case _:
                return self._refuse(f"{message.TYPE.name} is not what a replica sends")

    def _subscribe(self, frame: Subscribe, now: float) -> Instructions:
        if self._subscribed is not None:
            return self._refuse("SUBSCRIBE came twice")
        if frame.position.seq and not frame.position.epoch:
            return self._refuse("SUBSCRIBE of a replica must name the epoch of its last entry")
        self._subscribed = frame
        verdict = self._judge(frame)
        if isinstance(verdict, StalePrimary):
            text = f"this primary reigns with term {self._history.current.term}, there was term {verdict.term}"
            return [*self._close("stale_primary", text), StepDown(verdict.term)]
        if self.member not in self._members:
            return [SaveMember(self.member)]
        return self._begin(now)

    def _judge(self, frame: Subscribe) -> Verdict:
        seen = line_of(frame.incoming.latest) if frame.incoming else line_of(frame.position)
        log = LogExtent(self._first_seq, self.durable_seq)
        return may_follow(self._history, log, frame.position, seen)

    def _begin(self, now: float) -> Instructions:
        """Everything is known: send the history, and then what the replica needs."""
        assert self._subscribed is not None, "MemberSaved before SUBSCRIBE"
        position, incoming = self._subscribed.position, self._subscribed.incoming
        instructions: Instructions = [SendFrame(HistoryFrame(self._history, self._members))]
        verdict = self._judge(self._subscribed)
        match verdict:
            case Continue():
                self.acked_seq = self.sent_seq = position.seq
                if self.pinned_seq is not None:
                    # Refreshed, as it would lapse; what came before this position is not needed any more.
                    instructions += self._pin(position.seq + 1)
                instructions += self._enter(ReplicaState.CATCHING_UP, f"it holds {position}", now)
                instructions.append(ReportProgress(self.acked_seq, self.applied_seq))
                return instructions + self._measure_lag(now) + self._send_on(now)
            case FullSync(reason):
                # It keeps what it has until the sync is done, and then it has more.
                self.acked_seq = self.sent_seq = position.seq
                instructions.append(ReportProgress(self.acked_seq, self.applied_seq))
                if incoming is not None and incoming.first.seq < position.seq:
                    incoming = None
            case Diverged():
                reason = f"it has diverged: {position} is not in this history"
                # It may be back with less than it had acked.
                instructions.append(ReportProgress(0, 0))
            case _:
                raise LocalProtocolError("a history changed within a reign")
        return instructions + self._begin_sync(reason, incoming, now)

    def _take_ack(self, ack: Ack, now: float) -> Instructions:
        if not self.live and self.state is not ReplicaState.FULL_SYNC:
            return self._refuse("ACK came before SUBSCRIBE was answered")
        if not self.acked_seq <= ack.durable <= self.sent_seq:
            return self._refuse(f"ACK of {ack.durable}, after {self.acked_seq} and with {self.sent_seq} sent")
        self.acked_seq, self.applied_seq = ack.durable, ack.applied
        while self._window and self._window[0].last_seq <= ack.durable:
            self._window_bytes -= self._window.popleft().payload_bytes
        instructions: Instructions = [ReportProgress(self.acked_seq, self.applied_seq)]
        return instructions + self._measure_lag(now) + self._send_on(now)

    # ---- entries -------------------------------------------------------------------------------------------------

    def _advance(self, durable_seq: Seq, now: float) -> Instructions:
        if self.acked_seq >= self._mark_seq:
            self._mark_seq, self._mark_at = durable_seq, now
        self.durable_seq = max(self.durable_seq, durable_seq)
        return self._send_on(now)

    def _send_on(self, now: float) -> Instructions:
        """Read what may be sent next, if anything."""
        limits = self._limits
        if self._heartbeat.pending_bytes >= limits.unsent_bytes:
            return []
        sync = self._sync
        if sync is not None:
            if sync.position is None or sync.reading:
                return []
            sync.reading = True
            return [ReadSnapshot(limits.chunk_bytes)]
        room = limits.window_bytes - self._window_bytes
        if not self.live or self._reading or self.sent_seq >= self.durable_seq:
            return []
        if room <= 0 or len(self._window) >= limits.window_frames:
            return []
        self._reading = True
        return [ReadLog(self.sent_seq + 1, self.durable_seq, min(room, limits.frame_bytes))]

    def _send_entries(self, event: EntriesRead, now: float) -> Instructions:
        assert self._reading, "entries that nobody asked for"
        self._reading = False
        self.sent_seq += len(event.records)
        assert self.sent_seq <= self.durable_seq, "an entry that is not durable was read"
        self._window.append(_Sent(self.sent_seq, event.payload_bytes))
        self._window_bytes += event.payload_bytes
        return [SendFrame(Entries(event.records)), *self._send_on(now)]

    def _measure_lag(self, now: float) -> Instructions:
        """Change between catching up and streaming."""
        limits = self._limits
        if self.acked_seq < self._mark_seq:
            if self.state is ReplicaState.STREAMING and now >= self._mark_at + limits.lag_s:
                alarm = self._alarm(now)
                return [alarm, *self._enter(ReplicaState.CATCHING_UP, alarm.message, now)]
            return []
        took_s = now - self._mark_at
        self._mark_seq, self._mark_at = self.durable_seq, now
        if self.state is ReplicaState.CATCHING_UP and took_s <= limits.tail_s:
            return self._unpin() + self._enter(ReplicaState.STREAMING, f"it holds {self.acked_seq}", now)
        return []

    def _alarm(self, now: float) -> RaiseAlarm:
        entries, lag_s = self.durable_seq - self.acked_seq, now - self._mark_at
        return RaiseAlarm("replica_lags", f"{self.member.name} is {entries} entries behind for {lag_s:.1f} s")

    # ---- full sync -----------------------------------------------------------------------------------------------

    def _begin_sync(self, reason: str, incoming: Incoming | None, now: float) -> Instructions:
        if incoming is not None and not may_resume(
            self._history, LogExtent(self._first_seq, self.durable_seq), incoming
        ):
            incoming = None
        self._sync = _Sync(incoming)
        self._window.clear()
        self._window_bytes = 0
        self.synced_keys = 0
        # It may wait long for the permit: what a resumed sync needs must not go meanwhile.
        pins = self._unpin() if incoming is None else self._pin(incoming.first.seq + 1)
        return [*self._enter(ReplicaState.FULL_SYNC, reason, now), *pins, RequestSyncPermit()]

    def _step_sync(
        self,
        event: SyncPermitted | SnapshotOpened | SnapshotRead | SnapshotEnded | SnapshotFailed,
        now: float,
    ) -> Instructions:
        sync = self._sync
        assert sync is not None, f"{event} without a full sync"
        match event:
            case SyncPermitted(sync_id):
                sync.permitted = sync.reading = True
                if sync.resumed is not None:
                    sync.sync_id, sync.first = sync.resumed.sync_id, sync.resumed.first
                    return [OpenSnapshot(sync.resumed.last_key)]
                sync.sync_id = sync_id
                # Before the snapshot is opened: it shows at least this much.
                return [*self._pin(self.durable_seq + 1), OpenSnapshot(b"")]
            case SnapshotOpened(position):
                sync.reading = False
                sync.position = position
                self.durable_seq = max(self.durable_seq, position.seq)
                sync.first = sync.first or position
                assert self.pinned_seq is not None, "a full sync without a pin"
                if position.seq < sync.first.seq or sync.first.seq + 1 < self.pinned_seq:
                    return self._close("sync_aborted", f"the snapshot shows {position} only")
                begin = SnapshotBegin(sync.sync_id, position, sync.first, sync.resumed is not None)
                return [*self._pin(sync.first.seq + 1), SendFrame(begin), *self._send_on(now)]
            case SnapshotRead(chunk, keys):
                sync.reading = False
                sync.keys += keys
                self.synced_keys = sync.keys
                return [SendFrame(chunk), *self._send_on(now)]
            case SnapshotEnded():
                assert sync.position is not None
                assert sync.first is not None
                self._sync = None
                self.sent_seq = sync.first.seq
                end = SendFrame(SnapshotEnd(sync.position, sync.keys))
                entered = self._enter(ReplicaState.CATCHING_UP, f"it was sent {sync.keys} keys", now)
                return [end, CloseSnapshot(), ReleaseSyncPermit(), *entered, *self._send_on(now)]
            case SnapshotFailed(message):
                sync.reading = False
                return self._close("sync_aborted", message)

    def _pin(self, from_seq: Seq) -> Instructions:
        self.pinned_seq = from_seq
        return [PinLog(from_seq)]

    def _unpin(self) -> Instructions:
        if self.pinned_seq is None:
            return []
        self.pinned_seq = None
        return [UnpinLog()]

    def _lose_pin(self) -> Instructions:
        self.pinned_seq = None
        if self._sync is None:
            return []
        return self._close("sync_aborted", "the log grew past what may be kept for a full sync")

    # ---- the session ---------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> Instructions:
        dead = self._heartbeat.dead(now)
        if dead is not None:
            lags: Instructions = [self._alarm(now)] if self.live and self.acked_seq < self._mark_seq else []
            return [*lags, dead, *self._end(dead.message)]
        ping: Instructions = [SendPing(self.durable_seq)] if self._heartbeat.ping_due(now) else []
        return ping + self._measure_lag(now) + self._send_on(now)

    def _tell_members(self, members: tuple[Member, ...]) -> Instructions:
        self._members = members
        if self.state is ReplicaState.CONNECTING:
            return []
        return [SendFrame(HistoryFrame(self._history, members))]

    def _enter(self, state: ReplicaState, reason: str, now: float) -> Instructions:
        self.state = state
        if state is ReplicaState.CATCHING_UP:
            self._mark_seq, self._mark_at = self.durable_seq, now
        return [ReportState(state, reason)]

    def _refuse(self, message: str) -> Instructions:
        return self._close("protocol_error", message)

    def _close(self, code: str, message: str, *, tell: bool = True) -> Instructions:
        told: Instructions = [SendFrame(Error(code, message))] if tell else []
        return [*told, CloseSession(code, message), *self._end(message)]

    def _end(self, reason: str) -> Instructions:
        """Give back all that this machine holds."""
        instructions: Instructions = []
        sync, self._sync = self._sync, None
        if sync is not None:
            if sync.position is not None:
                instructions.append(CloseSnapshot())
            instructions.append(ReleaseSyncPermit())
        if self.pinned_seq is not None:
            self.pinned_seq = None
            instructions.append(HoldPin())
        self._window.clear()
        self._window_bytes = 0
        self.state = ReplicaState.DISCONNECTED
        return [*instructions, ReportState(self.state, reason)]

    @staticmethod
    def _clean_up_after(event: PrimaryEvent) -> Instructions:
        """Answers to what was asked for before the session ended."""
        match event:
            case SnapshotOpened():
                return [CloseSnapshot()]
            case SyncPermitted():
                return [ReleaseSyncPermit()]
            case _:
                return []

    def validate(self) -> None:
        """Check the invariants."""
        state, sync = self.state, self._sync
        self._heartbeat.validate()
        assert self.acked_seq >= 0
        assert self.acked_seq <= self.sent_seq, "it acked what it was not sent"
        assert self.sent_seq <= self.durable_seq, "sent before it was durable here"
        assert (sync is not None) is (state is ReplicaState.FULL_SYNC)
        assert self._window_bytes == sum(sent.payload_bytes for sent in self._window)
        if self._window:
            assert self.live, "a window outside of streaming"
            assert self._window[-1].last_seq == self.sent_seq
            assert self._window[0].last_seq > self.acked_seq
            before_last = self._window_bytes - self._window[-1].payload_bytes
            assert before_last < self._limits.window_bytes, "the window was overrun"
            assert len(self._window) <= self._limits.window_frames
        if sync is not None:
            assert not self._reading, "reading the log and a snapshot"
            if sync.position is not None:
                assert sync.permitted, "a snapshot without a permit"
                assert sync.first is not None
                assert self.pinned_seq == sync.first.seq + 1, "the log is not pinned from the first snapshot on"
            elif sync.resumed is not None:
                assert self.pinned_seq == sync.resumed.first.seq + 1
        if state in (ReplicaState.STREAMING, ReplicaState.DISCONNECTED):
            assert self.pinned_seq is None, "a pin for a replica that needs none"
        if state is ReplicaState.DISCONNECTED:
            assert not self._window
