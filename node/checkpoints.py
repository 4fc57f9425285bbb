"""When checkpoints are taken: after a closed segment, one at a time; and the log is trimmed after each."""

from __future__ import annotations

import asyncio
import functools
from typing import Protocol

from kvnode.node.errors import EngineClosed, EngineFailed, StorageFull
from kvnode.node.eventlog import EventLog
from kvnode.node.followers import Followers
from kvnode.node.storage.checkpoint import take_checkpoint, trim_log
from kvnode.node.storage.datadir import StateFiles
from kvnode.node.storage.engine import Engine
from kvnode.node.storage.wal import Wal
from kvnode.node.worker import Worker
from kvnode.protocol.types import Seq


class CheckpointedStore(Protocol):
    """The store, as far as its checkpoints are concerned. Called on the event loop."""

    wal: Wal

    @property
    def engine(self) -> Engine | None:
        """LevelDB, None while there is nothing that may be flushed."""

    @property
    def followers(self) -> Followers:
        """Who reads the log."""

    def checkpoint_taken(self, seq: Seq) -> None:
        """LevelDB is durable up to here."""

    def engine_failed(self, error: EngineFailed) -> None:
        """LevelDB failed outside of a commit."""

    def fail(self, error: BaseException) -> None:
        """The node cannot go on."""


class Checkpoints:
    """The checkpoints of one store. Used on the event loop; the work is done on a thread.

    Attributes:
        task: under way, or the last one.
        first_seq: where the log is going to begin, if it does not yet.
    """

    def __init__(self, store: CheckpointedStore, files: StateFiles, worker: Worker, log: EventLog) -> None:
        self.task: asyncio.Task[None] | None = None
        self.first_seq: Seq = 0
        self._store = store
        self._files = files
        self._worker = worker
        self._log = log
        self._due = False

    def request(self) -> None:
        """Take one soon."""
        self._due = True
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._take_all())

    async def _take_all(self) -> None:
        while self._due and (engine := self._store.engine) is not None:
            self._due = False
            store = self._store
            try:
                seq = await self._worker.run(
                    functools.partial(take_checkpoint, self._files, store.wal, engine, self._log)
                )
                store.checkpoint_taken(seq)
                await self._trim(seq)
            except EngineFailed as error:
                store.engine_failed(error)
            except EngineClosed:
                return
            except (StorageFull, OSError) as error:
                # The old checkpoint holds; the next closed segment asks for another one.
                self._log.warning("checkpoint_failed", reason=str(error))
            except Exception as error:
                store.fail(error)

    async def _trim(self, checkpoint_seq: Seq) -> None:
        """Drop what of the log nobody needs, after those who read it were told."""
        wal, followers = self._store.wal, self._store.followers
        first_seq = wal.trim_target(checkpoint_seq, followers.pinned_seq())
        if first_seq > wal.first_seq:
            self.first_seq = first_seq
            followers.log_trimmed(first_seq)
            await self._worker.run(functools.partial(trim_log, wal, first_seq, self._log))
