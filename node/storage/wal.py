"""The write-ahead log: appends groups of records durably, rotates segments, and drops old ones.

The log is a chain of segment files; the last one, the tail, is written. Its promise to the rest of the node: a group
for which `Wal.append` returned is durable (with ``sync=True``), and one for which it raised `StorageFull` has left no
byte behind. Any other failure is final: what the disk holds is unknown then, and the log refuses everything.

Source: FORMAT.md, "Log segment".
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvnode.node.errors import LogFailed, StorageFull
from kvnode.node.fs import File, Fs
from kvnode.node.storage.segment import (
    HEADER_BYTES,
    RECORD_HEADER_BYTES,
    encode_header,
    encode_records,
    segment_name,
)
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import Seq

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the log.

    Attributes:
        first_seq: of its first record, or of the one it will hold.
        last_seq: of its last record; first_seq - 1 while it is empty.
        end: the offset after its last record, in bytes.
    """

    first_seq: Seq
    last_seq: Seq
    end: int

    @property
    def name(self) -> str:
        """The file's name."""
        return segment_name(self.first_seq)


@dataclass(frozen=True, slots=True)
class WalOptions:
    """How a log is kept.

    Attributes:
        segment_bytes: the size at which a segment is closed, and which is reserved for it.
        keep_bytes: closed segments are kept while all segments together are not larger.
        sync: whether `Wal.append` waits for the disk.
    """

    segment_bytes: int
    keep_bytes: int
    sync: bool = True


