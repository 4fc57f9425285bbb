"""What a replica had that its primary never did: copied out of the log before a full sync replaces it.

Source: FORMAT.md, "Diverged entries".
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from kvnode.node.eventlog import EventLog
from kvnode.node.fs import Fs
from kvnode.node.storage.datadir import Layout
from kvnode.node.storage.logreader import LogReader
from kvnode.node.storage.wal import Wal, WalOptions
from kvnode.protocol.types import Epoch, Position, Seq

#: How much is copied at a time, in bytes of payloads.
_COPY_BYTES = 1024 * 1024

_POSITION = r"([0-9]+\.[0-9a-f]{8})-([0-9]+)"
_NAME = re.compile(rf"{_POSITION}\.\.{_POSITION}")


def move_aside(
    fs: Fs,
    layout: Layout,
    cluster_id: bytes,
    wal_options: WalOptions,
    wal: Wal,
    fork: Position,
    last: Position,
    log: EventLog,
) -> Path | None:
    """Copy the log's entries after `fork` to a directory below diverged/, as log segments; the log stays as it is.

    Blocks. What was copied before is not copied again.

    Args:
        cluster_id: 16 bytes.
        wal_options: of which the segments' size counts.
        wal: the log; nothing is appended or dropped meanwhile.
        fork: the last entry that is not copied.
        last: the log's last entry.

    Returns:
        The directory, durable; None if there are no such entries.

    Raises:
        StorageFull: there is no room; nothing is left of the attempt.
        LogDamaged: the log cannot be read.
        LogFailed: syncing failed.
        OSError: the disk refuses.
    """
    first_seq = max(fork.seq + 1, wal.first_seq)
    if first_seq > last.seq:
        return None
    path = layout.diverged / f"{fork}..{last}"
    if fs.exists(path):
        # The attempt that made it may have ended before this.
        fs.sync_directory(layout.diverged)
        return path
    temporary = path.with_name(path.name + ".tmp")
    fs.remove_tree(temporary)
    fs.make_directory(temporary)
    fs.sync_directory(layout.root)
    try:
        _copy(fs, temporary, cluster_id, wal_options, wal, first_seq, last.seq)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.remove_tree(temporary)
        raise
    fs.rename(temporary, path)
    fs.sync_directory(layout.diverged)
    log.info("entries_copied", first_seq=first_seq, last_seq=last.seq, path=path)
    return path


def list_diverged(fs: Fs, layout: Layout) -> list[str]:
    """The names of the directories below diverged/ that `move_aside` made, by the position of their last entry."""
    if not fs.exists(layout.diverged):
        return []
    found = [(_NAME.fullmatch(name), name) for name in fs.list_names(layout.diverged)]
    return [name for _, name in sorted((_last_of(match), name) for match, name in found if match is not None)]


def _copy(
    fs: Fs, directory: Path, cluster_id: bytes, wal_options: WalOptions, wal: Wal, first_seq: Seq, last_seq: Seq
) -> None:
    """Make a log of some entries in an empty directory, all of it durable."""
    options = WalOptions(wal_options.segment_bytes, keep_bytes=0, sync=False)
    # A group is never split, and would make a segment larger.
    group_bytes = min(_COPY_BYTES, wal_options.segment_bytes // 4)
    copy = Wal.create(fs, directory, cluster_id, options, first_seq)
    reader = LogReader(fs, wal)
    try:
        while first_seq <= last_seq:
            records, _ = reader.read(first_seq, last_seq, group_bytes)
            copy.append(records)
            first_seq += len(records)
        copy.close()
    except BaseException:
        copy.abandon()
        raise
    finally:
        reader.close()


def _last_of(match: re.Match[str]) -> Position:
    return Position(Epoch.parse(match[3]), int(match[4]))
