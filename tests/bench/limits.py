"""What the disk and LevelDB give when nothing stands in between: raw plyvel, raw write + fdatasync, `cp`."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from itertools import islice
from pathlib import Path
from typing import Any

import plyvel

#: Bytes of one record in the log of a small put, about.
RECORD_BYTES = 128


def synced_writes(folder: Path, records_a_sync: int, seconds: float) -> float:
    """Records a second that are written behind one another in a preallocated file and synced in groups."""
    path = folder / "synced"
    group = random.Random(1).randbytes(RECORD_BYTES * records_a_sync)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        size = 64 << 20
        os.posix_fallocate(file, 0, size)
        os.fsync(file)
        began, syncs, offset = time.perf_counter(), 0, 0
        while (taken := time.perf_counter() - began) < seconds:
            os.pwrite(file, group, offset)
            os.fdatasync(file)
            syncs += 1
            offset = (offset + len(group)) % (size - len(group))
        return syncs * records_a_sync / taken
    finally:
        os.close(file)
        path.unlink()


def scan_rate(db: Path) -> float:
    """Items a second of one walk over a LevelDB with plyvel's own settings; the time of opening it is not counted."""
    database: Any = plyvel.DB(str(db))
    try:
        began, count = time.perf_counter(), 0
        for _key, _value in database.iterator():
            count += 1
        return count / (time.perf_counter() - began)
    finally:
        database.close()


def copy_records_rate(db: Path, folder: Path, data_bytes: int) -> float:
    """MB a second, of `data_bytes` of keys and values, of a LevelDB's records put into another one in their order.

    By plyvel alone, in one process: an iterator that checks, and synced batches of what kvnode syncs at once, with the
    sizes that kvnode sets. The source is copied first, lest somebody has it open; that time is not counted.
    """
    source_path, target_path = folder / "records", folder / "records-copied"
    shutil.copytree(db, source_path)
    options = {"write_buffer_size": 8 << 20, "max_file_size": 1 << 20, "paranoid_checks": True}
    source: Any = plyvel.DB(str(source_path), **options)
    target: Any = plyvel.DB(str(target_path), create_if_missing=True, **options)
    try:
        began = time.perf_counter()
        records = source.iterator(verify_checksums=True, fill_cache=False)
        while chunk := list(islice(records, 4096)):
            with target.write_batch(sync=True) as batch:
                for key, value in chunk:
                    batch.put(key, value)
        # What is still in memory is written to tables, as a full sync does in the end.
        target.compact_range(start=b"\x00", stop=b"\x00")
        return data_bytes / (time.perf_counter() - began) / 1e6
    finally:
        source.close()
        target.close()
        shutil.rmtree(source_path)
        shutil.rmtree(target_path)


def copy_rate(source: Path, target: Path) -> float:
    """MB a second of `cp -r`; what it made is removed."""
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    began = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True, timeout=600)
    taken = time.perf_counter() - began
    shutil.rmtree(target)
    return size / taken / 1e6
