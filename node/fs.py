"""The seam to the disk: the few file operations that the log and the directory's small files are made of.

Everything the storage code does to files outside LevelDB goes through `Fs`, so that tests can replace the disk by one
that fills up, fails, or forgets what was not synced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol


class Space(NamedTuple):
    """Of a file system, in bytes; `free_bytes` is what this process may use."""

    size_bytes: int
    free_bytes: int


class File(Protocol):
    """An open file. Offsets and sizes are bytes."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`. On OSError any part of it may have been written."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""

    def allocate(self, size: int) -> None:
        """Make the file at least `size` bytes long with room reserved on disk; new bytes read as zero."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, or extend it with zeros."""

    def sync(self) -> None:
        """Return once the file's data and size are on stable storage."""

    def size(self) -> int:
        """The file's length."""

    def close(self) -> None:
        """Close it; nothing is synced."""


class Fs(Protocol):
    """A file system. Operations raise OSError as the ones of `os` do."""

    def create(self, path: Path) -> File:
        """Open a new file for reading and writing; one that exists is emptied."""

    def open(self, path: Path, *, writable: bool) -> File:
        """Open an existing file."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory, replacing a target file atomically. Durable after `sync_directory`."""

    def unlink(self, path: Path) -> None:
        """Remove a file. Durable after `sync_directory`."""

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all that is in it, in any order; one that is not there is fine.

        On OSError a part may be left. Durable after `sync_directory` of its parent.
        """

    def make_directory(self, path: Path) -> None:
        """Make a directory; one that exists is fine. Durable after `sync_directory` of its parent."""

    def list_names(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""

    def exists(self, path: Path) -> bool:
        """Whether anything is there."""

    def sync_directory(self, path: Path) -> None:
        """Return once the directory's entries are on stable storage."""

    def space(self, path: Path) -> Space:
        """The size of the file system that a path is on, and what of it is free."""


class RealFile:
    """`File` on a file descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write_at(self, offset: int, data: bytes) -> None:
        written = os.pwrite(self._fd, data, offset)
        while written < len(data):
            written += os.pwrite(self._fd, memoryview(data)[written:], offset + written)

    def read_at(self, offset: int, size: int) -> bytes:
        parts = []
        while size > 0:
            part = os.pread(self._fd, size, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def allocate(self, size: int) -> None:
        os.posix_fallocate(self._fd, 0, size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)


class RealFs:
    """`Fs` on the operating system's files."""

    def create(self, path: Path) -> RealFile:
        return RealFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640))

    def open(self, path: Path, *, writable: bool) -> RealFile:
        return RealFile(os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC))

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def make_directory(self, path: Path) -> None:
        os.makedirs(path, mode=0o750, exist_ok=True)

    def list_names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: Path) -> bool:
        return path.exists()

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def space(self, path: Path) -> Space:
        found = os.statvfs(path)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def read_file(fs: Fs, path: Path) -> bytes:
    """All bytes of a file."""
    file = fs.open(path, writable=False)
    try:
        return file.read_at(0, file.size())
    finally:
        file.close()


def replace_file(fs: Fs, path: Path, data: bytes) -> None:
    """Replace a small file: after a crash either the old or the new content is there, after return the new.

    Writes ``NAME.tmp`` beside it; a left-over one is deleted at the next start.
    """
    temporary = path.with_name(path.name + ".tmp")
    file = fs.create(temporary)
    try:
        file.write_at(0, data)
        file.sync()
    finally:
        file.close()
    fs.rename(temporary, path)
    fs.sync_directory(path.parent)
