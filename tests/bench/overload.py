"""More connections than a node can serve: throughput, latency, refusals and memory as they grow, and what is kept.

Clients are wrk's connections, each of which sends its next request as soon as the last one is answered, refused or not.
The latencies are those of all answers, refusals included: a node that refuses many lets those wait their turn, and wrk
comes back at once, so that the share of refusals (2 %) is what the p99 shows, and the p95 is of requests that are
served. The no-op application is asked for the same: what it loses with more connections is the load's and the kernel's
part.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.dialects import KVNODE, fills, gets, key_of, puts, value_of
from bench.filling import resident_mib
from bench.harness import kvnode
from bench.load import from_pool, measure
from bench.peers.servers import exchange
from bench.results import Curve, Facts
from bench.serving import CONNECTIONS, HOT_KEYS, PUT_KEYS, Pace, as_json_put

from support.node_process import NodeProcess

#: Ten times the connections of the other measures, and beyond.
LEVELS = (16, CONNECTIONS, 4 * CONNECTIONS, 10 * CONNECTIONS, 40 * CONNECTIONS, 80 * CONNECTIONS)

#: Around a node that serves `CONNECTIONS` at a time, which is where its puts are at their peak.
REFUSING_LEVELS = (CONNECTIONS, 2 * CONNECTIONS, 5 * CONNECTIONS, 10 * CONNECTIONS)

#: Counts refusals apart from whatever else is not 200.
_COUNTING = """
counted = {"refused", "unexpected"}
refused, unexpected = 0, 0
response = function(status, headers, body)
  if status == 503 and string.find(body, '"overloaded"', 1, true) then
    refused = refused + 1
  elseif status ~= 200 then
    unexpected = unexpected + 1
  end
end
"""

#: Notes the key of each put that was acknowledged.
_NOTING = """
local acknowledged = assert(io.open("%s", "w"))
response = function(status, headers, body)
  if status == 200 then
    acknowledged:write(string.match(body, '"key":"([^"]+)"'), "\\n")
  end
