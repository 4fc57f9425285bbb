"""Resident memory while a data set many times the configured memory is loaded, scanned and read at random.

Run it as ``.venv/bin/python tests/bench/memory.py [--items N]``: values of 1 KiB; LevelDB's two write buffers, its
block cache and the read cache make 64 MiB together. RssAnon is what the node allocated, RssFile are pages of mapped
files, most of them LevelDB's tables, which the kernel takes back when it needs them.
"""

from __future__ import annotations

import argparse
import http.client
import random
import sys
import tempfile
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.filling import resident_mib
from bench.harness import kvnode

MiB = 1024 * 1024
BATCH = 1000

#: 2 x 8 MiB of write buffers, 16 MiB of blocks, 32 MiB of records.
SETTINGS = (
    *("--engine-write-buffer-bytes", "8MiB"),
    *("--engine-block-cache-bytes", "16MiB"),
    *("--cache-bytes", "32MiB"),
)


def load(url: str, first: int, last: int) -> None:
    """Put items `first` to `last` in batches; values do not compress."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    for begin in range(first, last, BATCH):
        rows = [
            f'{{"key":"key-{i:010d}","value":"{random.randbytes(511).hex()}"}}' for i in range(begin, begin + BATCH)
        ]
        connection.request("POST", "/batchput", f"[{','.join(rows)}]".encode())
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            sys.exit(text.decode())
    connection.close()


def scan(url: str) -> int:
    """Stream the whole range; its size in bytes."""
    size = 0
    with urllib.request.urlopen(f"{url}/readrange", timeout=600) as answer:
        while part := answer.read(MiB):
            size += len(part)
    return size


def read_at_random(url: str, items: int, reads: int) -> None:
    """Read keys from all over the data."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    for _ in range(reads):
        connection.request("GET", f"/read/key-{random.randrange(items):010d}")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            sys.exit(f"a key is missing: {answer.status}")
    connection.close()


def main() -> None:
    """Print a line for every eighth of the load, the scans and the reads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    given = parser.parse_args()
    step = max(BATCH, given.items // 8 // BATCH * BATCH)
    with tempfile.TemporaryDirectory() as folder, kvnode(Path(folder) / "data", *SETTINGS) as node:
        print("| after | data MiB | RssAnon MiB | RssFile MiB |\n|---|---|---|---|")

        def show(what: str, items: int) -> None:
            resident = resident_mib(node.pid)
            print(f"| {what} | {items // 1024} | {resident['RssAnon']:.0f} | {resident['RssFile']:.0f} |", flush=True)

        show("start", 0)
        for first in range(0, 8 * step, step):
            load(node.url, first, first + step)
            show("load", first + step)
        for _ in range(2):
            size = scan(node.url)
            show(f"scan of {size // MiB} MiB", 8 * step)
        read_at_random(node.url, 8 * step, 20_000)
        show("20,000 random reads", 8 * step)


if __name__ == "__main__":
    main()
