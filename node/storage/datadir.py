"""The data directory: its names, its lock, and the typed content of its small files.

Source: DESIGN of the directory in FORMAT.md, "Data directory".
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvnode.node.errors import DirectoryLocked, FileDamaged
from kvnode.node.fs import Fs
from kvnode.node.storage.statefile import load_state, save_state
from kvnode.protocol.sync import Incoming
from kvnode.protocol.types import Epoch, History, Position, Reign, Seq

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is below the data directory."""

    root: Path

    @property
    def wal(self) -> Path:
        """Log segments."""
        return self.root / "wal"

    @property
    def db(self) -> Path:
        """LevelDB's directory."""
        return self.root / "db"

    @property
    def wal_old(self) -> Path:
        """Segments set aside because LevelDB went on without them, or cut off by a repair."""
        return self.root / "wal-old"

    @property
    def db_old(self) -> Path:
        """LevelDB directories set aside before they were rebuilt from the log."""
        return self.root / "db-old"

    @property
    def node(self) -> Path:
        """The node's identity; the directory is a data directory once this file exists."""
        return self.root / "node.json"

    @property
    def history(self) -> Path:
        """The reigns the log went through."""
        return self.root / "history"

    @property
    def members(self) -> Path:
        """The nodes that joined the cluster and were not forgotten."""
        return self.root / "members"

    @property
    def checkpoint(self) -> Path:
        """The seq up to which LevelDB is durable."""
        return self.root / "checkpoint"

    @property
    def clean(self) -> Path:
        """Present after a clean stop only."""
        return self.root / "clean"

    @property
    def repair(self) -> Path:
        """Present after a repair of the log, until the node has started from what it left."""
        return self.root / "repair"

    @property
    def serve_from(self) -> Path:
        """Present on a replica after a full sync, until its data show one state again."""
        return self.root / "serve_from"

    @property
    def swap(self) -> Path:
        """Present while the node's data are being replaced by those of a full sync."""
        return self.root / "swap"

    def small_files(self) -> tuple[Path, ...]:
        """The files that are replaced as a whole, by way of a temporary one with ``.tmp`` behind its name."""
        return (
            self.node,
            self.history,
            self.members,
            self.checkpoint,
            self.clean,
            self.repair,
            self.serve_from,
            self.swap,
        )

    @property
    def incoming(self) -> Path:
        """A full sync under way, and, while it takes their place, the data of before."""
        return self.root / "incoming"

    @property
    def incoming_sync(self) -> Path:
        """Which sync is in `incoming`; another small file. What is there without it is left over."""
        return self.incoming / "sync"

    @property
    def diverged(self) -> Path:
        """Entries that are in no primary's history: copies of log segments, one directory for each fork."""
        return self.root / "diverged"

    @property
    def lock(self) -> Path:
        """Locked by the process that has the directory open."""
        return self.root / "LOCK"


@dataclass(frozen=True, slots=True)
class Identity:
    """Content of ``node.json``.

    Attributes:
        node_id: 32 hex digits, made once.
        name: the node's name in the cluster.
        cluster_id: 32 hex digits, the same for all nodes of a cluster.
        role: "primary" or "replica".
        primary: HOST:PORT of the primary's peer port, for a replica, as the operator gave it; else None.
        primary_id: of a replica: the node id of who answers there, 32 hex digits; None while it is not known.
        superseded_term: of a later primary of which this one has learned; None while it knows of none.
        promoted_from: the `primary` that it followed when it was promoted, as long as that node may not know of it:
            until this node follows again, or that one was seen to reign no more. Else None.
        promoted_from_id: the `primary_id` at that time; None if there is no `promoted_from`, or it was not known.
    """

    node_id: str
    name: str
    cluster_id: str
    role: str
    primary: str | None = None
    superseded_term: int | None = None
    promoted_from: str | None = None
    primary_id: str | None = None
    promoted_from_id: str | None = None

    @property
    def cluster_bytes(self) -> bytes:
        """The cluster id as the 16 bytes that segment headers hold."""
        return bytes.fromhex(self.cluster_id)

    def is_promoted_over(self, node_id: bytes, address: str) -> bool:
        """Whether a node is the primary that this one was promoted over, and may not know of that.

        Args:
            address: where it was found; it counts only if the node id of that primary is not known, as it may have been
                followed under another spelling.
        """
        if self.promoted_from_id is not None:
            return self.promoted_from_id == node_id.hex()
        return self.promoted_from == address


@dataclass(frozen=True, slots=True)
class Member:
    """One of ``members``.

    Attributes:
        node_id: 32 hex digits.
        name: the node's name in the cluster.
        address: HOST:PORT of its peer port; empty = not known, as in files of releases that did not keep it.
    """

    node_id: str
    name: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class CleanStop:
    """Content of ``clean``: where the log ended when the node stopped in order.

    Attributes:
        last_seq: the last entry, durable in the log and in LevelDB.
        segment: the last segment's file name.
        size: that file's length in bytes.
    """

    last_seq: Seq
    segment: str
    size: int


