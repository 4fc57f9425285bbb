"""A full sync on the replica's disk: what was copied so far, and how it takes the place of the node's own data.

    incoming/sync               which sync this is; without it all the rest is left over, and is removed
    incoming/db-<sync id>/      LevelDB, into which the records are copied
    incoming/wal/               the first segment of the log that goes with it, once all is copied
    incoming/old-wal/, old-db/  what was the node's, from the swap to its end

A sync's LevelDB is named after it, so that writing ``incoming/sync`` is the one step which begins a sync in place of
another: a full disk before it leaves the earlier one whole.

The swap is begun by writing the file ``swap``, when all that it moves is durable. Each of its steps can be done again,
so that whoever finds that file, after any crash, does all of them. Nothing else of the directory may be opened before.

Source: FORMAT.md, "Full sync".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvnode.node.errors import EngineFailed, FileDamaged, StorageError, StorageFull, UnknownFormat
from kvnode.node.eventlog import EventLog
from kvnode.node.fs import Fs
from kvnode.node.storage.datadir import Layout, Member, StateFiles, Swap
from kvnode.node.storage.engine import CLOSE_TIMEOUT_S, Engine, EngineFactory
from kvnode.node.storage.wal import DISK_FULL_ERRNOS, WalOptions, make_segment
from kvnode.protocol import fields
from kvnode.protocol.snapshot import RecordFields
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import History, Position

#: Begins the name of a sync's LevelDB.
_DB = "db-"


class SyncLost(StorageError):
    """What is in incoming/ is not what a full sync would go on with; a restart finds out what is there."""

    code = "sync_lost"


class IncomingStore:
    """The directory ``incoming/`` of a running node. Blocks; one call at a time.

    Every call may raise OSError or EngineFailed. With a full disk (a `disk_full` EngineFailed) the call may be made
    again: nothing of it has taken effect, but for records of `store`, which may be there. Anything else must end the
    process.
    """

    def __init__(
        self,
        fs: Fs,
        layout: Layout,
        files: StateFiles,
        open_engine: EngineFactory,
        cluster_id: bytes,
        wal_options: WalOptions,
        log: EventLog,
    ) -> None:
        """Nothing is read or opened before the first call.

        Args:
            cluster_id: 16 bytes.
            wal_options: of the log whose first segment `prepare_swap` makes.
        """
        self._fs = fs
        self._layout = layout
        self._files = files
        self._open_engine = open_engine
        self._cluster_id = cluster_id
        self._wal_options = wal_options
        self._log = log
        #: The sync that is there, and its LevelDB, unless that is closed.
        self._sync_id: bytes | None = None
        self._engine: Engine | None = None

    def load(self) -> Incoming | None:
        """What a process before has left of a full sync that can be resumed; anything else there is removed."""
        if not self._fs.exists(self._layout.incoming):
            return None
        assert not self._fs.exists(self._layout.swap), "a swap must be rolled forward before anything is opened"
        found, reason = self._look()
        if found is None:
            self._log.warning("incoming_removed", path=self._layout.incoming, reason=reason)
            self._remove_all()
            return None
        self._remove_all_but(found.sync_id)
        return found

    def begin(self, incoming: Incoming, *, resumed: bool) -> None:
        """Write down the sync, durably, before anything of it is stored.

        Args:
            resumed: go on with what is there of it; else that is replaced by nothing.

        Raises:
            SyncLost: less of it is there than `incoming` says.
        """
        if resumed:
            self._check(incoming)
            self._files.save_incoming(incoming)
            return
        fs, layout = self._fs, self._layout
        if incoming.sync_id == self._sync_id:
            # No primary does that, but if one did, the old data must not pass for the new.
            self.drop()
        fs.make_directory(layout.incoming)
        fs.sync_directory(layout.root)
        path = _db(layout, incoming.sync_id)
        fs.remove_tree(path)
        engine = self._open_engine(path, paranoid=True)
        try:
            # The meta key that is there gets a table of its own: see `LevelDbEngine.copy_in`.
            engine.flush()
            self._files.save_incoming(incoming)
        except BaseException:
            engine.close(CLOSE_TIMEOUT_S)
            raise
        # From here on it is this sync that is there.
        self.close()
        self._sync_id, self._engine = incoming.sync_id, engine
        self._remove_all_but(incoming.sync_id)

    def store(self, records: Sequence[RecordFields]) -> None:
        """Store the next records in key order, at least one, durably."""
        try:
            self._opened().copy_in(records)
        except EngineFailed:
            self.close()
            raise

    def drop(self) -> None:
        """Remove all that is there, durably; nothing is fine."""
        self.close()
        if self._fs.exists(self._layout.incoming):
            self._remove_all()

    def close(self) -> None:
        """Close what is open; what is stored stays, and the next call opens it again."""
        if self._engine is not None and not self._engine.close(CLOSE_TIMEOUT_S):
            raise EngineFailed(f"{self._layout.incoming}: LevelDB does not close")
        self._engine = None

    def prepare_swap(
        self, first: Position, latest: Position, history: History, members: Sequence[fields.Member]
    ) -> None:
        """Finish the sync that is there and begin the swap, durably: from then on it is to be completed.

        The caller then closes log and LevelDB, and calls `roll_forward`.

        Args:
            first: what the first snapshot showed.
            latest: what the latest one showed.
        """
        fs, layout = self._fs, self._layout
        assert self._sync_id is not None, "no full sync is there to be finished"
        wal = _wal(layout)
        fs.remove_tree(wal)
        fs.make_directory(wal)
        make_segment(fs, wal, self._cluster_id, first.seq + 1, self._wal_options.segment_bytes)
        fs.sync_directory(layout.incoming)
        try:
            engine = self._opened()
            # A snapshot does not say when its last entry was made.
            engine.settle(first, time_ms=0)
            engine.flush()
        finally:
            self.close()
        stored = tuple([Member(each.node_id.hex(), each.name, each.address) for each in members])
        try:
            self._files.save_swap(Swap(self._sync_id, first, latest, history, stored))
        except OSError as error:
            if fs.exists(layout.swap):
                # Whether it will be there after a crash is open, so this must not pass for a full disk.
                raise StorageError(f"writing {layout.swap} failed: {error.strerror}") from error
            raise
        self._sync_id = None

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[Incoming | None, str]:
        """The sync that is there, its LevelDB opened; or why there is none."""
        try:
            found = self._files.load_incoming()
        except (FileDamaged, UnknownFormat) as error:
            return None, error.message
        if found is None:
            return None, "it is not known which sync it is of"
        path = _db(self._layout, found.sync_id)
        if not self._fs.exists(path):
            return None, f"{path} is missing"
        self._sync_id = found.sync_id
        try:
            last_key = self._opened().copied_key()
        except EngineFailed as error:
            self.close()
            if error.disk_full:
                raise
            self._sync_id = None
            return None, error.message
        return replace(found, last_key=last_key), ""

    def _check(self, incoming: Incoming) -> None:
        """Raise SyncLost unless what `incoming` says is there."""
        if incoming.sync_id != self._sync_id:
            raise SyncLost(f"{self._layout.incoming}: the full sync {incoming.sync_id.hex()} is not there")
        if self._opened().copied_key() < incoming.last_key:
            raise SyncLost(f"{_db(self._layout, incoming.sync_id)}: not all is there that was copied")

    def _opened(self) -> Engine:
        """LevelDB of the sync that is there."""
        if self._engine is None:
            assert self._sync_id is not None, "no full sync is there"
            self._engine = self._open_engine(_db(self._layout, self._sync_id), paranoid=True)
        return self._engine

    def _remove_all(self) -> None:
        fs, layout = self._fs, self._layout
        self._sync_id = None
        self._files.remove_incoming()
        # If it was not there, that too has to be durable before anything of its LevelDB goes.
        fs.sync_directory(layout.incoming)
        fs.remove_tree(layout.incoming)
        fs.sync_directory(layout.root)

    def _remove_all_but(self, sync_id: bytes) -> None:
        """Remove what is left of other syncs, and of attempts to finish this one."""
        layout = self._layout
        kept = _db(layout, sync_id).name
        for name in self._fs.list_names(layout.incoming):
            if name == f"{layout.incoming_sync.name}.tmp":
                self._fs.unlink(layout.incoming / name)
            elif name == _wal(layout).name or (name.startswith(_DB) and name != kept):
                self._fs.remove_tree(layout.incoming / name)


def roll_forward(fs: Fs, layout: Layout, files: StateFiles, log: EventLog) -> bool:
    """Complete the swap that was begun, if one was. Log and LevelDB are closed; the directory's lock is held.

    Afterwards the log is empty and goes on after the sync's first snapshot, and LevelDB stands there.

    Returns:
        Whether one was.

    Raises:
        FileDamaged, UnknownFormat: of the file ``swap``.
        StorageFull: there is no room to complete it.
        OSError: the disk refuses. Whatever the error, to call it again goes on.
    """
    try:
        swap = files.load_swap()
        if swap is None:
            return False
        _complete(fs, layout, files, swap)
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise StorageFull(
                f"no room to complete the full sync: {error.strerror}", hint="free some space, then start the node"
            ) from error
        raise
    log.info("data_replaced", reason="a full sync was completed", first=swap.first, latest=swap.latest)
    return True


def _complete(fs: Fs, layout: Layout, files: StateFiles, swap: Swap) -> None:
    _take_place(fs, _wal(layout), layout.wal, layout.incoming / "old-wal")
    _take_place(fs, _db(layout, swap.sync_id), layout.db, layout.incoming / "old-db")
    files.save_history(swap.history)
    files.save_members(swap.members)
    files.save_checkpoint(swap.first.seq)
    if swap.latest.seq > swap.first.seq:
        files.save_serve_from(swap.latest)
    else:
        files.remove_serve_from()
    files.remove_clean_stop()
    files.remove_repair()
    # From now on incoming/ holds old data only: without its LevelDB, nobody takes it for a sync to be resumed.
    files.remove_swap()
    fs.remove_tree(layout.incoming)
    fs.sync_directory(layout.root)


def _take_place(fs: Fs, new: Path, own: Path, aside: Path) -> None:
    """Move `own` aside and `new` in its place, unless that is done."""
    if not fs.exists(new):
        return
    if fs.exists(own):
        fs.remove_tree(aside)
        fs.rename(own, aside)
        fs.sync_directory(aside.parent)
        fs.sync_directory(own.parent)
    fs.rename(new, own)
    fs.sync_directory(own.parent)
    fs.sync_directory(new.parent)


def _db(layout: Layout, sync_id: bytes) -> Path:
    return layout.incoming / f"{_DB}{sync_id.hex()}"


def _wal(layout: Layout) -> Path:
    return layout.incoming / "wal"
