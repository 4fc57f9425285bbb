"""Files and directories of the simulated disk: what the system sees of each, and what is stable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple, TypeAlias

#: What a power loss tears at: a sector is written wholly or not at all.
SECTOR_BYTES = 512


class Write(NamedTuple):
    """Bytes put into a file; past its end they make it longer."""

    offset: int
    data: bytes


class Resize(NamedTuple):
    """A file's size set; new bytes are zero."""

    size: int


Change: TypeAlias = Write | Resize


def apply_change(content: bytearray, change: Change) -> None:
    """Make a change to a file's content."""
    if isinstance(change, Resize):
        _set_size(content, change.size)
    else:
        stop = change.offset + len(change.data)
        if stop > len(content):
            _set_size(content, stop)
        content[change.offset : stop] = change.data


def tear(stable: bytes | bytearray, unsynced: Sequence[Change], rng: Random) -> bytes:
    """What a power loss may leave of a file.

    Data and size are independent, as on a file system that journals metadata only: of the changes of size a
    prefix survives (the last one perhaps half done), and of each write any part that lies within the size at
    that time. So bytes of a later write may be there when those of an earlier one are not, and bytes that
    were never written are zero.

    Args:
        stable: what the last sync made stable.
        unsynced: the changes since, in order.
        rng: decides.
    """
    content = bytearray(stable)
    by_sector = rng.random() < 0.5
    sizes = list(_sizes(len(stable), unsynced))
    resizes = sum(1 for before, after in sizes if before != after)
    resizes_left = rng.randint(0, resizes)
    torn_resize = rng.random() < 0.5
    for change, (before, after) in zip(unsynced, sizes, strict=True):
        if before != after:
            if resizes_left > 0:
                _set_size(content, after)
            elif resizes_left == 0 and torn_resize and after > before:
                _set_size(content, rng.randint(before, after))
            resizes_left -= 1
        if isinstance(change, Write):
            for start, stop in _surviving_parts(change, rng, by_sector=by_sector):
                stop = min(stop, len(content))
                if start < stop:
                    content[start:stop] = change.data[start - change.offset : stop - change.offset]
    return bytes(content)


def _sizes(size: int, changes: Sequence[Change]) -> Iterator[tuple[int, int]]:
    """The file's size before and after each change."""
    for change in changes:
        after = change.size if isinstance(change, Resize) else max(size, change.offset + len(change.data))
        yield size, after
        size = after


def _surviving_parts(write: Write, rng: Random, *, by_sector: bool) -> list[tuple[int, int]]:
    first, end = write.offset, write.offset + len(write.data)
    fate = rng.random()
    if fate < 0.3 or first == end:
        return []
    if fate < 0.6:
        return [(first, end)]
    if by_sector:
        edges = [first, *range((first // SECTOR_BYTES + 1) * SECTOR_BYTES, end, SECTOR_BYTES), end]
        return [part for part in pairwise(edges) if rng.random() < 0.5]
    start, stop = sorted((rng.randint(first, end), rng.randint(first, end)))
    return rng.choice([[(first, stop)], [(start, end)], [(start, stop)], [(first, start), (stop, end)]])


def _set_size(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


class Node:
    """A file or a directory, whatever it is called.

    Attributes:
        serial: tells nodes apart, in the order in which they were made.
        parent: the directory that has it, as the operating system sees it; None for the root and for what was
            unlinked.
        name: its name there; the last one for what was unlinked.
    """

    __slots__ = ("name", "parent", "serial")

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.parent: DirectoryNode | None = None
        self.name = ""


class FileNode(Node):
    """A file's content.

    Attributes:
        seen: what a read returns.
        stable: what is on stable storage.
        unsynced: the changes that the next sync makes stable. Changes that a failed sync dropped are in
            neither.
        reserved: the bytes it occupies, at least up to the last byte written.
        handles: how many are open.
    """

    __slots__ = ("handles", "reserved", "seen", "stable", "unsynced")

    def __init__(self, serial: int, content: bytes = b"") -> None:
        super().__init__(serial)
        self.seen = bytearray(content)
        self.stable = bytearray(content)
        self.unsynced: list[Change] = []
        self.reserved = len(content)
        self.handles = 0

    def change(self, change: Change) -> None:
        """Change what is seen."""
        apply_change(self.seen, change)
        self.unsynced.append(change)

    def sync(self) -> None:
        """Make the unsynced changes stable."""
        for change in self.unsynced:
            apply_change(self.stable, change)
        self.unsynced.clear()

    def fail_sync(self, partial: float) -> None:
        """Do what a failed fsync does on Linux: the changes stay visible, count as synced, and are lost.

        Args:
            partial: the share of the changes that became stable before.
        """
        done = int(len(self.unsynced) * partial)
        for change in self.unsynced[:done]:
            apply_change(self.stable, change)
        self.unsynced.clear()

    def copy(self) -> FileNode:
        """A copy of both states, as the next process finds it."""
        copied = FileNode(self.serial)
        copied.seen = bytearray(self.seen)
        copied.stable = bytearray(self.stable)
        copied.unsynced = list(self.unsynced)
        copied.reserved = self.reserved
        return copied


class DirectoryNode(Node):
    """A directory's entries.

    Attributes:
        seen: by name, as the operating system sees them.
        stable: by name, on stable storage.
    """

    __slots__ = ("seen", "stable")

    def __init__(self, serial: int) -> None:
        super().__init__(serial)
        self.seen: dict[str, Node] = {}
        self.stable: dict[str, Node] = {}


class Link(NamedTuple):
    """A name in a directory set to a node, or removed (None)."""

    directory: DirectoryNode
    name: str
    node: Node | None

    def apply_stable(self) -> None:
        """Make it stable."""
        if self.node is None:
            self.directory.stable.pop(self.name, None)
        else:
            self.directory.stable[self.name] = self.node


#: One atomic change of names: a rename between two directories changes both or neither.
NameChange: TypeAlias = tuple[Link, ...]


class Journal:
    """The changes of names that are not stable yet, of all directories, in order."""

    def __init__(self) -> None:
        self.changes: list[NameChange] = []

    def sync(self, directory: DirectoryNode) -> None:
        """Make stable all changes in a directory, with those elsewhere that they depend on."""
        for change in self.take(directory):
            for link in change:
                link.apply_stable()

    def take(self, directory: DirectoryNode) -> list[NameChange]:
        """Remove and return a directory's changes, and those elsewhere that come before a common one."""
        directories = {directory.serial}
        taken: list[NameChange] = []
        left: list[NameChange] = []
        for change in reversed(self.changes):
            touched = {link.directory.serial for link in change}
            if touched & directories:
                directories |= touched
                taken.append(change)
            else:
                left.append(change)
        self.changes = left[::-1]
        return taken[::-1]

    def surviving(self, rng: Random) -> list[NameChange]:
        """What a power loss may leave: of each directory's changes a prefix."""
        counts: dict[int, int] = {}
        for change in self.changes:
            for serial in {link.directory.serial for link in change}:
                counts[serial] = counts.get(serial, 0) + 1
        left = {serial: rng.randint(0, count) for serial, count in counts.items()}
        survivors = []
        for change in self.changes:
            touched = {link.directory.serial for link in change}
            if all(left[serial] > 0 for serial in touched):
                survivors.append(change)
                for serial in touched:
                    left[serial] -= 1
            else:
                for serial in touched:
                    left[serial] = 0
        return survivors
