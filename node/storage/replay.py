"""Replay: entries of the log are applied to LevelDB again, at a start and after LevelDB failed in a running node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kvnode.node.errors import EngineFailed, LogDamaged
from kvnode.node.fs import Fs, read_file
from kvnode.node.storage.datadir import Layout
from kvnode.node.storage.engine import CLOSE_TIMEOUT_S, Engine, EngineFactory, ReplayBatch
from kvnode.node.storage.segment import HEADER_BYTES, Damage, Stretch, read_stretches
from kvnode.node.storage.wal import Segment, Wal
from kvnode.protocol.types import Seq

#: About how much of the log is decoded at a time. What is made of it fits the processor's caches: with 4 MiB, a start
#: took a fifth longer.
STRETCH_BYTES = 256 * 1024

#: About how much of the log is applied to the engine in one batch, so that memory stays bounded.
_BATCH_BYTES = 4 * 1024 * 1024


def replay(engine: Engine, stretches: Iterator[Stretch], after_seq: Seq) -> int:
    """Apply entries above `after_seq` to the engine, in order; they are durable in the log.

    One thread does it: another one that wrote one batch while the next was made took no less time on two processors,
    of which LevelDB's own thread has one busy.

    Returns:
        How many were applied.

    Raises:
        EngineFailed: the engine refused; what it applied is unknown, and replaying once more is harmless.
    """
    replayed = batch_bytes = 0
    batch: ReplayBatch | None = None
    for stretch in stretches:
        wanted = stretch.entries[max(0, after_seq + 1 - stretch.entries[0].seq) :]
        if not wanted:
            continue
        if batch is None:
            batch, batch_bytes = engine.begin_replay_batch(), 0
        batch.add(wanted)
        batch_bytes += stretch.size
        replayed += len(wanted)
        if batch_bytes >= _BATCH_BYTES:
            batch.write()
            batch = None
    if batch is not None:
        batch.write()
    return replayed


def reopen_engine(fs: Fs, layout: Layout, open_engine: EngineFactory, wal: Wal, checkpoint_seq: Seq) -> Engine:
    """Open LevelDB again in a running node, after it failed and was closed, and bring it level with the log.

    Raises:
        EngineFailed: it cannot be opened or written, or came back without what a checkpoint covers.
        LogDamaged: the log does not hold what it held.
    """
    # Without paranoid checks: what its own log lost in the failure is what the replay brings back.
    engine = open_engine(layout.db, paranoid=False)
    try:
        held_seq = engine.applied.position.seq
        if held_seq < checkpoint_seq:
            # A replay from the checkpoint would hide that what lies before it is gone.
            raise EngineFailed(f"{layout.db}: LevelDB was durable up to seq {checkpoint_seq}, but holds {held_seq} now")
        segments = [segment for segment in wal.segments if segment.last_seq > checkpoint_seq]
        replay(engine, read_segments(fs, layout.wal, segments), checkpoint_seq)
    except BaseException:
        engine.close(CLOSE_TIMEOUT_S)
        raise
    return engine


def read_segments(fs: Fs, directory: Path, segments: Sequence[Segment]) -> Iterator[Stretch]:
    """Whole segments of a running log, up to each one's known end.

    Raises:
        LogDamaged: a segment does not hold what it held.
    """
    for segment in segments:
        path = directory / segment.name
        data = read_file(fs, path)[: segment.end]
        last_seq, end = segment.first_seq - 1, HEADER_BYTES
        try:
            for stretch in read_stretches(data, segment.first_seq, STRETCH_BYTES):
                yield stretch
                last_seq, end = stretch.entries[-1].seq, stretch.end
        except Damage as damage:
            raise LogDamaged(path, damage.offset, damage.seq, damage.reason) from damage
        if last_seq != segment.last_seq:
            raise LogDamaged(path, end, last_seq + 1, f"the segment reached up to seq {segment.last_seq} before")