@dataclass(frozen=True, slots=True)
class Repair:
    """Content of ``repair``: a loss of entries that the operator has accepted.

    It counts for the entries that neither the log nor, when it is opened, LevelDB turns out to have.

    Attributes:
        log_last_seq: where the log ends now.
        lost_last: the highest seq that the operator was told may be lost.
    """

    log_last_seq: Seq
    lost_last: Seq


@dataclass(frozen=True, slots=True)
class Swap:
    """Content of ``swap``: what takes the place of the node's data. While it is there, the swap is to be completed.

    Attributes:
        sync_id: of the sync whose data they are, 16 bytes.
        first: where LevelDB stands, and after which the log goes on.
        latest: until its seq is applied, nothing is served.
        history: the reigns from now on.
        members: likewise.
    """

    sync_id: bytes
    first: Position
    latest: Position
    history: History
    members: tuple[Member, ...]


#: What to do about a small file that is damaged, by its name.
_HINTS = {
    "node.json": "restore it from a copy of this directory; without it nobody knows whose data this is",
    "history": "restore it from a copy of this directory that was made after the node's last start, or restore the "
    "directory as a whole",
    "members": "restore it from a copy of this directory; for a node without replicas, remove the file",
    "checkpoint": "if the log begins at seq 1, remove the file: start-up then replays all of the log; else restore "
    "the directory as a whole",
    "clean": "remove the file: start-up then takes the stop for an unclean one and checks the log",
    "repair": "remove the file, then run `kvnode wal repair` again",
    "serve_from": "have this replica copy all data again: `kvnode join` with an empty directory",
    "swap": "the data were being replaced by those of a full sync, and what is here is of two ages: have this replica "
    "copy all data again, with `kvnode join` and an empty directory",
    "sync": "remove the directory that it is in: the full sync begins again",
}


