"""Opening a data directory as a primary: identity, recovery, and the new epoch that every start begins."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from kvnode.node.config import Config
from kvnode.node.errors import ConfigError
from kvnode.node.eventlog import EventLog
from kvnode.node.fs import Fs
from kvnode.node.storage.datadir import Identity, Layout, Member, StateFiles
from kvnode.node.storage.engine import EngineFactory
from kvnode.node.storage.recovery import Recovery, Storage
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.types import Epoch


@dataclass(frozen=True, slots=True)
class OpenedDirectory:
    """A data directory that is ready to serve.

    Attributes:
        identity: who the node is.
        files: its small files.
        storage: recovered; `Storage.history` ends with the epoch of this start.
    """

    identity: Identity
    files: StateFiles
    storage: Storage


def make_data_directory(fs: Fs, layout: Layout) -> None:
    """Make the data directory if it is missing, and its name durable before there is anything in it to lose.

    Raises:
        OSError: the disk refuses.
    """
    nameless = [path for path in (layout.root, *layout.root.parents) if not fs.exists(path)]
    if not nameless and not fs.exists(layout.node):
        # Somebody made it beforehand, or a start that did not get far.
        nameless = [layout.root]
    fs.make_directory(layout.root)
    for path in nameless:
        fs.sync_directory(path.parent)


def open_directory(config: Config, fs: Fs, open_engine: EngineFactory, log: EventLog) -> OpenedDirectory:
    """Open the data directory of `config`, which the caller has locked; a new one becomes a new cluster's primary.

    Raises:
        ConfigError: the directory belongs to a node of another role.
        StorageError: as `Recovery.run` says, or node.json is damaged or missing.
        OSError: the disk refuses.
    """
    layout = Layout(config.data)
    files = StateFiles(fs, layout)
    identity = _identify(config, fs, layout, files)
    options = WalOptions(config.wal_segment_bytes, config.wal_keep_bytes, sync=config.fsync == "always")
    storage = Recovery(fs, layout, identity, open_engine, options, log).run()
    term = storage.history.current.term + 1
    epoch = Epoch.of(term, secrets.randbits(32))
    storage.history = storage.history.begin(epoch, storage.wal.last_seq + 1)
    files.save_history(storage.history)
    log.info(
        "storage_opened",
        data=layout.root,
        clean=storage.clean,
        replayed=storage.replayed,
        last_seq=storage.wal.last_seq,
        checkpoint_seq=storage.checkpoint_seq,
        epoch=epoch,
    )
    return OpenedDirectory(identity, files, storage)


def _identify(config: Config, fs: Fs, layout: Layout, files: StateFiles) -> Identity:
    """The identity in node.json, made for a new directory, renamed when the configuration says so."""
    identity = files.load_identity()
    if identity is None:
        if _holds_data(fs, layout):
            raise files.missing(layout.node, "though the directory holds a node's data")
        node_id = secrets.token_hex(16)
        name = config.name or f"node-{node_id[:8]}"
        identity = Identity(node_id, name, cluster_id=secrets.token_hex(16), role="primary")
        files.save_identity(identity)
    elif identity.role != "primary":
        raise ConfigError(f"{layout.root} belongs to a {identity.role}; this release starts primaries only")
    elif config.name and config.name != identity.name:
        identity = replace(identity, name=config.name)
        files.save_identity(identity)
    members = files.load_members() or ()
    own = Member(identity.node_id, identity.name)
    if own not in members:
        others = tuple(member for member in members if member.node_id != own.node_id)
        files.save_members((*others, own))
    return identity


def _holds_data(fs: Fs, layout: Layout) -> bool:
    """Whether anything is there that only a node with an identity makes."""
    files = (layout.history, layout.members, layout.checkpoint, layout.clean, layout.repair)
    directories = (layout.wal, layout.db, layout.wal_old, layout.db_old)
    return any(map(fs.exists, files)) or any(
        not name.endswith(".tmp")
        for directory in directories
        if fs.exists(directory)
        for name in fs.list_names(directory)
    )
