"""What the replica's machine is told, and what it asks of its shell. The machine is in `replica`.

Work on the disk is asked for one piece at a time: the next is asked for when the last was answered. An answer means
that the work is durable. `WorkFailed` means that nothing of it took effect; what leaves that open must end the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from kvnode.protocol.fields import LogRecord, Member
from kvnode.protocol.session import (
    CloseSession,
    FrameReceived,
    SendFrame,
    SendPing,
    Ticked,
    TransportProgressed,
)
from kvnode.protocol.snapshot import RecordFields
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Entry, History, Position

# ---- events ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """`Connect` led to a connection."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, whoever ended it, or `Connect` did not lead to one."""

    #: for people
    reason: str
    #: 32 random bits, for the time until the next attempt
    random_bits: int


@dataclass(frozen=True, slots=True)
class MovedAside:
    """`MoveAside` is done."""


@dataclass(frozen=True, slots=True)
class HistorySaved:
    """`SaveHistory` is done."""


@dataclass(frozen=True, slots=True)
class EntriesDurable:
    """The first half of `AppendEntries` is done: they are fsynced in the log."""


@dataclass(frozen=True, slots=True)
class EntriesApplied:
    """`AppendEntries` is done: they are in LevelDB, too, and visible to readers. Comes after `EntriesDurable`."""


@dataclass(frozen=True, slots=True)
class IncomingBegun:
    """`BeginIncoming` is done."""


@dataclass(frozen=True, slots=True)
class ChunkStored:
    """`StoreChunk` is done."""


@dataclass(frozen=True, slots=True)
class IncomingFinished:
    """`FinishIncoming` is done: the node runs on the new data."""


@dataclass(frozen=True, slots=True)
class IncomingDropped:
    """`DropIncoming` is done."""


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """The work that was asked for last cannot be done now, such as for want of room; nothing of it took effect."""

    code: str
    message: str


ReplicaEvent: TypeAlias = (
    Connected
    | Disconnected
    | FrameReceived
    | MovedAside
    | HistorySaved
    | EntriesDurable
    | EntriesApplied
    | IncomingBegun
    | ChunkStored
    | IncomingFinished
    | IncomingDropped
    | WorkFailed
    | TransportProgressed
    | Ticked
)


# ---- instructions: the session ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection to the primary. Answer: `Connected` or `Disconnected`."""


@dataclass(frozen=True, slots=True)
class PauseReading:
    """Take no more bytes from the connection; frames that were taken already are stepped all the same."""


@dataclass(frozen=True, slots=True)
class ResumeReading:
    """Take bytes from the connection again."""


@dataclass(frozen=True, slots=True)
class ReportError:
    """This attempt to follow failed; another comes, but after `unsupported_op`. Log it; `kvnode join` may give up."""

    code: str
    message: str


# ---- instructions: work ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MoveAside:
    """Copy all entries after `fork` to `diverged/`, tell the operator where, and refuse reads and writes from now on.

    The log itself stays as it is until `FinishIncoming` replaces it: a crash before that leads here again, where what
    was copied already need not be copied again. Answer: `MovedAside`.
    """

    fork: Position


@dataclass(frozen=True, slots=True)
class SaveHistory:
    """Replace history and members. Answer: `HistorySaved`."""

    history: History
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class AppendEntries:
    """Append the records to the log and fsync it, then apply the entries. Answers: `EntriesDurable`, `EntriesApplied`.

    Each record is one entry, checked; at the same index in both.
    """

    records: tuple[LogRecord, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class BeginIncoming:
    """Write down the sync beside its data. Answer: `IncomingBegun`."""

    incoming: Incoming
    #: go on with the data that is in incoming/; else that is removed first
    resumed: bool


@dataclass(frozen=True, slots=True)
class StoreChunk:
    """Store the records in incoming/, durably; the last one's key is where to go on. Answer: `ChunkStored`."""

    records: tuple[RecordFields, ...]


@dataclass(frozen=True, slots=True)
class FinishIncoming:
    """Swap the node's data for what is in incoming/, whole or not at all. Answer: `IncomingFinished`.

    Afterwards the log is empty and goes on after `first`, LevelDB stands at `first`, and history and members are these.
    `latest` is kept with them; while less than its seq is applied, also after a restart, reads and writes are refused.
    """

    first: Position
    latest: Position
    history: History
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class DropIncoming:
    """Remove incoming/: the log goes on without it. Answer: `IncomingDropped`."""


Work: TypeAlias = MoveAside | SaveHistory | AppendEntries | BeginIncoming | StoreChunk | FinishIncoming | DropIncoming

ReplicaInstruction: TypeAlias = (
    Connect | SendFrame | SendPing | PauseReading | ResumeReading | CloseSession | ReportError | Work
)
