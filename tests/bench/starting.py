"""How long a node takes to serve: after kill -9 with a full log segment to replay, and after a clean stop."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from bench.dialects import KVNODE, puts
from bench.load import from_pool, measure
from bench.results import Facts

from support.node_process import NodeProcess

#: Replaying a segment must not end a benchmark just because it is slow.
_TIMEOUT_S = 120.0

_REPLAYED = re.compile(r"event=log_replayed .*\bentries=([0-9]+)")

_KEYS = 1_000_000


def start_s(node: NodeProcess) -> float:
    """Start a node; the time until it listens, with that of starting Python."""
    began = time.perf_counter()
    node.start()
    node.wait_ready(_TIMEOUT_S)
    return time.perf_counter() - began


def replays(folder: Path, segment_bytes: int, rounds: int) -> Facts:
    """Entries a second of starts after kill -9, from the process's begin until it listens.

    The segment is filled with single puts as far as it goes without being closed.
    """
    data, copy = folder / "killed", folder / "killed-copy"
    flags = ("--wal-segment-bytes", str(segment_bytes))
    node = NodeProcess(data, *flags)
    node.start()
    node.wait_ready()
    try:
        with from_pool(puts(KVNODE, _KEYS, 7, 200_000)) as script:
            logged, step = _logged_bytes(node), 0
            # One more step must not close the segment: what a checkpoint covers is not replayed.
            while logged + 1.3 * step < segment_bytes:
                load = measure(node.url, script=script, seconds=1)
                if load.objection is not None:
                    raise RuntimeError(f"the log could not be filled: {load.objection}")
                before, logged = logged, _logged_bytes(node)
                step = max(step, logged - before)
    finally:
        node.kill()
    whole: list[float] = []
    beyond: list[float] = []
    clean: list[float] = []
    for _ in range(rounds):
        shutil.copytree(data, copy)
        again = NodeProcess(copy, *flags)
        unclean_s = start_s(again)
        entries = _replayed_entries(again)
        again.stop()
        clean_s = start_s(again)
        again.stop()
        shutil.rmtree(copy)
        whole.append(entries / unclean_s)
        beyond.append(entries / max(unclean_s - clean_s, 0.001))
        clean.append(entries)
    title = f"start after kill -9, {segment_bytes >> 20} MiB segment"
    figures = {"whole start": whole, "without what a clean start takes": beyond, "entries replayed": clean}
    return Facts("replay", title, "entries/s", figures)


def _logged_bytes(node: NodeProcess) -> int:
    log = node.status()["wal"]
    if log["segments"] > 1:
        raise RuntimeError("the segment was closed before it could be replayed")
    return int(log["bytes"])


def _replayed_entries(node: NodeProcess) -> int:
    found = _REPLAYED.search(node.text)
    if found is None:
        raise RuntimeError(f"the node replayed nothing:\n{node.text}")
    return int(found[1])


def clean_starts(data: Mapping[str, Path], rounds: int) -> Facts:
    """Seconds of starts after clean stops.

    Args:
        data: by what is in them, data directories; one that is missing is made.
    """
    figures: dict[str, list[float]] = {what: [] for what in data}
    for number in range(-1, rounds):
        for what, directory in data.items():
            node = NodeProcess(directory)
            taken = start_s(node)
            node.stop()
            if number >= 0:
                figures[what].append(taken)
    return Facts("clean-start", "start after a clean stop", "s", figures)
