"""What replication costs and how fast it is: each figure beside its yardstick, in the same run.

Run it as ``.venv/bin/python tests/bench/replication.py [--rounds N] [--seconds S]``; it needs Debian's wrk. Rows:

- puts on a primary with two replicas, beside a node without any;
- puts forwarded by a replica, beside puts on its primary (which has that replica);
- a replica that catches up with a log, in entries a second, beside the puts of a primary alone;
- a full sync in MB/s, beside ``cp -r`` of the same db/ and then sending it through a loopback socket, and beside what
  LevelDB leaves of that: its records put into another LevelDB by plyvel, in one process and without a network;
- the lag of two replicas under full write load, in entries and ms.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.filling import wait_settled
from bench.harness import TABLE_HEAD, Comparison, alternate, kvnode, wrk
from bench.limits import copy_records_rate
from bench.rest import PUT_SCRIPT

from support.node_process import NodeProcess

#: Records of the full sync, and the bytes of each one's value.
SYNC_RECORDS = 200_000
SYNC_VALUE_BYTES = 1024
#: Of keys and values.
_SYNC_BYTES = SYNC_RECORDS * (SYNC_VALUE_BYTES + 12)
#: Single puts that a replica catches up with.
LOG_ENTRIES = 200_000


@contextlib.contextmanager
def replica(primary: NodeProcess, data: Path, *flags: str) -> Iterator[NodeProcess]:
    """A replica of `primary`, level with it."""
    node = NodeProcess(data, *flags, join=primary.peer)
    node.start()
    try:
        node.wait_ready()
        wait_level(primary, node)
        yield node
    finally:
        node.stop()


def wait_level(primary: NodeProcess, node: NodeProcess, timeout_s: float = 120.0) -> None:
    """Return when `node` has applied all that `primary` has now."""
    wanted = primary.status()["applied_seq"]
    deadline = time.monotonic() + timeout_s
    while node.status()["applied_seq"] < wanted:
        assert time.monotonic() < deadline, node.text
        time.sleep(0.01)


def fill_incompressibly(url: str, items: int, value_bytes: int) -> None:
    """Put `items` keys whose values LevelDB cannot make smaller, so that its files are as large as the data."""
    values = random.Random(1)
    for first in range(0, items, 1000):
        rows = [
            {"key": f"key-{i:08d}", "value": base64.b64encode(values.randbytes(value_bytes * 3 // 4)).decode()}
            for i in range(first, min(first + 1000, items))
        ]
        request = urllib.request.Request(f"{url}/batchput", data=json.dumps(rows).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


def put_rate(url: str, seconds: float) -> float:
    """Durable puts a second, from 64 connections."""
    return wrk(f"{url}/put", script=PUT_SCRIPT, seconds=seconds).rate


def catch_up(primary: NodeProcess, folder: Path) -> float:
    """Entries a second, of a new replica that takes the whole log over."""
    entries = primary.status()["applied_seq"]
    data = folder / "late"
    node = NodeProcess(data, join=primary.peer)
    node.start()
    try:
        node.wait_ready()
        began = None
        while (applied := node.status()["applied_seq"]) < entries:
            # From the first entries on: the process's start is not what is measured.
            if applied and began is None:
                began = (time.monotonic(), applied)
            time.sleep(0.005)
        assert began is not None, "it was level before it could be watched"
        rate = (entries - began[1]) / (time.monotonic() - began[0])
        assert node.status()["full_syncs_received"] == 0
    finally:
        node.stop()
        shutil.rmtree(data)
    return rate


def full_sync(primary: NodeProcess, folder: Path) -> float:
    """MB of keys and values a second, of a new replica that takes a full sync."""
    data = folder / "synced"
    node = NodeProcess(data, join=primary.peer)
    node.start()
    try:
        node.wait_ready()
        while node.status()["full_syncs_received"] == 0:
            time.sleep(0.01)
        wait_level(primary, node)
    finally:
        node.stop()
        shutil.rmtree(data)
    times = [line for line in node.log if "event=full_sync_begins" in line or "event=full_sync_done" in line]
    began, ended = map(_seconds, times)
    return _SYNC_BYTES / (ended - began) / 1e6


def _seconds(line: str) -> float:
    """The time of a line of a node's log."""
    return datetime.fromisoformat(line.split("time=")[1].split(" ")[0]).timestamp()


