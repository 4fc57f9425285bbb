"""What a replica costs the primary's disk thread and its own, a record: reading the log, walking and copying LevelDB.

Run it as ``.venv/bin/python tests/bench/copying.py [--records N]``. Beside each stands the plainest loop that does the
same to the disk, in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plyvel

from kvnode.node.config import Config
from kvnode.node.fs import RealFs
from kvnode.node.storage.leveldb import leveldb_factory
from kvnode.node.storage.logreader import LogReader
from kvnode.node.storage.wal import Wal, WalOptions
from kvnode.protocol.entry import EntryEncoder, payload_crc
from kvnode.protocol.fields import LogRecord
from kvnode.protocol.types import Entry, Epoch, Position, put

READ_BYTES = 256 * 1024
EPOCH = Epoch.of(3, 7)
GROUP = 1000
ROUNDS = 3


def entry(seq: int) -> Entry:
    """A put of a value of 100 bytes; keys come in no order, as users' keys do."""
    return Entry(seq, EPOCH, 1_700_000_000_000 + seq, (put(b"key-%010d" % (seq * 7919 % 10_000_000), b"v" * 100),))


def best(what: str, records: int, run: Callable[[], object]) -> None:
    """Print the shortest of some runs."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    print(f"{what:42} {min(times) / records * 1e6:6.2f} us a record")


def measure_log(directory: Path, records: int) -> None:
    """Read a log from its begin to its end."""
    directory.mkdir()
    wal = Wal.create(RealFs(), directory, bytes(16), WalOptions(64 << 20, 1 << 40, sync=False), 1)
    encode = EntryEncoder().encode
    for first in range(1, records + 1, GROUP):
        payloads = [encode(entry(seq)) for seq in range(first, min(first + GROUP, records + 1))]
        wal.append([LogRecord(payload_crc(payload), payload) for payload in payloads])

    def read() -> None:
        reader, seq = LogReader(RealFs(), wal), 1
        while seq <= records:
            seq += len(reader.read(seq, records, READ_BYTES)[0])
        reader.close()

    def read_bytes() -> None:
        for segment in wal.segments:
            payload_crc((directory / segment.name).read_bytes()[: segment.end])

    best("log: LogReader.read", records, read)
    best("log: all bytes, one CRC", records, read_bytes)
    wal.abandon()


def measure_engine(directory: Path, records: int) -> None:
    """Walk over a LevelDB, and copy what comes into another."""
    factory = leveldb_factory(Config())
    source: Any = factory(directory / "source", paranoid=True)
    for first in range(1, records + 1, GROUP):
        source.write([entry(seq) for seq in range(first, min(first + GROUP, records + 1))], synced=True)
    source.flush()
    chunks = []

    def walk() -> None:
        chunks.clear()
        scan = source.scan_records(b"")
        while found := scan.next_records(READ_BYTES):
            chunks.append(found)
        scan.close()

    best("LevelDB: scan_records", records, walk)
    best("LevelDB: plyvel's iterator", records, lambda: sum(1 for _ in source._db.iterator(verify_checksums=True)))
    targets = iter(range(100))

    def copy() -> None:
        target = factory(directory / f"target{next(targets)}", paranoid=True)
        target.flush()
        for chunk in chunks:
            target.copy_in(chunk)
        target.settle(Position(EPOCH, records), 0)
        target.flush()
        target.close(60)

    def put_plainly() -> None:
        with plyvel.DB(str(directory / f"target{next(targets)}"), create_if_missing=True) as db:
            for chunk in chunks:
                with db.write_batch(sync=True) as batch:
                    for key, _, _, _, value in chunk:
                        batch.put(key, value)

    best("LevelDB: copy_in, settle, flush", records, copy)
    best("LevelDB: plyvel's synced batches", records, put_plainly)
    source.close(60)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    records = parser.parse_args().records
    with tempfile.TemporaryDirectory() as directory:
        measure_log(Path(directory) / "wal", records)
        measure_engine(Path(directory), records)


if __name__ == "__main__":
    main()
