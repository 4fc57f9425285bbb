"""A disk in memory with exact crash semantics: it forgets what was not synced, fills up, fails and dies.

What the code under test relies on, and nothing more, is what survives: a file's bytes and size once `sync` of
it returned, a name once `sync_directory` of its directory returned (syncing a new file does not make its name
durable), a rename wholly or not at all. Everything else may be lost, and of that any part may nevertheless be
there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TypeVar

from kvnode.node.fs import Space
from support.crash_plan import DROPPED, Call, CrashPlan, Interruption, Survival, SurvivalMode
from support.memory_nodes import DirectoryNode, FileNode, Journal, Link, NameChange, Node, Resize, Write, tear

NodeT = TypeVar("NodeT", bound=Node)


class MemoryFile:
    """`File` on a file of a `MemoryDisk`."""

    def __init__(self, disk: MemoryDisk, node: FileNode, *, writable: bool) -> None:
        self._disk = disk
        self._node = node
        self._writable = writable
        self._closed = False
        node.handles += 1

    def write_at(self, offset: int, data: bytes) -> None:
        with self._disk.plan.lock:
            node = self._changeable()
            interruption = self._disk.begin("write_at", node, f"[{offset}:{offset + len(data)}] of {len(node.seen)}")
            wanted = len(data) if interruption is None else int(len(data) * interruption.partial)
            fitting = min(wanted, max(0, self._disk.reserve_up_to(node, offset + wanted) - offset))
            if fitting > 0:
                node.change(Write(offset, bytes(data[:fitting])))
            if interruption is not None:
                raise interruption.exception()
            if fitting < wanted:
                raise _os_error(errno.ENOSPC, self._disk.path_of(node))

    def read_at(self, offset: int, size: int) -> bytes:
        with self._disk.plan.lock:
            return bytes(self._open().seen[offset : offset + size])

    def allocate(self, size: int) -> None:
        with self._disk.plan.lock:
            node = self._changeable()
            interruption = self._disk.begin("allocate", node, f"{size} of {len(node.seen)}")
            if interruption is not None:
                wanted = len(node.seen) + int((size - len(node.seen)) * interruption.partial)
                wanted = self._disk.reserve_up_to(node, wanted)
            elif size > node.reserved + self._disk.room():
                raise _os_error(errno.ENOSPC, self._disk.path_of(node))
            else:
                wanted = self._disk.reserve_up_to(node, size)
            if wanted > len(node.seen):
                node.change(Resize(wanted))
            if interruption is not None:
                raise interruption.exception()

    def truncate(self, size: int) -> None:
        with self._disk.plan.lock:
            node = self._changeable()
            interruption = self._disk.begin("truncate", node, f"{size} of {len(node.seen)}")
            if interruption is not None:
                size = len(node.seen) + int((size - len(node.seen)) * interruption.partial)
            self._disk.resize(node, size)
            if interruption is not None:
                raise interruption.exception()

    def sync(self) -> None:
        with self._disk.plan.lock:
            node = self._open()
            interruption = self._disk.begin("sync", node, f"{len(node.unsynced)} changes")
            if interruption is None:
                node.sync()
            else:
                if interruption.error is not None:
                    node.fail_sync(interruption.partial)
                raise interruption.exception()

    def size(self) -> int:
        with self._disk.plan.lock:
            return len(self._open().seen)

    def close(self) -> None:
        """Close it; harmless after the process died, which closed it."""
        with self._disk.plan.lock:
            if self._disk.plan.dead:
                return
            node = self._open()
            self._closed = True
            node.handles -= 1
            self._disk.free_if_gone(node)

    def _open(self) -> FileNode:
        self._disk.plan.check_alive()
        if self._closed:
            raise _os_error(errno.EBADF, self._disk.path_of(self._node))
        return self._node

    def _changeable(self) -> FileNode:
        node = self._open()
        if not self._writable:
            raise _os_error(errno.EBADF, self._disk.path_of(node))
        return node


class MemoryDisk:
    """`Fs` in memory.

    Numbered, recorded, and able to crash or fail by the plan are all operations that change or sync
    something: create, write_at, allocate, truncate, sync, rename, unlink, make_directory, remove_directory,
    sync_directory; removing a tree is an unlink or remove_directory for each name. Of these write_at, allocate and
    truncate can take partial effect. A sync that fails (and does not crash) loses what it should have made stable for
    good, though it stays visible; its `partial` is the share of the changes that became stable before.

    Attributes:
        plan: the life of the process that uses the disk.
        free_bytes: how many more bytes can be written or allocated; None for no bound. Tests may set it at
            any time.
    """

    def __init__(self, plan: CrashPlan | None = None, *, free_bytes: int | None = None) -> None:
        self.plan = plan if plan is not None else CrashPlan()
        self.free_bytes = free_bytes
        self._serials = 0
        self._used_bytes = 0
        self._root = DirectoryNode(0)
        self._journal = Journal()

    @property
    def calls(self) -> list[Call]:
        """The numbered calls so far."""
        return self.plan.calls

    # ---- Fs ------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> MemoryFile:
        with self.plan.lock:
            self.plan.check_alive()
            directory = self._parent_of(path)
            node = directory.seen.get(path.name)
            if isinstance(node, DirectoryNode):
                raise _os_error(errno.EISDIR, path)
            self._begin("create", path)
            if node is None:
                node = FileNode(self._next_serial())
                self._change_names((Link(directory, path.name, node),))
            assert isinstance(node, FileNode)
            if node.seen:
                self.resize(node, 0)
            return MemoryFile(self, node, writable=True)

    def open(self, path: Path, *, writable: bool) -> MemoryFile:
        with self.plan.lock:
            self.plan.check_alive()
            return MemoryFile(self, self._find(path, FileNode), writable=writable)

    def rename(self, source: Path, target: Path) -> None:
        with self.plan.lock:
            self.plan.check_alive()
            from_directory, to_directory = self._parent_of(source), self._parent_of(target)
            node = self._find(source, Node)
            replaced = to_directory.seen.get(target.name)
            if _is_inside(to_directory, node):
                raise _os_error(errno.EINVAL, target)
            if replaced is not None and _is_inside(from_directory, replaced):
                raise _os_error(errno.ENOTEMPTY, target)
            if isinstance(replaced, DirectoryNode):
                if isinstance(node, FileNode):
                    raise _os_error(errno.EISDIR, target)
                if replaced.seen and replaced is not node:
                    raise _os_error(errno.ENOTEMPTY, target)
            elif replaced is not None and isinstance(node, DirectoryNode):
                raise _os_error(errno.ENOTDIR, target)
            self._begin("rename", source, f"-> {target}")
            if replaced is not node:
                self._change_names((Link(from_directory, source.name, None), Link(to_directory, target.name, node)))

    def unlink(self, path: Path) -> None:
        with self.plan.lock:
            self.plan.check_alive()
            if isinstance(self._find(path, Node), DirectoryNode):
                raise _os_error(errno.EISDIR, path)
            self._begin("unlink", path)
            self._change_names((Link(self._parent_of(path), path.name, None),))

    def remove_tree(self, path: Path) -> None:
        with self.plan.lock:
            self.plan.check_alive()
            try:
                directory = self._find(path, DirectoryNode)
            except FileNotFoundError:
                return
            for name, node in sorted(directory.seen.items()):
                if isinstance(node, DirectoryNode):
                    self.remove_tree(path / name)
                else:
                    self.unlink(path / name)
            self._begin("remove_directory", path)
            self._change_names((Link(self._parent_of(path), path.name, None),))

    def make_directory(self, path: Path) -> None:
        with self.plan.lock:
            self.plan.check_alive()
            self._begin("make_directory", path)
            directory = self._root
            names = _names(path)
            for depth, name in enumerate(names, 1):
                child = directory.seen.get(name)
                if child is None:
                    child = DirectoryNode(self._next_serial())
                    self._change_names((Link(directory, name, child),))
                elif not isinstance(child, DirectoryNode):
                    raise _os_error(errno.EEXIST if depth == len(names) else errno.ENOTDIR, path)
                directory = child

    def list_names(self, path: Path) -> list[str]:
        with self.plan.lock:
            self.plan.check_alive()
            return sorted(self._find(path, DirectoryNode).seen)

    def exists(self, path: Path) -> bool:
        with self.plan.lock:
            self.plan.check_alive()
            try:
                self._find(path, Node)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def sync_directory(self, path: Path) -> None:
        with self.plan.lock:
            self.plan.check_alive()
            directory = self._find(path, DirectoryNode)
            interruption = self.plan.begin("sync_directory", path)
            if interruption is not None:
                # Unlike a file's data, names are not forgotten: a file system that cannot write its journal stops.
                raise interruption.exception()
            self._journal.sync(directory)

    def space(self, path: Path) -> Space:
        with self.plan.lock:
            self.plan.check_alive()
            self._find(path, DirectoryNode)
            free_bytes = 1 << 40 if self.free_bytes is None else self.free_bytes
            return Space(self._used_bytes + free_bytes, free_bytes)

    # ---- the next boot -------------------------------------------------------------------------------------

    def after_crash(self, survival: Survival, plan: CrashPlan | None = None) -> MemoryDisk:
        """The disk as the next process would find it, were the crash now. This one stays as it is.

        Args:
            survival: what outlives the crash. KEPT keeps what is visible and what of it is stable; after
                DROPPED and TORN all that is visible is stable.
            plan: the life of the next process.
        """
        with self.plan.lock:
            survivor = self._survivor(survival)
            survivor.plan = plan if plan is not None else CrashPlan()
            return survivor

    # ---- for tests -----------------------------------------------------------------------------------------

    def snapshot(self, under: Path = Path("/")) -> dict[Path, bytes]:
        """The content of every file below a directory as the operating system sees it, by path."""
        return {path: bytes(node.seen) for path, node in self._files(under)}

    def content_of(self, path: Path) -> bytes | None:
        """One file's content as the operating system sees it, None where there is none."""
        try:
            return bytes(self._find(path, FileNode).seen)
        except OSError:
            return None

    def stable_snapshot(self, under: Path = Path("/")) -> dict[Path, bytes]:
        """The content of every file below a directory that a power loss would leave for certain, by path."""
        return self._survivor(DROPPED).snapshot(under)

    def unsynced_paths(self) -> list[Path]:
        """The files with changes that no sync covers, and the directories with such changes of names."""
        paths = {path for path, node in self._files(Path("/")) if node.unsynced}
        paths |= {self.path_of(link.directory) for change in self._journal.changes for link in change}
        return sorted(paths)

    def put_file(self, path: Path, content: bytes, *, durable_parents: bool = True) -> None:
        """Set a file's content on stable storage, past the plan: as damage does, or a restored copy.

        Args:
            durable_parents: make the names of the directories above durable too; otherwise they become so as
                those that the code under test makes do.
        """
        directory = self._root
        for name in _names(path.parent):
            child = directory.seen.get(name) or DirectoryNode(self._next_serial())
            assert isinstance(child, DirectoryNode)
            if durable_parents:
                self._put(directory, name, child)
            elif child.parent is None:
                self._change_names((Link(directory, name, child),))
            directory = child
        self._forget(directory.seen.get(path.name))
        node = FileNode(self._next_serial(), content)
        self._used_bytes += node.reserved
        self._put(directory, path.name, node)

    def remove_file(self, path: Path) -> None:
        """Remove a file from stable storage, past the plan."""
        self._forget(self._find(path, FileNode))
        directory = self._parent_of(path)
        del directory.seen[path.name]
        directory.stable.pop(path.name, None)

    def load_from(self, real: Path, at: Path) -> None:
        """Copy a real directory's files to `at`, as stable."""
        for found in sorted(real.rglob("*")):
            if found.is_file():
                self.put_file(at / found.relative_to(real), found.read_bytes())

    def dump_to(self, real: Path, under: Path = Path("/")) -> None:
        """Copy what is visible below `under` into a real directory."""
        for path, content in self.snapshot(under).items():
            target = real / path.relative_to(under)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def open_handles(self) -> list[Path]:
        """The paths of the files that are open, once a handle."""
        return [path for path, node in self._files(Path("/")) for _ in range(node.handles)]

    # ---- for MemoryFile ------------------------------------------------------------------------------------

    def begin(self, operation: str, node: Node, detail: str) -> Interruption | None:
        """`CrashPlan.begin` with the node's present path."""
        return self.plan.begin(operation, self.path_of(node), detail)

    def path_of(self, node: Node) -> Path:
        """Where a node is now."""
        names = [node.name]
        while node.parent is not None:
            node = node.parent
            names.append(node.name)
        return Path("/", *reversed(names))

    def room(self) -> int:
        """How many bytes are free."""
        return 1 << 62 if self.free_bytes is None else self.free_bytes

    def reserve_up_to(self, node: FileNode, end: int) -> int:
        """Take room so that the file can reach to `end`, as far as there is some; returns how far it can."""
        taken = min(max(0, end - node.reserved), self.room())
        node.reserved += taken
        self._used_bytes += taken
        if self.free_bytes is not None:
            self.free_bytes -= taken
        return min(end, node.reserved)

    def resize(self, node: FileNode, size: int) -> None:
        """Set a file's size; what is cut off becomes free."""
        node.change(Resize(size))
        self._release(node, node.reserved - size)

    def free_if_gone(self, node: FileNode) -> None:
        """Free a file that has neither a name nor a handle left."""
        if node.parent is None and node.handles == 0:
            self._release(node, node.reserved)

    # ---- inside --------------------------------------------------------------------------------------------

    def _begin(self, operation: str, path: Path, detail: str = "") -> None:
        interruption = self.plan.begin(operation, path, detail)
        if interruption is not None:
            raise interruption.exception()

    def _change_names(self, change: NameChange) -> None:
        replaced = []
        for link in change:
            before = link.directory.seen.pop(link.name, None)
            if before is not None:
                before.parent = None
                replaced.append(before)
            if link.node is not None:
                link.directory.seen[link.name] = link.node
                link.node.parent, link.node.name = link.directory, link.name
        self._journal.changes.append(change)
        for node in replaced:
            if isinstance(node, FileNode):
                self.free_if_gone(node)

    def _put(self, directory: DirectoryNode, name: str, node: Node) -> None:
        directory.seen[name] = directory.stable[name] = node
        node.parent, node.name = directory, name

    def _forget(self, node: Node | None) -> None:
        if isinstance(node, FileNode):
            node.parent = None
            self.free_if_gone(node)

    def _release(self, node: FileNode, count: int) -> None:
        if count > 0:
            node.reserved -= count
            self._used_bytes -= count
            if self.free_bytes is not None:
                self.free_bytes += count

    def _next_serial(self) -> int:
        self._serials += 1
        return self._serials

    def _find(self, path: Path, kind: type[NodeT]) -> NodeT:
        node: Node = self._root
        for name in _names(path):
            if not isinstance(node, DirectoryNode):
                raise _os_error(errno.ENOTDIR, path)
            child = node.seen.get(name)
            if child is None:
                raise _os_error(errno.ENOENT, path)
            node = child
        if not isinstance(node, kind):
            raise _os_error(errno.EISDIR if isinstance(node, DirectoryNode) else errno.ENOTDIR, path)
        return node

    def _parent_of(self, path: Path) -> DirectoryNode:
        return self._find(path.parent, DirectoryNode)

    def _files(self, under: Path) -> Iterator[tuple[Path, FileNode]]:
        for name, node in sorted(self._find(under, DirectoryNode).seen.items()):
            if isinstance(node, FileNode):
                yield under / name, node
            else:
                yield from self._files(under / name)

    def _survivor(self, survival: Survival) -> MemoryDisk:
        survivor = MemoryDisk()
        survivor._serials = self._serials
        if survival.mode is SurvivalMode.KEPT:
            copier = _KeptCopier()
            survivor._journal.changes = [copier.copy_change(change) for change in self._journal.changes]
            survivor._root = copier.copy(self._root)
        else:
            survivor._root = _PowerLossCopier(survival, self._journal).copy(self._root)
        survivor._used_bytes = sum(node.reserved for _, node in survivor._files(Path("/")))
        if self.free_bytes is not None:
            survivor.free_bytes = max(0, self.free_bytes + self._used_bytes - survivor._used_bytes)
        return survivor


