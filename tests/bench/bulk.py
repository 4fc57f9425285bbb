"""Many items at once: /batchput beside raw plyvel batches, /readrange beside a raw plyvel scan of the same files."""

from __future__ import annotations

import shutil
import time
import urllib.request
from pathlib import Path

from bench import limits
from bench.batches import ITEMS, body_of, send_batches, write_plyvel
from bench.filling import fill, wait_settled
from bench.harness import kvnode
from bench.results import OURS, Facts, Measure, take_turns

PLYVEL = "raw plyvel"

_VALUE = "v" * 98


def batch_puts(folder: Path, batches: int, rounds: int) -> Measure:
    """Items a second of batches of 1,000."""
    with kvnode(folder / "batches") as node:
        host, port = node.url.removeprefix("http://").split(":")
        bodies = [body_of(batch, _VALUE) for batch in range(batches)]
        value = f'"{_VALUE}"'.encode()
        sides = {
            OURS: lambda _: send_batches(host, int(port), bodies),
            PLYVEL: lambda _: write_plyvel(folder / "plyvel", range(batches), value),
        }
        return take_turns("batch", f"/batchput of {ITEMS:,}", "items/s", sides, rounds, warm=True)


def range_reads(folder: Path, items: int, rounds: int) -> tuple[Measure, Facts]:
    """Items a second of one streamed /readrange over everything, and of `cp -r` of the same files in MB/s."""
    data, copy = folder / "range", folder / "range-copy"
    with kvnode(data) as node:
        fill(node.url, 0, items)
        wait_settled(data / "db")
    # Where the node has it open, plyvel cannot.
    shutil.copytree(data / "db", copy)
    with kvnode(data) as node:

        def stream(_: int) -> float:
            began, size = time.perf_counter(), 0
            with urllib.request.urlopen(f"{node.url}/readrange", timeout=600) as answer:
                while part := answer.read(1 << 20):
                    size += len(part)
                    last = part
            taken = time.perf_counter() - began
            # The count stands at the end of an answer that is whole.
            if f'"count":{items},'.encode() not in last:
                raise RuntimeError(f"/readrange did not stream {items} items but ended with {last[-100:]!r}")
            return items / taken

        sides = {OURS: stream, PLYVEL: lambda _: limits.scan_rate(copy)}
        found = take_turns("range", f"/readrange, streamed, {items:,} items", "items/s", sides, rounds, warm=True)
    figures = {"cp -r of db/": [limits.copy_rate(copy, folder / "range-copied") for _ in range(rounds)]}
    shutil.rmtree(copy)
    return found, Facts("cp", "cp -r of the same LevelDB files", "MB/s", figures)