class Wal:
    """The log, opened for appending. One thread appends; another may sync, drop segments and ask for sizes.

    Attributes:
        appended_bytes: what was appended since it was opened.
    """

    def __init__(
        self, fs: Fs, directory: Path, cluster_id: bytes, options: WalOptions, segments: Sequence[Segment]
    ) -> None:
        """Go on with the log that recovery found.

        Args:
            cluster_id: 16 bytes.
            segments: all of them in order, at least one. Everything up to the last one's end is durable, and nothing
                but zeros follows that end.
        """
        self._fs = fs
        self._directory = directory
        self._cluster_id = cluster_id
        self._options = options
        self._closed = list(segments[:-1])
        self._tail = segments[-1]
        self._file: File = fs.open(directory / self._tail.name, writable=True)
        self._reserved = self._file.size()
        #: Whether everything before the end is durable, which the next record's mark will say.
        self._all_durable = True
        self._failure: LogFailed | None = None
        self.appended_bytes = 0
        self._now_s: Callable[[], float] | None = None
        self._observe_sync: Callable[[float], None] = lambda _: None
        # Guards the segment list. Held for moments only: the event loop asks for the list too.
        self._lock = threading.Lock()
        # Guards the tail's file against being closed or synced by two threads at a time. Taken before the other one.
        self._file_lock = threading.RLock()

    @classmethod
    def create(cls, fs: Fs, directory: Path, cluster_id: bytes, options: WalOptions, first_seq: Seq) -> Wal:
        """Begin a log in a directory without segments.

        Raises:
            StorageFull: there is no room for the first segment.
            OSError: the disk failed.
        """
        try:
            make_segment(fs, directory, cluster_id, first_seq, options.segment_bytes)
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise StorageFull(f"no room for a log segment in {directory}: {error.strerror}") from error
            raise
        return cls(fs, directory, cluster_id, options, [Segment(first_seq, first_seq - 1, HEADER_BYTES)])

    @property
    def directory(self) -> Path:
        """Where the segments are."""
        return self._directory

    @property
    def cluster_id(self) -> bytes:
        """What their headers name, 16 bytes."""
        return self._cluster_id

    @property
    def last_seq(self) -> Seq:
        """The last appended entry's seq."""
        return self._tail.last_seq

    @property
    def first_seq(self) -> Seq:
        """The seq of the first entry that the log holds, or, while it is empty, will hold."""
        with self._lock:
            return self._closed[0].first_seq if self._closed else self._tail.first_seq

    @property
    def segments(self) -> list[Segment]:
        """All segments in order, the tail last."""
        with self._lock:
            return [*self._closed, self._tail]

    def bytes_from(self, seq: Seq) -> int:
        """The size of the segments that hold entries from `seq` on, in bytes: what keeping those costs."""
        return sum([segment.end for segment in self.segments if segment.last_seq >= seq])

    def append(self, records: Sequence[LogRecord]) -> bool:
        """Append one group: the entries after `last_seq`, encoded, in order; durable on return if the options say so.

        A group is never split over segments; one that is larger than a segment gets a larger segment.

        Args:
            records: at least one. Their CRCs were computed or checked by whoever brings them.

        Returns:
            Whether a segment was closed, so that a checkpoint is due.

        Raises:
            StorageFull: nothing of the group is in the log, which goes on to work.
            LogFailed: final.
        """
        if self._failure is not None:
            raise self._failure
        size = sum([len(payload) for _, payload in records]) + RECORD_HEADER_BYTES * len(records)
        try:
            closed = self._make_room(size)
            self._file.write_at(self._tail.end, encode_records(records, marked=self._all_durable))
        except LogFailed as failure:
            self._failure = failure
            raise
        except OSError as error:
            raise self._undo(error) from error
        self._all_durable = False
        if self._options.sync:
            self._sync_tail()
            self._all_durable = True
        tail = self._tail
        self._tail = Segment(tail.first_seq, tail.last_seq + len(records), tail.end + size)
        self.appended_bytes += size
        return closed

    def time_syncs(self, now_s: Callable[[], float], observe: Callable[[float], None]) -> None:
        """Have each sync of the tail timed from now on.

        Args:
            now_s: a clock.
            observe: told the seconds of each that succeeded; on the thread that syncs, one call at a time.
        """
        self._now_s, self._observe_sync = now_s, observe

    def sync(self) -> None:
        """Make everything appended before the call durable.

        Raises:
            LogFailed: final.
        """
        self._sync_tail()

    def trim_target(self, checkpoint_seq: Seq, pinned_seq: Seq | None) -> Seq:
        """Where the log would begin if all was dropped that nothing needs and retention does not keep.

        Changes nothing, so that those who read the log can be told before `drop_before` makes it true.

        Args:
            checkpoint_seq: LevelDB is durable up to here; a segment that ends above it is needed.
            pinned_seq: so is one that ends at or above this; None = no pin.

        Returns:
            The first seq of a segment: `first_seq` when there is nothing to drop.
        """
        segments = self.segments
        total = sum([segment.end for segment in segments])
        droppable_seq = checkpoint_seq if pinned_seq is None else min(checkpoint_seq, pinned_seq - 1)
        for segment in segments[:-1]:
            if total <= self._options.keep_bytes or segment.last_seq > droppable_seq:
                return segment.first_seq
            total -= segment.end
        return segments[-1].first_seq

    def drop_before(self, first_seq: Seq) -> list[Segment]:
        """Delete the segments whose entries all lie before `first_seq`, oldest first; never the tail.

        Args:
            first_seq: what `trim_target` said, now or earlier.

        Returns:
            The dropped segments.

        Raises:
            OSError: deleting failed; what was deleted before is no longer listed.
        """
        dropped: list[Segment] = []
        try:
            while (oldest := self._oldest_before(first_seq)) is not None:
                self._fs.unlink(self._directory / oldest.name)
                with self._lock:
                    self._closed.pop(0)
                dropped.append(oldest)
        finally:
            if dropped:
                self._fs.sync_directory(self._directory)
        return dropped

    def close(self) -> Segment:
        """Cut the tail to its end, make the log durable, and close it.

        Returns:
            The tail, whose end is now the size of its file.

        Raises:
            LogFailed: final.
        """
        with self._file_lock:
            if self._failure is not None:
                raise self._failure
            try:
                self._file.truncate(self._tail.end)
            except OSError as error:
                raise self._fail("cutting the log to its end", error) from error
            self._sync_tail()
            self._file.close()
        return self._tail

    def abandon(self) -> None:
        """Close the file and nothing else, as a crash would."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _oldest_before(self, first_seq: Seq) -> Segment | None:
        with self._lock:
            return self._closed[0] if self._closed and self._closed[0].last_seq < first_seq else None

    def _make_room(self, size: int) -> bool:
        """Have `size` reserved bytes after the end of the tail; returns whether that took a new segment."""
        end = self._tail.end + size
        if end <= self._reserved:
            return False
        if end > self._options.segment_bytes and self._tail.end > HEADER_BYTES:
            self._rotate(size)
            return True
        self._file.allocate(max(end, self._options.segment_bytes))
        self._reserved = max(end, self._options.segment_bytes)
        return False

    def _rotate(self, size: int) -> None:
        """Close the tail and begin the next segment, with room for `size` bytes of records."""
        self._file.truncate(self._tail.end)
        self._reserved = self._tail.end
        self._sync_tail()
        self._all_durable = True
        first_seq = self._tail.last_seq + 1
        reserved = max(HEADER_BYTES + size, self._options.segment_bytes)
        make_segment(self._fs, self._directory, self._cluster_id, first_seq, reserved)
        with self._file_lock:
            self._file.close()
            with self._lock:
                self._closed.append(self._tail)
                self._tail = Segment(first_seq, first_seq - 1, HEADER_BYTES)
            self._file = self._fs.open(self._directory / self._tail.name, writable=True)
        self._reserved = reserved

    def _sync_tail(self) -> None:
        # One after the other: the kernel reports a failed write-back to one caller only, and what the other one then
        # takes for success must find the failure noted.
        with self._file_lock:
            if self._failure is not None:
                raise self._failure
            now_s = self._now_s
            began_s = 0.0 if now_s is None else now_s()
            try:
                self._file.sync()
            except OSError as error:
                raise self._fail("syncing the log", error) from error
            if now_s is not None:
                self._observe_sync(now_s() - began_s)

    def _undo(self, error: OSError) -> StorageFull | LogFailed:
        """After a failed write: what to raise, with nothing of the group left in the log if that is `StorageFull`."""
        if error.errno not in DISK_FULL_ERRNOS:
            return self._fail("writing the log", error)
        try:
            self._file.truncate(self._tail.end)
        except OSError as second:
            return self._fail("cutting the log back after the disk was full", second)
        try:
            self._sync_tail()
        except LogFailed as failure:
            return failure
        self._reserved = self._tail.end
        self._all_durable = True
        return StorageFull(
            f"no room for the log: {error.strerror}", hint="free some space; writes resume by themselves"
        )

    def _fail(self, doing: str, error: OSError) -> LogFailed:
        self._failure = LogFailed(
            f"{doing} failed: {error.strerror}; what the disk holds of the last writes is unknown",
            hint="check the disk, then start the node again: it recovers from what is there",
            path=str(self._directory / self._tail.name),
        )
        return self._failure


def make_segment(fs: Fs, directory: Path, cluster_id: bytes, first_seq: Seq, reserved: int) -> None:
    """Make an empty segment of `reserved` bytes, under its name only when all of it is durable.

    Raises:
        OSError: the disk failed; a file ``*.tmp`` may be left, or, after the rename, the segment itself.
        LogFailed: syncing failed.
    """
    path = directory / segment_name(first_seq)
    temporary = path.with_name(path.name + ".tmp")
    try:
        file = fs.create(temporary)
        try:
            file.allocate(reserved)
            file.write_at(0, encode_header(cluster_id, first_seq))
            with _final(temporary):
                file.sync()
        finally:
            file.close()
        fs.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            fs.unlink(temporary)
        raise
    with _final(directory):
        fs.sync_directory(directory)


@contextlib.contextmanager
def _final(path: Path) -> Iterator[None]:
    """Turn the failure of a sync into `LogFailed`, whatever its errno: it must not look like a full disk."""
    try:
        yield
    except OSError as error:
        raise LogFailed(f"syncing {path} failed: {error.strerror}", path=str(path)) from error
