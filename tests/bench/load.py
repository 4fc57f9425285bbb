"""HTTP load by wrk: what one round of it measured, and whether that may be counted.

The requests are made before the load and handed to wrk as a pool in a file, so that every server is asked for the same
keys and values and wrk's time goes into sending. wrk tells what it measured as one line of JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Percentiles that each load keeps, in percent.
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)

_MARK = "wrk-result "

#: Printed by wrk at the end. Latencies are in microseconds. A script may count in globals whose names `counted` lists.
_DONE = r"""
local threads = {}
setup = function(thread) threads[#threads + 1] = thread end
done = function(summary, latency, requests)
  local found, counts = {}, {}
  for _, p in ipairs({PERCENTILES}) do
    found[#found + 1] = string.format('"%g":%.1f', p, p == 100 and latency.max or latency:percentile(p))
  end
  for _, name in ipairs(counted or {}) do
    local sum = 0
    for _, thread in ipairs(threads) do sum = sum + thread:get(name) end
    counts[#counts + 1] = string.format('"%s":%d', name, sum)
  end
  local e = summary.errors
  io.write(string.format(
    '\nwrk-result {"requests":%d,"duration_us":%d,"percentiles_us":{%s},"counts":{%s},"errors":'
      .. '{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
    summary.requests, summary.duration, table.concat(found, ","), table.concat(counts, ","),
    e.connect, e.read, e.write, e.status, e.timeout))
end
""".replace("PERCENTILES", ",".join(map(str, PERCENTILES)))

#: Sends the requests of a pool in its order, from its begin again when all were sent.
_FROM_POOL = """
local pool, turn = {}, 0
local file = assert(io.open("%s", "rb"))
while true do
  local size = file:read("*n")
  if not size then break end
  file:read(1)
  pool[#pool + 1] = file:read(size)
end
file:close()
request = function()
  turn = turn %% #pool + 1
  return pool[turn]
end
"""


class NotAnswered(Exception):
    """A load was not answered as it should be; what it measured means nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of wrk measured.

    Attributes:
        answers: how many there were, whatever their status.
        rate: answers a second.
        percentiles_ms: latency by percentile, of `PERCENTILES`.
        errors: how often, by kind: `status` for an answer that is not 2xx or 3xx, `connect`, `read`, `write` and
            `timeout` for sockets.
        counts: what the script counted, see `measure`.
        counts: what the script counted.
    """

    answers: int
    rate: float
    percentiles_ms: dict[float, float]
    errors: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def p50_ms(self) -> float:
        """The median latency."""
        return self.percentiles_ms[50]

    @property
    def p99_ms(self) -> float:
        """What 99 of 100 answers did not take longer than."""
        return self.percentiles_ms[99]

    @property
    def objection(self) -> str | None:
        """Why this round must not be counted; None if it may."""
        if self.answers == 0:
            return "nothing was answered"
        wrong = [f"{count} {kind}" for kind, count in self.errors.items() if count]
        return f"errors: {', '.join(wrong)}" if wrong else None


def parse(output: str) -> Load:
    """What wrk printed, as a `Load`.

    Raises:
        ValueError: it has no result.
    """
    lines = [line.removeprefix(_MARK) for line in output.splitlines() if line.startswith(_MARK)]
    if len(lines) != 1:
        raise ValueError(f"wrk did not say what it measured:\n{output}")
    told: dict[str, Any] = json.loads(lines[0])
    percentiles_ms = {float(percent): us / 1000 for percent, us in told["percentiles_us"].items()}
    answers = told["requests"]
    return Load(answers, answers / (told["duration_us"] / 1e6), percentiles_ms, told["errors"], told["counts"])


def measure(url: str, *, script: str = "", connections: int = 64, seconds: float = 3.0, timeout_s: int = 10) -> Load:
    """Load `url` from `connections` that each send a request when the last one is answered.

    Args:
        seconds: wrk knows whole ones only, at least 1.
        script: Lua text for wrk; see `from_pool`. It may count in globals that it names in a list `counted`.
        timeout_s: after how long wrk counts an answer as a `timeout`.
    """
    program = shutil.which("wrk")
    if program is None:
        sys.exit("the HTTP benchmarks need wrk: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
        lua.write(script + _DONE)
        lua.flush()
        done = subprocess.run(
            [
                program,
                "-t1",
                f"-c{connections}",
                f"-d{max(1, round(seconds))}s",
                "--timeout",
                f"{timeout_s}s",
                "-s",
                lua.name,
                url,
            ],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
    if done.returncode != 0:
        # It could not even connect.
        return Load(0, 0.0, dict.fromkeys(map(float, PERCENTILES), 0.0), {"connect": connections})
    return parse(done.stdout)


def wrk(url: str, *, script: str | None = None, connections: int = 64, seconds: float = 3.0) -> Load:
    """As `measure`, for a load whose every answer has to be as it should be.

    Raises:
        NotAnswered: one was not.
    """
    load = measure(url, script=script or "", connections=connections, seconds=seconds)
    if load.objection is not None:
        raise NotAnswered(f"the load on {url} was not answered as it should be: {load.objection}")
    return load


def http_request(method: str, target: str, body: bytes | None = None) -> bytes:
    """One request as it goes over the wire."""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def from_pool(requests: Sequence[bytes]) -> Iterator[str]:
    """A script for wrk that sends these."""
    with tempfile.NamedTemporaryFile("wb", suffix=".pool") as file:
        for each in requests:
            file.write(b"%d\n%b" % (len(each), each))
        file.flush()
        yield _FROM_POOL % Path(file.name)
