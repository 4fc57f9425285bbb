"""Start-up of the storage: from whatever a stop or crash left behind to a log and an engine that agree, or a refusal.

The order of steps is the contract (DESIGN of recovery in FORMAT.md, "Recovery"): nothing is served before the replayed
segments are fsynced, a torn tail is cut before anything is appended, and data is moved aside, never deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kvnode.node.errors import DataLost, EngineFailed, LogDamaged, LogFailed, StorageFull
from kvnode.node.eventlog import EventLog
from kvnode.node.fs import Fs, read_file
from kvnode.node.storage.datadir import CleanStop, Identity, Layout, StateFiles
from kvnode.node.storage.engine import CLOSE_TIMEOUT_S, NOTHING_APPLIED, Applied, Engine, EngineFactory
from kvnode.node.storage.replay import STRETCH_BYTES, replay
from kvnode.node.storage.segment import (
    HEADER_BYTES,
    Damage,
    Stretch,
    check_header,
    find_later_records,
    parse_segment_name,
    read_records,
    read_stretches,
    segment_name,
)
from kvnode.node.storage.wal import DISK_FULL_ERRNOS, Segment, Wal, WalOptions, make_segment
from kvnode.protocol.entry import LoggedEntry
from kvnode.protocol.types import Epoch, History, Position, Reign, Seq

#: How much of a segment is read and written at a time.
_COPY_BYTES = 1024 * 1024


@dataclass(slots=True)
class Storage:
    """What recovery hands over: everything open, in agreement, and durable up to `wal.last_seq`.

    Attributes:
        replayed: how many entries were applied again.
        clean: whether the last stop was clean, so that nothing had to be looked at.
    """

    wal: Wal
    engine: Engine
    history: History
    checkpoint_seq: Seq
    replayed: int
    clean: bool


class Recovery:
    """One start-up. Create it and call `run` once; the directory lock is held by the caller."""

    def __init__(
        self,
        fs: Fs,
        layout: Layout,
        identity: Identity,
        open_engine: EngineFactory,
        options: WalOptions,
        log: EventLog,
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._identity = identity
        self._cluster_id = identity.cluster_bytes
        self._open_engine = open_engine
        self._options = options
        self._log = log
        self._files = StateFiles(fs, layout)

    def run(self) -> Storage:
        """Recover.

        Raises:
            LogDamaged: the log holds damage that is not a torn tail.
            DataLost: parts are missing that nothing here can bring back.
            FileDamaged, UnknownFormat: of a small file, a segment, or LevelDB.
            StorageFull: no room to start with.
            LogFailed: a sync failed.
            OSError: anything else the disk refuses.
        """
        try:
            return self._run()
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise StorageFull(f"no room to start: {error.strerror}", hint="free some space") from error
            raise
        except EngineFailed as error:
            if error.disk_full:
                raise StorageFull(f"LevelDB has no room to start: {error}", hint="free some space") from error
            raise

    def _run(self) -> Storage:
        fs, layout = self._fs, self._layout
        for directory in (layout.wal, layout.db):
            fs.make_directory(directory)
        self._delete_temporaries()
        history = self._files.load_history() or History()
        checkpoint_seq = self._files.load_checkpoint() or 0
        clean = self._files.load_clean_stop()
        first_seqs = list_segments(fs, layout.wal, self._cluster_id)
        if not first_seqs and not history.reigns and not fs.list_names(layout.db):
            # A new directory. With the log there first, an engine that does not survive a crash now can be rebuilt.
            make_segment(fs, layout.wal, self._cluster_id, 1, self._options.segment_bytes)
            first_seqs = [1]
        elif not history.reigns:
            # Nothing was served yet. The first segment of a start that was killed may be in the page cache only, and
            # has to outlive a LevelDB that is half made when the power goes.
            self._sync_segments(first_seqs)
        if clean is not None:
            storage = self._open_clean(clean, first_seqs, history, checkpoint_seq)
            if storage is not None:
                return storage
        return self._open_unclean(clean, first_seqs, history, checkpoint_seq)

    # ---- the two ways to start ---------------------------------------------------------------------------------

    def _open_clean(
        self, clean: CleanStop, first_seqs: list[Seq], history: History, checkpoint_seq: Seq
    ) -> Storage | None:
        """Open and go, if everything is as the clean stop left it; else None."""
        if checkpoint_seq != clean.last_seq or not first_seqs or segment_name(first_seqs[-1]) != clean.segment:
            return None
        if first_seqs[0] > checkpoint_seq + 1 or self._size(first_seqs[-1]) != clean.size or self._engine_is_gone():
            return None
        try:
            engine = self._open_engine(self._layout.db, paranoid=False)
        except EngineFailed:
            return None
        if engine.applied.position != Position(history.epoch_of(clean.last_seq), clean.last_seq):
            engine.close(CLOSE_TIMEOUT_S)
            return None
        self._files.remove_clean_stop()
        self._files.remove_repair()
        segments = self._chain(first_seqs, clean.last_seq, clean.size)
        wal = Wal(self._fs, self._layout.wal, self._cluster_id, self._options, segments)
        return Storage(wal, engine, history, checkpoint_seq, replayed=0, clean=True)

    def _open_unclean(
        self, clean: CleanStop | None, first_seqs: list[Seq], history: History, checkpoint_seq: Seq
    ) -> Storage:
        """Recover with LevelDB as it is; where it does not take what the log has for it, as if it were lost."""
        # To open what is gone would make an empty one, which after a refusal looks like one that holds what it held.
        if checkpoint_seq > 0 and self._engine_is_gone():
            self._log.warning("engine_lost", reason=f"{self._layout.db} is missing or empty")
            engine = None
        else:
            engine = self._open_damaged_engine()
        if engine is not None:
            try:
                return self._bring_level(engine, clean, first_seqs, history, checkpoint_seq)
            except EngineFailed as error:
                if error.disk_full:
                    raise
                # Damage in a table shows only when a compaction reads it, which then stops every write.
                self._log.warning("engine_lost", reason=error.message)
        return self._bring_level(None, clean, first_seqs, history, checkpoint_seq)

    def _bring_level(
        self,
        engine: Engine | None,
        clean: CleanStop | None,
        first_seqs: list[Seq],
        history: History,
        checkpoint_seq: Seq,
    ) -> Storage:
        """Look at LevelDB (None: lost) and at all of the log that it may need; only then change either.

        Raises:
            EngineFailed: LevelDB, closed again, did not take what it lacks; the log holds all that it ever held.
        """
        try:
            applied = NOTHING_APPLIED if engine is None else engine.applied
            lost = engine is None or applied.position.seq < checkpoint_seq
            if lost:
                if first_seqs[:1] != [1]:
                    raise self._cannot_rebuild(first_seqs, checkpoint_seq)
                applied, replay_after = NOTHING_APPLIED, 0
            else:
                self._check_reach(applied, first_seqs, history, checkpoint_seq)
                replay_after = checkpoint_seq
            known_durable = max(
                evidence_of_durability(first_seqs, reigned(self._identity, history), checkpoint_seq, clean),
                applied.position.seq if applied.synced else 0,
            )
            found = self._examine_log(first_seqs, history, replay_after, known_durable)
            last_seq = max(found.last_seq, applied.position.seq)
            if last_seq < known_durable:
                history = self._accept_loss(found.last_seq, applied.position.seq, known_durable, history)
            self._files.remove_clean_stop()
            if found.damage is not None:
                self._cut_torn_tail(first_seqs[-1], found.damage)
            if lost:
                engine = self._empty_engine(engine)
            assert engine is not None
            if applied.position.seq > found.last_seq:
                storage = self._restart_log(engine, history, first_seqs, found.last_seq)
            else:
                storage = self._replay_log(engine, history, first_seqs, found, replay_after)
            if lost:
                storage.checkpoint_seq = engine.flush().seq
                self._files.save_checkpoint(storage.checkpoint_seq)
            self._files.remove_repair()
            return storage
        except BaseException:
            self._close(engine)
            raise

    def _examine_log(self, first_seqs: list[Seq], history: History, replay_after: Seq, known_durable: Seq) -> _Scan:
        """Read every segment that holds entries above `replay_after`, durable first, and find the log's end.

        Raises:
            LogDamaged: at damage that is not the torn tail of an unacknowledged group.
        """
        begin = next((i for i in reversed(range(len(first_seqs))) if first_seqs[i] <= replay_after + 1), 0)
        self._sync_segments(first_seqs[begin:])
        scan = _Scan(self._fs, self._layout.wal, first_seqs[begin:], history, known_durable)
        for _ in scan.stretches():
            pass
        return scan

    def _replay_log(
        self, engine: Engine, history: History, first_seqs: list[Seq], found: _Scan, replay_after: Seq
    ) -> Storage:
        """Bring LevelDB level with the log, which reaches at least as far and was examined."""
        if first_seqs:
            self._write_again(first_seqs[-1], found.end)
        replayed = replay(engine, found.stretches(), replay_after)
        self._log.info("log_replayed", entries=replayed, last_seq=found.last_seq)
        if first_seqs:
            segments = self._chain(first_seqs, found.last_seq, found.end)
            wal = Wal(self._fs, self._layout.wal, self._cluster_id, self._options, segments)
        else:
            wal = Wal.create(self._fs, self._layout.wal, self._cluster_id, self._options, 1)
        return Storage(wal, engine, history, replay_after, replayed, clean=False)

    def _accept_loss(self, log_last_seq: Seq, applied_seq: Seq, known_durable: Seq, history: History) -> History:
        """The history without what was lost, if the operator accepted that when repairing the log.

        The last epoch stays, moved to the new end, so that the next one's term is still above all that ever were.

        Raises:
            DataLost: nobody accepted it.
        """
        repair = self._files.load_repair()
        if repair is None or repair.lost_last < known_durable:
            raise DataLost(
                f"{self._layout.root}: entries up to seq {known_durable} were durable, "
                f"but the log ends at {log_last_seq} and LevelDB at {applied_seq}",
                hint="restore the directory as a whole, or accept the loss with "
                f"`kvnode wal repair {self._layout.root}`",
            )
        last_seq = max(log_last_seq, applied_seq)
        self._log.warning("loss_accepted", first_lost_seq=last_seq + 1, last_lost_seq=known_durable)
        if history.reigns and history.reigns[-1].first_seq > last_seq + 1:
            kept = tuple(reign for reign in history if reign.first_seq <= last_seq)
            history = History((*kept, Reign(history.current, last_seq + 1)))
            self._files.save_history(history)
        return history

    # ---- the engine --------------------------------------------------------------------------------------------

    def _engine_is_gone(self) -> bool:
        return not self._fs.list_names(self._layout.db)

    def _open_damaged_engine(self) -> Engine | None:
        """The engine after an unclean stop: with paranoid checks, else without, else None."""
        try:
            return self._open_engine(self._layout.db, paranoid=True)
        except EngineFailed as error:
            if error.disk_full:
                raise
            self._log.warning("engine_damaged", reason=error.message, action="opening without paranoid checks")
        try:
            return self._open_engine(self._layout.db, paranoid=False)
        except EngineFailed as error:
            if error.disk_full:
                raise
            self._log.warning("engine_lost", reason=error.message)
            return None

    def _empty_engine(self, engine: Engine | None) -> Engine:
        """An empty engine in place of a lost one, whose files are moved aside."""
        fs, layout = self._fs, self._layout
        # From here on the log is all there is: LevelDB is durable up to nothing.
        self._files.save_checkpoint(0)
        if engine is not None and engine.applied.position.seq == 0:
            return engine
        self._close(engine)
        if self._engine_is_gone():
            return self._open_engine(layout.db, paranoid=True)
        fs.make_directory(layout.db_old)
        number = 1 + max((int(name) for name in fs.list_names(layout.db_old) if name.isdigit()), default=0)
        fs.rename(layout.db, layout.db_old / str(number))
        fs.make_directory(layout.db)
        fs.sync_directory(layout.db_old)
        fs.sync_directory(layout.root)
        self._log.warning("engine_rebuild", moved_to=layout.db_old / str(number))
        return self._open_engine(layout.db, paranoid=True)

    def _close(self, engine: Engine | None) -> None:
        if engine is not None:
            engine.close(CLOSE_TIMEOUT_S)

    # ---- the log -----------------------------------------------------------------------------------------------

    def _delete_temporaries(self) -> None:
        # Ours only: the directory may be one that the node was given by mistake.
        ours = {f"{path.name}.tmp" for path in self._layout.small_files()}
        for directory in (self._layout.root, self._layout.wal):
            names = [name for name in self._fs.list_names(directory) if name in ours or name.endswith(".wal.tmp")]
            for name in names:
                self._fs.unlink(directory / name)
            if names:
                self._fs.sync_directory(directory)

    def _chain(self, first_seqs: Sequence[Seq], last_seq: Seq, end: int) -> list[Segment]:
        """The segments, given where the last one ends."""
        closed = [Segment(first, following - 1, self._size(first)) for first, following in pairwise(first_seqs)]
        return [*closed, Segment(first_seqs[-1], last_seq, end)]

    def _size(self, first_seq: Seq) -> int:
        file = self._fs.open(self._layout.wal / segment_name(first_seq), writable=False)
        try:
            return file.size()
        finally:
            file.close()

    def _sync_segments(self, first_seqs: Sequence[Seq]) -> None:
        """Make durable what the last process may have left in the page cache only."""
        path = self._layout.wal
        try:
            for first_seq in first_seqs:
                path = self._layout.wal / segment_name(first_seq)
                file = self._fs.open(path, writable=True)
                try:
                    file.sync()
                finally:
                    file.close()
            self._fs.sync_directory(self._layout.wal)
        except OSError as error:
            raise LogFailed(f"{path}: syncing the log before replay failed: {error.strerror}") from error

    def _write_again(self, first_seq: Seq, end: int) -> None:
        """Write the last segment's bytes up to `end` once more, durably.

        The process before may have ended because an fsync failed. Then the kernel shows the bytes, holds them for
        written, and has nothing to do in another fsync; what is written again is really written.
        """
        path = self._layout.wal / segment_name(first_seq)
        file = self._fs.open(path, writable=True)
        try:
            for offset in range(0, end, _COPY_BYTES):
                file.write_at(offset, file.read_at(offset, min(_COPY_BYTES, end - offset)))
            file.sync()
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise
            raise LogFailed(f"writing {path} once more failed: {error.strerror}", path=str(path)) from error
        finally:
            file.close()

    def _cut_torn_tail(self, first_seq: Seq, damage: Damage) -> None:
        path = self._layout.wal / segment_name(first_seq)
        file = self._fs.open(path, writable=True)
        try:
            size = file.size()
            file.truncate(damage.offset)
            file.sync()
        except OSError as error:
            raise LogFailed(f"cutting the torn tail of {path} failed: {error.strerror}") from error
        finally:
            file.close()
        self._log.warning(
            "torn_tail_cut",
            path=path,
            offset=damage.offset,
            seq=damage.seq,
            bytes=size - damage.offset,
            reason=damage.reason,
        )

    def _restart_log(self, engine: Engine, history: History, first_seqs: list[Seq], last_seq: Seq) -> Storage:
        """LevelDB is ahead of the log: its data counts, and the log goes on behind it.

        The checkpoint comes first: once it covers all of LevelDB, the old segments are not needed, so a crash anywhere
        in between leads here again.
        """
        fs, layout = self._fs, self._layout
        try:
            applied_seq = engine.flush().seq
        except EngineFailed as error:
            if error.disk_full:
                raise
            raise DataLost(
                f"{layout.db}: LevelDB is damaged ({error.message}), and what it held up to seq "
                f"{engine.applied.position.seq} is not in the log, which ends at {last_seq}",
                hint="restore the directory as a whole",
            ) from error
        self._files.save_checkpoint(applied_seq)
        aside = layout.wal_old / segment_name(applied_seq + 1).removesuffix(".wal")
        if first_seqs:
            for directory in (layout.wal_old, aside):
                fs.make_directory(directory)
                fs.sync_directory(directory.parent)
            for first_seq in first_seqs:
                fs.rename(layout.wal / segment_name(first_seq), aside / segment_name(first_seq))
            fs.sync_directory(aside)
            fs.sync_directory(layout.wal)
        self._log.warning(
            "log_restarted",
            reason="LevelDB is ahead of the log: the log was lost",
            log_last_seq=last_seq,
            applied_seq=applied_seq,
            moved_to=aside if first_seqs else None,
        )
        wal = Wal.create(fs, layout.wal, self._cluster_id, self._options, applied_seq + 1)
        return Storage(wal, engine, history, applied_seq, replayed=0, clean=False)

    # ---- refusals ----------------------------------------------------------------------------------------------

    def _cannot_rebuild(self, first_seqs: list[Seq], checkpoint_seq: Seq) -> DataLost:
        begins = f"begins at seq {first_seqs[0]}" if first_seqs else "is missing"
        hint = "restore the directory as a whole"
        if first_seqs:
            hint += f"; `kvnode wal dump {self._layout.root}` prints what the log still holds"
        return DataLost(
            f"{self._layout.db}: LevelDB is missing or damaged beyond seq {checkpoint_seq}, and the log {begins}",
            hint=hint,
        )

    def _check_reach(self, applied: Applied, first_seqs: list[Seq], history: History, checkpoint_seq: Seq) -> None:
        """Refuse an engine of another history, and a log that does not reach back to the checkpoint."""
        if first_seqs and first_seqs[0] > checkpoint_seq + 1:
            raise DataLost(
                f"{self._layout.wal}: the log begins at seq {first_seqs[0]}, but LevelDB is durable only up to "
                f"{checkpoint_seq}: segments between are missing",
                hint="put the missing segments back, restore the directory as a whole, or go on without what they hold "
                f"after `kvnode wal repair {self._layout.root}`",
            )
        if applied.position.epoch != history.epoch_of(applied.position.seq):
            if not history.reigns:
                raise self._files.missing(self._layout.history, f"though LevelDB stands at {applied.position}")
            raise DataLost(
                f"{self._layout.db}: LevelDB stands at {applied.position}, which is not in {self._layout.history}",
                hint="db/, wal/ and history belong together: restore all of them from one copy",
            )


class _Scan:
    """A walk over the log's last segments: hands out stretches, then knows where the log ends and if it was torn."""

    def __init__(self, fs: Fs, directory: Path, first_seqs: list[Seq], history: History, known_durable: Seq) -> None:
        self._fs = fs
        self._directory = directory
        self._first_seqs = first_seqs
        self._history = history
        self._known_durable = known_durable
        self.last_seq: Seq = 0
        self.end = HEADER_BYTES
        self.damage: Damage | None = None

    def stretches(self) -> Iterator[Stretch]:
        """All of them; can be called again.

        Raises:
            LogDamaged: at damage that is not the torn tail of an unacknowledged group.
        """
        for index, first_seq in enumerate(self._first_seqs):
            path = self._directory / segment_name(first_seq)
            if index > 0 and first_seq != self.last_seq + 1:
                raise LogDamaged(path, 0, self.last_seq + 1, f"the segment begins with seq {first_seq}")
            self.last_seq, self.end = first_seq - 1, HEADER_BYTES
            data = read_file(self._fs, path)
            try:
                for stretch in read_stretches(data, first_seq, STRETCH_BYTES):
                    self._check_epochs(path, data, stretch.entries)
                    yield stretch
                    self.last_seq, self.end = stretch.entries[-1].seq, stretch.end
            except Damage as damage:
                is_last = index == len(self._first_seqs) - 1
                reason = explain_corruption(damage, data, self._known_durable, is_last=is_last)
                if reason is not None:
                    raise LogDamaged(path, damage.offset, damage.seq, reason) from damage
                self.damage = damage

    def _check_epochs(self, path: Path, data: bytes, entries: Sequence[LoggedEntry]) -> None:
        """Check that consecutive entries of a segment have the epochs that the history has for their seqs."""
        epoch_of = self._history.epoch_of
        expected = epoch_of(entries[0].seq)
        if expected == epoch_of(entries[-1].seq):
            # Nearly always: one reign ordered all of them.
            wrong = next((entry for entry in entries if entry.epoch != expected), None)
        else:
            wrong = next((entry for entry in entries if entry.epoch != epoch_of(entry.seq)), None)
        if wrong is None:
            return
        records = read_records(data, parse_segment_name(path.name) or 0)
        offset = next(record.offset for record in records if record.entry.seq == wrong.seq)
        reason = f"the record has epoch {Epoch(wrong.epoch)}, which is not this node's history"
        raise LogDamaged(path, offset, wrong.seq, reason)


