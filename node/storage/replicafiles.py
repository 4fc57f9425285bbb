"""What a replica's directory has besides a primary's: a full sync under way, and what was moved aside."""

from __future__ import annotations

from pathlib import Path

from kvnode.node.eventlog import EventLog
from kvnode.node.fs import Fs
from kvnode.node.storage.datadir import Identity, Layout, StateFiles
from kvnode.node.storage.diverged import list_diverged, move_aside
from kvnode.node.storage.engine import EngineFactory
from kvnode.node.storage.incoming import IncomingStore, roll_forward
from kvnode.node.storage.recovery import Recovery, Storage
from kvnode.node.storage.wal import Wal, WalOptions
from kvnode.protocol.types import Position


class ReplicaFiles:
    """Works on one data directory; blocks, one call at a time.

    Attributes:
        incoming: the full sync under way.
    """

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
        self._open_engine = open_engine
        self._options = options
        self._log = log
        self._files = StateFiles(fs, layout)
        self.incoming = IncomingStore(fs, layout, self._files, open_engine, identity.cluster_bytes, options, log)

    def move_aside(self, wal: Wal, fork: Position, last: Position) -> Path | None:
        """Copy the entries of `wal` after `fork` to diverged/; returns where, None if there is nothing to copy."""
        cluster_id = self._identity.cluster_bytes
        return move_aside(self._fs, self._layout, cluster_id, self._options, wal, fork, last, self._log)

    def list_diverged(self) -> list[str]:
        """The names of what was moved aside so far."""
        return list_diverged(self._fs, self._layout)

    def swap(self) -> Storage:
        """Complete the swap that `IncomingStore.prepare_swap` began, and open what is there then.

        Log and LevelDB are closed.
        """
        roll_forward(self._fs, self._layout, self._files, self._log)
        return Recovery(self._fs, self._layout, self._identity, self._open_engine, self._options, self._log).run()