class _KeptCopier:
    """Copies nodes as they are: what is seen, what is stable, what is unsynced."""

    def __init__(self) -> None:
        self._copies: dict[int, Node] = {}

    def copy(self, node: NodeT) -> NodeT:
        copied = self._copies.get(node.serial)
        if copied is None:
            copied = node.copy() if isinstance(node, FileNode) else DirectoryNode(node.serial)
            copied.name = node.name
            self._copies[node.serial] = copied
            if isinstance(node, DirectoryNode):
                assert isinstance(copied, DirectoryNode)
                for name, child in node.seen.items():
                    copied.seen[name] = self.copy(child)
                    copied.seen[name].parent = copied
                copied.stable = {name: self.copy(child) for name, child in node.stable.items()}
        assert isinstance(copied, type(node))
        return copied

    def copy_change(self, change: NameChange) -> NameChange:
        return tuple(
            Link(self.copy(link.directory), link.name, None if link.node is None else self.copy(link.node))
            for link in change
        )


class _PowerLossCopier:
    """Copies what a power loss leaves: what is stable, and what else the mode's seed lets through."""

    def __init__(self, survival: Survival, journal: Journal) -> None:
        self._seed = survival.seed if survival.mode is SurvivalMode.TORN else None
        #: by directory's serial, the links that survived though they were not synced
        self._extra: dict[int, list[Link]] = {}
        if self._seed is not None:
            for change in journal.surviving(Random(f"{self._seed}/names")):
                for link in change:
                    self._extra.setdefault(link.directory.serial, []).append(link)

    def copy(self, directory: DirectoryNode) -> DirectoryNode:
        names = dict(directory.stable)
        for link in self._extra.get(directory.serial, ()):
            if link.node is None:
                names.pop(link.name, None)
            else:
                names[link.name] = link.node
        copied = DirectoryNode(directory.serial)
        for name, node in names.items():
            child = self.copy(node) if isinstance(node, DirectoryNode) else self._copy_file(node)
            child.parent, child.name = copied, name
            copied.seen[name] = copied.stable[name] = child
        return copied

    def _copy_file(self, node: Node) -> FileNode:
        assert isinstance(node, FileNode)
        if self._seed is None:
            return FileNode(node.serial, bytes(node.stable))
        return FileNode(node.serial, tear(node.stable, node.unsynced, Random(f"{self._seed}/{node.serial}")))


def _is_inside(node: Node | None, directory: Node) -> bool:
    while node is not None and node is not directory:
        node = node.parent
    return node is directory


def _names(path: Path) -> tuple[str, ...]:
    return path.parts[1:] if path.anchor else path.parts


def _os_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