def copy_and_send(db: Path, folder: Path) -> float:
    """The same data a second in MB, by ``cp -r`` of the files and then sending them through a loopback socket."""
    target = folder / "copied"
    began = time.monotonic()
    subprocess.run(["cp", "-r", db, target], check=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = threading.Thread(target=_drain, args=(listener,))
        sink.start()
        with socket.create_connection(listener.getsockname()) as connection:
            for path in sorted(target.iterdir()):
                with path.open("rb") as file:
                    connection.sendfile(file)
        sink.join()
    took = time.monotonic() - began
    shutil.rmtree(target)
    return _SYNC_BYTES / took / 1e6


def _drain(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        while connection.recv(1 << 20):
            pass


def lags(primary: NodeProcess, replicas: list[NodeProcess], seconds: float) -> tuple[list[int], list[float]]:
    """Samples of how far the replicas are behind under full write load: in entries, and in ms.

    The time is that from a write's answer on the primary until a read with its seq is answered on a replica.
    """
    entries: list[int] = []
    times_ms: list[float] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            put_rate(primary.url, seconds)

    thread = threading.Thread(target=load)
    thread.start()
    time.sleep(0.5)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            entries += [each["lag_entries"] for each in primary.status()["replicas"]]
            request = urllib.request.Request(f"{primary.url}/put", data=b'{"key":"probe","value":1}', method="POST")
            with urllib.request.urlopen(request, timeout=10) as answer:
                seq = json.load(answer)["seq"]
            for node in replicas:
                began = time.monotonic()
                with urllib.request.urlopen(f"{node.url}/read/probe?min_seq={seq}&wait=10", timeout=20) as answer:
                    answer.read()
                times_ms.append((time.monotonic() - began) * 1000)
    finally:
        stop.set()
        thread.join()
    return entries, times_ms


def pairs(name: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Comparison:
    """Both sides in turn, without a round that does not count: each round sets up its own."""
    figures = [(theirs(), ours()) for _ in range(rounds)]
    return Comparison(name, [pair[1] for pair in figures], [pair[0] for pair in figures])


def puts_with_replicas(web1: NodeProcess, solo: NodeProcess, rounds: int, seconds: float) -> Comparison:
    """Puts on a primary that has two replicas, beside a node without any."""
    return alternate(
        "put with two replicas / without",
        lambda: put_rate(web1.url, seconds),
        lambda: put_rate(solo.url, seconds),
        rounds,
    )


def forwarded_puts(folder: Path, rounds: int, seconds: float) -> Comparison:
    """Puts forwarded by a replica, beside puts on its primary."""
    with (
        kvnode(folder / "web1f", "--name", "web1") as web1,
        replica(web1, folder / "web2f", "--name", "web2") as web2,
    ):
        return alternate(
            "put forwarded by a replica / direct",
            lambda: put_rate(web2.url, seconds),
            lambda: put_rate(web1.url, seconds),
            rounds,
        )


def catch_ups(
    folder: Path, solo: NodeProcess, rounds: int, seconds: float, log_entries: int = LOG_ENTRIES
) -> Comparison:
    """A new replica that takes over a log of `log_entries` or more, beside the puts of a node alone."""
    with kvnode(folder / "log", "--name", "log") as primary:
        while primary.status()["applied_seq"] < log_entries:
            put_rate(primary.url, 3.0)
        return pairs(
            "catch-up / put rate of a node alone",
            lambda: catch_up(primary, folder),
            lambda: put_rate(solo.url, seconds),
            rounds,
        )


def full_syncs(folder: Path, rounds: int) -> tuple[Comparison, Comparison]:
    """A new replica that takes a full sync, beside `cp -r` and a socket, and beside plyvel alone."""
    flags = ("--wal-keep-bytes", "0", "--wal-segment-bytes", "16MiB", "--name", "data")
    with kvnode(folder / "data", *flags) as primary:
        fill_incompressibly(primary.url, SYNC_RECORDS, SYNC_VALUE_BYTES)
        wait_settled(folder / "data" / "db")
        db = folder / "data" / "db"
        beside_files = pairs(
            "full sync / cp -r and network",
            lambda: full_sync(primary, folder),
            lambda: copy_and_send(db, folder),
            rounds,
        )
        beside_leveldb = pairs(
            "full sync / records copied by plyvel",
            lambda: full_sync(primary, folder),
            lambda: copy_records_rate(db, folder, _SYNC_BYTES),
            rounds,
        )
        return beside_files, beside_leveldb


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", choices=("puts", "forward", "catchup", "sync", "lag"))
    given = parser.parse_args()
    rounds, seconds = given.rounds, given.seconds
    print(TABLE_HEAD)
    with tempfile.TemporaryDirectory() as name, kvnode(Path(name) / "solo", "--name", "solo") as solo:
        folder = Path(name)
        if given.only in (None, "puts", "lag"):
            with (
                kvnode(folder / "web1", "--name", "web1") as web1,
                replica(web1, folder / "web2", "--name", "web2") as web2,
                replica(web1, folder / "web3", "--name", "web3") as web3,
            ):
                if given.only != "lag":
                    print(puts_with_replicas(web1, solo, rounds, seconds).row("requests/s"), flush=True)
                if given.only != "puts":
                    entries, times_ms = lags(web1, [web2, web3], seconds * rounds)
                    quantile = statistics.quantiles(entries, n=100), statistics.quantiles(times_ms, n=100)
                    print(
                        f"| lag under full load: median, p99 | {quantile[0][49]:,.0f}, {quantile[0][98]:,.0f} entries "
                        f"| {quantile[1][49]:.1f}, {quantile[1][98]:.1f} ms | | | {len(times_ms)} samples |",
                        flush=True,
                    )
        if given.only in (None, "forward"):
            print(forwarded_puts(folder, rounds, seconds).row("requests/s"), flush=True)
        if given.only in (None, "catchup"):
            print(catch_ups(folder, solo, rounds, seconds).row("entries/s"), flush=True)
        if given.only in (None, "sync"):
            for found in full_syncs(folder, rounds):
                print(found.row("MB/s"), flush=True)


if __name__ == "__main__":
    main()
