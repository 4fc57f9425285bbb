"""The checkpoint: from time to time LevelDB is made durable up to a seq, so that the log before it can be dropped."""

from __future__ import annotations

from kvnode.node.errors import StorageFull
from kvnode.node.eventlog import EventLog
from kvnode.node.storage.datadir import StateFiles
from kvnode.node.storage.engine import Engine
from kvnode.node.storage.wal import DISK_FULL_ERRNOS, Wal
from kvnode.protocol.types import Seq


def take_checkpoint(files: StateFiles, wal: Wal, engine: Engine, log: EventLog) -> Seq:
    """Flush LevelDB, and record durably up to where it holds. `Wal.trim_target` says what is not needed then.

    Blocks; not for two threads at a time.

    Returns:
        The new checkpoint seq.

    Raises:
        EngineFailed: LevelDB could not be flushed.
        LogFailed: the log could not be synced; final.
        StorageFull: there is no room for the checkpoint file; the old one holds.
        OSError: the checkpoint file cannot be replaced.
    """
    position = engine.flush()
    # A checkpoint also says that the log up to it is durable, which without fsync it is not yet.
    wal.sync()
    try:
        files.save_checkpoint(position.seq)
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise StorageFull(f"no room for the checkpoint: {error.strerror}") from error
        raise
    log.info("checkpoint", seq=position.seq)
    return position.seq


def trim_log(wal: Wal, first_seq: Seq, log: EventLog) -> None:
    """Drop the log's segments before `first_seq`, which `Wal.trim_target` named. Blocks; in one thread at a time.

    Raises:
        OSError: a segment cannot be deleted; those before it are gone.
    """
    dropped = wal.drop_before(first_seq)
    if dropped:
        log.info("log_trimmed", first_seq=wal.first_seq, segments_dropped=len(dropped))
