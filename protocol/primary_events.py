"""What the primary's machine of one replica is told, and what it asks of its shell. The machine is in `primary`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.messages import SnapshotChunk
from kvnode.protocol.session import (
    CloseSession,
    FrameReceived,
    SendFrame,
    SendPing,
    Ticked,
    TransportProgressed,
)
from kvnode.protocol.types import Position, Seq

# ---- events ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemberSaved:
    """`SaveMember` is done: the node is a member, durably, under the name and address that it said."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """A node joined, was forgotten, or has another name or address."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class LogAdvanced:
    """Entries up to this seq were published here: durable, applied, and with their waits for acks registered."""

    durable_seq: Seq


@dataclass(frozen=True, slots=True)
class LogTrimmed:
    """The log now begins here; stepped before the entries are gone."""

    first_seq: Seq


@dataclass(frozen=True, slots=True)
class EntriesRead:
    """`ReadLog` is done: at least one entry, from the seq that was asked for, without a gap."""

    records: tuple[LogRecord, ...]
    #: of all payloads together
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class LogReadFailed:
    """`ReadLog` cannot be done: what it asks for is gone from the log, or damaged."""

    message: str
    damaged: bool


@dataclass(frozen=True, slots=True)
class SyncPermitted:
    """`RequestSyncPermit` is granted."""

    #: 16 random bytes: a name for the sync, should it be a new one
    sync_id: bytes


@dataclass(frozen=True, slots=True)
class SnapshotOpened:
    """`OpenSnapshot` is done. The snapshot shows at least what was last published when it was asked for."""

    #: what it shows, read from inside it
    position: Position


@dataclass(frozen=True, slots=True)
class SnapshotRead:
    """`ReadSnapshot` is done."""

    chunk: SnapshotChunk
    #: how many records are in the chunk
    keys: int


@dataclass(frozen=True, slots=True)
class SnapshotEnded:
    """`ReadSnapshot` found nothing more, and confirmed that this is the end."""


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """`OpenSnapshot` or `ReadSnapshot` cannot be done."""

    message: str


@dataclass(frozen=True, slots=True)
class PinLost:
    """`SyncPins` has dropped this node's pin."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, whoever ended it."""


PrimaryEvent: TypeAlias = (
    FrameReceived
    | MemberSaved
    | MembersChanged
    | LogAdvanced
    | LogTrimmed
    | EntriesRead
    | LogReadFailed
    | SyncPermitted
    | SnapshotOpened
    | SnapshotRead
    | SnapshotEnded
    | SnapshotFailed
    | PinLost
    | TransportProgressed
    | Ticked
    | Disconnected
)


# ---- instructions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveMember:
    """Add the node to the members, durably, in place of the one with its id if there is one. Answer: `MemberSaved`.

    What several sessions ask takes effect in the order in which they ask: the latest is how the node can be reached.
    """

    member: Member


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read records of the log, untouched. Answer: `EntriesRead` or `LogReadFailed`."""

    first_seq: Seq
    last_seq: Seq
    #: of payloads; the first record counts as fitting in any case
    max_bytes: int


@dataclass(frozen=True, slots=True)
class RequestSyncPermit:
    """Ask for the permit to stream a snapshot, of which the node has one. Answer, in any time: `SyncPermitted`."""


@dataclass(frozen=True, slots=True)
class ReleaseSyncPermit:
    """Give the permit back, or take the request for it back."""


@dataclass(frozen=True, slots=True)
class OpenSnapshot:
    """Open a snapshot of LevelDB at its first key above this one. Answer: `SnapshotOpened` or `SnapshotFailed`."""

    #: empty = from the beginning
    after_key: bytes


@dataclass(frozen=True, slots=True)
class ReadSnapshot:
    """Read on. Answer: `SnapshotRead`, `SnapshotEnded` or `SnapshotFailed`."""

    #: of keys and values; the first record counts as fitting in any case
    max_bytes: int


@dataclass(frozen=True, slots=True)
class CloseSnapshot:
    """Let go of the snapshot, once a read that is under way has ended."""


@dataclass(frozen=True, slots=True)
class PinLog:
    """Keep the log from this seq on for this node: `SyncPins.pin`."""

    from_seq: Seq


@dataclass(frozen=True, slots=True)
class UnpinLog:
    """The node needs its pin no more: `SyncPins.unpin`."""


@dataclass(frozen=True, slots=True)
class HoldPin:
    """The node is gone, and may come back for what its pin keeps: `SyncPins.hold`."""


@dataclass(frozen=True, slots=True)
class ReportProgress:
    """How far the replica is. Tell those who wait for acks."""

    #: durable at the replica, as a prefix of this log; 0 = nothing that counts
    durable_seq: Seq
    applied_seq: Seq


@dataclass(frozen=True, slots=True)
class ReportState:
    """The machine's `state` changed. Log it."""

    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class RaiseAlarm:
    """An operator should know."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StepDown:
    """A later primary has reigned: take no more writes, end all waits as outcome_unknown, close all sessions."""

    term: int


PrimaryInstruction: TypeAlias = (
    SendFrame
    | SendPing
    | CloseSession
    | SaveMember
    | ReadLog
    | RequestSyncPermit
    | ReleaseSyncPermit
    | OpenSnapshot
    | ReadSnapshot
    | CloseSnapshot
    | PinLog
    | UnpinLog
    | HoldPin
    | ReportProgress
    | ReportState
    | RaiseAlarm
    | StepDown
)