class StateFiles:
    """Typed reading and durable replacing of the directory's small files.

    Every ``load_...`` returns None when the file is missing and raises FileDamaged or UnknownFormat as `load_state`
    does.
    """

    def __init__(self, fs: Fs, layout: Layout) -> None:
        self._fs = fs
        self._layout = layout

    def load_identity(self) -> Identity | None:
        """``node.json``."""
        return self._load(self._layout.node, lambda state: _checked_identity(Identity(**state)))

    def save_identity(self, identity: Identity) -> None:
        """Replace ``node.json``."""
        state = asdict(identity)
        for name in ("superseded_term", "promoted_from", "primary_id", "promoted_from_id"):
            if state[name] is None:
                # A directory that never needed it stays readable for releases that do not know it.
                del state[name]
        save_state(self._fs, self._layout.node, state)

    def load_history(self) -> History | None:
        """``history``."""
        return self._load(
            self._layout.history,
            lambda state: _read_history(state["reigns"]),
        )

    def save_history(self, history: History) -> None:
        """Replace ``history``."""
        save_state(self._fs, self._layout.history, {"reigns": _show_history(history)})

    def load_members(self) -> tuple[Member, ...] | None:
        """``members``."""
        return self._load(self._layout.members, lambda state: _read_members(state["members"]))

    def save_members(self, members: tuple[Member, ...]) -> None:
        """Replace ``members``."""
        save_state(self._fs, self._layout.members, {"members": [asdict(each) for each in members]})

    def load_checkpoint(self) -> Seq | None:
        """``checkpoint``."""
        return self._load(self._layout.checkpoint, lambda state: _seq(state["seq"]))

    def save_checkpoint(self, seq: Seq) -> None:
        """Replace ``checkpoint``."""
        save_state(self._fs, self._layout.checkpoint, {"seq": seq})

    def load_clean_stop(self) -> CleanStop | None:
        """``clean``."""
        return self._load(
            self._layout.clean,
            lambda state: CleanStop(_seq(state["last_seq"]), str(state["segment"]), _seq(state["size"])),
        )

    def save_clean_stop(self, stop: CleanStop) -> None:
        """Replace ``clean``."""
        save_state(self._fs, self._layout.clean, asdict(stop))

    def remove_clean_stop(self) -> None:
        """Remove ``clean`` durably; nothing may be written to the log or LevelDB while it is there."""
        self._remove(self._layout.clean)

    def load_repair(self) -> Repair | None:
        """``repair``."""
        return self._load(
            self._layout.repair, lambda state: Repair(_seq(state["log_last_seq"]), _seq(state["lost_last"]))
        )

    def save_repair(self, repair: Repair) -> None:
        """Replace ``repair``."""
        save_state(self._fs, self._layout.repair, asdict(repair))

    def remove_repair(self) -> None:
        """Remove ``repair`` durably: what it accepts must not excuse a later loss."""
        self._remove(self._layout.repair)

    def load_serve_from(self) -> Position | None:
        """``serve_from``: while less than this is applied, LevelDB shows no single state, and nothing is served."""
        return self._load(self._layout.serve_from, lambda state: _read_position(state["latest"]))

    def save_serve_from(self, latest: Position) -> None:
        """Replace ``serve_from``."""
        save_state(self._fs, self._layout.serve_from, {"latest": _show_position(latest)})

    def remove_serve_from(self) -> None:
        """Remove ``serve_from`` durably."""
        self._remove(self._layout.serve_from)

    def load_swap(self) -> Swap | None:
        """``swap``."""
        return self._load(
            self._layout.swap,
            lambda state: Swap(
                _id(state["sync_id"]),
                _read_position(state["first"]),
                _read_position(state["latest"]),
                _read_history(state["reigns"]),
                _read_members(state["members"]),
            ),
        )

    def save_swap(self, swap: Swap) -> None:
        """Replace ``swap``."""
        state = {
            "sync_id": swap.sync_id.hex(),
            "first": _show_position(swap.first),
            "latest": _show_position(swap.latest),
            "reigns": _show_history(swap.history),
            "members": [asdict(each) for each in swap.members],
        }
        save_state(self._fs, self._layout.swap, state)

    def remove_swap(self) -> None:
        """Remove ``swap`` durably."""
        self._remove(self._layout.swap)

    def load_incoming(self) -> Incoming | None:
        """``incoming/sync``; of the last stored key only LevelDB there knows, so it is empty."""
        return self._load(
            self._layout.incoming_sync,
            lambda state: Incoming(
                _id(state["sync_id"]), _read_position(state["first"]), _read_position(state["latest"])
            ),
        )

    def save_incoming(self, incoming: Incoming) -> None:
        """Replace ``incoming/sync``."""
        state = {
            "sync_id": incoming.sync_id.hex(),
            "first": _show_position(incoming.first),
            "latest": _show_position(incoming.latest),
        }
        save_state(self._fs, self._layout.incoming_sync, state)

    def remove_incoming(self) -> None:
        """Remove ``incoming/sync`` durably: what is beside it is left over from then on."""
        self._remove(self._layout.incoming_sync)

    def missing(self, path: Path, though: str) -> FileDamaged:
        """The error for one of the files that is not there, with what to do about it; `though` says why it must be."""
        return FileDamaged(path, f"missing, {though}", hint=_HINTS[path.name])

    def _remove(self, path: Path) -> None:
        if self._fs.exists(path):
            self._fs.unlink(path)
            self._fs.sync_directory(path.parent)

    def _load(self, path: Path, build: Callable[[dict[str, Any]], T]) -> T | None:
        try:
            state = load_state(self._fs, path)
            return None if state is None else build(state)
        except FileDamaged as error:
            error.hint = _HINTS[path.name]
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise FileDamaged(path, f"unexpected content: {error!r}", hint=_HINTS[path.name]) from error


def _checked_identity(identity: Identity) -> Identity:
    for node_id in (identity.cluster_id, identity.node_id, identity.primary_id, identity.promoted_from_id):
        if node_id is not None:
            _id(node_id)
    if identity.role not in ("primary", "replica"):
        raise ValueError(f"role {identity.role!r}")
    if identity.superseded_term is not None:
        Epoch.of(identity.superseded_term, 0)
    return identity


def _read_history(reigns: Any) -> History:
    return History(tuple(Reign(Epoch.parse(text), _seq(first)) for text, first in reigns))


def _show_history(history: History) -> list[list[object]]:
    return [[str(reign.epoch), reign.first_seq] for reign in history]


def _read_members(members: Any) -> tuple[Member, ...]:
    return tuple(Member(**each) for each in members)


def _read_position(pair: Any) -> Position:
    epoch, seq = pair
    return Position(Epoch.parse(epoch), _seq(seq))


def _show_position(position: Position) -> list[object]:
    return [str(position.epoch), position.seq]


def _id(text: Any) -> bytes:
    found = bytes.fromhex(text)
    if len(found) != 16:
        raise ValueError("ids are 32 hex digits")
    return found


def _seq(value: object) -> Seq:
    if type(value) is not int or value < 0:
        raise ValueError(f"not a seq: {value!r}")
    return value


class DirectoryLock:
    """The exclusive lock on a data directory, held until `release` or the process ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            DirectoryLocked: another process holds it.
            OSError: the lock file cannot be made.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise DirectoryLocked(
                f"{path.parent} is open in another process" + (f" (pid {holder})" if holder else ""),
                hint="stop that process first; one data directory belongs to one node",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._fd)
