"""What a replica does to its disk besides appending entries: history, members, incoming/, diverged/, the swap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvnode.node.errors import EngineFailed, StorageFull
from kvnode.node.replication.members import StoredMembers, save_members
from kvnode.node.replication.ports import Shared
from kvnode.node.storage.replicafiles import ReplicaFiles
from kvnode.node.storage.wal import DISK_FULL_ERRNOS
from kvnode.protocol.fields import Member
from kvnode.protocol.follow import position_of
from kvnode.protocol.replica import FollowerDisk
from kvnode.protocol.replica_events import FinishIncoming
from kvnode.protocol.snapshot import RecordFields
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import History, Position

T = TypeVar("T")

#: How often the log says how far a full sync is.
_PROGRESS_S = 5.0


class ReplicaDisk:
    """Does it on the `disk` thread, one piece at a time.

    Every coroutine raises `StorageFull` when there was no room and nothing of it took effect; any other error is final.

    Attributes:
        diverged: names of what was moved aside, below diverged/.
        full_syncs_received: since the process started.
        incoming_keys: stored of the full sync under way, since the process started.
    """

    def __init__(self, shared: Shared, files: ReplicaFiles, members: StoredMembers) -> None:
        self.diverged: list[str] = files.list_diverged()
        self.full_syncs_received = 0
        self.incoming_keys = 0
        self._told_at = shared.loop.time()
        self._shared = shared
        self._files = files
        self._members = members

    async def found(self) -> FollowerDisk:
        """What the machine begins from.

        Raises:
            StorageError, OSError: it cannot be read.
        """
        shared, store = self._shared, self._shared.store
        serve_from, incoming = await shared.disk.run(
            lambda: (shared.files.load_serve_from(), self._files.incoming.load())
        )
        position = position_of(store.history, store.applied.seq)
        return FollowerDisk(
            history=store.history,
            members=self._members.all,
            last_seq=position.seq,
            serve_from=serve_from,
            incoming=incoming,
            diverged=any(name.endswith(f"..{position}") for name in self.diverged),
        )

    async def save_history(self, history: History, members: tuple[Member, ...]) -> None:
        """Make a primary's history and members this node's."""

        def save() -> None:
            self._shared.files.save_history(history)
            save_members(self._shared.files, members)

        await self._run(save)
        self._shared.store.use_history(history)
        self._members.replace(members)

    async def move_aside(self, fork: Position, last: Position) -> None:
        """Copy the entries after `fork` to diverged/."""
        path = await self._run(functools.partial(self._files.move_aside, self._shared.store.wal, fork, last))
        self._shared.store.end_applied_waits("this node's log has diverged from its primary's")
        if path is not None:
            self.diverged = self._files.list_diverged()
            self._shared.log.warning(
                "log_diverged",
                fork=fork,
                last=last,
                entries=last.seq - fork.seq,
                moved_to=path,
                action="a full sync from the primary follows",
            )

    async def begin_incoming(self, incoming: Incoming, *, resumed: bool) -> None:
        """Note a full sync in incoming/."""
        await self._run(lambda: self._files.incoming.begin(incoming, resumed=resumed))
        if not resumed:
            self.incoming_keys = 0
        self._told_at = self._shared.loop.time()
        self._shared.log.info(
            "full_sync_begins",
            first=incoming.first,
            latest=incoming.latest,
            resumed=resumed,
            after_keys=self.incoming_keys,
        )

    async def store_chunk(self, records: Sequence[RecordFields]) -> None:
        """Store records in incoming/."""
        await self._run(lambda: self._files.incoming.store(records))
        self.incoming_keys += len(records)
        now = self._shared.loop.time()
        if now >= self._told_at + _PROGRESS_S:
            self._told_at = now
            self._shared.log.info("full_sync_progress", keys=self.incoming_keys)

    async def finish_incoming(self, work: FinishIncoming) -> None:
        """Swap this node's data for what is in incoming/."""
        shared, files = self._shared, self._files
        await self._run(lambda: files.incoming.prepare_swap(work.first, work.latest, work.history, work.members))
        # From here on the swap happens, if not now then at the next start: what fails now ends the process.
        shared.store.end_applied_waits("this node's data were replaced by a full sync")
        if work.latest.seq > work.first.seq:
            # Already here: a promotion that waits for this to end keeps the machine from hearing of it.
            shared.store.hold_back("this node has not replayed the log behind its last full sync yet")
        await shared.store.replace_storage(files.swap)
        self._members.replace(work.members)
        self.full_syncs_received += 1
        shared.log.info("full_sync_done", first=work.first, latest=work.latest, keys=self.incoming_keys)

    async def drop_incoming(self) -> None:
        """Remove incoming/."""
        await self._run(self._files.incoming.drop)

    async def close(self) -> None:
        """Close what is open below incoming/; it stays for the next start."""
        await self._run(self._files.incoming.close)

    async def _run(self, job: Callable[[], T]) -> T:
        try:
            return await self._shared.disk.run(job)
        except EngineFailed as error:
            if error.disk_full:
                raise StorageFull(f"no room: {error.message}") from error
            raise
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise StorageFull(f"no room: {error.strerror}") from error
            raise
