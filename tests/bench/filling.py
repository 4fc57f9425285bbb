"""Data sets for benchmarks: many items, put in batches over a few connections, and left until LevelDB is at rest."""

from __future__ import annotations

import http.client
import queue
import threading
import time
from pathlib import Path

from bench.dialects import key_of, value_of

BATCH = 1000
CONNECTIONS = 2


def batch_body(first: int, stop: int, value_bytes: int | None = None) -> bytes:
    """The items `first` to `stop` - 1 as the body of a /batchput; `value_bytes` as in `value_of`."""
    rows = [f'{{"key":"{key_of(i)}","value":"{value_of(i, value_bytes)}"}}' for i in range(first, stop)]
    return f"[{','.join(rows)}]".encode()


def fill(url: str, first: int, stop: int, value_bytes: int | None = None) -> None:
    """Put the items `first` to `stop` - 1.

    Raises:
        RuntimeError: a batch was not taken.
    """
    host, port = url.removeprefix("http://").split(":")
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for begin in range(first, stop, BATCH):
        waiting.put(begin)
    failures: list[str] = []

    def send() -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=120)
        try:
            while not failures:
                try:
                    begin = waiting.get_nowait()
                except queue.Empty:
                    return
                connection.request("POST", "/batchput", batch_body(begin, min(begin + BATCH, stop), value_bytes))
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    failures.append(text.decode())
        except (OSError, http.client.HTTPException) as error:
            failures.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(failures[0])


def wait_settled(db: Path, timeout_s: float = 120.0) -> None:
    """Return once LevelDB has compacted what it wants to: its files have not changed for a while; or after a time."""
    names: set[str] = set()
    deadline = time.monotonic() + timeout_s
    since = time.monotonic()
    while time.monotonic() < min(since + 2.0, deadline):
        time.sleep(0.1)
        if (now := {path.name for path in db.iterdir()}) != names:
            names, since = now, time.monotonic()


def resident_mib(pid: int) -> dict[str, float]:
    """RssAnon (what the process allocated) and RssFile (mapped files) of a process, MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}
