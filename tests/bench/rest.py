"""REST beside a no-op aiohttp application: durable puts, hot reads, and hot reads while a cold scan runs.

Run it as ``.venv/bin/python tests/bench/rest.py [--rounds N] [--seconds S]``; it needs Debian's wrk.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.harness import TABLE_HEAD, Load, alternate, kvnode, noop_server, wrk

#: Puts of 100,000 different keys, with values of 64 bytes.
PUT_SCRIPT = """
local count = 0
request = function()
  count = count + 1
  local key = string.format("key-%08d", (count * 7919) % 100000)
  return wrk.format("POST", nil, nil, '{"key":"' .. key .. '","value":"' .. string.rep("v", 62) .. '"}')
end
"""

#: Reads of 1,000 keys that fit the cache.
GET_SCRIPT = """
local count = 0
request = function()
  count = count + 1
  return wrk.format("GET", string.format("/read/key-%08d", (count * 7) % 1000))
end
"""


def fill(url: str, items: int, value_bytes: int) -> None:
    """Put `items` keys in batches."""
    value = "v" * value_bytes
    for first in range(0, items, 1000):
        rows = [f'{{"key":"key-{i:08d}","value":"{value}"}}' for i in range(first, min(first + 1000, items))]
        request = urllib.request.Request(f"{url}/batchput", data=f"[{','.join(rows)}]".encode(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


def reads_during_scan(url: str, seconds: float) -> Load:
    """The load of hot reads while a client streams the whole range again and again."""
    stop = threading.Event()

    def scan() -> None:
        while not stop.is_set():
            with urllib.request.urlopen(f"{url}/readrange", timeout=60) as answer:
                while not stop.is_set() and answer.read(1 << 16):
                    pass

    thread = threading.Thread(target=scan)
    thread.start()
    try:
        return wrk(url, script=GET_SCRIPT, seconds=seconds)
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    rounds, seconds = given.rounds, given.seconds
    with tempfile.TemporaryDirectory() as folder, noop_server() as noop, kvnode(Path(folder) / "data") as node:
        puts = alternate(
            "durable POST /put, 64 connections",
            lambda: wrk(f"{node.url}/put", script=PUT_SCRIPT, seconds=seconds).rate,
            lambda: wrk(f"{noop}/put", script=PUT_SCRIPT, seconds=seconds).rate,
            rounds,
        )
        fill(node.url, 1000, 64)
        gets = alternate(
            "hot GET /read, 64 connections",
            lambda: wrk(node.url, script=GET_SCRIPT, seconds=seconds).rate,
            lambda: wrk(noop, script=GET_SCRIPT, seconds=seconds).rate,
            rounds,
        )
        fill(node.url, 500_000, 512)
        fill(node.url, 1000, 64)
        quiet, scanned = [], []
        for _ in range(rounds):
            quiet.append(wrk(node.url, script=GET_SCRIPT, seconds=seconds).p99_ms)
            scanned.append(reads_during_scan(node.url, seconds).p99_ms)
    print(TABLE_HEAD)
    print(puts.row("requests/s"))
    print(gets.row("requests/s"))
    ratios = sorted(during / without for during, without in zip(scanned, quiet, strict=True))
    medians = f"{statistics.median(scanned):.2f} | {statistics.median(quiet):.2f}"
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"| p99 of hot GET /read during a full scan | {medians} | ms | {statistics.median(ratios):.2f} | {spread} |")


if __name__ == "__main__":
    main()
