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
from kvnode.protocol.types import Epoch, History, Reign, Seq

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

    def small_files(self) -> tuple[Path, ...]:
        """The files that are replaced as a whole, by way of a temporary one with ``.tmp`` behind its name."""
        return (self.node, self.history, self.members, self.checkpoint, self.clean, self.repair)

    @property
    def repair(self) -> Path:
        """Present after a repair of the log, until the node has started from what it left."""
        return self.root / "repair"

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
        primary: HOST:PORT of the primary's peer port, for a replica; else None.
    """

    node_id: str
    name: str
    cluster_id: str
    role: str
    primary: str | None = None

    @property
    def cluster_bytes(self) -> bytes:
        """The cluster id as the 16 bytes that segment headers hold."""
        return bytes.fromhex(self.cluster_id)


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
        save_state(self._fs, self._layout.node, asdict(identity))

    def load_history(self) -> History | None:
        """``history``."""
        return self._load(
            self._layout.history,
            lambda state: History(tuple(Reign(Epoch.parse(text), _seq(first)) for text, first in state["reigns"])),
        )

    def save_history(self, history: History) -> None:
        """Replace ``history``."""
        reigns = [[str(reign.epoch), reign.first_seq] for reign in history]
        save_state(self._fs, self._layout.history, {"reigns": reigns})

    def load_members(self) -> tuple[Member, ...] | None:
        """``members``."""
        return self._load(self._layout.members, lambda state: tuple(Member(**each) for each in state["members"]))

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
    if len(identity.cluster_bytes) != 16 or len(bytes.fromhex(identity.node_id)) != 16:
        raise ValueError("ids are 32 hex digits")
    if identity.role not in ("primary", "replica"):
        raise ValueError(f"role {identity.role!r}")
    return identity


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
