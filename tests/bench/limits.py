"""What the disk and LevelDB give when nothing stands in between: raw plyvel, raw write + fdatasync, `cp`."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
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


def copy_rate(source: Path, target: Path) -> float:
    """MB a second of `cp -r`; what it made is removed."""
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    began = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True, timeout=600)
    taken = time.perf_counter() - began
    shutil.rmtree(target)
    return size / taken / 1e6
