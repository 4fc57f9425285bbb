"""POST /batchput of 1,000 items beside raw plyvel write batches of the same items.

Run it as ``.venv/bin/python tests/bench/batches.py [--rounds N] [--batches N]``. A few connections send
the next batch when the last is answered, so that the node always has one to work on; plyvel's side is one plain loop.
"""

from __future__ import annotations

import argparse
import http.client
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path

import plyvel

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.harness import TABLE_HEAD, alternate, kvnode

ITEMS = 1000
CONNECTIONS = 4


def keys_of(batch: int) -> list[str]:
    """The keys of one batch; they come in no order, as users' keys do."""
    return [f"key-{(batch * ITEMS + i) * 7919 % 10_000_000:010d}" for i in range(ITEMS)]


def body_of(batch: int, value: str) -> bytes:
    """A batch as the request body."""
    return ("[" + ",".join(f'{{"key":"{key}","value":"{value}"}}' for key in keys_of(batch)) + "]").encode()


def send_batches(host: str, port: int, bodies: list[bytes]) -> float:
    """Items per second of sending all `bodies`, `CONNECTIONS` at a time."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for body in bodies:
        waiting.put(body)
    failures: list[str] = []

    def send() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            while True:
                try:
                    body = waiting.get_nowait()
                except queue.Empty:
                    return
                connection.request("POST", "/batchput", body)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    failures.append(text.decode())
                    return
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - started
    if failures:
        raise RuntimeError(failures[0])
    return len(bodies) * ITEMS / taken


def write_plyvel(folder: Path, batches: range, value: bytes) -> float:
    """Items per second of plain plyvel write batches, not synced, in a database with plyvel's own settings.

    Like the node's, the database stays from round to round, so that both sides overwrite and compact.
    """
    with_keys = [[key.encode() for key in keys_of(batch)] for batch in batches]
    database = plyvel.DB(str(folder), create_if_missing=True)
    started = time.perf_counter()
    for keys in with_keys:
        with database.write_batch() as write_batch:
            for key in keys:
                write_batch.put(key, value)
    taken = time.perf_counter() - started
    database.close()
    return len(batches) * ITEMS / taken


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=300)
    given = parser.parse_args()
    value = "v" * 98
    with tempfile.TemporaryDirectory() as folder, kvnode(Path(folder) / "data") as node:
        bodies = [body_of(batch, value) for batch in range(given.batches)]
        host, port = node.url.removeprefix("http://").split(":")
        result = alternate(
            f"/batchput of {ITEMS:,}",
            lambda: send_batches(host, int(port), bodies),
            lambda: write_plyvel(Path(folder) / "plyvel", range(given.batches), f'"{value}"'.encode()),
            given.rounds,
        )
    print(TABLE_HEAD)
    print(result.row("items/s"))


if __name__ == "__main__":
    main()
