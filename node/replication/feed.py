"""The shell of one replica on its primary: executes what `ReplicaFeed` asks for, and decides nothing."""

from __future__ import annotations

import secrets
from collections import deque
from typing import Protocol

from kvnode.node.errors import LogDamaged, LogTrimmed
from kvnode.node.replication.alarm import Alarm
from kvnode.node.replication.link import PeerLink
from kvnode.node.replication.ports import RecordReader, Shared
from kvnode.node.storage.engine import RecordScan
from kvnode.protocol.errors import KvError, LocalProtocolError
from kvnode.protocol.fields import ID_BYTES, Member
from kvnode.protocol.messages import Entries, Message, Ping, SnapshotEnd
from kvnode.protocol.primary import ReplicaFeed, ReplicaState
from kvnode.protocol.primary_events import (
    CloseSnapshot,
    Disconnected,
    EntriesRead,
    HoldPin,
    LogReadFailed,
    OpenSnapshot,
    PinLog,
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
from kvnode.protocol.session import CloseSession, FrameReceived, SendFrame, SendPing, Ticked
from kvnode.protocol.snapshot import encode_chunk
from kvnode.protocol.sync import SyncPins
from kvnode.protocol.types import Seq


class FeedOwner(Protocol):
    """The reign that a feed belongs to."""

    pins: SyncPins

    def save_member(self, feed: FeedSession, member: Member) -> None:
        """Make the node a member, then step `MemberSaved` on its feed and `MembersChanged` on the others."""

    def request_permit(self, feed: FeedSession) -> None:
        """Call `permit` on the feed when it is its turn to stream a snapshot."""

    def release_permit(self, feed: FeedSession) -> None:
        """It is the next one's turn, or the request is taken back."""

    def progressed(self, feed: FeedSession, durable_seq: Seq, applied_seq: Seq) -> None:
        """How far the replica is."""

    def sync_sent(self) -> None:
        """A full sync was sent whole."""

    def step_down(self, term: int) -> None:
        """A later primary has reigned."""

    def ended(self, feed: FeedSession) -> None:
        """The session is over."""


class FeedSession:
    """One replica's session. Implements `LinkOwner`.

    Attributes:
        machine: the state machine.
        boot_id: of the replica's process.
        told_at: when its machine was told of new entries last; the owner's.
        told_seq: up to where; the owner's.
        hurried_at: when somebody was seen to wait for this replica last; the owner's.
    """

    def __init__(self, shared: Shared, owner: FeedOwner, link: PeerLink, machine: ReplicaFeed, boot_id: bytes) -> None:
        self.machine = machine
        self.boot_id = boot_id
        self.link = link
        self.told_at = self.hurried_at = float("-inf")
        self.told_seq = machine.durable_seq
        self._shared = shared
        self._owner = owner
        self._loop = shared.loop
        self._events: deque[PrimaryEvent] = deque()
        self._stepping = False
        self._sent = False
        self._ended = False
        self._reader: RecordReader | None = None
        self._scan: RecordScan | None = None
        self._alarm = Alarm(self._loop, self._tick)
        self._alarm.set(machine.wake_at)

    # ---- LinkOwner -----------------------------------------------------------------------------------------------

    def link_made(self, link: PeerLink) -> None:
        raise AssertionError("a feed begins on a link that is there")

    def frame_received(self, link: PeerLink, message: Message) -> None:
        self.step(FrameReceived(message))

    def link_drained(self, link: PeerLink) -> None:
        self.step(link.progress)

    def peer_finished(self, link: PeerLink) -> bool:
        return False

    def link_lost(self, link: PeerLink, reason: str) -> None:
        if self._ended:
            # The session was replaced by a newer one before its connection was gone.
            return
        self._ended = True
        self._alarm.cancel()
        self.step(Disconnected())
        if self._reader is not None:
            self._shared.log_reads.submit(self._reader.close, lambda _: None, self._report_bug)
            self._reader = None
        self._shared.log.info("replica_gone", name=self.machine.member.name, address=link.peer, reason=reason)
        self._owner.ended(self)

    # ---- the machine ---------------------------------------------------------------------------------------------

    def step(self, event: PrimaryEvent) -> None:
        """Tell the machine, and execute what it asks for; in order, and never from inside a step."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        machine, events, now = self.machine, self._events, self._loop.time()
        try:
            while events:
                for instruction in machine.step(events.popleft(), now):
                    self._execute(instruction)
                if self._sent and not events:
                    self._sent = False
                    if self.link.is_open:
                        events.append(self.link.progress)
        except LocalProtocolError as error:
            # An entry of a time with larger limits, or a bug: the replica must not wait for what cannot be sent.
            self._shared.log.error("replica_session_failed", name=machine.member.name, reason=str(error))
            self.link.refuse("internal", str(error))
        finally:
            self._stepping = False
        self._set_alarm()

    def permit(self) -> None:
        """It is this replica's turn to be sent a snapshot."""
        self.step(SyncPermitted(secrets.token_bytes(ID_BYTES)))

    def close(self, code: str, message: str) -> None:
        """End the session because the reign does."""
        self.link.refuse(code, message)

    def _tick(self) -> None:
        if self._loop.time() >= self.machine.wake_at:
            self.step(self.link.progress)
            self.step(Ticked())
        else:
            self._set_alarm()

    def _set_alarm(self) -> None:
        # A machine that has ended its session waits for nothing, though the connection may linger.
        if not self._ended and self.machine.state is not ReplicaState.DISCONNECTED:
            self._alarm.set(self.machine.wake_at)

    def _execute(self, instruction: PrimaryInstruction) -> None:
        shared, owner, member = self._shared, self._owner, self.machine.member
        match instruction:
            case SendFrame(message):
                self._sent = True
                if isinstance(message, Entries):
                    self.link.send_bytes(shared.tail.encode(message.records, shared.config.max_frame_bytes))
                else:
                    self.link.send(message)
                    if isinstance(message, SnapshotEnd):
                        owner.sync_sent()
            case SendPing(last_seq):
                self._sent = True
                self.link.send(Ping(last_seq, shared.clock.now_ms()))
            case ReadLog():
                self._read_log(instruction)
            case ReportProgress(durable_seq, applied_seq):
                owner.progressed(self, durable_seq, applied_seq)
            case ReadSnapshot(max_bytes):
                self._read_snapshot(max_bytes)
            case CloseSession(code, text, abort):
                shared.log.warning("replica_session_closed", name=member.name, code=code, reason=text)
                if abort:
                    self.link.abort(f"{code}: {text}")
                else:
                    self.link.close(f"{code}: {text}")
            case SaveMember(saved):
                owner.save_member(self, saved)
            case RequestSyncPermit():
                owner.request_permit(self)
            case ReleaseSyncPermit():
                owner.release_permit(self)
            case OpenSnapshot(after_key):
                self._open_snapshot(after_key)
            case CloseSnapshot():
                self._close_snapshot()
            case PinLog(from_seq):
                owner.pins.pin(member.node_id, from_seq)
            case UnpinLog():
                owner.pins.unpin(member.node_id)
            case HoldPin():
                owner.pins.hold(member.node_id, self._loop.time())
            case ReportState(state, reason):
                shared.log.info("replica_state", name=member.name, state=state, reason=reason)
            case RaiseAlarm(code, text):
                shared.log.warning(code, name=member.name, reason=text)
            case StepDown(term):
                owner.step_down(term)

    # ---- what it reads -------------------------------------------------------------------------------------------

    def _read_log(self, wanted: ReadLog) -> None:
        shared = self._shared
        recent = shared.tail.read(wanted.first_seq, wanted.last_seq, wanted.max_bytes)
        if recent is not None:
            self.step(EntriesRead(recent.records, recent.payload_bytes))
            return
        reader = self._reader
        if reader is None:
            reader = self._reader = shared.store.read_log()

        def failed(error: BaseException) -> None:
            if isinstance(error, LogTrimmed | LogDamaged):
                self.step(LogReadFailed(str(error), damaged=isinstance(error, LogDamaged)))
            else:
                # For want of file descriptors, say: the next session tries again.
                self.close("internal", f"the log cannot be read now: {error}")

        shared.log_reads.submit(
            lambda: reader.read(wanted.first_seq, wanted.last_seq, wanted.max_bytes),
            lambda found: self.step(EntriesRead(*found)),
            failed,
        )

    def _open_snapshot(self, after_key: bytes) -> None:
        store = self._shared.store

        def opened(scan: RecordScan) -> None:
            self._scan = scan
            self.step(SnapshotOpened(scan.applied))

        self._shared.snapshot_reads.submit(lambda: store.scan_records(after_key), opened, self._snapshot_failed)

    def _read_snapshot(self, max_bytes: int) -> None:
        scan = self._scan
        assert scan is not None, "a snapshot is read that is not open"

        def read() -> PrimaryEvent:
            records = scan.next_records(max_bytes)
            return SnapshotRead(encode_chunk(records), len(records)) if records else SnapshotEnded()

        self._shared.snapshot_reads.submit(read, self.step, self._snapshot_failed)

    def _close_snapshot(self) -> None:
        scan, self._scan = self._scan, None
        assert scan is not None, "a snapshot is closed that is not open"
        # Behind a read that may be under way, on the same thread.
        self._shared.snapshot_reads.submit(scan.close, lambda _: None, self._report_bug)

    def _snapshot_failed(self, error: BaseException) -> None:
        self._shared.log.warning("snapshot_failed", name=self.machine.member.name, reason=str(error))
        # The peer is told the kind only: the reason may hold a key.
        code = error.code if isinstance(error, KvError) else "internal"
        self.step(SnapshotFailed(f"the primary's data cannot be read: {code}"))

    def _report_bug(self, error: BaseException) -> None:
        self._shared.log.error("replica_session_failed", error=error, name=self.machine.member.name)
