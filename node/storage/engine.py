"""The interface of the ordered store that holds the data, which `kvnode.node.storage.leveldb` implements.

All methods may be called from any worker thread, and block; none is called on the event loop. `write` and `flush` are
each called by one thread at a time. A read that meets damage raises; it never answers short or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from kvnode.node.api import Item, KeyRange, Record
from kvnode.protocol.entry import LoggedEntry
from kvnode.protocol.snapshot import RecordFields
from kvnode.protocol.types import Entry, Epoch, Position


class Applied(NamedTuple):
    """The last entry that the engine holds, stored in the same batch as that entry's operations.

    Attributes:
        position: Position(Epoch(0), 0) in an empty engine.
        synced: whether that entry was known durable in the log before it was applied (``--fsync always``).
        time_ms: that entry's time, below which no later entry's may fall.
    """

    position: Position
    synced: bool
    time_ms: int = 0


#: How long one who opened an engine that nobody else reads waits for it to close.
CLOSE_TIMEOUT_S = 60.0

#: What an empty engine says.
NOTHING_APPLIED = Applied(Position(Epoch(0), 0), synced=False)


class Scan(Protocol):
    """A walk over one snapshot. One thread at a time calls it.

    Attributes:
        applied: the position that the snapshot shows.
        ended: whether the range has ended, as was confirmed, with what `next_items` returned last.
        next_key: once it has: the first key left out because of the range's limit, None when the range was exhausted.
    """

    applied: Position
    next_key: bytes | None

    @property
    def ended(self) -> bool: ...

    def next_items(self, max_items: int, max_bytes: int) -> list[Item]:
        """The next items in order, at least one unless the range has ended; an empty list is the confirmed end.

        Raises:
            RecordDamaged: a block fails its checksum, or the end could not be confirmed by stepping back.
            EngineClosed: the engine was closed in between.
        """

    def close(self) -> None:
        """Release the snapshot; idempotent, fine after the engine was closed."""


class RecordScan(Protocol):
    """A walk over the records of one snapshot, in key order, for copying them. One thread at a time calls it.

    Attributes:
        applied: the position that the snapshot shows.
    """

    applied: Position

    def next_records(self, max_bytes: int) -> list[RecordFields]:
        """The next records, at least one; an empty list is the confirmed end.

        Args:
            max_bytes: of keys and values; the first record counts as fitting in any case.

        Raises:
            RecordDamaged: a block fails its checksum, or the end could not be confirmed by stepping back.
            EngineClosed: the engine was closed in between.
        """

    def close(self) -> None:
        """Release the snapshot; idempotent, fine after the engine was closed."""


class ReplayBatch(Protocol):
    """Entries of the log that are to be applied as by one `Engine.write`; so many that they come bit by bit."""

    def add(self, entries: Sequence[LoggedEntry]) -> None:
        """Add entries behind those that are in it.

        Args:
            entries: at least one.

        Raises:
            EngineClosed.
        """

    def write(self) -> None:
        """Apply what was added, at least one entry; called once, and in the order in which such batches were begun.

        Raises:
            EngineFailed, EngineClosed: as `Engine.write`.
        """


class Engine(Protocol):
    """An ordered key-value store, open on one directory."""

    @property
    def applied(self) -> Applied:
        """What the last write (or, after opening, the stored state) says is applied."""

    def write(self, entries: Sequence[Entry], *, synced: bool) -> None:
        """Apply entries in order, with the new `applied`, in one atomic batch. Not synced to disk.

        Raises:
            EngineFailed: unusable from now on but for reading and closing; what was applied is unknown.
            EngineClosed.
        """

    def begin_replay_batch(self) -> ReplayBatch:
        """An empty batch for entries that the log holds durably.

        Raises:
            EngineClosed.
        """

    def contains(self, key: bytes) -> bool:
        """Whether the key has a record in the current state.

        Raises:
            RecordDamaged, EngineClosed, EngineFailed.
        """

    def read(self, keys: Sequence[bytes]) -> tuple[list[Record | Exception | None], Position]:
        """The keys' records from one snapshot, and that snapshot's applied position.

        A key whose block is damaged has its RecordDamaged in the list, so that the others are answered.

        Raises:
            EngineClosed, EngineFailed.
        """

    def scan(self, wanted: KeyRange) -> Scan:
        """Begin a walk over a new snapshot.

        Raises:
            RecordDamaged, EngineClosed, EngineFailed.
        """

    def scan_records(self, after_key: bytes) -> RecordScan:
        """Begin a walk over a new snapshot from the first key above `after_key` on; empty: from the first one on.

        Raises:
            RecordDamaged, EngineClosed, EngineFailed.
        """

    # What follows is for an engine that is filled by a full sync and not in use yet; `write` is not called on it.

    def copy_in(self, records: Sequence[RecordFields]) -> None:
        """Put records as they are, in one atomic batch; durable on return.

        Args:
            records: at least one, in rising order of their keys, which are above those copied before; those that a call
                left which failed may be among them.

        Raises:
            EngineFailed: unusable from now on but for reading and closing; the batch may be there when it is reopened.
            EngineClosed.
        """

    def copied_key(self) -> bytes:
        """The key up to which records were copied in, which is the highest one; empty before the first.

        Raises:
            EngineClosed, EngineFailed.
        """

    def settle(self, position: Position, time_ms: int) -> None:
        """End the copying: from now on `applied` is this position; durable on return.

        More may be copied in all the same, if it is settled again.

        Args:
            time_ms: of that entry, 0 if it is not known.

        Raises:
            EngineFailed: unusable from now on but for reading and closing; it may be settled when it is reopened.
            EngineClosed.
        """

    def flush(self) -> Position:
        """Make durable all that was applied before the call, and return the position up to which that holds.

        Raises:
            EngineFailed: it cannot be shown that everything reached the disk.
            EngineClosed.
        """

    def level0_files(self) -> int:
        """How many level-0 tables wait for compaction (LevelDB blocks writers at 12).

        Raises:
            EngineClosed.
        """

    def close(self, timeout_s: float) -> bool:
        """Wait until no call is inside, then close; from the call on, new calls raise EngineClosed.

        Returns:
            Whether it was closed within `timeout_s`; if not, it is left open and must not be closed under its readers.
        """


class EngineFactory(Protocol):
    """How an engine is opened on a directory."""

    def __call__(self, path: Path, *, paranoid: bool) -> Engine:
        """Open the engine at `path`, making it if it is missing.

        Raises:
            EngineFailed: it cannot be opened (with `paranoid`: it holds any detectable damage).
            UnknownFormat: another format version wrote it.
        """
