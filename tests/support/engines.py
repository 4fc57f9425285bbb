"""Small LevelDB engines, a sorted-dict model of what they should answer, and ways to damage their files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvnode.node.api import Item, KeyRange
from kvnode.node.storage.engine import Engine
from kvnode.node.storage.leveldb import LevelDbEngine, LevelDbFactory
from kvnode.protocol.snapshot import RecordFields
from kvnode.protocol.types import Entry, Epoch, Op, put

EPOCH = Epoch.of(3, 0x9F2C1A7B)

#: As small as LevelDB allows, so that a few records fill several blocks.
SMALL = LevelDbFactory(write_buffer_bytes=65536, block_cache_bytes=65536, open_files=74, block_bytes=1024)

#: The same, with bytes in the tables as they were put.
PLAIN = LevelDbFactory(
    write_buffer_bytes=65536, block_cache_bytes=65536, open_files=74, block_bytes=1024, compression=None
)


@contextmanager
def fast_directory() -> Iterator[Path]:
    """A directory in memory where there is one, for tests that open a database thousands of times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


def entry(seq: int, ops: Sequence[Op]) -> Entry:
    """An entry with a time that follows from its seq."""
    return Entry(seq, EPOCH, 1000 + seq, ops)


def fill(engine: Engine, seq: int, records: Mapping[bytes, bytes]) -> None:
    """Put some records by one entry."""
    engine.write([entry(seq, [put(key, value) for key, value in records.items()])], synced=True)


@contextmanager
def opened(factory: LevelDbFactory, path: Path, *, paranoid: bool = True) -> Iterator[LevelDbEngine]:
    """An engine that is closed in the end."""
    engine = factory(path, paranoid=paranoid)
    assert isinstance(engine, LevelDbEngine)
    try:
        yield engine
    finally:
        assert engine.close(10)


def read_range(engine: Engine, wanted: KeyRange, max_items: int = 1000) -> tuple[list[Item], bytes | None]:
    """Everything a scan hands out, and its next key."""
    scan = engine.scan(wanted)
    try:
        items: list[Item] = []
        while some := scan.next_items(max_items, 1 << 20):
            items += some
        assert scan.ended
        return items, scan.next_key
    finally:
        scan.close()


def read_records(engine: Engine, after_key: bytes = b"", max_bytes: int = 1 << 20) -> list[list[RecordFields]]:
    """What each step of a walk over the records hands out, up to its end."""
    scan = engine.scan_records(after_key)
    try:
        groups = []
        while some := scan.next_records(max_bytes):
            groups.append(some)
        return groups
    finally:
        scan.close()


def read_values_after(engine: Engine, after_key: bytes = b"", max_bytes: int = 1 << 20) -> list[Item]:
    """Keys and values of `read_records`."""
    return [(key, value) for group in read_records(engine, after_key, max_bytes) for key, _, _, _, value in group]


def expect_range(records: Mapping[bytes, bytes], wanted: KeyRange) -> tuple[list[Item], bytes | None]:
    """What `read_range` must come to where these are the records."""
    keys = [
        key
        for key in sorted(records, reverse=wanted.reverse)
        if key.startswith(wanted.prefix)
        and (wanted.first is None or key >= wanted.first)
        and (wanted.last is None or key <= wanted.last)
    ]
    limit = len(keys) if wanted.limit is None else wanted.limit
    return [(key, records[key]) for key in keys[:limit]], keys[limit] if limit < len(keys) else None


def read_values(engine: Engine, keys: Sequence[bytes]) -> list[bytes | Exception | None]:
    """The keys' values, None where there is none, or why it cannot be told."""
    found, _ = engine.read(keys)
    return [each if each is None or isinstance(each, Exception) else each.value for each in found]


def tables(path: Path) -> list[Path]:
    """LevelDB's table files, oldest first."""
    return sorted(path.glob("*.ldb"))


@contextmanager
def flipped(path: Path, offset: int, mask: int) -> Iterator[None]:
    """Change one byte of a file in place, as seen by those who have it mapped too, and put it back in the end."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        good = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([good[0] ^ mask]), offset)
        try:
            yield
        finally:
            os.pwrite(descriptor, good, offset)
    finally:
        os.close(descriptor)
