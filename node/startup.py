"""Opening a data directory: identity and role, a swap that was cut off, recovery, and the new epoch of a primary."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from kvnode.node.config import Address, Config
from kvnode.node.errors import DataLost, NameTaken, StorageError, StorageFull
from kvnode.node.eventlog import EventLog
from kvnode.node.fs import Fs
from kvnode.node.storage.datadir import Identity, Layout, Member, StateFiles
from kvnode.node.storage.engine import EngineFactory
from kvnode.node.storage.incoming import roll_forward
from kvnode.node.storage.recovery import Recovery, Storage
from kvnode.node.storage.replicafiles import ReplicaFiles
from kvnode.node.storage.wal import WalOptions
from kvnode.protocol.follow import reigns_until
from kvnode.protocol.types import Epoch


@dataclass(slots=True)
class OpenedDirectory:
    """A data directory that is ready to serve.

    Attributes:
        fs: the disk that it is on.
        identity: who the node is.
        files: its small files.
        replica_files: what a replica has besides.
        storage: recovered. On a primary its history ends with the epoch of this start once `begin_reign` was called.
        superseded_term: of a later primary than this node, after which it must not reign; else None.
    """

    fs: Fs
    identity: Identity
    files: StateFiles
    replica_files: ReplicaFiles
    storage: Storage
    superseded_term: int | None = None


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
        NameTaken: the configuration gives a known node the name of another member.
        StorageError: as `Recovery.run` says, or a small file is damaged or missing.
        OSError: the disk refuses.
    """
    layout = Layout(config.data)
    files = StateFiles(fs, layout)
    identity = _identify(config, fs, layout, files)
    roll_forward(fs, layout, files, log)
    options = WalOptions(config.wal_segment_bytes, config.wal_keep_bytes, sync=config.fsync == "always")
    try:
        storage = Recovery(fs, layout, identity, open_engine, options, log).run()
    except StorageError as error:
        if identity.role == "replica" and not isinstance(error, StorageFull):
            anew = f"or rebuild this replica: move {layout.root} away, then `kvnode join {identity.primary}` again"
            error.hint = anew if error.hint is None else f"{error.hint}; {anew}"
        raise
    log.info(
        "storage_opened",
        data=layout.root,
        role=identity.role,
        clean=storage.clean,
        replayed=storage.replayed,
        last_seq=storage.wal.last_seq,
        checkpoint_seq=storage.checkpoint_seq,
    )
    replica_files = ReplicaFiles(fs, layout, identity, open_engine, options, log)
    return OpenedDirectory(fs, identity, files, replica_files, storage, identity.superseded_term)


def begin_reign(opened: OpenedDirectory, log: EventLog, seen_term: int = 0) -> None:
    """Begin a new epoch, durably, as every start of a primary does before its first write.

    Args:
        seen_term: the highest that other members know of.

    Raises:
        DataLost: a full sync of a replica was made a primary's data before it was complete.
        OSError: the disk refuses.
    """
    storage = opened.storage
    serve_from = opened.files.load_serve_from()
    if serve_from is not None and serve_from.seq > storage.wal.last_seq:
        raise DataLost(
            f"the data are those of a full sync that needs the log up to seq {serve_from.seq}, which ends at "
            f"{storage.wal.last_seq}: they show no single state to reign over",
            hint="make this node a replica again: `kvnode join PRIMARY:PEERPORT` on its data directory",
        )
    # What a replica has of a full sync is of no use to a primary.
    opened.replica_files.incoming.drop()
    opened.files.remove_serve_from()
    epoch = Epoch.of(1 + max(seen_term, storage.history.current.term), secrets.randbits(32))
    last_seq = storage.wal.last_seq
    storage.history = reigns_until(storage.history, last_seq).begin(epoch, last_seq + 1)
    opened.files.save_history(storage.history)
    log.info("reign_begun", epoch=epoch, first_seq=last_seq + 1)


def remember_later(opened: OpenedDirectory, term: int) -> None:
    """Note, durably, that a later primary than this node has reigned: it begins no reign until it is told to.

    Raises:
        OSError: the disk refuses.
    """
    opened.superseded_term = term
    opened.identity = replace(opened.identity, superseded_term=term)
    opened.files.save_identity(opened.identity)


def load_identity(config: Config, fs: Fs) -> Identity | None:
    """Whose directory it is; None for a new one.

    Raises:
        FileDamaged, UnknownFormat: of node.json, which is also not missing unless the directory is new.
        OSError: it cannot be read.
    """
    layout = Layout(config.data)
    files = StateFiles(fs, layout)
    identity = files.load_identity()
    if identity is None and _holds_data(fs, layout):
        raise files.missing(layout.node, "though the directory holds a node's data")
    return identity


def become_replica(config: Config, fs: Fs, cluster_id: bytes, primary: Address, primary_id: bytes) -> None:
    """Make the directory a replica's that follows `primary`; its log and data stay as they are.

    Args:
        cluster_id: of the primary; a directory that has one already has the same.
        primary_id: the node id of who answers there.

    Raises:
        As `load_identity` does.
    """
    files = StateFiles(fs, Layout(config.data))
    identity = load_identity(config, fs)
    if identity is None:
        node_id, name = _new_node(config)
        identity = Identity(node_id, name, cluster_id.hex(), "replica")
    follows = replace(
        identity,
        role="replica",
        primary=str(primary),
        primary_id=primary_id.hex(),
        superseded_term=None,
        promoted_from=None,
        promoted_from_id=None,
    )
    files.save_identity(follows)


def _identify(config: Config, fs: Fs, layout: Layout, files: StateFiles) -> Identity:
    """The identity in node.json, made for a new directory, renamed when the configuration says so."""
    identity = load_identity(config, fs)
    members = files.load_members() or ()
    if identity is None:
        node_id, name = _new_node(config)
        identity = Identity(node_id, name, cluster_id=secrets.token_hex(16), role="primary")
        files.save_identity(identity)
    elif config.name and config.name != identity.name:
        # Renamed all the same, a replica would be refused by its primary, and a primary would refuse that member.
        if any(member.name == config.name and member.node_id != identity.node_id for member in members):
            raise NameTaken(config.name, identity.name)
        identity = replace(identity, name=config.name)
        files.save_identity(identity)
    known = next((member for member in members if member.node_id == identity.node_id), None)
    if known is None or known.name != identity.name:
        own = Member(identity.node_id, identity.name, known.address if known is not None else "")
        files.save_members((*(member for member in members if member is not known), own))
    return identity


def _new_node(config: Config) -> tuple[str, str]:
    """(node id, name) of a node that is made now."""
    node_id = secrets.token_hex(16)
    return node_id, config.name or f"node-{node_id[:8]}"


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