def reigned(identity: Identity | None, history: History) -> History:
    """The part of a history that is evidence of what was durable here: of a replica none.

    A replica makes its primary's history durable before the entries that it names.
    """
    return History() if identity is not None and identity.role == "replica" else history


def evidence_of_durability(
    first_seqs: Sequence[Seq], history: History, checkpoint_seq: Seq, clean: CleanStop | None
) -> Seq:
    """The highest seq of which the directory's files say that it was durable.

    A checkpoint and a clean stop say so of what they name; a reign and a segment begin only when all before is durable.

    Args:
        first_seqs: of all segments, ascending.
    """
    return max(
        checkpoint_seq,
        clean.last_seq if clean is not None else 0,
        history.reigns[-1].first_seq - 1 if history.reigns else 0,
        first_seqs[-1] - 1 if first_seqs else 0,
    )


def explain_corruption(damage: Damage, data: bytes, known_durable: Seq, *, is_last: bool) -> str | None:
    """Why damage in a segment is corruption of acknowledged data, None if it is a torn tail that may be cut.

    A torn tail lies in the last segment, above everything known durable, and no record behind it says that what lies
    before was durable.

    Args:
        data: the whole segment file.
        known_durable: the highest seq of which other evidence says that it was durable.
        is_last: whether no later segment exists; a segment is only made when the one before is durable.
    """
    if not is_last:
        return f"{damage.reason}, and later segments exist"
    if damage.seq <= known_durable:
        return f"{damage.reason}, and seq {known_durable} was known durable"
    for record in find_later_records(data, damage.offset, damage.seq):
        if record.marked:
            return (
                f"{damage.reason}, and the record of seq {record.entry.seq} at {record.offset} was written after a sync"
            )
    return None


def list_segments(fs: Fs, directory: Path, cluster_id: bytes) -> list[Seq]:
    """The first seqs of all segments in a log directory, ascending, after each header was checked.

    Raises:
        LogDamaged, UnknownFormat: of a segment whose header is not right.
    """
    first_seqs = []
    for name in fs.list_names(directory):
        if parse_segment_name(name) is None:
            continue
        file = fs.open(directory / name, writable=False)
        try:
            head = file.read_at(0, HEADER_BYTES)
        finally:
            file.close()
        first_seqs.append(check_header(directory / name, head, cluster_id))
    return sorted(first_seqs)