end
"""

_AUDIT_KEYS = 400_000
_SAMPLE_S = 0.1


def affordable(levels: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `levels` for which this process may open the sockets."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return tuple(level for level in levels if level + 200 <= soft)


@dataclass(slots=True)
class _Peak:
    """The most that a process needed while it was watched.

    Attributes:
        memory_mib: anonymous memory.
        files: open files, connections included.
    """

    memory_mib: float = 0.0
    files: int = 0

    def look(self, pid: int) -> None:
        self.memory_mib = max(self.memory_mib, resident_mib(pid)["RssAnon"])
        self.files = max(self.files, _open_files(pid))


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def _watched(pid: int) -> Iterator[_Peak]:
    """What a process needs; final at the end."""
    peak = _Peak()
    peak.look(pid)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            peak.look(pid)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def curve(
    data: Path,
    kind: str,
    noop_url: str,
    pace: Pace,
    levels: tuple[int, ...] = LEVELS,
    max_connections: int | None = None,
) -> Curve:
    """One kind of request from more and more connections to one node.

    Args:
        kind: `put` or `get`.
        max_connections: that the node serves at a time; None = its default.
    """
    flags = () if max_connections is None else ("--max-connections", str(max_connections))
    requests = puts(KVNODE, PUT_KEYS, 11) if kind == "put" else gets(KVNODE, HOT_KEYS, 11)
    noop_requests = [as_json_put(request) for request in requests] if kind == "put" else requests
    rounds: dict[int, list[dict[str, float]]] = {level: [] for level in affordable(levels)}
    with kvnode(data, *flags) as node, from_pool(requests) as script, from_pool(noop_requests) as noop_script:
        if kind == "get":
            for request in fills(KVNODE, HOT_KEYS):
                exchange(node.url, request)
        for number in range(-1, pace.rounds):
            # Up and down in turn: what the node keeps of a large level is not always found at the same one.
            for level in sorted(rounds, reverse=number % 2 == 1):
                point = _point(node, script + _COUNTING, level, pace.seconds)
                point["no-op served/s"] = measure(
                    noop_url, script=noop_script, connections=level, seconds=pace.seconds
                ).rate
                if number >= 0:
                    rounds[level].append(point)
    points = [
        {column: _summary(column)([each[column] for each in found]) for column in found[0]} for found in rounds.values()
    ]
    title = "POST /put" if kind == "put" else "GET /read, hot"
    if max_connections is None:
        return Curve(f"overload-{kind}", f"{title} beyond capacity", "connections", points)
    title = f"{title} beyond capacity, {max_connections} connections served at a time"
    return Curve(f"overload-{kind}-refused", title, "connections", points)


def _summary(column: str) -> Callable[[list[float]], float]:
    """How the rounds of a column become one figure: a single error, or a peak of memory, must not be outvoted."""
    return max if column in ("other errors", "RssAnon MiB", "max ms") else statistics.median


def _point(node: NodeProcess, script: str, level: int, seconds: float) -> dict[str, float]:
    before = _open_files(node.pid)
    with _watched(node.pid) as peak:
        load = measure(node.url, script=script, connections=level, seconds=seconds)
    refused = load.counts.get("refused", 0)
    answers = load.answers
    unexpected = load.counts.get("unexpected", 0)
    sockets = sum(count for kind, count in load.errors.items() if kind != "status")
    return {
        "connections": level,
        "accepted": max(peak.files - before, 0),
        "served/s": load.rate * (answers - refused - unexpected) / answers if answers else 0.0,
        "p50 ms": load.p50_ms,
        "p95 ms": load.percentiles_ms[95],
        "p99 ms": load.p99_ms,
        "max ms": load.percentiles_ms[100],
        "refused share": refused / answers if answers else 0.0,
        "other errors": unexpected + sockets,
        "RssAnon MiB": peak.memory_mib,
    }


def lost_when_killed(data: Path, connections: int, seconds: float) -> Facts:
    """Kill a node under such a load, start it again, and look for every put that was acknowledged."""
    node = NodeProcess(data)
    node.start()
    node.wait_ready()
    requests = [KVNODE.put(key_of(number), value_of(number)) for number in range(_AUDIT_KEYS)]
    with tempfile.NamedTemporaryFile("r", suffix=".acknowledged") as noted, from_pool(requests) as script:
        load = threading.Thread(
            target=_load_and_ignore, args=(node.url, script + _NOTING % noted.name, connections, seconds + 2.0)
        )
        load.start()
        # wrk first reads its requests, which takes its time on a busy machine.
        while load.is_alive() and not os.path.getsize(noted.name):
            time.sleep(0.01)
        time.sleep(seconds)
        node.kill()
        load.join()
        acknowledged = set(noted.read().split("\n")[:-1])
    node.start()
    node.wait_ready(120.0)
    try:
        kept = _everything(node.url)
    finally:
        node.stop()
    lost = sum(1 for key in acknowledged if kept.get(key) != value_of(int(key.removeprefix("key-"))))
    title = f"kill -9 under {connections} connections that put"
    figures = {"acknowledged": [float(len(acknowledged))], "of them lost": [float(lost)]}
    return Facts("overload-audit", title, "keys", figures)


def _load_and_ignore(url: str, script: str, connections: int, seconds: float) -> None:
    """The node is killed on purpose: what wrk says of errors means nothing."""
    measure(url, script=script, connections=connections, seconds=seconds)


def _everything(url: str) -> dict[str, str]:
    """All keys and values of a node."""
    found: dict[str, str] = {}
    request = urllib.request.Request(f"{url}/readrange", headers={"Accept": "application/x-ndjson"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            item: dict[str, str] = json.loads(line)
            if "key" in item:
                found[item["key"]] = item["value"]
    return found
